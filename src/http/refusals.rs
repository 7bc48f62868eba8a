//! How calls refuse, as the OpenAPI document tells it: each a status with a problem as its body.
#![expect(dead_code, reason = "each says what another type's answer writes")]

use utoipa::IntoResponses;

use crate::http::problem::ProblemBody;

/// 400: what was sent broke off.
#[derive(IntoResponses)]
#[response(status = 400, description = "what was sent broke off", content_type = "application/problem+json")]
pub struct BrokenOff(ProblemBody);

/// 403: anything but a query.
#[derive(IntoResponses)]
#[response(status = 403, description = "anything but a query", content_type = "application/problem+json")]
pub struct Forbidden(ProblemBody);

/// 404: there is no such thing.
#[derive(IntoResponses)]
#[response(status = 404, description = "there is no such thing", content_type = "application/problem+json")]
pub struct NotFound(ProblemBody);

/// 406: no such format.
#[derive(IntoResponses)]
#[response(status = 406, description = "no such format", content_type = "application/problem+json")]
pub struct NotAcceptable(ProblemBody);

/// 408: the body was not complete in time.
#[derive(IntoResponses)]
#[response(status = 408, description = "the body was not complete in time", content_type = "application/problem+json")]
pub struct TimedOut(ProblemBody);

/// 409: not as the batch, or the file, stands now.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "not as the batch, or the file, stands now",
    content_type = "application/problem+json"
)]
pub struct Conflict(ProblemBody);

/// 410: before the retention.
#[derive(IntoResponses)]
#[response(status = 410, description = "before the retention", content_type = "application/problem+json")]
pub struct Gone(ProblemBody);

/// 413: too long.
#[derive(IntoResponses)]
#[response(status = 413, description = "too long", content_type = "application/problem+json")]
pub struct TooLong(ProblemBody);

/// 415: an encoding that is not known, or an archive of files.
#[derive(IntoResponses)]
#[response(
    status = 415,
    description = "an encoding that is not known, or an archive of files",
    content_type = "application/problem+json"
)]
pub struct UnknownEncoding(ProblemBody);

/// 422: something sent does not hold.
#[derive(IntoResponses)]
#[response(status = 422, description = "something sent does not hold", content_type = "application/problem+json")]
pub struct Invalid(ProblemBody);

/// 429: too much is asked at once; try again.
#[derive(IntoResponses)]
#[response(
    status = 429,
    description = "too much is asked at once; try again",
    content_type = "application/problem+json"
)]
pub struct TooMany(ProblemBody);

/// 503: busy or stopping; try again.
#[derive(IntoResponses)]
#[response(status = 503, description = "busy or stopping; try again", content_type = "application/problem+json")]
pub struct Unavailable(ProblemBody);

/// 504: not there in time.
#[derive(IntoResponses)]
#[response(status = 504, description = "not there in time", content_type = "application/problem+json")]
pub struct Late(ProblemBody);

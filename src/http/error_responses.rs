//! The error responses in the OpenAPI document: for each status, a problem as the body.
#![expect(dead_code, reason = "only their schemas are used")]

use utoipa::IntoResponses;

use crate::http::problem::ProblemBody;

/// 400: the request body was interrupted.
#[derive(IntoResponses)]
#[response(status = 400, description = "The request body was interrupted", content_type = "application/problem+json")]
pub struct UploadInterrupted(ProblemBody);

/// 403: the statement is not a query.
#[derive(IntoResponses)]
#[response(status = 403, description = "The statement is not a query", content_type = "application/problem+json")]
pub struct Forbidden(ProblemBody);

/// 404: the batch, file or vehicle does not exist.
#[derive(IntoResponses)]
#[response(
    status = 404,
    description = "The batch, file or vehicle does not exist",
    content_type = "application/problem+json"
)]
pub struct NotFound(ProblemBody);

/// 406: `Accept` has no supported format.
#[derive(IntoResponses)]
#[response(status = 406, description = "`Accept` has no supported format", content_type = "application/problem+json")]
pub struct NotAcceptable(ProblemBody);

/// 408: the request body was not complete in time.
#[derive(IntoResponses)]
#[response(
    status = 408,
    description = "The request body was not complete in time",
    content_type = "application/problem+json"
)]
pub struct TimedOut(ProblemBody);

/// 409: the state of the batch or file does not allow the request.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "The state of the batch or file does not allow the request",
    content_type = "application/problem+json"
)]
pub struct Conflict(ProblemBody);

/// 410: the epoch is older than the retention.
#[derive(IntoResponses)]
#[response(
    status = 410,
    description = "The epoch is older than the retention",
    content_type = "application/problem+json"
)]
pub struct Gone(ProblemBody);

/// 413: the request body is too large.
#[derive(IntoResponses)]
#[response(status = 413, description = "The request body is too large", content_type = "application/problem+json")]
pub struct TooLong(ProblemBody);

/// 415: the content encoding is unknown, or the body is an archive.
#[derive(IntoResponses)]
#[response(
    status = 415,
    description = "The content encoding is unknown, or the body is an archive",
    content_type = "application/problem+json"
)]
pub struct UnknownEncoding(ProblemBody);

/// 422: the request is invalid.
#[derive(IntoResponses)]
#[response(status = 422, description = "The request is invalid", content_type = "application/problem+json")]
pub struct Invalid(ProblemBody);

/// 416: the range begins after the end of the text.
#[derive(IntoResponses)]
#[response(
    status = 416,
    description = "The range begins after the end of the text",
    content_type = "application/problem+json"
)]
pub struct RangeNotSatisfiable(ProblemBody);

/// 429: too many requests at once; retry later.
#[derive(IntoResponses)]
#[response(
    status = 429,
    description = "Too many requests at once; retry later",
    content_type = "application/problem+json"
)]
pub struct TooManyRequests(ProblemBody);

/// 503: the server is busy or stopping; retry later.
#[derive(IntoResponses)]
#[response(
    status = 503,
    description = "The server is busy or stopping; retry later",
    content_type = "application/problem+json"
)]
pub struct Unavailable(ProblemBody);

/// 504: timed out.
#[derive(IntoResponses)]
#[response(status = 504, description = "Timed out", content_type = "application/problem+json")]
pub struct GatewayTimeout(ProblemBody);

/// 507: the disk is almost full; free disk space or delete batches.
#[derive(IntoResponses)]
#[response(
    status = 507,
    description = "The disk is almost full; free disk space or delete batches",
    content_type = "application/problem+json"
)]
pub struct DiskFull(ProblemBody);

//! What requests carry, with problems in our own words when it does not hold.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;

use crate::http::problem::Problem;

/// A body of JSON may have this many bytes (256 KiB).
const JSON_BYTES_MAX: usize = 256 << 10;
/// An `Idempotency-Key` may have this many bytes.
const KEY_BYTES_MAX: usize = 255;
/// What is read of a refused body before the answer: so many bytes, for so long.
const DRAIN_BYTES: usize = 256 << 20;
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// A body of JSON; bad JSON is 422.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let mut body = request.into_body().into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|reason| {
                Problem::new(StatusCode::BAD_REQUEST, "unreadable-body", format!("the body broke off: {reason}"))
            })?);
            if bytes.len() > JSON_BYTES_MAX {
                drain(&mut body).await;
                let detail = format!("the body may have at most {JSON_BYTES_MAX} bytes");
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail));
            }
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|error| Problem::invalid(format!("not the JSON expected: {error}")))?;
        Ok(JsonBody(value))
    }
}

/// Reads what still comes, within limits: a client that is sending does not
/// read an answer, and a connection that is closed on it takes the answer along.
pub async fn drain(body: &mut (impl Stream<Item = Result<Bytes, String>> + Unpin)) {
    let mut left = DRAIN_BYTES;
    let read = async {
        while let Some(Ok(chunk)) = body.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                return;
            }
        }
    };
    // A client that is still sending then gets no answer, which it must expect.
    let _ = tokio::time::timeout(DRAIN_WAIT, read).await;
}

/// The `Idempotency-Key` of a request.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid(format!("an Idempotency-Key has 1 to {KEY_BYTES_MAX} visible ASCII characters"))),
    }
}

/// The named segments of a path; ones that are no text name nothing that could be there.
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Segments(value)),
            Err(_) => Err(Problem::invalid("a name in the path is not UTF-8")),
        }
    }
}

/// The parameters of a path's query; bad ones are 422.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Parameters(value)),
            Err(rejection) => Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", rejection.body_text())),
        }
    }
}

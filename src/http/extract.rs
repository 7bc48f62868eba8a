//! Extractors of request data; invalid data is a [`Problem`] with a readable detail.

use std::collections::BTreeMap;
use std::time::Duration;

use argus_dataflow::Severity;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri};
use chrono::DateTime;
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;

use crate::http::problem::Problem;

/// The size limit of a JSON body (1 MiB).
const JSON_BYTES_MAX: usize = 1 << 20;
/// How long a client may take to send a JSON body.
const JSON_WAIT: Duration = Duration::from_secs(30);
/// The size limit of an `Idempotency-Key`.
const KEY_BYTES_MAX: usize = 255;
/// How many bytes of a refused body are read before the response.
pub const DRAIN_BYTES: usize = 256 << 20;
/// How long a refused body is read before the response.
pub const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// A JSON body. Invalid JSON is 422, and a body that is not complete in time is 408.
pub struct JsonBody<T>(pub T);

/// A type of JSON bodies.
pub trait Body: DeserializeOwned {
    /// Whether it is an object. The deserializer would take a list of its fields too.
    const IS_OBJECT: bool = true;
}

impl<T: Body, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let body = request.into_body().into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
        let bytes = read_all(body, JSON_WAIT).await?;
        if T::IS_OBJECT && bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
            return Err(Problem::invalid("invalid JSON body: it is a list, and must be an object"));
        }
        let value =
            serde_json::from_slice(&bytes).map_err(|error| Problem::invalid(format!("invalid JSON body: {error}")))?;
        Ok(JsonBody(value))
    }
}

/// Reads a whole JSON body within `wait`. Without this limit, a client that sends only the beginning would keep its
/// connection open forever.
async fn read_all(
    mut body: impl Stream<Item = Result<Bytes, String>> + Unpin,
    wait: Duration,
) -> Result<Vec<u8>, Problem> {
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|reason| {
                Problem::new(
                    StatusCode::BAD_REQUEST,
                    "unreadable-body",
                    format!("the request body was interrupted: {reason}; send it again"),
                )
            })?);
            if bytes.len() > JSON_BYTES_MAX {
                return Ok::<_, Problem>(None);
            }
        }
        Ok(Some(bytes))
    };
    let read = tokio::time::timeout(wait, read).await.map_err(|_| {
        let detail = format!("timed out: the request body was not complete after {} s; send it again", wait.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", detail)
    })??;
    match read {
        Some(bytes) => Ok(bytes),
        None => {
            drain(&mut body).await;
            let detail = format!("the request body is too large; the limit is {JSON_BYTES_MAX} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail))
        }
    }
}

/// Reads the rest of a body, within limits. A client that is still sending does
/// not read the response, and would lose it if the connection were closed.
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
    // After the limits, a client that is still sending may lose the response.
    let _ = tokio::time::timeout(DRAIN_WAIT, read).await;
}

/// The `Idempotency-Key` of a request.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Ok(Some(key.to_owned())),
        _ => {
            Err(Problem::invalid(format!("an Idempotency-Key must have 1 to {KEY_BYTES_MAX} visible ASCII characters")))
        }
    }
}

/// The named segments of a path. A segment that is not UTF-8 is 422.
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

/// The query parameters. Invalid ones are 422.
pub struct Parameters<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Parameters(value)),
            Err(rejection) => {
                let detail = parameter_error(&rejection.body_text());
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail))
            }
        }
    }
}

/// The query parameters, and apart from them the labels that are named by `label.NAME=VALUE`.
pub struct WithLabels<T>(pub T, pub BTreeMap<String, String>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for WithLabels<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let (labels, others) = split_labels(parts.uri.query().unwrap_or_default());
        // Serialised pairs are a valid query.
        let uri = format!("/?{others}").parse::<Uri>().map_err(|error| Problem::internal(&error))?;
        let mut without_labels = Request::new(()).into_parts().0;
        without_labels.uri = uri;
        let Parameters(parameters) = Parameters::from_request_parts(&mut without_labels, state).await?;
        Ok(WithLabels(parameters, labels))
    }
}

/// The labels of a query, and the query without them.
fn split_labels(query: &str) -> (BTreeMap<String, String>, String) {
    let mut labels = BTreeMap::new();
    let mut others = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match name.strip_prefix("label.") {
            Some(label) => drop(labels.insert(label.to_owned(), value.into_owned())),
            None => {
                others.append_pair(&name, &value);
            }
        }
    }
    (labels, others.finish())
}

/// A readable error about a parameter: `Failed to deserialize query string: top: invalid digit found in string` becomes
/// `top must be a whole number of at least 0`.
fn parameter_error(text: &str) -> String {
    let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(text);
    let (name, reason) = match text.split_once(": ") {
        Some((name, reason)) if !name.contains(' ') => (name, reason),
        _ => ("a parameter", text),
    };
    match reason {
        _ if reason.contains("invalid digit") || reason.contains("empty string") || reason.contains("too large") => {
            format!("{name} must be a whole number of at least 0")
        }
        _ if reason.contains("bool") => format!("{name} must be true or false"),
        _ if reason.starts_with("unknown field") => {
            reason.replace("unknown field", "unknown parameter").replace(", expected", "; expected").replace('`', "")
        }
        _ if reason.starts_with("missing field") => {
            reason.replace("missing field", "the parameter").replace('`', "") + " is missing"
        }
        _ => format!("{name}: {reason}"),
    }
}

/// A time parameter in RFC 3339, as microseconds since 1970.
pub fn time(name: &str, text: Option<&str>) -> Result<Option<i64>, Problem> {
    let parsed = text.map(|text| DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_micros())).transpose();
    parsed.map_err(|_| Problem::invalid(format!("{name} must be a time in RFC 3339, for example 2026-03-01T10:15:30Z")))
}

/// The name of a severity.
pub fn severity(word: String) -> Result<String, Problem> {
    match Severity::of(&word) {
        Some(_) => Ok(word),
        None => Err(Problem::invalid(format!("severity is {word:?}, but must be critical, error, warning or info"))),
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use futures::stream;

    use super::*;

    #[test]
    fn errors_about_parameters_are_readable() {
        for (text, readable) in [
            (
                "Failed to deserialize query string: top: invalid digit found in string",
                "top must be a whole number of at least 0",
            ),
            ("Failed to deserialize query string: missing field `firmware`", "the parameter firmware is missing"),
            (
                "Failed to deserialize query string: unknown field `x`, expected one of `a`, `b`",
                "unknown parameter x; expected one of a, b",
            ),
            (
                "inactive: provided string was not `true` or `false`",
                "inactive: provided string was not `true` or `false`",
            ),
        ] {
            assert_eq!(parameter_error(text), readable);
        }
    }

    #[tokio::test]
    async fn an_incomplete_body_times_out_and_a_complete_one_does_not() {
        let first = stream::iter([Ok(Bytes::from_static(b"{\"vin\":"))]);
        let problem =
            read_all(first.clone().chain(stream::pending()), Duration::ZERO).await.expect_err("it never ends");
        let response = problem.into_response();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("it is in memory");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["type"], "urn:argus:problem:request-timeout");
        let rest = stream::iter([Ok(Bytes::from_static(b"7}"))]);
        assert_eq!(read_all(first.chain(rest), Duration::ZERO).await.expect("it is there"), b"{\"vin\":7}");
    }
}

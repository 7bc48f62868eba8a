//! Request ids and metrics of requests, and what browsers may do with responses.
//!
//! A request id comes from the client (`X-Request-Id`) or is new. It is in the response, and in every log line that the
//! request causes.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, counter, describe_counter, describe_histogram, histogram};
use tracing::Instrument;
use uuid::Uuid;

use crate::telemetry;

/// The header of a request id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The maximum length of a client's request id; a longer one is replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The histogram of the durations of requests.
pub const DURATION: &str = "argus_http_request_duration_seconds";

/// What a browser may do with data, such as charts. Pictures have styles of their own.
const DATA_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox");

/// What the pages for trying the API may do: they have scripts of this server, and styles of their own.
const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
);

const REQUESTS: &str = "argus_http_requests_total";

/// Describes the metrics.
pub fn describe() {
    describe_counter!(REQUESTS, "HTTP requests, by method, route and status.");
    describe_histogram!(DURATION, metrics::Unit::Seconds, "How long HTTP requests take until their response begins.");
}

/// The counter of reports that bypass the router.
pub fn cached_reports() -> Counter {
    requests(&Method::GET, "/api/v1/batches/{id}/report", StatusCode::OK)
}

fn requests(method: &Method, route: &str, status: StatusCode) -> Counter {
    // A client may invent methods; each would be another time series.
    let method = match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE => method.as_str(),
        _ => "other",
    };
    counter!(REQUESTS, "method" => method.to_owned(), "route" => route.to_owned(), "status" => status.as_u16().to_string())
}

/// Runs a request with its id, and counts it.
pub async fn observe(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers().get(&REQUEST_ID));
    let method = request.method().clone();
    // The route, not the path: ids in a label would be one time series each.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), %method, route);
    telemetry::continue_trace(&span, request.headers());
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(REQUEST_ID, id);
    if route.starts_with("/docs") {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
    }
    secure(response.headers_mut());
    requests(&method, &route, response.status()).increment(1);
    histogram!(DURATION, "route" => route).record(began.elapsed().as_secs_f64());
    response
}

/// Lets a browser take a response for nothing but what it is: no script runs in it, and no other page shows it.
pub fn secure(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(DATA_POLICY);
}

fn request_id(sent: Option<&HeaderValue>) -> HeaderValue {
    let is_usable = |id: &&HeaderValue| {
        !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match sent.filter(is_usable) {
        Some(id) => id.clone(),
        // A UUID has only visible characters.
        None => HeaderValue::try_from(Uuid::now_v7().to_string()).unwrap_or(HeaderValue::from_static("none")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_the_client_is_used_if_it_is_harmless() {
        let sent = HeaderValue::from_static("abc-7");
        assert_eq!(request_id(Some(&sent)), sent);
        for bad in ["", "a b", &"x".repeat(129)] {
            let id = request_id(Some(&HeaderValue::from_str(bad).expect("a header")));
            assert!(Uuid::parse_str(id.to_str().expect("text")).is_ok(), "{bad}");
        }
        assert_ne!(request_id(None), request_id(None));
    }
}

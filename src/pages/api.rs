//! Calls of the API within the process.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use tower::ServiceExt;
use url::form_urlencoded::Serializer;

use super::layout::PageError;
use super::recent::{Answered, RecentAnswers};

/// The limit of an answer that a page shows (16 MiB).
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Rows that the SQL page shows.
pub const ROWS_MAX: usize = 1000;

/// The API. Clones share it.
#[derive(Clone)]
pub struct Api {
    router: Router,
    recent: RecentAnswers,
}

impl Api {
    /// Calls this router.
    pub fn new(router: Router) -> Api {
        Api { router, recent: RecentAnswers::new() }
    }

    /// As [`Api::get`], but if that takes long, the answer may be some seconds old.
    pub async fn get_recent(&self, path: &str, parameters: &[(&str, Option<&str>)]) -> Result<Answered, PageError> {
        let (api, address) = (self.clone(), with_parameters(path, parameters));
        self.recent.get(address.clone(), || async move { api.get(&address, &[]).await }).await
    }

    /// As [`Api::query`], but if that takes long, the answer may be some seconds old.
    pub async fn query_recent(&self, sql: &str) -> Result<Answered, PageError> {
        let (api, sql) = (self.clone(), sql.to_owned());
        self.recent.get(sql.clone(), || async move { api.query(&sql).await }).await
    }

    /// The answer to `GET /api/v1` and a path, with the parameters that have a value.
    pub async fn get(&self, path: &str, parameters: &[(&str, Option<&str>)]) -> Result<Value, PageError> {
        let uri = format!("/api/v1{}", with_parameters(path, parameters));
        let request = Request::builder().uri(uri).body(Body::empty());
        self.json(request.map_err(|_| PageError::not_found())?).await
    }

    /// The rows of a query.
    pub async fn query(&self, sql: &str) -> Result<Value, PageError> {
        self.json(query_request(sql, "application/json", Some(ROWS_MAX))?).await
    }

    /// The rows of a query in another format.
    pub async fn query_as(&self, sql: &str, media_type: &str) -> Result<Response, PageError> {
        Ok(self.call(query_request(sql, media_type, None)?).await)
    }

    /// The answer to `POST /api/v1` and a path, with a body in JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, PageError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("/api/v1{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()));
        self.json(request.map_err(|_| PageError::not_found())?).await
    }

    async fn json(&self, request: Request<Body>) -> Result<Value, PageError> {
        let response = self.call(request).await;
        let status = response.status();
        let body = to_bytes(response.into_body(), ANSWER_BYTES_MAX).await;
        let answer = body.ok().and_then(|body| serde_json::from_slice::<Value>(&body).ok());
        match (status, answer) {
            (status, Some(answer)) if status.is_success() => Ok(answer),
            (status, None) if status.is_success() => {
                let detail = "the answer is too large for a page, or was interrupted; use a filter, or the API";
                Err(PageError::new(StatusCode::BAD_GATEWAY, detail))
            }
            (status, answer) => {
                let detail = answer.as_ref().and_then(|answer| answer["detail"].as_str());
                Err(PageError::new(status, detail.unwrap_or("the server gave no reason")))
            }
        }
    }

    async fn call(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {})
    }
}

fn query_request(sql: &str, accept: &str, limit: Option<usize>) -> Result<Request<Body>, PageError> {
    let mut body = json!({"sql": sql});
    if let Some(limit) = limit {
        body["limit"] = limit.into();
    }
    let request = Request::builder()
        .method(Method::POST)
        .uri("/api/v1/query")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, accept)
        .body(Body::from(body.to_string()));
    request.map_err(|_| PageError::not_found())
}

/// A path with the parameters that have a value.
pub fn with_parameters(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            query.append_pair(name, value);
        }
    }
    match query.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

/// A segment of a path.
pub fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_every_character() {
        assert_eq!(segment("a/b c?ü"), "a%2Fb%20c%3F%C3%BC");
        let parameters = [("a", Some("1&2")), ("b", None), ("c", Some("")), ("d", Some("x y"))];
        assert_eq!(with_parameters("/batches", &parameters), "/batches?a=1%262&d=x+y");
        assert_eq!(with_parameters("/batches", &[]), "/batches");
    }
}

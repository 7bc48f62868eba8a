//! Cached answers over HTTP: their headers, and conditional requests.
//!
//! A client or a proxy may store an answer, and must revalidate it before it uses
//! it again (`Cache-Control: no-cache`). If it has not changed, the response is
//! 304. `Cache-Status` reports which cache served it (RFC 9211).

use std::sync::Arc;

use argus_query::cache::{Found, Redis, SingleFlight};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response as HttpResponse, StatusCode, header};
use axum::response::Response;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::answers::answer::Answer;
use crate::http::problem::Problem;

/// The memory limit of this cache (16 MiB). It has all JSON answers except reports.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The response to a request with these headers.
pub fn respond(answer: &Answer, found: Found, request: &HeaderMap) -> Response {
    let mut response = match is_current(answer.tag(), request) {
        true => {
            let mut response = HttpResponse::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            // The length that a 200 would have (RFC 9110, 8.6). For HEAD, the router would otherwise set 0.
            response.headers_mut().insert(header::CONTENT_LENGTH, answer.body().len().into());
            response
        }
        false => {
            let mut response = HttpResponse::new(Body::from(answer.body().clone()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.content_type()));
            response
        }
    };
    let headers = response.headers_mut();
    // A tag has visible ASCII characters only.
    if let Ok(tag) = HeaderValue::from_str(answer.tag()) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CACHE_STATUS, status(found));
    response
}

/// Whether the client's copy has this tag.
pub fn is_current(tag: &str, request: &HeaderMap) -> bool {
    request.get_all(header::IF_NONE_MATCH).iter().any(|tags| matches(tag, tags))
}

/// Whether a tag matches `If-None-Match`, by weak comparison (RFC 9110, 13.1.2).
fn matches(tag: &str, tags: &HeaderValue) -> bool {
    fn opaque(tag: &str) -> &str {
        tag.strip_prefix("W/").unwrap_or(tag)
    }
    let Ok(tags) = tags.to_str() else { return false };
    tags.split(',').map(str::trim).any(|one| one == "*" || opaque(one) == opaque(tag))
}

fn status(found: Found) -> HeaderValue {
    HeaderValue::from_static(match found {
        Found::Hit => "argus; hit",
        Found::Shared => "argus; fwd=uri-miss; collapsed",
        Found::Miss => "argus; fwd=uri-miss; stored",
        // The cache nearest to the origin comes first.
        Found::Remote => "argus-redis; hit, argus; fwd=uri-miss; stored",
        Found::Bypass => "argus; fwd=bypass",
    })
}

/// A request, and the epoch of the last change of the data that it reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AnswerKey {
    request: String,
    changed: u64,
}

/// JSON answers, cached until the data that they read changes. Clones share the cache.
#[derive(Clone)]
pub struct CachedAnswers {
    cache: SingleFlight<AnswerKey, Arc<Answer>, Problem>,
    redis: Option<Redis>,
}

impl CachedAnswers {
    /// An empty cache.
    pub fn new(redis: Option<Redis>) -> CachedAnswers {
        let bytes_of = |key: &AnswerKey, answer: &Arc<Answer>| key.request.len() + answer.bytes() + 256;
        CachedAnswers { cache: SingleFlight::new(ANSWER_BYTES_MAX, bytes_of), redis }
    }

    /// The answer to a request at `epoch`. `changed` is the epoch of the last change of the data that it reads.
    /// `compute` returns a JSON object without the epoch.
    pub async fn get<F>(
        &self,
        request: String,
        changed: u64,
        epoch: u64,
        compute: impl FnOnce() -> F,
    ) -> Result<(Answer, Found), Problem>
    where
        F: Future<Output = Result<Value, Problem>> + Send + 'static,
    {
        let redis = self.redis.clone();
        let name = redis.is_some().then(|| remote_name(&request, changed));
        let compute = || {
            let computed = compute();
            async move {
                let computed = async { computed.await.map(|value| value.to_string().into_bytes()) };
                let body = match redis.zip(name) {
                    Some((redis, name)) => redis.get(&name, computed).await?,
                    None => computed.await?,
                };
                let value: Value = serde_json::from_slice(&body).map_err(|error| Problem::internal(&error))?;
                Ok(Arc::new(Answer::at_epoch(&value, epoch)?))
            }
        };
        let (answer, found) = self.cache.get(AnswerKey { request, changed }, compute).await;
        Ok((answer?.moved_to(epoch), found))
    }
}

/// The key of a request's answer in Redis.
pub fn remote_name(request: &str, epoch: u64) -> String {
    format!("{epoch}/{}", hex::encode(Sha256::digest(request)))
}

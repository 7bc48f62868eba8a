//! Answers that are kept: how they go out, and how a client asks whether it has the last one.
//!
//! A client or a proxy may keep an answer and must ask before it uses it again
//! (`Cache-Control: no-cache`): what has not changed is 304. How we came by it
//! stands in `Cache-Status` (RFC 9211).

use std::ops::Range;
use std::sync::Arc;

use argus_query::cache::{Flights, Found, Redis};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response as HttpResponse, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::http::problem::Problem;

/// Answers that are not reports may take this much memory (16 MiB).
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// JSON, as a content type.
pub const JSON: &str = "application/json";

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// An answer as it goes out.
#[derive(Debug, Clone)]
pub struct Answer {
    kind: HeaderValue,
    body: Bytes,
    /// Names what it says.
    tag: HeaderValue,
    /// Where in the body the epoch stands that it is of, where that is not part of what it says.
    epoch: Option<Range<usize>>,
}

/// Stands for an epoch in JSON until its place is found: no other number of ours is as high.
const NO_EPOCH: &str = "\"epoch\":18446744073709551615";

impl Answer {
    /// A body of a content type that is named by its bytes.
    pub fn new(kind: &'static str, body: Vec<u8>) -> Answer {
        let tag = entity_tag("", &body);
        Answer { kind: HeaderValue::from_static(kind), body: body.into(), tag, epoch: None }
    }

    /// A body that is named by what it says, which may be less than all of it: the name is a weak one (RFC 9110, 8.8.1).
    pub fn saying(said: &[u8], kind: &'static str, body: Vec<u8>) -> Answer {
        Answer { kind: HeaderValue::from_static(kind), body: body.into(), tag: entity_tag("W/", said), epoch: None }
    }

    /// JSON with an `epoch` that moves with every change, and does not count for the name.
    pub fn json(mut value: Value) -> Answer {
        let epoch = value["epoch"].as_u64().unwrap_or_default();
        value["epoch"] = u64::MAX.into();
        let said = value.to_string().into_bytes();
        let end = memchr::memmem::find(&said, NO_EPOCH.as_bytes()).map(|place| place + NO_EPOCH.len());
        let digits = end.map(|end| end - u64::MAX.to_string().len()..end);
        let answer = Answer { epoch: digits, ..Answer::saying(&said, JSON, said.clone()) };
        answer.at(epoch)
    }

    /// The same as it is told at an epoch at which it still holds.
    pub fn at(&self, epoch: u64) -> Answer {
        let Some(digits) = self.epoch.clone() else { return self.clone() };
        let told = epoch.to_string();
        if self.body[digits.clone()] == *told.as_bytes() {
            return self.clone();
        }
        let body = [&self.body[..digits.start], told.as_bytes(), &self.body[digits.end..]].concat();
        Answer { body: body.into(), epoch: Some(digits.start..digits.start + told.len()), ..self.clone() }
    }

    /// What it consists of.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// How many bytes that are.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// Its `ETag`.
    pub fn name(&self) -> &str {
        // Made of visible ASCII.
        self.tag.to_str().unwrap_or_default()
    }

    /// The response to a request with these headers.
    pub fn respond(&self, found: Found, asked: &HeaderMap) -> Response {
        let is_known = asked.get_all(header::IF_NONE_MATCH).iter().any(|known| self.is_among(known));
        let mut response = match is_known {
            true => {
                let mut response = HttpResponse::new(Body::empty());
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                // What it would be with the body (RFC 9110, 8.6): of HEAD, the router would say 0.
                response.headers_mut().insert(header::CONTENT_LENGTH, self.body.len().into());
                response
            }
            false => {
                let mut response = HttpResponse::new(Body::from(self.body.clone()));
                response.headers_mut().insert(header::CONTENT_TYPE, self.kind.clone());
                response
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.tag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CACHE_STATUS, status(found));
        response
    }

    /// Whether the client has it already.
    fn is_among(&self, known: &HeaderValue) -> bool {
        fn strong(tag: &str) -> &str {
            tag.strip_prefix("W/").unwrap_or(tag)
        }
        let (Ok(known), Ok(tag)) = (known.to_str(), self.tag.to_str()) else { return false };
        known.split(',').map(str::trim).any(|one| one == "*" || strong(one) == strong(tag))
    }
}

fn status(found: Found) -> HeaderValue {
    HeaderValue::from_static(match found {
        Found::Hit => "argus; hit",
        Found::Shared => "argus; fwd=uri-miss; collapsed",
        Found::Miss => "argus; fwd=uri-miss; stored",
        // The cache that is nearer to the origin comes first.
        Found::Remote => "argus-redis; hit, argus; fwd=uri-miss; stored",
        Found::Bypass => "argus; fwd=bypass",
    })
}

/// The name of some bytes, `W/` before it where it is a weak one.
fn entity_tag(weak: &str, bytes: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(bytes);
    let half: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    // Quoted hexadecimal digits are a header's value.
    HeaderValue::try_from(format!("{weak}\"{half}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// What is asked, and the epoch at which what it asks for changed last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    question: String,
    changed: u64,
}

/// Answers in JSON, kept until what they are about changes. Clones share them.
#[derive(Clone)]
pub struct Answers {
    flights: Flights<Key, Arc<Answer>, Problem>,
    redis: Option<Redis>,
}

impl Answers {
    /// None yet.
    pub fn new(redis: Option<Redis>) -> Answers {
        let bytes_of = |key: &Key, answer: &Arc<Answer>| key.question.len() + answer.bytes() + 256;
        Answers { flights: Flights::new(ANSWER_BYTES_MAX, bytes_of), redis }
    }

    /// The JSON that answers a question since what it asks for changed last, as it is told at an epoch.
    pub async fn json<F>(
        &self,
        question: String,
        changed: u64,
        epoch: u64,
        compute: impl FnOnce() -> F,
    ) -> Result<(Answer, Found), Problem>
    where
        F: Future<Output = Result<Value, Problem>> + Send + 'static,
    {
        let redis = self.redis.clone();
        let name = redis.is_some().then(|| name(&question, changed));
        let compute = || {
            let computed = compute();
            async move {
                let computed = async { computed.await.map(|value| value.to_string().into_bytes()) };
                let body = match redis.zip(name) {
                    Some((redis, name)) => redis.get(&name, computed).await?,
                    None => computed.await?,
                };
                let value = serde_json::from_slice(&body).map_err(|error| Problem::internal(&error))?;
                Ok(Arc::new(Answer::json(value)))
            }
        };
        let (answer, found) = self.flights.get(Key { question, changed }, compute).await;
        Ok((answer?.at(epoch), found))
    }
}

/// The name of a question's answer between processes.
pub fn name(question: &str, epoch: u64) -> String {
    let digest: String = Sha256::digest(question).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{epoch}/{digest}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_told_at_another_epoch_under_the_same_name() {
        let answer = Answer::json(json!({"codes": ["\"epoch\":7"], "epoch": 99, "truncated": false}));
        for epoch in [99, 100, 7, u64::MAX] {
            let told = answer.at(epoch).at(5).at(epoch);
            let value: Value = serde_json::from_slice(told.body()).expect("it is JSON");
            assert_eq!(value, json!({"codes": ["\"epoch\":7"], "epoch": epoch, "truncated": false}));
            assert_eq!(told.name(), answer.name());
        }
    }
}

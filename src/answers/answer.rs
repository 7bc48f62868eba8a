//! An answer that can be cached: its bytes and its entity tag.

use std::sync::Arc;

use argus_query::QueryError;
use argus_query::cache::ComputationAborted;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::metadata::MetadataError;

/// JSON, as a content type.
pub const JSON: &str = "application/json";

/// Why there is no answer. All requests that wait for one computation get the same error.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum AnswerError {
    #[error("there is no batch {0}")]
    NoBatch(Uuid),
    #[error("the server is starting; retry later")]
    Starting,
    #[error(transparent)]
    Query(Arc<QueryError>),
    #[error(transparent)]
    Metadata(Arc<MetadataError>),
    #[error("the answer could not be encoded")]
    Write(#[source] Arc<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Aborted(#[from] ComputationAborted),
}

impl AnswerError {
    /// A value could not be encoded in the format of the answer.
    pub fn write(error: impl std::error::Error + Send + Sync + 'static) -> AnswerError {
        AnswerError::Write(Arc::new(error))
    }
}

impl From<QueryError> for AnswerError {
    fn from(error: QueryError) -> AnswerError {
        AnswerError::Query(Arc::new(error))
    }
}

impl From<MetadataError> for AnswerError {
    fn from(error: MetadataError) -> AnswerError {
        AnswerError::Metadata(Arc::new(error))
    }
}

/// An answer, ready to be sent.
#[derive(Debug, Clone)]
pub struct Answer {
    content_type: &'static str,
    body: Bytes,
    /// The entity tag (RFC 9110, 8.8.3).
    tag: Arc<str>,
    /// The epoch that the body begins with, for an answer from [`Answer::at_epoch`].
    epoch: Option<EpochField>,
}

#[derive(Debug, Clone, Copy)]
struct EpochField {
    epoch: u64,
    /// Where in the body the other fields begin.
    end: usize,
}

impl Answer {
    /// A body with a strong tag, from its bytes.
    pub fn new(content_type: &'static str, body: Vec<u8>) -> Answer {
        Answer { content_type, tag: entity_tag("", &body), body: body.into(), epoch: None }
    }

    /// A JSON object, with `epoch` added as its first field. Every change of any data advances the epoch, so the tag
    /// does not depend on the epoch; this makes it a weak tag.
    pub fn at_epoch(object: &impl Serialize, epoch: u64) -> Result<Answer, AnswerError> {
        let object = serde_json::to_vec(object).map_err(AnswerError::write)?;
        let (body, field) = with_epoch(&object[1..], epoch);
        Ok(Answer { content_type: JSON, tag: entity_tag("W/", &object), body, epoch: Some(field) })
    }

    /// The same answer at another epoch. The caller makes sure that it is valid there.
    pub fn moved_to(&self, epoch: u64) -> Answer {
        match self.epoch {
            Some(field) if field.epoch != epoch => {
                let (body, field) = with_epoch(&self.body[field.end..], epoch);
                Answer { body, epoch: Some(field), ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// The content type.
    pub fn content_type(&self) -> &'static str {
        self.content_type
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The memory size, in bytes.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }

    /// The `ETag`.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

/// A JSON object with `epoch` as its first field, before other `fields` that end with the object's brace.
fn with_epoch(fields: &[u8], epoch: u64) -> (Bytes, EpochField) {
    let comma = if fields.starts_with(b"}") { "" } else { "," };
    let begin = format!("{{\"epoch\":{epoch}{comma}");
    ([begin.as_bytes(), fields].concat().into(), EpochField { epoch, end: begin.len() })
}

/// The tag of some bytes; `weak` is `W/` for a weak tag.
fn entity_tag(weak: &str, bytes: &[u8]) -> Arc<str> {
    let half = hex::encode(&Sha256::digest(bytes)[..16]);
    format!("{weak}\"{half}\"").into()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_answer_moves_to_another_epoch_and_keeps_its_tag() {
        let object = json!({"codes": ["\"epoch\":7"], "truncated": false});
        let answer = Answer::at_epoch(&object, 99).expect("it is JSON");
        for epoch in [99, 100, 7, u64::MAX] {
            let moved = answer.moved_to(epoch).moved_to(5).moved_to(epoch);
            let value: Value = serde_json::from_slice(moved.body()).expect("it is JSON");
            assert_eq!(value, json!({"codes": ["\"epoch\":7"], "epoch": epoch, "truncated": false}));
            assert_eq!(moved.tag(), answer.tag());
        }
        let empty = Answer::at_epoch(&json!({}), 3).expect("it is JSON");
        assert_eq!(&empty.body()[..], br#"{"epoch":3}"#);
        assert_eq!(&empty.moved_to(40).body()[..], br#"{"epoch":40}"#);
    }
}

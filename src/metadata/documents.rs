//! Small documents beside batches and files, each with a kind and an id.

use serde::Serialize;

use super::MetadataError;

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// What users said of a batch's diagnosis; its id is the batch's.
    Case,
    /// What a language model wrote about a batch's findings; its id is the batch's.
    Explanation,
    /// What the language model has used on a day; its id is the day.
    Usage,
    /// An API token; its id is the token's.
    Token,
    /// An object of the inbox that is done; its id is the object's path.
    Object,
}

impl DocumentKind {
    /// The name in the database.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            DocumentKind::Case => "case",
            DocumentKind::Explanation => "explanation",
            DocumentKind::Usage => "usage",
            DocumentKind::Token => "token",
            DocumentKind::Object => "object",
        }
    }

    /// The limit of documents of this kind that have no other limit.
    pub(super) fn limit(self) -> Option<i64> {
        match self {
            DocumentKind::Case => Some(1000),
            DocumentKind::Token => Some(10_000),
            DocumentKind::Explanation | DocumentKind::Usage | DocumentKind::Object => None,
        }
    }

    /// The kinds that are deleted with their batch.
    pub(super) const OF_BATCHES: [DocumentKind; 2] = [DocumentKind::Case, DocumentKind::Explanation];
}

/// A document.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its kind.
    pub(super) kind: DocumentKind,
    /// Its id.
    pub(super) id: String,
    /// JSON.
    pub(super) body: String,
}

impl Document {
    /// What it is.
    pub fn kind(&self) -> DocumentKind {
        self.kind
    }

    /// A document with this value.
    pub fn new(kind: DocumentKind, id: impl Into<String>, value: &impl Serialize) -> Result<Document, MetadataError> {
        let body = serde_json::to_string(value).map_err(|error| MetadataError::Unreadable(error.to_string()))?;
        Ok(Document { kind, id: id.into(), body })
    }
}

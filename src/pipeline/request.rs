//! Requests to the pipeline: from clients, and internal ones.

use argus_dataflow::VersionId;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::PipelineError;
use crate::domain::batch::{Accepted, Batch, NewBatch, Part, StoredUpload};
use crate::domain::catalog::CatalogEntry;
use crate::domain::status::BatchStatus;
use crate::ingest::Claim;
use crate::metadata::{Consumed, Document, DocumentKind, Erased, EventAt, RefusedPart, UploadKey};

/// Receives the answer.
pub(super) type Reply<T> = oneshot::Sender<Result<T, PipelineError>>;

/// A change, or a notification from downstream.
pub(super) enum Request {
    CreateBatch {
        described: NewBatch,
        key: Option<String>,
        reply: Reply<Batch>,
    },
    AcceptFile {
        upload: StoredUpload,
        claim: Claim,
        key: Option<UploadKey>,
        reply: Reply<Accepted>,
    },
    RecountFile {
        upload: StoredUpload,
        claim: Claim,
        /// The version to replace, and its bytes.
        version: VersionId,
        bytes: u64,
        reply: Reply<bool>,
    },
    Append {
        part: Part,
        offset: Option<u64>,
        key: Option<UploadKey>,
        reply: Reply<Accepted>,
    },
    /// Appends the lines of records, and advances the offsets of their partitions. All batches must be loaded.
    Consume {
        parts: Vec<Part>,
        consumed: Vec<Consumed>,
        reply: Reply<Option<RefusedPart>>,
    },
    /// Loads a pending batch, so that it can change.
    Load {
        batch_id: Uuid,
        reply: Reply<()>,
    },
    Complete {
        batch_id: Uuid,
        reply: Reply<Batch>,
    },
    Reopen {
        batch_id: Uuid,
        reply: Reply<Batch>,
    },
    DeleteFile {
        batch_id: Uuid,
        name: String,
        reply: Reply<u64>,
    },
    DeleteBatch {
        batch_id: Uuid,
        reply: Reply<u64>,
    },
    /// Adds or replaces entries of the catalogue. Answers how many are new.
    PutCatalog {
        entries: Vec<CatalogEntry>,
        reply: Reply<u64>,
    },
    /// Deletes an entry of the catalogue; an empty platform or firmware stands for all.
    DeleteCatalog {
        code: String,
        platform: String,
        firmware: String,
        reply: Reply<()>,
    },
    /// Adds or replaces documents, with an event of a batch.
    PutDocuments {
        documents: Vec<Document>,
        event: Option<EventAt>,
        reply: Reply<()>,
    },
    /// Deletes a document. Answers whether there was one.
    DeleteDocument {
        kind: DocumentKind,
        id: String,
        reply: Reply<bool>,
    },
    /// Blocks were inserted for a version that will not be accepted.
    Abandon {
        version: VersionId,
    },
    /// A version of a file could not be counted.
    FileFailed {
        version: VersionId,
        failure: String,
    },
    /// The lake has committed an epoch, and the bytes withdrawn up to it are erased, except the pending ones.
    LakeCommitted {
        erased: Erased,
        reply: oneshot::Sender<()>,
    },
    /// The raw store contains the parts of a version between two offsets. Answers whether they are still needed.
    PartsAreStored {
        version: VersionId,
        start: u64,
        last_start: u64,
        reply: Reply<bool>,
    },
    /// The events up to this position are published to Kafka.
    EventsPublished {
        position: i64,
        reply: Reply<()>,
    },
    /// Deletes idempotency keys from before `keys`, and events and epoch times from before `past`. Answers whether
    /// there is more to delete.
    ForgetBefore {
        keys: i64,
        past: i64,
        reply: Reply<bool>,
    },
}

/// Whether a request is possible in a status of its batch.
pub(super) type IsPossible = fn(BatchStatus) -> bool;

impl Request {
    /// The batch whose counts the request changes, and the statuses in which it is possible.
    pub(super) fn changes(&self) -> Option<(Uuid, IsPossible)> {
        match self {
            Request::AcceptFile { upload: StoredUpload { batch_id, .. }, .. }
            | Request::Append { part: Part { batch_id, .. }, .. }
            | Request::DeleteFile { batch_id, .. }
            | Request::Load { batch_id, .. }
            | Request::Complete { batch_id, .. } => Some((*batch_id, |status| status == BatchStatus::Pending)),
            Request::Reopen { batch_id, .. } => Some((*batch_id, BatchStatus::is_at_rest)),
            Request::DeleteBatch { batch_id, .. }
            | Request::RecountFile { upload: StoredUpload { batch_id, .. }, .. } => Some((*batch_id, |_| true)),
            _ => None,
        }
    }

    /// Whether it changes who may do what.
    pub(super) fn changes_tokens(&self) -> bool {
        match self {
            Request::PutDocuments { documents, .. } => {
                documents.iter().any(|document| document.kind() == DocumentKind::Token)
            }
            Request::DeleteDocument { kind, .. } => *kind == DocumentKind::Token,
            _ => false,
        }
    }

    /// A copy of the request, if it is an internal one that nobody waits for.
    pub(super) fn copy_if_internal(&self) -> Option<Request> {
        match self {
            Request::Abandon { version } => Some(Request::Abandon { version: *version }),
            Request::FileFailed { version, failure } => {
                Some(Request::FileFailed { version: *version, failure: failure.clone() })
            }
            _ => None,
        }
    }

    /// Rejects the request. The client may have disconnected.
    pub(super) fn refuse(self, error: PipelineError) {
        match self {
            Request::CreateBatch { reply, .. } | Request::Complete { reply, .. } | Request::Reopen { reply, .. } => {
                drop(reply.send(Err(error)))
            }
            Request::AcceptFile { reply, .. } | Request::Append { reply, .. } => drop(reply.send(Err(error))),
            Request::DeleteFile { reply, .. } | Request::DeleteBatch { reply, .. } => drop(reply.send(Err(error))),
            Request::Consume { reply, .. } => drop(reply.send(Err(error))),
            Request::EventsPublished { reply, .. }
            | Request::Load { reply, .. }
            | Request::DeleteCatalog { reply, .. }
            | Request::PutDocuments { reply, .. } => drop(reply.send(Err(error))),
            Request::PutCatalog { reply, .. } => drop(reply.send(Err(error))),
            Request::PartsAreStored { reply, .. }
            | Request::ForgetBefore { reply, .. }
            | Request::DeleteDocument { reply, .. }
            | Request::RecountFile { reply, .. } => drop(reply.send(Err(error))),
            // The sender sees that the reply was dropped, and retries with the next commit.
            Request::Abandon { .. } | Request::FileFailed { .. } | Request::LakeCommitted { .. } => {}
        }
    }
}

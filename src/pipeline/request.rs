//! What the pipeline is asked for, from outside and by itself.

use argus_dataflow::VersionId;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::PipelineError;
use crate::ingest::Claim;
use crate::metadata::{Accepted, Erased, UploadKey};
use crate::model::{Batch, NewBatch, Part, StoredUpload};
use crate::status::BatchStatus;

/// Where the answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, PipelineError>>;

/// A change, or word of something that happened downstream.
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
        /// What it was counted to before, and the bytes of that.
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
    /// Blocks were fed for a generation that nobody will accept.
    Abandon {
        version: VersionId,
    },
    /// A version of a file could not be counted.
    FileFailed {
        version: VersionId,
        failure: String,
    },
    /// The lake holds everything up to an epoch, and what was taken back by then is erased, as far as it could be.
    LakeCommitted {
        erased: Erased,
        reply: oneshot::Sender<()>,
    },
    /// The raw store holds what was appended to a version between two offsets; says whether it is still wanted.
    PartsAreStored {
        version: VersionId,
        start: u64,
        last_start: u64,
        reply: Reply<bool>,
    },
    /// Nobody needs idempotency keys, and events and times of epochs, from before these times; says whether there is
    /// more to forget.
    ForgetBefore {
        keys: i64,
        past: i64,
        reply: Reply<bool>,
    },
}

/// In which statuses of a batch something can happen to it.
pub(super) type IsPossible = fn(BatchStatus) -> bool;

impl Request {
    /// The batch whose counts it changes, and in which statuses of it that is possible.
    pub(super) fn changes(&self) -> Option<(Uuid, IsPossible)> {
        match self {
            Request::AcceptFile { upload: StoredUpload { batch_id, .. }, .. }
            | Request::Append { part: Part { batch_id, .. }, .. }
            | Request::DeleteFile { batch_id, .. }
            | Request::Complete { batch_id, .. } => Some((*batch_id, |status| status == BatchStatus::Pending)),
            Request::Reopen { batch_id, .. } => Some((*batch_id, BatchStatus::is_at_rest)),
            Request::DeleteBatch { batch_id, .. }
            | Request::RecountFile { upload: StoredUpload { batch_id, .. }, .. } => Some((*batch_id, |_| true)),
            _ => None,
        }
    }

    /// The same request, when it is one that nobody outside waits for.
    pub(super) fn own(&self) -> Option<Request> {
        match self {
            Request::Abandon { version } => Some(Request::Abandon { version: *version }),
            Request::FileFailed { version, failure } => {
                Some(Request::FileFailed { version: *version, failure: failure.clone() })
            }
            _ => None,
        }
    }

    /// Refuses the request. Whoever asked may have gone away.
    pub(super) fn refuse(self, error: PipelineError) {
        match self {
            Request::CreateBatch { reply, .. } | Request::Complete { reply, .. } | Request::Reopen { reply, .. } => {
                drop(reply.send(Err(error)))
            }
            Request::AcceptFile { reply, .. } | Request::Append { reply, .. } => drop(reply.send(Err(error))),
            Request::DeleteFile { reply, .. } | Request::DeleteBatch { reply, .. } => drop(reply.send(Err(error))),
            Request::PartsAreStored { reply, .. }
            | Request::ForgetBefore { reply, .. }
            | Request::RecountFile { reply, .. } => drop(reply.send(Err(error))),
            // Whoever waits sees that it was dropped, and tries again with the next commit.
            Request::Abandon { .. } | Request::FileFailed { .. } | Request::LakeCommitted { .. } => {}
        }
    }
}

//! What the pipeline is asked for, from outside and by itself.

use argus_dataflow::VersionId;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{Gathered, PipelineError};
use crate::metadata::{Accepted, UploadKey};
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
        key: Option<UploadKey>,
        reply: Reply<Accepted>,
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
    /// The blocks of a completed batch are fed and its epoch is sealed.
    Scattered {
        batch_id: Uuid,
    },
    /// A closed epoch has the counts of a generation of a file.
    Parsed {
        batch_id: Uuid,
        file: String,
        generation: u32,
    },
    /// The frontier has passed the epoch of a completed batch.
    Gathered {
        batch_id: Uuid,
        totals: Gathered,
    },
    /// The lake holds everything up to an epoch.
    Committed {
        epoch: u64,
        forgotten: Option<oneshot::Sender<()>>,
    },
    /// The raw store holds what was appended to a version between two offsets; says whether it is still wanted.
    PartsAreStored {
        version: VersionId,
        start: u64,
        last_start: u64,
        reply: Reply<bool>,
    },
    /// Nobody needs keys and times of epochs from before these times.
    ForgetBefore {
        keys: i64,
        epochs: i64,
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
            Request::DeleteBatch { batch_id, .. } => Some((*batch_id, |_| true)),
            _ => None,
        }
    }

    /// The same request, when it is one that nobody outside waits for.
    pub(super) fn own(&self) -> Option<Request> {
        match self {
            Request::CreateBatch { .. }
            | Request::AcceptFile { .. }
            | Request::Append { .. }
            | Request::Complete { .. }
            | Request::Reopen { .. }
            | Request::DeleteFile { .. }
            | Request::DeleteBatch { .. }
            | Request::PartsAreStored { .. } => None,
            Request::Abandon { version } => Some(Request::Abandon { version: *version }),
            Request::Scattered { batch_id } => Some(Request::Scattered { batch_id: *batch_id }),
            Request::Parsed { batch_id, file, generation } => {
                Some(Request::Parsed { batch_id: *batch_id, file: file.clone(), generation: *generation })
            }
            Request::Gathered { batch_id, totals } => Some(Request::Gathered { batch_id: *batch_id, totals: *totals }),
            Request::Committed { epoch, .. } => Some(Request::Committed { epoch: *epoch, forgotten: None }),
            Request::ForgetBefore { keys, epochs } => Some(Request::ForgetBefore { keys: *keys, epochs: *epochs }),
        }
    }
}

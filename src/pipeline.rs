//! The one place where changes are accepted: request → epoch → journal →
//! dataflow → answer.
//!
//! Requests that arrive together form a round: one transaction, one sync of
//! the disk, one epoch. An answer goes out when the round is durable. Only
//! then is the epoch fed and sealed, so whatever the dataflow knows can be fed
//! again after a crash.

mod apply;
mod request;
mod sequencer;

use std::collections::HashSet;
use std::sync::Arc;

use argus_dataflow::VersionId;
use chrono::Utc;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::request::{Reply, Request};
pub use self::sequencer::{Downstream, Sequencer};
use crate::metadata::{Accepted, MetadataError, MetadataWriter, Refused, UploadKey};
use crate::model::{Batch, NewBatch, Part, StoredUpload};

/// Requests that may wait; at the limit, whoever asks waits.
const WAITING_MAX: usize = 1024;

/// Now, in microseconds since 1970.
pub fn now() -> i64 {
    Utc::now().timestamp_micros()
}

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum PipelineError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the change could not be made durable; it may be sent again")]
    NotDurable(#[source] Arc<MetadataError>),
    #[error("the change was not taken; it may be sent again")]
    Stopping,
}

/// What a batch came to when it was gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Lines of its files.
    pub total_lines: u64,
    /// Different codes in them.
    pub error_codes: u64,
}

/// Asks the pipeline. Clones ask the same one; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Pipeline {
    requests: mpsc::Sender<Request>,
}

/// Tells the pipeline what happened downstream, while it works.
#[derive(Clone, Debug)]
pub struct WeakPipeline {
    requests: mpsc::WeakSender<Request>,
}

impl WeakPipeline {
    /// The frontier has passed the epoch at which the batch was completed.
    pub async fn gathered(&self, batch_id: Uuid, totals: Gathered) {
        self.tell(Request::Gathered { batch_id, totals }).await;
    }

    /// A closed epoch has the counts of a generation of a file.
    pub async fn parsed(&self, batch_id: Uuid, file: String, generation: u32) {
        self.tell(Request::Parsed { batch_id, file, generation }).await;
    }

    /// The lake holds everything up to `epoch`.
    pub async fn committed(&self, epoch: u64) {
        self.tell(Request::Committed { epoch, forgotten: None }).await;
    }

    /// The lake holds everything up to `epoch`; returns when the bytes of what was taken back by then are gone.
    pub async fn forget_committed(&self, epoch: u64) {
        let (forgotten, done) = oneshot::channel();
        self.tell(Request::Committed { epoch, forgotten: Some(forgotten) }).await;
        // A round that failed is done again, without telling.
        let _ = done.await;
    }

    /// The raw store holds what was appended to a version from `start` to the part at `last_start`.
    /// Says whether it is still wanted.
    pub async fn parts_are_stored(&self, version: VersionId, start: u64, last_start: u64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::PartsAreStored { version, start, last_start, reply }).await;
        // Without an answer it may be wanted.
        !matches!(answer.await, Ok(Ok(false)))
    }

    /// Forgets idempotency keys and times of epochs from before these times (microseconds since 1970).
    pub async fn forget_before(&self, keys: i64, epochs: i64) {
        self.tell(Request::ForgetBefore { keys, epochs }).await;
    }

    async fn tell(&self, request: Request) {
        if let Some(requests) = self.requests.upgrade() {
            // A pipeline that has ended learns of it on the next start.
            let _ = requests.send(request).await;
        }
    }
}

impl Pipeline {
    /// A pipeline that goes on after `last_epoch`, when the dataflow holds the batches that are `warm`,
    /// and its working end.
    pub fn new(
        writer: MetadataWriter,
        last_epoch: u64,
        warm: HashSet<Uuid>,
        downstream: Downstream,
    ) -> (Pipeline, Sequencer) {
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let sequencer = Sequencer::new(requests, writer, last_epoch, warm, downstream);
        (Pipeline { requests: sender }, sequencer)
    }

    /// Makes a batch; a key that was used before answers the batch made then.
    pub async fn create_batch(&self, described: NewBatch, key: Option<String>) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::CreateBatch { described, key, reply }).await
    }

    /// Accepts an upload whose bytes are durable and whose blocks are fed.
    pub async fn accept_file(&self, upload: StoredUpload, key: Option<UploadKey>) -> Result<Accepted, PipelineError> {
        self.ask(|reply| Request::AcceptFile { upload, key, reply }).await
    }

    /// Appends to a file, at `offset` where that is said.
    pub async fn append(
        &self,
        part: Part,
        offset: Option<u64>,
        key: Option<UploadKey>,
    ) -> Result<Accepted, PipelineError> {
        self.ask(|reply| Request::Append { part, offset, key, reply }).await
    }

    /// Opens a completed batch again.
    pub async fn reopen(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::Reopen { batch_id, reply }).await
    }

    /// Takes a file out of a pending batch; says the epoch from which no reader sees it.
    pub async fn delete_file(&self, batch_id: Uuid, name: String) -> Result<u64, PipelineError> {
        self.ask(|reply| Request::DeleteFile { batch_id, name, reply }).await
    }

    /// Takes a batch with all its files out; says the epoch from which no reader sees it.
    pub async fn delete_batch(&self, batch_id: Uuid) -> Result<u64, PipelineError> {
        self.ask(|reply| Request::DeleteBatch { batch_id, reply }).await
    }

    /// Has the dataflow forget the blocks of a generation that was not accepted.
    pub async fn abandon(&self, version: VersionId) -> Result<(), PipelineError> {
        self.tell(Request::Abandon { version }).await
    }

    /// Completes a batch.
    pub async fn complete(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::Complete { batch_id, reply }).await
    }

    /// Takes on a batch that was completed before a restart and whose epoch has been fed again.
    pub async fn scattered(&self, batch_id: Uuid) -> Result<(), PipelineError> {
        self.tell(Request::Scattered { batch_id }).await
    }

    /// A way to tell the pipeline something that does not keep it from ending.
    pub fn downgrade(&self) -> WeakPipeline {
        WeakPipeline { requests: self.requests.downgrade() }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, PipelineError> {
        let (reply, answer) = oneshot::channel();
        self.tell(request(reply)).await?;
        answer.await.map_err(|_| PipelineError::Stopping)?
    }

    async fn tell(&self, request: Request) -> Result<(), PipelineError> {
        self.requests.send(request).await.map_err(|_| PipelineError::Stopping)
    }
}

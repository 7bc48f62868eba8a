//! The one place where changes are accepted: request → epoch → journal →
//! dataflow → answer.
//!
//! Requests that arrive together form a round: one transaction, one sync of
//! the disk, one epoch. An answer goes out when the round is durable. Only
//! then is the epoch fed and sealed, so whatever the dataflow knows can be fed
//! again after a crash.

mod apply;
pub mod backlog;
mod loading;
mod request;
mod sequencer;

use std::sync::Arc;

use argus_dataflow::VersionId;
use chrono::Utc;
use imbl::HashSet;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::request::{Reply, Request};
pub use self::sequencer::{Downstream, Sequencer};
use crate::ingest::Claim;
use crate::metadata::{Accepted, Erased, MetadataError, MetadataWriter, Refused, UploadKey};
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
    #[error("the change may have become durable or not; it may be sent again when the server has restarted")]
    Indeterminate(#[source] Arc<MetadataError>),
    #[error("the batch could not be loaded in time; try again")]
    Busy,
    #[error("the server is stopping; the change may have been taken or not: send it again when it runs")]
    Stopping,
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
    /// The lake holds everything up to an epoch, and what was taken back by then is erased as far as it could be;
    /// returns when that is noted. What was not noted is noted with the next commit.
    pub async fn lake_committed(&self, erased: Erased) {
        let (reply, noted) = oneshot::channel();
        self.tell(Request::LakeCommitted { erased, reply }).await;
        let _ = noted.await;
    }

    /// The raw store holds what was appended to a version from `start` to the part at `last_start`.
    /// Says whether it is still wanted.
    pub async fn parts_are_stored(&self, version: VersionId, start: u64, last_start: u64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::PartsAreStored { version, start, last_start, reply }).await;
        // Without an answer it may be wanted.
        !matches!(answer.await, Ok(Ok(false)))
    }

    /// Forgets idempotency keys, and events and times of epochs, from before these times (microseconds since 1970). Says
    /// whether there is more to forget.
    pub async fn forget_before(&self, keys: i64, past: i64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::ForgetBefore { keys, past, reply }).await;
        matches!(answer.await, Ok(Ok(true)))
    }

    /// A version of a file could not be counted: the same bytes again are a new try.
    pub async fn file_failed(&self, version: VersionId, failure: String) {
        self.tell(Request::FileFailed { version, failure }).await;
    }

    /// Has the dataflow forget the blocks of a version that was not accepted.
    pub async fn abandon(&self, version: VersionId) {
        self.tell(Request::Abandon { version }).await;
    }

    async fn tell(&self, request: Request) {
        if let Some(requests) = self.requests.upgrade() {
            // A pipeline that has ended learns of it on the next start.
            let _ = requests.send(request).await;
        }
    }
}

impl Pipeline {
    /// A pipeline that goes on after `last_epoch`, when the dataflow holds the batches that are `held`,
    /// and its working end.
    pub fn new(
        writer: MetadataWriter,
        last_epoch: u64,
        held: HashSet<Uuid>,
        downstream: Downstream,
    ) -> (Pipeline, Sequencer) {
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let sequencer = Sequencer::new(requests, writer, last_epoch, held, downstream);
        (Pipeline { requests: sender }, sequencer)
    }

    /// Makes a batch; a key that was used before answers the batch made then.
    pub async fn create_batch(&self, described: NewBatch, key: Option<String>) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::CreateBatch { described, key, reply }).await
    }

    /// Accepts an upload whose bytes are durable and whose blocks are fed. Where it is not accepted, the claim leaves
    /// nothing of it.
    pub async fn accept_file(
        &self,
        upload: StoredUpload,
        claim: Claim,
        key: Option<UploadKey>,
    ) -> Result<Accepted, PipelineError> {
        self.ask(|reply| Request::AcceptFile { upload, claim, key, reply }).await
    }

    /// Accepts what a file of a batch was counted to again, in the place of a version with so many bytes. `false`, and
    /// nothing of it, when the file is another one by now.
    pub async fn recount_file(
        &self,
        upload: StoredUpload,
        claim: Claim,
        version: VersionId,
        bytes: u64,
    ) -> Result<bool, PipelineError> {
        self.ask(|reply| Request::RecountFile { upload, claim, version, bytes, reply }).await
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

    /// Completes a batch.
    pub async fn complete(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::Complete { batch_id, reply }).await
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

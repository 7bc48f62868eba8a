//! The only place where changes are accepted: request → epoch → journal →
//! dataflow → answer.
//!
//! Requests that arrive together form a round (a group commit): one transaction,
//! one sync of the disk, one epoch. When the round is durable, its changes are
//! inserted, the input advances to its epoch, and the requests are answered. So
//! everything in the dataflow can be replayed after a crash.

pub mod announcements;
pub mod append_gate;
mod apply;
pub mod backlog;
pub mod discard;
pub mod failures;
pub mod followers;
pub mod frontier_lag;
#[cfg(test)]
pub(crate) mod harness;
mod loading;
pub mod recovery;
mod request;
mod sequencer;
pub mod streams;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use argus_dataflow::VersionId;
use imbl::HashSet;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::request::{Reply, Request};
pub use self::sequencer::{Downstream, Sequencer};
use crate::domain::batch::{Accepted, Batch, NewBatch, Part, StoredUpload};
use crate::domain::catalog::CatalogEntry;
use crate::ingest::Claim;
use crate::metadata::{
    Consumed, Document, DocumentKind, Erased, EventAt, MetadataError, MetadataWriter, Refused, RefusedPart, UploadKey,
};

/// Requests that may be queued; at the limit, senders wait.
const WAITING_MAX: usize = 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum PipelineError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the change could not be made durable; send it again")]
    NotDurable(#[source] Arc<MetadataError>),
    #[error("the change may or may not be durable; send it again after the server has restarted")]
    Indeterminate(#[source] Arc<MetadataError>),
    #[error("the batch could not be loaded; retry later")]
    Busy,
    #[error("batches are not loaded: {0:?}")]
    NotLoaded(Vec<Uuid>),
    #[error("the server is stopping, and may or may not have accepted the change; send it again after the restart")]
    Stopping,
}

/// Sends requests to the pipeline. Clones share it; it ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Pipeline {
    requests: mpsc::Sender<Request>,
}

/// Sends notifications to the pipeline. Does not keep it running.
#[derive(Clone, Debug)]
pub struct WeakPipeline {
    requests: mpsc::WeakSender<Request>,
}

impl WeakPipeline {
    /// Records that the lake has committed an epoch, and which of the withdrawn bytes are erased. Returns when this is
    /// durable; if it fails, the next commit records it.
    pub async fn lake_committed(&self, erased: Erased) {
        let (reply, noted) = oneshot::channel();
        self.send(Request::LakeCommitted { erased, reply }).await;
        let _ = noted.await;
    }

    /// Records that the raw store contains the parts of a version from `start` to the one at `last_start`.
    /// Returns whether they are still needed.
    pub async fn parts_are_stored(&self, version: VersionId, start: u64, last_start: u64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Request::PartsAreStored { version, start, last_start, reply }).await;
        // Without an answer they may be needed.
        !matches!(answer.await, Ok(Ok(false)))
    }

    /// Records that the events up to a position are published to Kafka. Returns whether this is durable.
    pub async fn events_published(&self, position: i64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Request::EventsPublished { position, reply }).await;
        matches!(answer.await, Ok(Ok(())))
    }

    /// Deletes idempotency keys from before `keys`, and events and epoch times from before `past` (microseconds since
    /// 1970). Returns whether there is more to delete.
    pub async fn forget_before(&self, keys: i64, past: i64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Request::ForgetBefore { keys, past, reply }).await;
        matches!(answer.await, Ok(Ok(true)))
    }

    /// Records that a version of a file could not be counted. An upload of the same bytes is then counted again.
    pub async fn file_failed(&self, version: VersionId, failure: String) {
        self.send(Request::FileFailed { version, failure }).await;
    }

    /// Makes the dataflow drop the blocks of a version that was not accepted.
    pub async fn abandon(&self, version: VersionId) {
        self.send(Request::Abandon { version }).await;
    }

    async fn send(&self, request: Request) {
        if let Some(requests) = self.requests.upgrade() {
            // If the pipeline has ended, the next start repeats it.
            let _ = requests.send(request).await;
        }
    }
}

impl Pipeline {
    /// A pipeline that continues after `last_epoch`, and its sequencer. `held` are the batches that are loaded in the
    /// dataflow.
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

    /// A pipeline that takes nothing.
    pub fn closed() -> Pipeline {
        let (requests, _) = mpsc::channel(1);
        Pipeline { requests }
    }

    /// Creates a batch. If the key was used before, returns the batch that was created then.
    pub async fn create_batch(&self, described: NewBatch, key: Option<String>) -> Result<Batch, PipelineError> {
        self.call(|reply| Request::CreateBatch { described, key, reply }).await
    }

    /// Accepts an upload whose bytes are durable and whose blocks are inserted. If it is not accepted, the claim is
    /// dropped, which discards it.
    pub async fn accept_file(
        &self,
        upload: StoredUpload,
        claim: Claim,
        key: Option<UploadKey>,
    ) -> Result<Accepted, PipelineError> {
        self.call(|reply| Request::AcceptFile { upload, claim, key, reply }).await
    }

    /// Replaces the counts of a file with those of a new scan. Returns `false` and changes nothing if the file no
    /// longer has this version and this number of bytes.
    pub async fn recount_file(
        &self,
        upload: StoredUpload,
        claim: Claim,
        version: VersionId,
        bytes: u64,
    ) -> Result<bool, PipelineError> {
        self.call(|reply| Request::RecountFile { upload, claim, version, bytes, reply }).await
    }

    /// Appends to a file, at `offset` if that is given.
    pub async fn append(
        &self,
        part: Part,
        offset: Option<u64>,
        key: Option<UploadKey>,
    ) -> Result<Accepted, PipelineError> {
        self.call(|reply| Request::Append { part, offset, key, reply }).await
    }

    /// Appends the lines of records, and records the offsets that they end at, in one transaction. If a part is refused,
    /// returns it, and nothing was consumed.
    pub async fn consume(
        &self,
        parts: Vec<Part>,
        consumed: Vec<Consumed>,
    ) -> Result<Option<RefusedPart>, PipelineError> {
        self.call(|reply| Request::Consume { parts, consumed, reply }).await
    }

    /// Loads a pending batch, as [`Pipeline::consume`] needs it.
    pub async fn load(&self, batch_id: Uuid) -> Result<(), PipelineError> {
        self.call(|reply| Request::Load { batch_id, reply }).await
    }

    /// Reopens a completed batch.
    pub async fn reopen(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.call(|reply| Request::Reopen { batch_id, reply }).await
    }

    /// Deletes a file of a pending batch. Returns the epoch from which no reader sees it.
    pub async fn delete_file(&self, batch_id: Uuid, name: String) -> Result<u64, PipelineError> {
        self.call(|reply| Request::DeleteFile { batch_id, name, reply }).await
    }

    /// Deletes a batch with all its files. Returns the epoch from which no reader sees it.
    pub async fn delete_batch(&self, batch_id: Uuid) -> Result<u64, PipelineError> {
        self.call(|reply| Request::DeleteBatch { batch_id, reply }).await
    }

    /// Completes a batch.
    pub async fn complete(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.call(|reply| Request::Complete { batch_id, reply }).await
    }

    /// Adds entries to the catalogue, or replaces those of the same code, platform and firmware; all, or none. Returns how
    /// many are new.
    pub async fn put_catalog(&self, entries: Vec<CatalogEntry>) -> Result<u64, PipelineError> {
        self.call(|reply| Request::PutCatalog { entries, reply }).await
    }

    /// Adds documents, or replaces those of the same kind and id, with an event of a batch; all, or none.
    pub async fn put_documents(&self, documents: Vec<Document>, event: Option<EventAt>) -> Result<(), PipelineError> {
        self.call(|reply| Request::PutDocuments { documents, event, reply }).await
    }

    /// Deletes a document. Returns whether there was one.
    pub async fn delete_document(&self, kind: DocumentKind, id: String) -> Result<bool, PipelineError> {
        self.call(|reply| Request::DeleteDocument { kind, id, reply }).await
    }

    /// Deletes an entry of the catalogue; an empty platform or firmware stands for all.
    pub async fn delete_catalog(&self, code: String, platform: String, firmware: String) -> Result<(), PipelineError> {
        self.call(|reply| Request::DeleteCatalog { code, platform, firmware, reply }).await
    }

    /// The number of queued requests.
    pub fn queue_length(&self) -> usize {
        self.requests.max_capacity() - self.requests.capacity()
    }

    /// A handle that does not keep the pipeline running.
    pub fn downgrade(&self) -> WeakPipeline {
        WeakPipeline { requests: self.requests.downgrade() }
    }

    async fn call<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, PipelineError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        answer.await.map_err(|_| PipelineError::Stopping)?
    }

    async fn send(&self, request: Request) -> Result<(), PipelineError> {
        self.requests.send(request).await.map_err(|_| PipelineError::Stopping)
    }
}

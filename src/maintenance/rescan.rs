//! Counts the files of a batch again while the server runs: `POST /batches/{id}/recount`.
//!
//! Each file is read from the raw store and processed like an upload, with the
//! current rules. The new counts replace the old ones in one epoch, as the same
//! generation. A file that changes meanwhile is read again.

use std::io::{self, Read};
use std::sync::Arc;

use argus_dataflow::text;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::domain::batch::Encoding;
use crate::ingest::raw_store::RawStore;
use crate::ingest::stored_file::{self, StoredBytes};
use crate::ingest::{BodyPart, Ingest, IngestError};
use crate::metadata::{Metadata, MetadataError, StoredFile};
use crate::pipeline::{Pipeline, PipelineError};

/// The maximum number of batches that wait to be counted again; more are rejected.
const WAITING_MAX: usize = 1000;
/// Batches that are processed at once: most of the machine is for uploads.
const CONCURRENT_BATCHES: usize = 1;
/// How often a file is read if it changes while it is read.
const TRIES_MAX: usize = 5;
/// The length of the chunks that are passed on.
const CHUNK_BYTES: usize = 256 << 10;

/// Counts batches again. Clones share the permits.
#[derive(Clone)]
pub struct Rescan {
    ingest: Ingest,
    pipeline: Pipeline,
    metadata: Metadata,
    raw: RawStore,
    waiting: Arc<Semaphore>,
    reading: Arc<Semaphore>,
}

/// Why a file was not counted again.
#[derive(Debug, thiserror::Error)]
enum RescanError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("its bytes in the raw store could not be read")]
    Raw(#[from] io::Error),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(
        "it was uploaded compressed or as UTF-16, and lines were appended to it later; stop the server and run \
         `argus recount`"
    )]
    AppendedToCompressed,
    #[error("it changed {TRIES_MAX} times while it was read; retry when it is no longer written to")]
    KeepsChanging,
}

/// The queue is full.
#[derive(Debug, thiserror::Error)]
#[error("the limit of {WAITING_MAX} batches that wait for a recount is reached; retry later")]
pub struct TooMany;

impl Rescan {
    /// Reads from `raw` and inserts through `ingest`.
    pub fn new(ingest: Ingest, pipeline: Pipeline, metadata: Metadata, raw: RawStore) -> Rescan {
        let (waiting, reading) = (Arc::new(Semaphore::new(WAITING_MAX)), Arc::new(Semaphore::new(CONCURRENT_BATCHES)));
        Rescan { ingest, pipeline, metadata, raw, waiting, reading }
    }

    /// Queues a batch to be counted again. It is abandoned when the server stops.
    pub fn begin(&self, batch_id: Uuid) -> Result<(), TooMany> {
        let permit = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| TooMany)?;
        let rescan = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            rescan.batch(batch_id).await;
        });
        Ok(())
    }

    async fn batch(&self, batch_id: Uuid) {
        let Ok(_permit) = self.reading.acquire().await else { return };
        let files = match self.metadata.stored_files(batch_id).await {
            Ok(files) => files,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(batch.id = %batch_id, error, "could not recount a batch");
                return;
            }
        };
        let count = files.len();
        for file in files {
            let name = file.record.name.clone();
            if let Err(error) = self.file(file).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(batch.id = %batch_id, file.name = name, error, "could not recount a file");
            }
        }
        tracing::info!(batch.id = %batch_id, files = count, "recounted a batch");
    }

    async fn file(&self, mut file: StoredFile) -> Result<(), RescanError> {
        for _ in 0..TRIES_MAX {
            let record = file.record.clone();
            let tried = self.try_file(file).await;
            match tried {
                Ok(true) => return Ok(()),
                // Its bytes may be missing because it was replaced: compare it with the current version.
                Ok(false) | Err(RescanError::Raw(_) | RescanError::Ingest(_)) => {}
                Err(error) => return Err(error),
            }
            let now = self.metadata.stored_files(record.batch_id).await?;
            let Some(again) = now.into_iter().find(|now| now.record.name == record.name) else { return Ok(()) };
            if again.record.version == record.version && again.record.bytes == record.bytes {
                return tried.map(drop);
            }
            file = again;
        }
        Err(RescanError::KeepsChanging)
    }

    /// Counts a file again. Returns `false` if it has changed meanwhile.
    async fn try_file(&self, file: StoredFile) -> Result<bool, RescanError> {
        let record = file.record.clone();
        let StoredBytes { object, appended } = stored_file::open(&self.metadata, &self.raw, file).await??;
        let has_parts = appended.is_some();
        let (to, stored) =
            self.ingest.begin(record.batch_id, record.name.clone(), Encoding::Identity, record.uploaded_at);
        let passed = tokio::task::spawn_blocking(move || pass_on(object, appended, &to));
        match passed.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Err(error) if has_parts && error.kind() == io::ErrorKind::Unsupported => {
                return Err(RescanError::AppendedToCompressed);
            }
            passed => passed?,
        }
        let (upload, claim) = stored.await?;
        Ok(self.pipeline.recount_file(upload, claim, record.version, record.bytes).await?)
    }
}

/// Passes on a whole file. Parts after a compressed, UTF-16 or DLT object cannot be read as one text with it: this is an
/// error of kind `Unsupported`.
fn pass_on(
    object: Option<Box<dyn Read + Send>>,
    appended: Option<Box<dyn Read + Send>>,
    to: &mpsc::Sender<BodyPart>,
) -> io::Result<()> {
    let has_parts = appended.is_some();
    for (index, mut piece) in object.into_iter().chain(appended).enumerate() {
        let mut is_first = index == 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            piece.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
            if std::mem::take(&mut is_first) && has_parts && !text::is_its_own_text(&chunk) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if chunk.is_empty() {
                break;
            }
            if to.blocking_send(BodyPart::Bytes(Bytes::from(chunk))).is_err() {
                // The upload has failed, and its result has the reason.
                return Ok(());
            }
        }
    }
    // As above.
    let _ = to.blocking_send(BodyPart::End);
    Ok(())
}

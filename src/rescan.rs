//! The files of a batch, counted again beside everything else: `POST /batches/{id}/recount`.
//!
//! Each file is read from the raw store and taken in like an upload, under the
//! rules of today; it takes the place of what was counted before in one epoch,
//! as the same generation. A file that changes meanwhile is read again.

use std::io::{self, Read};
use std::sync::Arc;

use argus_dataflow::text::Compression;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::ingest::{BodyPart, Ingest, IngestError};
use crate::metadata::{Metadata, MetadataError, StoredFile};
use crate::model::Encoding;
use crate::pipeline::{Pipeline, PipelineError};
use crate::raw::RawStore;
use crate::stored::{self, Pieces};

/// Batches that wait to be counted again; one more is refused.
const WAITING_MAX: usize = 1000;
/// Files that are read at once: most of the machine is for uploads.
const READ_AT_ONCE: usize = 1;
/// How often a file is read again that changed while it was read.
const TRIES_MAX: usize = 5;
/// Bytes that are passed on at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Counts batches again. Clones share the turns.
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
        "it was compressed or UTF-16 when it was uploaded, and lines were appended to it since: stop the server and run argus recount"
    )]
    AppendedToCompressed,
    #[error("it kept changing; try again when it is at rest")]
    KeepsChanging,
}

/// Too many batches wait already.
#[derive(Debug, thiserror::Error)]
#[error("{WAITING_MAX} batches wait to be counted again; ask for more when some are done")]
pub struct TooMany;

impl Rescan {
    /// Reads from `raw` and feeds through `ingest`.
    pub fn new(ingest: Ingest, pipeline: Pipeline, metadata: Metadata, raw: RawStore) -> Rescan {
        let (waiting, reading) = (Arc::new(Semaphore::new(WAITING_MAX)), Arc::new(Semaphore::new(READ_AT_ONCE)));
        Rescan { ingest, pipeline, metadata, raw, waiting, reading }
    }

    /// Has a batch counted again, soon. It is given up when the server stops.
    pub fn begin(&self, batch_id: Uuid) -> Result<(), TooMany> {
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| TooMany)?;
        let rescan = self.clone();
        tokio::spawn(async move {
            let _place = place;
            rescan.batch(batch_id).await;
        });
        Ok(())
    }

    async fn batch(&self, batch_id: Uuid) {
        let Ok(_turn) = self.reading.acquire().await else { return };
        let files = match self.metadata.stored_files(batch_id).await {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(batch.id = %batch_id, error = &error as &dyn std::error::Error, "a batch is not counted again");
                return;
            }
        };
        let count = files.len();
        for file in files {
            let name = file.record.name.clone();
            if let Err(error) = self.file(file).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(batch.id = %batch_id, file.name = name, error, "a file is not counted again");
            }
        }
        tracing::info!(batch.id = %batch_id, files = count, "a batch was counted again");
    }

    async fn file(&self, mut file: StoredFile) -> Result<(), RescanError> {
        for _ in 0..TRIES_MAX {
            let record = file.record.clone();
            let tried = self.try_file(file).await;
            match tried {
                Ok(true) => return Ok(()),
                // Its bytes may be gone because it was replaced; what is there now says so.
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

    /// Counts a file again; `false` when it was another one by then.
    async fn try_file(&self, file: StoredFile) -> Result<bool, RescanError> {
        let record = file.record.clone();
        let Pieces { object, appended } = stored::open(&self.metadata, &self.raw, file).await??;
        let has_parts = !appended.is_empty();
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

/// Whether lines that were appended to an object of these first bytes can be read as one text with it. Each was read by
/// itself when it came.
fn is_continued(begins: &[u8]) -> bool {
    let is_utf16 = begins.starts_with(b"\xff\xfe") || begins.starts_with(b"\xfe\xff");
    !is_utf16 && Compression::sniff(begins) == Compression::Identity
}

/// Passes on all of a file. Lines that stand behind compressed or UTF-16 bytes are no part of those, so that is an error of kind
/// `Unsupported`.
fn pass_on(
    object: Option<Box<dyn Read + Send>>,
    appended: Vec<Box<dyn Read + Send>>,
    to: &mpsc::Sender<BodyPart>,
) -> io::Result<()> {
    let has_parts = !appended.is_empty();
    for (index, mut piece) in object.into_iter().chain(appended).enumerate() {
        let mut is_first = index == 0;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            piece.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
            if std::mem::take(&mut is_first) && has_parts && !is_continued(&chunk) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if chunk.is_empty() {
                break;
            }
            if to.blocking_send(BodyPart::Bytes(Bytes::from(chunk))).is_err() {
                // It has failed already, and its outcome says why.
                return Ok(());
            }
        }
    }
    // The same.
    let _ = to.blocking_send(BodyPart::End);
    Ok(())
}

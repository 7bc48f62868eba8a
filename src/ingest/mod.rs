//! An upload's body becomes durable bytes and blocks in the dataflow.
//!
//! ```text
//!  body ──► tee ──► Content-Encoding ──► tee ──► text ──► blocks ──► dataflow
//!            │         decoded            │
//!            └─► raw store                └─► SHA-256, raw store
//!               (if compressed)              (if plain: as zstd)
//! ```
//!
//! The bytes are read once, on a blocking thread. Nothing is counted until the
//! pipeline accepts the upload; an interrupted upload is discarded ([`claim`]).
//! The [`slots`] limit the number of concurrent uploads and set a minimum rate.

pub mod archive;
mod claim;
pub mod disk;
pub mod raw_store;
pub mod resumable;
pub mod slots;
pub mod stored_file;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argus_dataflow::text::{self, Compression};
use argus_dataflow::{BlockReader, Dataflow, DataflowStopped, FileRow, LINE_BYTES_MAX, Origin, VersionId};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

use self::archive::ArchiveError;
pub use self::claim::{Claim, Claims, Reclaimer};
use self::slots::Interrupted;
use crate::domain::batch::{Encoding, OpenLine, StoredUpload, Versions};
use crate::domain::digest::Digest;
use crate::ingest::disk::{DiskSpace, is_disk_full};
use crate::ingest::raw_store::{RawStore, RawWriter, ZSTD_LEVEL};
use crate::metadata::Text;

/// The text of a file may be this many times as long as the body received so far: logs compress well, and
/// decompression bombs better.
const TEXT_EXPANSION_MAX: u64 = 256;

/// Texts up to this length (64 MiB) are not checked for their ratio.
const TEXT_BYTES_FREE: u64 = 64 << 20;

/// The files of an archive go on in pieces of this size (64 KiB).
const PIECE_BYTES: usize = 64 << 10;

/// Parts of a body that may be queued for the thread that reads them.
const BODY_PARTS: usize = 8;

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum IngestError {
    #[error("the upload was interrupted: {0}; send it again")]
    Interrupted(Interrupted),
    #[error("the file is longer than the limit of {limit} bytes; upload it in several files")]
    TooLong { limit: u64 },
    #[error(
        "the text is more than {TEXT_EXPANSION_MAX} times as long as the compressed body; upload it uncompressed, or in \
         several files"
    )]
    ExpandsTooMuch,
    #[error("the disk of the data directory is almost full; free some space, or delete batches")]
    DiskFull,
    #[error("the file is truncated or damaged: {0}")]
    Corrupt(io::Error),
    #[error("the raw store could not be read or written")]
    Store(#[source] io::Error),
    #[error("the server is stopping")]
    Stopping,
}

impl IngestError {
    /// Whether the same bytes fail again.
    pub fn is_of_the_bytes(&self) -> bool {
        matches!(self, IngestError::TooLong { .. } | IngestError::ExpandsTooMuch | IngestError::Corrupt(_))
    }
}

/// Receives uploads. Clones share their state.
#[derive(Clone)]
pub struct Ingest {
    dataflow: Dataflow,
    raw: RawStore,
    claims: Claims,
    disk: DiskSpace,
    block_bytes: usize,
    file_bytes_max: u64,
}

/// Uploads that are stored, each with its claim.
pub type StoredFiles = Vec<(StoredUpload, Claim)>;

/// A part of a body. A body that stops without `End` was interrupted.
#[derive(Debug)]
pub enum BodyPart {
    /// Its next bytes.
    Bytes(Bytes),
    /// The end of the body.
    End,
    /// It was interrupted.
    Interrupted(Interrupted),
}

impl Ingest {
    /// Inserts into `dataflow` in blocks of `block_bytes`, and stores the bytes in
    /// `raw` while `disk` is not full. A body may have `file_bytes_max` bytes.
    pub fn new(
        dataflow: Dataflow,
        raw: RawStore,
        claims: Claims,
        disk: DiskSpace,
        block_bytes: usize,
        file_bytes_max: u64,
    ) -> Ingest {
        Ingest { dataflow, raw, claims, disk, block_bytes, file_bytes_max }
    }

    /// Begins an upload. The sender receives the parts of its body; the future ends when the
    /// bytes are durable and all blocks are inserted. If the claim is dropped before the
    /// pipeline accepts it, the upload is discarded.
    pub fn begin(
        &self,
        batch_id: Uuid,
        name: String,
        encoding: Encoding,
        now: i64,
    ) -> (mpsc::Sender<BodyPart>, impl Future<Output = Result<(StoredUpload, Claim), IngestError>> + use<>) {
        let (sender, body) = mpsc::channel(BODY_PARTS);
        let versions = Versions { whole_lines: VersionId::new(), open_line: VersionId::new() };
        let claim = self.claims.claim(batch_id, versions);
        let ingest = self.clone();
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || {
            let body = Body::new(body, ingest.file_bytes_max);
            let stored = ingest.store_and_insert(&runtime, batch_id, name, encoding, now, versions, body)?;
            Ok((stored, claim))
        });
        (sender, async move { work.await.unwrap_or(Err(IngestError::Stopping)) })
    }

    /// Begins an upload of an archive, like [`Ingest::begin`]. `fits` says whether a
    /// further file fits in memory beside the ones before it. An error discards all of them.
    pub fn begin_archive(
        &self,
        batch_id: Uuid,
        encoding: Encoding,
        now: i64,
        mut fits: Box<dyn FnMut(&StoredUpload) -> bool + Send>,
    ) -> (mpsc::Sender<BodyPart>, impl Future<Output = Result<StoredFiles, ArchiveError>> + use<>) {
        let (sender, parts) = mpsc::channel(BODY_PARTS);
        let ingest = self.clone();
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || {
            let mut body = Body::new(parts, ingest.file_bytes_max);
            let arrived = Arc::clone(&body.arrived);
            let may_expand = move |bytes: u64| {
                bytes <= TEXT_BYTES_FREE || bytes <= arrived.load(Ordering::Relaxed).saturating_mul(TEXT_EXPANSION_MAX)
            };
            let (mut stored, mut text_bytes) = (Vec::new(), 0);
            let decoded = compression(encoding).reader(&mut body)?;
            let read = archive::read(decoded, may_expand.clone(), |name, content| {
                let (to, outcome) = ingest.begin(batch_id, name.clone(), Encoding::Identity, now);
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    let count = content.read(&mut piece)?;
                    text_bytes += count as u64;
                    if !may_expand(text_bytes) {
                        return Err(IngestError::ExpandsTooMuch.into());
                    }
                    let part = match count {
                        0 => BodyPart::End,
                        count => BodyPart::Bytes(Bytes::copy_from_slice(&piece[..count])),
                    };
                    // A closed channel means that the upload has failed; the outcome has the reason.
                    if runtime.block_on(to.send(part)).is_err() || count == 0 {
                        break;
                    }
                }
                drop(to);
                let (upload, claim) = runtime.block_on(outcome).map_err(|error| ArchiveError::File { name, error })?;
                if !fits(&upload) {
                    return Err(ArchiveError::TooLarge);
                }
                stored.push((upload, claim));
                Ok(())
            });
            match (body.failure, read) {
                (Some(failure), _) => Err(failure.into()),
                (None, Err(error)) => Err(error),
                (None, Ok(())) => Ok(stored),
            }
        });
        (sender, async move { work.await.unwrap_or(Err(IngestError::Stopping.into())) })
    }

    /// The limit of the bytes of a body.
    pub fn file_bytes_max(&self) -> u64 {
        self.file_bytes_max
    }

    /// Fails if the disk is too full for an upload.
    pub fn check_room(&self) -> Result<(), IngestError> {
        if self.disk.is_full() { Err(IngestError::DiskFull) } else { Ok(()) }
    }

    /// Inserts the whole lines of a stored version, after a restart. A last
    /// line without a line feed has a version of its own.
    pub fn replay(&self, origin: &Arc<Origin>, encoding: Encoding) -> Result<(), IngestError> {
        let runtime = Handle::current();
        let stored = self.raw.reader(&runtime, origin.batch_id, origin.version).map_err(IngestError::Store)?;
        let store_failed = stored.failed();
        let failed = |error| match store_failed.load(Ordering::Relaxed) {
            true => IngestError::Store(error),
            false => IngestError::Corrupt(error),
        };
        let file = compression(encoding).reader(stored).map_err(failed)?;
        let mut blocks = BlockReader::new(text::text(file).map_err(failed)?, self.block_bytes);
        while let Some(block) = blocks.next_block().map_err(failed)? {
            if !blocks.ends_in_open_line() {
                runtime.block_on(self.dataflow.insert(origin, block)).map_err(|_| IngestError::Stopping)?;
            }
        }
        Ok(())
    }

    /// Inserts a few lines of a file.
    pub async fn insert_text(&self, origin: Origin, text: &Text) -> Result<(), DataflowStopped> {
        let origin = Arc::new(origin);
        let mut blocks = BlockReader::behind(text.lines_before, text.bytes_before, &text.text[..], self.block_bytes);
        // Reading from memory cannot fail.
        while let Ok(Some(block)) = blocks.next_block() {
            self.dataflow.insert(&origin, block).await?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the properties of one upload; there is one call")]
    fn store_and_insert(
        &self,
        runtime: &Handle,
        batch_id: Uuid,
        name: String,
        encoding: Encoding,
        now: i64,
        versions: Versions,
        mut body: Body,
    ) -> Result<StoredUpload, IngestError> {
        let whole_lines =
            Arc::new(Origin { batch_id, file: name.clone(), version: versions.whole_lines, uploaded_at: now });
        let raw = self.raw.writer(runtime, batch_id, versions.whole_lines);
        let mut first = Vec::with_capacity(Compression::SNIFF_BYTES);
        let peeked = body.by_ref().take(Compression::SNIFF_BYTES as u64).read_to_end(&mut first);
        let arrives_plain = encoding == Encoding::Identity && Compression::sniff(&first) == Compression::Identity;
        let stored_as = if arrives_plain { Encoding::Zstd } else { encoding };
        let mut raw = Sink::new(raw, arrives_plain).map_err(IngestError::Store)?;
        let mut digest = Digest::default();

        let arrived = Arc::clone(&body.arrived);
        let mut expands_too_much = false;
        let mut disk_is_full = false;
        let mut binary = false;
        let mut open_line = None;

        let counted = peeked.and_then(|_| {
            let arriving = Tee { input: io::Cursor::new(first).chain(&mut body), output: &mut raw };
            let mut file = Tee { input: compression(encoding).reader(arriving)?, output: Hash(&mut digest) };
            let text = text::text(&mut file)?;
            binary = text.is_binary;
            let mut blocks = BlockReader::new(text, self.block_bytes);
            while let Some(block) = blocks.next_block()? {
                let text_bytes_max = arrived.load(Ordering::Relaxed).saturating_mul(TEXT_EXPANSION_MAX);
                expands_too_much = blocks.bytes() > text_bytes_max.max(TEXT_BYTES_FREE);
                disk_is_full = self.disk.is_full();
                if expands_too_much || disk_is_full {
                    return Err(io::Error::other("the upload was aborted"));
                }
                let mut origin = Arc::clone(&whole_lines);
                if blocks.ends_in_open_line() {
                    origin = Arc::new(Origin { version: versions.open_line, ..Origin::clone(&origin) });
                    let line = OpenLine { text: block.text.to_vec(), bytes: blocks.bytes() - block.offset };
                    open_line = Some((versions.open_line, line));
                }
                runtime.block_on(self.dataflow.insert(&origin, block)).map_err(io::Error::other)?;
            }
            let (open_lines, long_open_lines) = match &open_line {
                Some((_, line)) => (1, u64::from(line.bytes > LINE_BYTES_MAX as u64)),
                None => (0, 0),
            };
            let totals = (blocks.bytes(), blocks.lines() - open_lines, blocks.long_lines() - long_open_lines);
            drop(blocks);
            // Bytes after the end of the text belong to the file too.
            io::copy(&mut file, &mut io::sink())?;
            Ok(totals)
        });
        // Failures of the body and of the raw store both appear as read errors; both record their own.
        let (bytes, lines, long_lines) = match (body.failure, counted) {
            (Some(failure), _) => return Err(failure),
            (None, Ok(counted)) => counted,
            (None, Err(error)) => {
                return Err(match raw.failure.take() {
                    Some(failure) => store_failed(failure),
                    None if disk_is_full => IngestError::DiskFull,
                    None if expands_too_much => IngestError::ExpandsTooMuch,
                    None if error.get_ref().is_some_and(|inner| inner.is::<argus_dataflow::DataflowStopped>()) => {
                        IngestError::Stopping
                    }
                    None => IngestError::Corrupt(error),
                });
            }
        };
        raw.finish().map_err(store_failed)?;
        Ok(StoredUpload {
            batch_id,
            version: versions.whole_lines,
            name,
            encoding: stored_as,
            bytes,
            lines,
            long_lines,
            open_line,
            binary,
            digest,
            uploaded_at: now,
        })
    }
}

/// The error for a failure of the raw store; a full disk has an error of its own.
fn store_failed(failure: io::Error) -> IngestError {
    if is_disk_full(&failure) { IngestError::DiskFull } else { IngestError::Store(failure) }
}

/// The origin of the lines that a row admits.
pub fn origin(file: &FileRow) -> Origin {
    let FileRow { batch_id, version, uploaded_at, .. } = *file;
    Origin { batch_id, file: file.name.clone(), version, uploaded_at }
}

/// The compression of an encoding.
pub fn compression(encoding: Encoding) -> Compression {
    match encoding {
        Encoding::Identity => Compression::Identity,
        Encoding::Gzip => Compression::Gzip,
        Encoding::Zstd => Compression::Zstd,
    }
}

/// A body as a reader. It records its failure, because the readers between
/// here and the text hide the cause.
struct Body {
    parts: mpsc::Receiver<BodyPart>,
    chunk: Bytes,
    ended: bool,
    limit: u64,
    /// Bytes received so far.
    arrived: Arc<AtomicU64>,
    failure: Option<IngestError>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.parts.blocking_recv() {
                Some(BodyPart::Bytes(chunk)) => self.chunk = chunk,
                Some(BodyPart::End) => self.ended = true,
                Some(BodyPart::Interrupted(why)) => return Err(self.fail(IngestError::Interrupted(why))),
                None => {
                    let disconnected = Interrupted::Connection("the client disconnected".to_owned());
                    return Err(self.fail(IngestError::Interrupted(disconnected)));
                }
            }
            let length = self.chunk.len() as u64;
            if self.arrived.fetch_add(length, Ordering::Relaxed) + length > self.limit {
                return Err(self.fail(IngestError::TooLong { limit: self.limit }));
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

impl Body {
    fn new(parts: mpsc::Receiver<BodyPart>, limit: u64) -> Body {
        Body { parts, chunk: Bytes::new(), ended: false, limit, arrived: Arc::default(), failure: None }
    }

    fn fail(&mut self, failure: IngestError) -> io::Error {
        self.failure = Some(failure);
        io::Error::other("the body ended early")
    }
}

/// Writes to the raw store, and compresses the bytes if required.
struct Sink {
    writer: SinkWriter,
    failure: Option<io::Error>,
}

enum SinkWriter {
    AsIs(RawWriter),
    Zstd(Box<zstd::stream::write::Encoder<'static, RawWriter>>),
}

impl Sink {
    fn new(raw: RawWriter, compress: bool) -> io::Result<Sink> {
        let writer = match compress {
            true => SinkWriter::Zstd(Box::new(zstd::stream::write::Encoder::new(raw, ZSTD_LEVEL)?)),
            false => SinkWriter::AsIs(raw),
        };
        Ok(Sink { writer, failure: None })
    }

    fn finish(self) -> io::Result<()> {
        match self.writer {
            SinkWriter::AsIs(raw) => raw.finish(),
            SinkWriter::Zstd(encoder) => encoder.finish()?.finish(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.writer {
            SinkWriter::AsIs(raw) => raw.write_all(bytes),
            SinkWriter::Zstd(encoder) => encoder.write_all(bytes),
        };
        written.map(|()| bytes.len()).map_err(|failure| {
            self.failure = Some(failure);
            io::Error::other("the bytes could not be stored")
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Hash<'d>(&'d mut Digest);

impl Write for Hash<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader that copies all it reads to a writer.
struct Tee<R, W> {
    input: R,
    output: W,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.output.write_all(&buffer[..count])?;
        Ok(count)
    }
}

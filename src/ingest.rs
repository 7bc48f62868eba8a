//! An upload's body becomes durable bytes and blocks in the dataflow.
//!
//! ```text
//!  body ──► tee ──► Content-Encoding ──► tee ──► text ──► blocks ──► dataflow
//!            │         decoded            │
//!            └─► raw store                └─► SHA-256, raw store
//!               (arrived compressed)         (plain: zstd on the way)
//! ```
//!
//! The bytes are read once, on a thread that may wait. Nothing is counted
//! until the pipeline accepts the upload; one that breaks off leaves nothing.

use std::io::{self, Read, Write};
use std::sync::Arc;

use argus_dataflow::text::{self, Compression};
use argus_dataflow::{BlockReader, Dataflow, DataflowGone, FileRow, LINE_BYTES_MAX, Origin, VersionId};
use bytes::Bytes;
use chrono::{DateTime, Datelike};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::digest::Digest;
use crate::metadata::Text;
use crate::model::{Encoding, OpenLine, StoredUpload, Versions};
use crate::raw::{RawStore, RawWriter, ZSTD_LEVEL};

/// The text of a file may be this many times as long as a body may be.
const TEXT_EXPANSION_MAX: u64 = 64;

/// Parts of a body that may wait for the thread that reads them.
const BODY_PARTS: usize = 8;

/// Why an upload came to nothing.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum IngestError {
    #[error("the upload broke off: {0}; send it again")]
    BrokeOff(String),
    #[error("the file is longer than {limit} bytes")]
    TooLong { limit: u64 },
    #[error("the file is not whole: {0}")]
    Corrupt(io::Error),
    #[error("the bytes could not be stored")]
    Store(#[source] io::Error),
    #[error("the server is stopping")]
    Stopping,
}

/// Takes uploads in. Clones share everything.
#[derive(Clone)]
pub struct Ingest {
    dataflow: Dataflow,
    raw: RawStore,
    block_bytes: usize,
    file_bytes_max: u64,
}

/// A part of a body. A body that stops without `End` broke off.
#[derive(Debug)]
pub enum BodyPart {
    /// Its next bytes.
    Bytes(Bytes),
    /// It is whole.
    End,
    /// It broke off, for a reason.
    BrokeOff(String),
}

impl Ingest {
    /// Feeds `dataflow` in blocks of `block_bytes` and keeps the bytes in
    /// `raw`. A body may have `file_bytes_max` bytes.
    pub fn new(dataflow: Dataflow, raw: RawStore, block_bytes: usize, file_bytes_max: u64) -> Ingest {
        Ingest { dataflow, raw, block_bytes, file_bytes_max }
    }

    /// Begins an upload. The parts of its body go into the sender; the outcome is there
    /// when the bytes are durable and every block has been fed. Whatever it is,
    /// its versions must be accepted or abandoned by the pipeline then.
    pub fn begin(
        &self,
        batch_id: Uuid,
        name: String,
        encoding: Encoding,
        now: i64,
    ) -> (mpsc::Sender<BodyPart>, Versions, impl Future<Output = Result<StoredUpload, IngestError>> + use<>) {
        let (sender, body) = mpsc::channel(BODY_PARTS);
        let versions = Versions { whole_lines: VersionId::new(), open_line: VersionId::new() };
        let ingest = self.clone();
        let runtime = Handle::current();
        let work = tokio::task::spawn_blocking(move || {
            let limit = ingest.file_bytes_max;
            let body = Body { parts: body, chunk: Bytes::new(), ended: false, limit, left: limit, failure: None };
            ingest.store_and_feed(&runtime, batch_id, name, encoding, now, versions, body)
        });
        (sender, versions, async move { work.await.unwrap_or(Err(IngestError::Stopping)) })
    }

    /// Deletes the bytes of an upload that was not accepted.
    pub async fn discard(&self, upload: &StoredUpload) {
        if let Err(error) = self.raw.delete(upload.batch_id, upload.version).await {
            tracing::warn!(%error, "bytes that nobody needs stay in the raw store");
        }
    }

    /// Feeds the whole lines of a stored version again, after a restart. A
    /// last line without its line feed is of another version.
    pub fn feed_again(&self, origin: &Arc<Origin>, encoding: Encoding) -> Result<(), IngestError> {
        let runtime = Handle::current();
        let stored = self.raw.reader(&runtime, origin.batch_id, origin.version).map_err(IngestError::Store)?;
        let file = compression(encoding).reader(stored).map_err(IngestError::Corrupt)?;
        let mut blocks = BlockReader::new(text::text(file).map_err(IngestError::Corrupt)?, self.block_bytes);
        while let Some(block) = blocks.next_block().map_err(IngestError::Corrupt)? {
            if !blocks.ends_in_open_line() {
                runtime.block_on(self.dataflow.feed(origin, block)).map_err(|_| IngestError::Stopping)?;
            }
        }
        Ok(())
    }

    /// Feeds a few lines of a file.
    pub async fn feed_text(&self, origin: Origin, text: &Text) -> Result<(), DataflowGone> {
        let origin = Arc::new(origin);
        let mut blocks = BlockReader::behind(text.lines_before, text.bytes_before, &text.text[..], self.block_bytes);
        // Memory is read without error.
        while let Ok(Some(block)) = blocks.next_block() {
            self.dataflow.feed(&origin, block).await?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the facts of one upload, named at the one call")]
    fn store_and_feed(
        &self,
        runtime: &Handle,
        batch_id: Uuid,
        name: String,
        encoding: Encoding,
        now: i64,
        versions: Versions,
        mut body: Body,
    ) -> Result<StoredUpload, IngestError> {
        let uploaded_at = DateTime::from_timestamp_micros(now).unwrap_or_default();
        let whole_lines = Arc::new(Origin {
            batch_id,
            file: name.clone(),
            version: versions.whole_lines,
            upload_year: uploaded_at.year(),
        });
        let raw = self.raw.writer(runtime, batch_id, versions.whole_lines);
        let mut first = Vec::with_capacity(Compression::SNIFF_BYTES);
        let peeked = body.by_ref().take(Compression::SNIFF_BYTES as u64).read_to_end(&mut first);
        let arrives_plain = encoding == Encoding::Identity && Compression::sniff(&first) == Compression::Identity;
        let stored_as = if arrives_plain { Encoding::Zstd } else { encoding };
        let mut raw = Sink::new(raw, arrives_plain).map_err(IngestError::Store)?;
        let mut digest = Digest::default();

        let text_bytes_max = self.file_bytes_max.saturating_mul(TEXT_EXPANSION_MAX);
        let mut text_is_too_long = false;
        let mut open_line = None;

        let counted = peeked.and_then(|_| {
            let arriving = Tee { input: io::Cursor::new(first).chain(&mut body), output: &mut raw };
            let mut file = Tee { input: compression(encoding).reader(arriving)?, output: Hash(&mut digest) };
            let mut blocks = BlockReader::new(text::text(&mut file)?, self.block_bytes);
            while let Some(block) = blocks.next_block()? {
                if blocks.bytes() > text_bytes_max {
                    text_is_too_long = true;
                    return Err(io::Error::other("the text is too long"));
                }
                let mut origin = Arc::clone(&whole_lines);
                if blocks.ends_in_open_line() {
                    origin = Arc::new(Origin { version: versions.open_line, ..Origin::clone(&origin) });
                    let line = OpenLine { text: block.text.to_vec(), bytes: blocks.bytes() - block.offset };
                    open_line = Some((versions.open_line, line));
                }
                runtime.block_on(self.dataflow.feed(&origin, block)).map_err(io::Error::other)?;
            }
            let (open_lines, long_open_lines) = match &open_line {
                Some((_, line)) => (1, u64::from(line.bytes > LINE_BYTES_MAX as u64)),
                None => (0, 0),
            };
            let totals = (blocks.bytes(), blocks.lines() - open_lines, blocks.long_lines() - long_open_lines);
            drop(blocks);
            // What stands behind the text's end belongs to the file all the same.
            io::copy(&mut file, &mut io::sink())?;
            Ok(totals)
        });
        // A failure of either end shows as a failure to read; the ends say whose it was.
        let (bytes, lines, long_lines) = match (body.failure, counted) {
            (Some(failure), _) => return Err(failure),
            (None, Ok(counted)) => counted,
            (None, Err(error)) => {
                return Err(match raw.failure.take() {
                    Some(failure) => IngestError::Store(failure),
                    None if text_is_too_long => IngestError::TooLong { limit: text_bytes_max },
                    None if error.get_ref().is_some_and(|inner| inner.is::<argus_dataflow::DataflowGone>()) => {
                        IngestError::Stopping
                    }
                    None => IngestError::Corrupt(error),
                });
            }
        };
        raw.finish().map_err(IngestError::Store)?;
        Ok(StoredUpload {
            batch_id,
            version: versions.whole_lines,
            name,
            encoding: stored_as,
            bytes,
            lines,
            long_lines,
            open_line,
            digest,
            uploaded_at: now,
        })
    }
}

/// Where the lines are from that a row admits.
pub fn origin(file: &FileRow) -> Origin {
    let uploaded_at = DateTime::from_timestamp_micros(file.uploaded_at).unwrap_or_default();
    Origin { batch_id: file.batch_id, file: file.name.clone(), version: file.version, upload_year: uploaded_at.year() }
}

/// How bytes of that encoding are read.
pub fn compression(encoding: Encoding) -> Compression {
    match encoding {
        Encoding::Identity => Compression::Identity,
        Encoding::Gzip => Compression::Gzip,
        Encoding::Zstd => Compression::Zstd,
    }
}

/// A body as a reader. What went wrong with it is kept aside, for between
/// here and the text there are readers that would disguise it.
struct Body {
    parts: mpsc::Receiver<BodyPart>,
    chunk: Bytes,
    ended: bool,
    limit: u64,
    left: u64,
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
                Some(BodyPart::BrokeOff(reason)) => return Err(self.fail(IngestError::BrokeOff(reason))),
                None => return Err(self.fail(IngestError::BrokeOff("the client went away".to_owned()))),
            }
            let length = self.chunk.len() as u64;
            if length > self.left {
                return Err(self.fail(IngestError::TooLong { limit: self.limit }));
            }
            self.left -= length;
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

impl Body {
    fn fail(&mut self, failure: IngestError) -> io::Error {
        self.failure = Some(failure);
        io::Error::other("the body ended early")
    }
}

/// Writes into the raw store, compressing on the way where that is wanted.
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

/// A reader that writes all it reads somewhere else too.
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

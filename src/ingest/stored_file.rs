//! Reads stored files: an object of the raw store, and the parts that were appended to it.

use std::io::{self, Cursor, Read};

use argus_dataflow::text::{self, Compression};
use tokio::runtime::Handle;

use crate::ingest::compression;
use crate::ingest::raw_store::RawStore;
use crate::metadata::{FileRecord, Metadata, MetadataError, StoredFile};

/// The bytes of a file.
pub struct StoredBytes {
    /// The uploaded bytes, without the content encoding; `None` if the whole file was appended.
    pub object: Option<Box<dyn Read + Send>>,
    /// The appended bytes, which are text; `None` if there are none.
    pub appended: Option<Box<dyn Read + Send>>,
}

impl StoredBytes {
    /// The text, and whether the uploaded bytes are binary.
    pub fn into_text(self) -> io::Result<(bool, Box<dyn Read + Send>)> {
        let (is_binary, text): (bool, Box<dyn Read + Send>) = match self.object {
            Some(object) => {
                let opened = text::text(object)?;
                (opened.is_binary, Box::new(opened))
            }
            None => (false, Box::new(io::empty())),
        };
        Ok(match self.appended {
            Some(appended) => (is_binary, Box::new(text.chain(appended))),
            None => (is_binary, text),
        })
    }
}

/// Opens a file, to be read on a blocking thread. The outer error is from the metadata, the inner one from the raw
/// store.
pub async fn open(
    metadata: &Metadata,
    raw: &RawStore,
    file: StoredFile,
) -> Result<io::Result<StoredBytes>, MetadataError> {
    let StoredFile { record, appended_from } = file;
    let (metadata, raw, runtime) = (metadata.clone(), raw.clone(), Handle::current());
    let opened = tokio::task::spawn_blocking(move || {
        // Files uploaded by an earlier version have no encoding; a file without an object begins with a part.
        let has_object = record.encoding.is_some() || (record.bytes > 0 && appended_from != Some(0));
        let object: Option<Box<dyn Read + Send>> = match has_object {
            true => {
                let stored = raw.reader(&runtime, record.batch_id, record.version)?;
                Some(match record.encoding {
                    Some(encoding) => compression(encoding).reader(stored)?,
                    None => Box::new(stored),
                })
            }
            false => None,
        };
        let appended = appended_from.map(|offset| -> Box<dyn Read + Send> {
            Box::new(Appended { metadata, raw, runtime, record, offset, part: Box::new(io::empty()) })
        });
        Ok(StoredBytes { object, appended })
    });
    Ok(opened.await.unwrap_or_else(|error| Err(io::Error::other(error))))
}

/// Reads the bytes that were appended to a file, part by part: each is looked up when its turn comes, as parts move from
/// the metadata to the raw store meanwhile.
struct Appended {
    metadata: Metadata,
    raw: RawStore,
    runtime: Handle,
    record: FileRecord,
    /// The offset in the text of the next byte.
    offset: u64,
    /// What is left of the part that contains it.
    part: Box<dyn Read + Send>,
}

impl Appended {
    /// The bytes from the offset on, in the part that contains it.
    fn next_part(&self) -> io::Result<Box<dyn Read + Send>> {
        let FileRecord { batch_id, version, .. } = self.record;
        let found = self.runtime.block_on(self.metadata.appended_at(version, self.offset)).map_err(io::Error::other)?;
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the file was replaced or deleted while it was read");
        let (start, bytes) = found.ok_or_else(gone)?;
        let mut part: Box<dyn Read + Send> = match bytes {
            Some(bytes) => Box::new(Cursor::new(bytes)),
            None => Compression::Zstd.reader(self.raw.part_reader(&self.runtime, batch_id, version, start)?)?,
        };
        io::copy(&mut part.by_ref().take(self.offset - start), &mut io::sink())?;
        Ok(part)
    }
}

impl Read for Appended {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // What is appended meanwhile is not of this version of the record.
        let left = usize::try_from(self.record.bytes - self.offset).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let buffer = &mut buffer[..length];
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut read = self.part.read(buffer)?;
        if read == 0 {
            self.part = self.next_part()?;
            read = self.part.read(buffer)?;
        }
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a part of the file is shorter than it was"));
        }
        self.offset += read as u64;
        Ok(read)
    }
}

//! Reads stored files: an object of the raw store, and the parts that were appended to it.

use std::io::{self, Cursor, Read};

use argus_dataflow::text::Compression;
use tokio::runtime::Handle;

use crate::ingest::compression;
use crate::ingest::raw_store::RawStore;
use crate::metadata::{Metadata, MetadataError, StoredFile};

/// The bytes of a file.
pub struct StoredBytes {
    /// The uploaded bytes, without the content encoding; `None` if the whole file was appended.
    pub object: Option<Box<dyn Read + Send>>,
    /// The appended parts, which are text.
    pub appended: Vec<Box<dyn Read + Send>>,
}

/// Opens a file. The outer error is from the metadata, the inner one from the raw store.
pub async fn open(
    metadata: &Metadata,
    raw: &RawStore,
    file: StoredFile,
) -> Result<io::Result<StoredBytes>, MetadataError> {
    let StoredFile { record, parts } = file;
    let mut appended = Vec::new();
    for (start, is_object) in parts {
        let bytes = if is_object { None } else { Some(metadata.appended(record.version, start).await?) };
        appended.push((start, bytes));
    }
    let (raw, runtime) = (raw.clone(), Handle::current());
    let opened = tokio::task::spawn_blocking(move || {
        let (batch_id, version) = (record.batch_id, record.version);
        // Files uploaded by an earlier version have no encoding; a file without an object begins with a part.
        let begins_with_part = appended.first().is_some_and(|(start, _)| *start == 0);
        let has_object = record.encoding.is_some() || (record.bytes > 0 && !begins_with_part);
        let object: Option<Box<dyn Read + Send>> = match has_object {
            true => {
                let stored = raw.reader(&runtime, batch_id, version)?;
                Some(match record.encoding {
                    Some(encoding) => compression(encoding).reader(stored)?,
                    None => Box::new(stored),
                })
            }
            false => None,
        };
        let parts = appended.into_iter().map(|(start, bytes)| -> io::Result<Box<dyn Read + Send>> {
            Ok(match bytes {
                Some(bytes) => Box::new(Cursor::new(bytes)),
                None => Compression::Zstd.reader(raw.part_reader(&runtime, batch_id, version, start)?)?,
            })
        });
        Ok(StoredBytes { object, appended: parts.collect::<io::Result<_>>()? })
    });
    Ok(opened.await.unwrap_or_else(|error| Err(io::Error::other(error))))
}

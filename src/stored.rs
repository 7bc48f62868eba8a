//! Stored files, to be read again: an object of the raw store, and what was appended behind it.

use std::io::{self, Cursor, Read};

use argus_dataflow::text::Compression;
use tokio::runtime::Handle;

use crate::ingest::compression;
use crate::metadata::{Metadata, MetadataError, StoredFile};
use crate::raw::RawStore;

/// The bytes of a file.
pub struct Pieces {
    /// What was uploaded, as its owner has it; `None` where all of it was appended.
    pub object: Option<Box<dyn Read + Send>>,
    /// What was appended, which is text.
    pub appended: Vec<Box<dyn Read + Send>>,
}

/// Opens a file. The outer error is of the metadata, the inner one of the raw store.
pub async fn open(metadata: &Metadata, raw: &RawStore, file: StoredFile) -> Result<io::Result<Pieces>, MetadataError> {
    let StoredFile { record, parts } = file;
    let mut appended = Vec::new();
    for (start, is_object) in parts {
        let bytes = if is_object { None } else { Some(metadata.appended(record.version, start).await?) };
        appended.push((start, bytes));
    }
    let (raw, runtime) = (raw.clone(), Handle::current());
    let opened = tokio::task::spawn_blocking(move || {
        let (batch_id, version) = (record.batch_id, record.version);
        // What was uploaded by an earlier version has no encoding noted; what was appended only begins with a part.
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
        Ok(Pieces { object, appended: parts.collect::<io::Result<_>>()? })
    });
    Ok(opened.await.unwrap_or_else(|error| Err(io::Error::other(error))))
}

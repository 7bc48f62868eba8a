//! Conversion between database rows and values.

use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;

use argus_dataflow::{BatchRow, FileRow, VersionId};
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::domain::batch::{Accepted, Batch, Encoding, OpenLine, Receipt};
use crate::domain::digest::Digest;
use crate::domain::status::BatchStatus;
use crate::metadata::packed::unpack;
use crate::metadata::{JournalEntry, Lines, MetadataError, Refused, Text};

/// The current generation of a file.
#[derive(Debug, Clone)]
pub struct FileRecord {
    /// Its batch.
    pub batch_id: Uuid,
    /// The same in all generations.
    pub file_id: Uuid,
    /// Its name.
    pub name: String,
    /// Of its content.
    pub generation: u32,
    /// The version of its whole lines.
    pub version: VersionId,
    /// Its bytes, including the open line.
    pub bytes: u64,
    /// Its lines, without the open line.
    pub whole_lines: u64,
    /// The digest of its bytes as they were uploaded.
    pub digest: Digest,
    /// Its last line, if that has no line feed.
    pub open_line: OpenLine,
    /// The version of the open line, if that is counted.
    pub open_version: Option<VersionId>,
    /// When it was uploaded, in microseconds since 1970.
    pub uploaded_at: i64,
    /// The epoch of its last change.
    pub epoch: u64,
    /// The encoding of its object in the raw store, if it has one.
    pub encoding: Option<Encoding>,
    /// Whether its version could not be counted.
    pub is_failed: bool,
}

impl FileRecord {
    /// The receipt for the client.
    pub fn receipt(&self) -> Receipt {
        Receipt {
            file_id: self.file_id,
            name: self.name.clone(),
            generation: self.generation,
            bytes: self.bytes,
            lines: self.whole_lines + u64::from(self.open_version.is_some()),
            sha256: self.digest.hex(),
            same_as: None,
            epoch: self.epoch,
        }
    }

    /// A row for one of its versions, with all measures zero.
    pub fn row(&self, version: VersionId, live: i8) -> FileRow {
        FileRow {
            batch_id: self.batch_id,
            file_id: self.file_id,
            version,
            name: self.name.clone(),
            generation: self.generation,
            live,
            erased: 0,
            open_line: false,
            bytes: 0,
            lines: 0,
            long_lines: 0,
            last_line: 0,
            error_lines: 0,
            occurrences: 0,
            uploaded_at: self.uploaded_at,
            failure: None,
            binary: false,
            sha256: (version == self.version).then(|| self.digest.hex()),
            first_ts: None,
            last_ts: None,
            rules: None,
        }
    }
}

/// Labels as the lake stores them: a JSON object, or none.
fn labels(labels: &BTreeMap<String, String>) -> Option<String> {
    let texts = labels.iter().map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())));
    (!labels.is_empty()).then(|| serde_json::Value::Object(texts.collect()).to_string())
}

/// The row of a batch for the lake.
pub fn batch_row(batch: &Batch, live: i8, completed: i8) -> BatchRow {
    BatchRow {
        batch_id: batch.id,
        vehicle_id: batch.described.vehicle_id.clone(),
        vin: batch.described.vin.clone(),
        platform: batch.described.platform.clone(),
        firmware: batch.described.firmware.clone(),
        labels: labels(&batch.described.labels),
        created_at: batch.created_at,
        live,
        completed,
    }
}

pub fn json<T: serde::Serialize>(value: &T) -> Result<String, MetadataError> {
    serde_json::to_string(value).map_err(|error| MetadataError::Unreadable(error.to_string()))
}

pub fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, MetadataError> {
    serde_json::from_str(text).map_err(|error| MetadataError::Unreadable(error.to_string()))
}

pub fn uuid(text: &str) -> Result<Uuid, MetadataError> {
    Uuid::from_str(text).map_err(|error| MetadataError::Unreadable(error.to_string()))
}

/// The status of a batch.
pub fn read_status(row: &AnyRow) -> Result<BatchStatus, MetadataError> {
    let status: &str = row.try_get("status")?;
    status.parse().map_err(|_| MetadataError::Unreadable(format!("status {status:?}")))
}

pub fn read_batch(row: &AnyRow) -> Result<Batch, MetadataError> {
    Ok(Batch {
        id: uuid(row.try_get("id")?)?,
        described: from_json(row.try_get("described")?)?,
        status: read_status(row)?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        epoch: row.try_get::<i64, _>("epoch")?.max(0) as u64,
        completed_epoch: row.try_get::<Option<i64>, _>("completed_epoch")?.map(|epoch| epoch.max(0) as u64),
    })
}

/// A count from a column.
pub fn count(row: &AnyRow, column: &str) -> Result<u64, sqlx::Error> {
    Ok(row.try_get::<i64, _>(column)?.max(0) as u64)
}

pub fn read_file(row: &AnyRow) -> Result<FileRecord, MetadataError> {
    let digest = Digest::from_bytes(row.try_get("digest")?);
    let open_version: Option<&str> = row.try_get("open_version")?;
    Ok(FileRecord {
        batch_id: uuid(row.try_get("batch_id")?)?,
        file_id: uuid(row.try_get("file_id")?)?,
        name: row.try_get("name")?,
        generation: u32::try_from(row.try_get::<i64, _>("generation")?).unwrap_or_default(),
        version: VersionId(uuid(row.try_get("version")?)?),
        bytes: count(row, "bytes")?,
        whole_lines: count(row, "lines")?,
        digest: digest.ok_or_else(|| MetadataError::Unreadable("a digest that is invalid".to_owned()))?,
        open_line: OpenLine { text: row.try_get("open_text")?, bytes: count(row, "open_bytes")? },
        open_version: open_version.map(uuid).transpose()?.map(VersionId),
        uploaded_at: row.try_get("uploaded_at")?,
        epoch: count(row, "epoch")?,
        encoding: row.try_get::<Option<&str>, _>("encoding")?.map(from_json).transpose()?,
        is_failed: row.try_get::<Option<&str>, _>("failure")?.is_some(),
    })
}

/// The bytes of a row of `appended`; `None` if they are in the raw store.
pub fn read_appended(row: &AnyRow) -> Result<Option<Vec<u8>>, MetadataError> {
    let bytes: Option<Vec<u8>> = row.try_get("bytes")?;
    let is_packed = row.try_get::<Option<i64>, _>("text_bytes")?.is_some();
    bytes.map(|bytes| if is_packed { unpack(&bytes).map_err(unreadable_text) } else { Ok(bytes) }).transpose()
}

pub fn unreadable_text(error: io::Error) -> MetadataError {
    MetadataError::Unreadable(format!("an appended text that cannot be decompressed: {error}"))
}

pub fn read_entry(row: &AnyRow) -> Result<JournalEntry, MetadataError> {
    let encoding: Option<&str> = row.try_get("encoding")?;
    let text: Option<Vec<u8>> = row.try_get("text")?;
    let lines = match (encoding, text) {
        (None, None) => Lines::None,
        (Some(encoding), None) => Lines::Stored(from_json(encoding)?),
        (encoding, Some(text)) => {
            let text = if encoding.is_some() { unpack(&text).map_err(unreadable_text)? } else { text };
            let (lines_before, bytes_before) = (count(row, "lines_before")?, count(row, "bytes_before")?);
            Lines::Inline(Text { text: text.into(), packed: None, lines_before, bytes_before })
        }
    };
    Ok(JournalEntry { change: from_json(row.try_get("change")?)?, lines })
}

/// The stored answer to `request`; an error if the key was used with another request.
pub fn read_answer(row: &AnyRow, request: &str) -> Result<Accepted, Refused> {
    match row.try_get::<Option<&str>, _>("answer")? {
        Some(answer) if row.try_get::<&str, _>("request")? == request => Ok(from_json(answer)?),
        _ => Err(Refused::KeyReused),
    }
}

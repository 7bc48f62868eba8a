//! Batches and files, and the checks of their fields.

use std::collections::BTreeMap;

use argus_dataflow::{LINE_BYTES_MAX, VersionId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::digest::Digest;
use crate::domain::status::BatchStatus;

/// A file's name may have this many bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// A field of a new batch (a vehicle's id, a platform, a label) may have this many bytes.
pub const FIELD_BYTES_MAX: usize = 255;

/// A batch may have this many labels.
pub const LABELS_MAX: usize = 64;

/// The client's description of a new batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "vehicle_id": "veh-1", "vin": "WVWZZZ1JZXW000001", "platform": "p1", "firmware": "7.2.1", "labels": {"site": "north"}
}))]
pub struct NewBatch {
    /// The operator's id of the vehicle.
    pub vehicle_id: String,
    /// Its vehicle identification number.
    pub vin: String,
    /// The hardware platform.
    #[serde(default)]
    pub platform: Option<String>,
    /// The firmware that was rolled out.
    #[serde(default)]
    pub firmware: Option<String>,
    /// How many files the client intends to upload.
    #[serde(default)]
    pub expected_files: Option<u32>,
    /// Key-value pairs to find the batch by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Why a field of a request is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Invalid {
    #[error("vin {0:?} must be 17 characters of A-Z and 0-9 without I, O and Q")]
    Vin(String),
    #[error("{field} must have 1 to {FIELD_BYTES_MAX} bytes and no control characters")]
    Field { field: &'static str },
    #[error("a batch may have at most {LABELS_MAX} labels")]
    Labels,
    #[error("a file's name must not be empty")]
    NameEmpty,
    #[error("a file's name may have at most {NAME_BYTES_MAX} bytes")]
    NameTooLong,
    #[error("a file's name must not contain '/', '\\', '..' or control characters")]
    NameUnsafe,
    #[error("the {field} of a catalogue entry {reason}")]
    Entry { field: &'static str, reason: &'static str },
}

impl NewBatch {
    /// Checks every field.
    pub fn check(&self) -> Result<(), Invalid> {
        check_vin(&self.vin)?;
        check_field("vehicle_id", &self.vehicle_id)?;
        for (field, value) in [("platform", &self.platform), ("firmware", &self.firmware)] {
            value.as_deref().map_or(Ok(()), |value| check_field(field, value))?;
        }
        if self.labels.len() > LABELS_MAX {
            return Err(Invalid::Labels);
        }
        self.labels.iter().try_for_each(|(name, value)| {
            check_field("a label's name", name)?;
            check_field("a label's value", value)
        })
    }
}

/// Checks that a text is a VIN.
pub fn check_vin(vin: &str) -> Result<(), Invalid> {
    let is_valid = |byte: u8| (byte.is_ascii_uppercase() && !b"IOQ".contains(&byte)) || byte.is_ascii_digit();
    if vin.len() == 17 && vin.bytes().all(is_valid) { Ok(()) } else { Err(Invalid::Vin(vin.to_owned())) }
}

fn check_field(field: &'static str, value: &str) -> Result<(), Invalid> {
    let is_valid = !value.is_empty() && value.len() <= FIELD_BYTES_MAX && !value.chars().any(char::is_control);
    if is_valid { Ok(()) } else { Err(Invalid::Field { field }) }
}

/// Checks the name of a file in its batch.
pub fn check_name(name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::NameEmpty);
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Invalid::NameTooLong);
    }
    if name.contains(['/', '\\']) || name.contains("..") || name == "." || name.chars().any(char::is_control) {
        return Err(Invalid::NameUnsafe);
    }
    Ok(())
}

/// A batch, as stored in the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its id. Ids increase in the order of creation.
    pub id: Uuid,
    /// The client's description.
    pub described: NewBatch,
    /// Its status.
    pub status: BatchStatus,
    /// When it was created, in microseconds since 1970.
    pub created_at: i64,
    /// When it last changed, in microseconds since 1970.
    pub updated_at: i64,
    /// The epoch of its last accepted change.
    pub epoch: u64,
    /// The epoch at which it was completed.
    pub completed_epoch: Option<u64>,
}

impl Batch {
    /// Its status for readers that see `epoch`: a completed batch is gathering until the frontier has passed the
    /// epoch of its completion.
    pub fn status_at(&self, epoch: u64) -> BatchStatus {
        match (self.status, self.completed_epoch) {
            (BatchStatus::Completed, Some(completed)) if completed > epoch => BatchStatus::Gathering,
            (status, _) => status,
        }
    }
}

/// The content encoding of a stored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The bytes are the file.
    Identity,
    /// The file, compressed with gzip.
    Gzip,
    /// The file, compressed with zstd.
    Zstd,
}

/// The versions of an upload's lines.
#[derive(Debug, Clone, Copy)]
pub struct Versions {
    /// The version of its whole lines and its bytes.
    pub whole_lines: VersionId,
    /// The version of its last line, if that has no line feed.
    pub open_line: VersionId,
}

/// An upload whose bytes are durable, before it is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredUpload {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub name: String,
    /// The version of its whole lines.
    pub version: VersionId,
    /// The encoding of the stored bytes.
    pub encoding: Encoding,
    /// Bytes of text.
    pub bytes: u64,
    /// Whole lines.
    pub lines: u64,
    /// Whole lines that are too long: only their beginning was searched.
    pub long_lines: u64,
    /// The last line, if it has no line feed, and its version.
    pub open_line: Option<(VersionId, OpenLine)>,
    /// Whether the text contains binary data.
    pub binary: bool,
    /// The SHA-256 of the file, without the content encoding.
    pub digest: Digest,
    /// When it was uploaded, in microseconds since 1970.
    pub uploaded_at: i64,
}

impl StoredUpload {
    /// The versions of its lines.
    pub fn versions(&self) -> Versions {
        let open_line = self.open_line.as_ref().map(|(version, _)| *version);
        Versions { whole_lines: self.version, open_line: open_line.unwrap_or_default() }
    }
}

/// Bytes to append to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub name: String,
    /// The bytes to append.
    pub bytes: Bytes,
    /// The same bytes as they are stored, if they are stored compressed.
    pub packed: Option<Bytes>,
    /// When it was uploaded, in microseconds since 1970.
    pub uploaded_at: i64,
}

/// The last line of a file, if it has no line feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenLine {
    /// Its first [`LINE_BYTES_MAX`] bytes.
    pub text: Vec<u8>,
    /// Its length in bytes.
    pub bytes: u64,
}

impl OpenLine {
    /// Whether there is no open line.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Appends bytes. Returns the whole lines and the new open line; `None` if the old or
    /// the new open line is longer than [`LINE_BYTES_MAX`].
    pub fn append(&self, more: &Bytes) -> Option<(Bytes, OpenLine)> {
        if self.bytes > self.text.len() as u64 {
            return None;
        }
        let mut whole = match self.text.is_empty() {
            true => more.clone(),
            false => [&self.text[..], more].concat().into(),
        };
        let end = memchr::memrchr(b'\n', &whole).map_or(0, |last| last + 1);
        let text = whole.split_off(end);
        let bytes = text.len() as u64;
        (text.len() <= LINE_BYTES_MAX).then(|| (whole, OpenLine { text: text.into(), bytes }))
    }
}

/// The receipt for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// The id of the file, the same for all generations.
    pub file_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its generation, from 1.
    pub generation: u32,
    /// Bytes of text.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// The SHA-256 of the file, without the content encoding, in hexadecimal.
    pub sha256: String,
    /// Another file with the same bytes, if there is one: the upload may be an accidental duplicate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<SameFile>,
    /// The epoch at which it was accepted.
    pub epoch: u64,
}

/// A file of any batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SameFile {
    /// Its batch.
    pub batch_id: Uuid,
    /// Its name.
    pub name: String,
}

/// The totals of the files of a batch at an epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileTotals {
    /// Files accepted.
    pub total_files: u64,
    /// Files counted.
    pub parsed_files: u64,
    /// Bytes of text accepted.
    pub bytes_received: u64,
    /// Bytes of text counted.
    pub bytes_parsed: u64,
    /// Lines counted.
    pub lines: u64,
}

/// The outcome of an upload or an append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accepted {
    /// A new file.
    Created(Receipt),
    /// A new generation of a file.
    Replaced(Receipt),
    /// Bytes were appended to the file.
    Grown(Receipt),
    /// The bytes are the same as those of the current generation: nothing changed.
    Unchanged(Receipt),
}

impl Accepted {
    /// The receipt.
    pub fn receipt(&self) -> &Receipt {
        let (Accepted::Created(receipt)
        | Accepted::Replaced(receipt)
        | Accepted::Grown(receipt)
        | Accepted::Unchanged(receipt)) = self;
        receipt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vin_has_17_valid_characters() {
        for (vin, valid) in [
            ("WVWZZZ1JZXW000001", true),
            ("1HGCM82633A004352", true),
            ("WVWZZZ1JZXW00000", false),
            ("WVWZZZ1JZXW0000011", false),
            ("wvwzzz1jzxw000001", false),
            ("WVWZZZ1JZXW00000O", false),
            ("WVWZZZ1JZXW00000I", false),
            ("WVWZZZ1JZXW00000Q", false),
            ("WVWZZZ1JZXW00000Ä", false),
            ("", false),
        ] {
            assert_eq!(check_vin(vin).is_ok(), valid, "{vin}");
        }
    }

    #[test]
    fn a_name_stays_in_its_folder() {
        let longest = "x".repeat(NAME_BYTES_MAX);
        for name in ["bms.log", "a b.log.1", "Grüße.log", ".hidden", &longest] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let too_long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", "..", ".", "a/b", "../a", "a\\b", "a..b", "a\0b", "a\nb", &too_long] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}

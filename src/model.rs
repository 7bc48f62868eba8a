//! Batches and files, and what makes their names good.

use std::collections::BTreeMap;

use argus_dataflow::{LINE_BYTES_MAX, VersionId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::digest::Digest;
use crate::status::BatchStatus;

/// A file's name may have this many bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// A field of a new batch (a vehicle's id, a platform, a label) may have this many bytes.
pub const FIELD_BYTES_MAX: usize = 255;

/// A batch may have this many labels.
pub const LABELS_MAX: usize = 64;

/// What a client says of a batch that it makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "vehicle_id": "veh-1", "vin": "WVWZZZ1JZXW000001", "platform": "p1", "firmware": "7.2.1", "labels": {"site": "north"}
}))]
pub struct NewBatch {
    /// The vehicle, by the name its owner gave it.
    pub vehicle_id: String,
    /// Its vehicle identification number.
    pub vin: String,
    /// The hardware platform.
    #[serde(default)]
    pub platform: Option<String>,
    /// The firmware that was rolled out.
    #[serde(default)]
    pub firmware: Option<String>,
    /// How many files its owner means to upload.
    #[serde(default)]
    pub expected_files: Option<u32>,
    /// Anything else its owner wants to find it by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What is wrong with something a client said.
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

fn check_vin(vin: &str) -> Result<(), Invalid> {
    let good = |byte: u8| (byte.is_ascii_uppercase() && !b"IOQ".contains(&byte)) || byte.is_ascii_digit();
    if vin.len() == 17 && vin.bytes().all(good) { Ok(()) } else { Err(Invalid::Vin(vin.to_owned())) }
}

fn check_field(field: &'static str, value: &str) -> Result<(), Invalid> {
    let good = !value.is_empty() && value.len() <= FIELD_BYTES_MAX && !value.chars().any(char::is_control);
    if good { Ok(()) } else { Err(Invalid::Field { field }) }
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

/// A batch as the metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its id, later in order than those of all batches before it.
    pub id: Uuid,
    /// What its owner said of it.
    pub described: NewBatch,
    /// Where it stands.
    pub status: BatchStatus,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// Of its last change, microseconds since 1970.
    pub updated_at: i64,
    /// The epoch of its last accepted change.
    pub epoch: u64,
    /// The epoch at which it was completed.
    pub completed_epoch: Option<u64>,
}

impl Batch {
    /// Where it stands for readers that see `epoch`: a completed batch is gathering until the frontier has passed the
    /// epoch of its completion.
    pub fn status_at(&self, epoch: u64) -> BatchStatus {
        match (self.status, self.completed_epoch) {
            (BatchStatus::Completed, Some(completed)) if completed > epoch => BatchStatus::Gathering,
            (status, _) => status,
        }
    }
}

/// How the bytes of a stored file are encoded over the file itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The bytes are the file.
    Identity,
    /// The file, gzipped.
    Gzip,
    /// The file, compressed with zstd.
    Zstd,
}

/// The versions that an upload's lines have.
#[derive(Debug, Clone, Copy)]
pub struct Versions {
    /// Its whole lines, and its bytes.
    pub whole_lines: VersionId,
    /// Its last line, where that lacks its line feed.
    pub open_line: VersionId,
}

/// An upload whose bytes are durable, on its way to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredUpload {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub name: String,
    /// The generation that it would be.
    pub version: VersionId,
    /// How it is stored.
    pub encoding: Encoding,
    /// Bytes of text.
    pub bytes: u64,
    /// Whole lines.
    pub lines: u64,
    /// Whole lines of which only the beginning was searched.
    pub long_lines: u64,
    /// The last line, where it lacks its line feed, and the version that its sightings have.
    pub open_line: Option<(VersionId, OpenLine)>,
    /// Whether the text holds bytes that are no text.
    pub binary: bool,
    /// Of the file as its owner has it.
    pub digest: Digest,
    /// Microseconds since 1970.
    pub uploaded_at: i64,
}

impl StoredUpload {
    /// The versions that its lines have.
    pub fn versions(&self) -> Versions {
        let open_line = self.open_line.as_ref().map(|(version, _)| *version);
        Versions { whole_lines: self.version, open_line: open_line.unwrap_or_default() }
    }
}

/// More of a file, to be appended to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub name: String,
    /// What comes behind what is there.
    pub bytes: Bytes,
    /// Microseconds since 1970.
    pub uploaded_at: i64,
}

/// The last line of a file, which lacks its line feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenLine {
    /// Its first [`LINE_BYTES_MAX`] bytes.
    pub text: Vec<u8>,
    /// How many bytes it has.
    pub bytes: u64,
}

impl OpenLine {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What more bytes make of it: whole lines, and the open line behind them.
    /// `None` when one of the two open lines is longer than [`LINE_BYTES_MAX`].
    pub fn go_on(&self, more: &[u8]) -> Option<(Vec<u8>, OpenLine)> {
        if self.bytes > self.text.len() as u64 {
            return None;
        }
        let mut whole = [&self.text[..], more].concat();
        let end = memchr::memrchr(b'\n', &whole).map_or(0, |last| last + 1);
        let text = whole.split_off(end);
        let bytes = text.len() as u64;
        (text.len() <= LINE_BYTES_MAX).then_some((whole, OpenLine { text, bytes }))
    }
}

/// The receipt for a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// The file, the same through all generations.
    pub file_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its generation, from 1.
    pub generation: u32,
    /// Bytes of text.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Of the file as its owner has it, in hexadecimal.
    pub sha256: String,
    /// Another file with the same bytes, where there is one: the upload may be a second one by mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_as: Option<SameFile>,
    /// The epoch it was accepted at.
    pub epoch: u64,
}

/// A file of whatever batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SameFile {
    /// Its batch.
    pub batch_id: Uuid,
    /// Its name.
    pub name: String,
}

/// How the files of a batch stand at an epoch.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vin_has_17_good_characters() {
        for (vin, good) in [
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
            assert_eq!(check_vin(vin).is_ok(), good, "{vin}");
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

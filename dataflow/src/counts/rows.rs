//! The rows of batches, files and codes.
//!
//! All measures are differences that readers sum, so deleting a file takes one
//! row and no counts are read back.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rules::Severity;

/// Identifies lines of a file that are admitted and withdrawn together: the
/// complete lines of a generation, with everything appended to them, or its last
/// line while that has no line feed. It is assigned before the lines count. Counts
/// and occurrences carry it, so they are live exactly while their version is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionId(pub Uuid);

impl VersionId {
    /// A new id, ordered after all earlier ones.
    pub fn new() -> VersionId {
        VersionId(Uuid::now_v7())
    }
}

impl Default for VersionId {
    fn default() -> Self {
        VersionId::new()
    }
}

impl fmt::Debug for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The origin of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name in its batch.
    pub file: String,
    /// The version of the lines.
    pub version: VersionId,
    /// When it was uploaded, microseconds since 1970; the reference for the times of lines.
    pub uploaded_at: i64,
}

/// A change to a batch. Summed by `batch_id`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchRow {
    /// The batch.
    pub batch_id: Uuid,
    /// The owner's name for the vehicle.
    pub vehicle_id: String,
    /// Its vehicle identification number.
    pub vin: String,
    /// The hardware platform.
    pub platform: Option<String>,
    /// The firmware that was rolled out.
    pub firmware: Option<String>,
    /// The owner's labels to find it by, as a JSON object of strings.
    #[serde(default)]
    pub labels: Option<String>,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// +1 when it is created, -1 when it is deleted.
    pub live: i8,
    /// +1 when it is completed, -1 when it is reopened.
    pub completed: i8,
}

/// A change to a version. Summed by `version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileRow {
    /// The batch it belongs to.
    pub batch_id: Uuid,
    /// The file, the same through all generations.
    pub file_id: Uuid,
    /// The version.
    pub version: VersionId,
    /// The file's name in its batch.
    pub name: String,
    /// The generation's number, from 1.
    pub generation: u32,
    /// +1 when it goes live, 0 when more is appended, -1 when it is replaced or deleted.
    pub live: i8,
    /// +1 when the file is deleted: the data of all its generations must be erased.
    pub erased: i8,
    /// Whether the version is a last line without a line feed.
    pub open_line: bool,
    /// Bytes of text.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Lines longer than [`crate::LINE_BYTES_MAX`].
    pub long_lines: u64,
    /// The number of its last line; for an appended part, by how much that number grows.
    pub last_line: u64,
    /// Lines with at least one occurrence.
    pub error_lines: u64,
    /// Occurrences.
    #[serde(alias = "sightings")]
    pub occurrences: u64,
    /// Microseconds since 1970.
    pub uploaded_at: i64,
    /// Why the file could not be counted; it then has no codes.
    #[serde(default)]
    pub failure: Option<String>,
    /// Whether the content is probably binary.
    #[serde(default)]
    pub binary: bool,
    /// The digest of the file as its owner has it, in hexadecimal; `None` for an appended part.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The earlier of the first and the last plausible time on its lines, microseconds since 1970.
    #[serde(default)]
    pub first_ts: Option<i64>,
    /// The later of the two.
    #[serde(default)]
    pub last_ts: Option<i64>,
    /// The rules that it was counted with ([`crate::RuleSet::fingerprint`]).
    #[serde(default)]
    pub rules: Option<String>,
}

/// A code of a component in a version, with one severity and active state; the multiplicity is the number of
/// occurrences.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CountRow {
    /// The batch.
    pub batch_id: Uuid,
    /// The version.
    pub version: VersionId,
    /// The file's name.
    pub file: String,
    /// The process, tag or logger named on its lines.
    pub component: Option<String>,
    /// The code.
    pub code: String,
    /// The rule that found it.
    pub rule: String,
    /// The severity of these occurrences.
    pub severity: Severity,
    /// `false` if the lines state that the code is not active.
    pub active: bool,
    /// The earliest plausible time of an occurrence, microseconds since 1970.
    pub first_seen: Option<i64>,
    /// The latest.
    pub last_seen: Option<i64>,
    /// The first line with the code.
    pub example_line: u64,
    /// That line's text.
    pub example_text: String,
}

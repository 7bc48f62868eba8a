//! What enters and leaves the counting.
//!
//! A [`Change`] goes in at an epoch; [`Row`]s with a multiplicity come out when
//! the epoch is closed. All measures are differences that readers sum, so a
//! file that goes is one row and nothing that was counted is read back.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::fleet::{CellRow, FleetRow, Recall};
use crate::rules::Severity;

/// Lines of a file that come and go together, named before they count: a
/// generation's whole lines with all that is appended to them, or its last line
/// while that lacks its line feed. Counts and sightings carry it, so they live
/// and die with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionId(pub Uuid);

impl VersionId {
    /// A new name, later in order than all before.
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

/// Where a block is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name in its batch.
    pub file: String,
    /// The version that the lines are of.
    pub version: VersionId,
    /// When it was uploaded, microseconds since 1970: times of lines are held to it.
    pub uploaded_at: i64,
}

/// What is said of a batch. Summed by `batch_id`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BatchRow {
    /// The batch.
    pub batch_id: Uuid,
    /// The vehicle, by the name its owner gave it.
    pub vehicle_id: String,
    /// Its vehicle identification number.
    pub vin: String,
    /// The hardware platform.
    pub platform: Option<String>,
    /// The firmware that was rolled out.
    pub firmware: Option<String>,
    /// What else its owner wants to find it by, as a JSON object of texts.
    #[serde(default)]
    pub labels: Option<String>,
    /// Microseconds since 1970.
    pub created_at: i64,
    /// +1 when it is made, -1 when it goes.
    pub live: i8,
    /// +1 when it is completed, -1 when it is opened again.
    pub completed: i8,
}

/// What is said of a version. Summed by `version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileRow {
    /// The batch it belongs to.
    pub batch_id: Uuid,
    /// The file, the same through all generations.
    pub file_id: Uuid,
    /// The generation.
    pub version: VersionId,
    /// The file's name in its batch.
    pub name: String,
    /// The generation's number, from 1.
    pub generation: u32,
    /// +1 when it goes live, 0 when more is appended, -1 when it is replaced or deleted.
    pub live: i8,
    /// +1 when the file is deleted: no trace of any of its generations may stay.
    pub erased: i8,
    /// Whether the version is a last line that lacks its line feed.
    pub open_line: bool,
    /// Bytes of text.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Lines longer than [`crate::LINE_BYTES_MAX`].
    pub long_lines: u64,
    /// The number of the last line that belongs to it; an appended part says by how much it grows.
    pub last_line: u64,
    /// Lines with at least one sighting.
    pub error_lines: u64,
    /// Sightings.
    pub sightings: u64,
    /// Microseconds since 1970.
    pub uploaded_at: i64,
    /// Why the file could not be counted: its lines have no codes.
    #[serde(default)]
    pub failure: Option<String>,
    /// Whether the text holds bytes that are no text.
    #[serde(default)]
    pub binary: bool,
    /// Of the file as its owner has it, in hexadecimal; of what was appended to it, `None`.
    #[serde(default)]
    pub sha256: Option<String>,
    /// The earlier of the first and the last plausible time that its lines name, microseconds since 1970.
    #[serde(default)]
    pub first_ts: Option<i64>,
    /// The later.
    #[serde(default)]
    pub last_ts: Option<i64>,
    /// The rules by which it was counted ([`crate::RuleSet::fingerprint`]).
    #[serde(default)]
    pub rules: Option<String>,
}

/// A code of a component in a version, of one severity and active or not; the multiplicity is the number of sightings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CountRow {
    /// The batch.
    pub batch_id: Uuid,
    /// The generation.
    pub version: VersionId,
    /// The file's name.
    pub file: String,
    /// The process, tag or logger that its lines name.
    pub component: Option<String>,
    /// The code.
    pub code: String,
    /// The rule that found it first.
    pub rule: String,
    /// Of these sightings.
    pub severity: Severity,
    /// Whether the lines say that the code is active, or nothing of it.
    pub active: bool,
    /// The earliest plausible time of a sighting, microseconds since 1970.
    pub first_seen: Option<i64>,
    /// The latest.
    pub last_seen: Option<i64>,
    /// The first line with the code.
    pub example_line: u64,
    /// That line's text.
    pub example_text: String,
}

/// A row that leaves the dataflow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the types say it")]
pub enum Row {
    Batch(BatchRow),
    File(FileRow),
    Count(CountRow),
    /// The version will never be admitted: what waits for it can go.
    Abandoned(VersionId),
    Cell(CellRow),
    Fleet(FleetRow),
    /// A batch comes back to the fleet's cells; leaves nobody.
    Recalled(Box<Recall>),
    /// A cell as the lake has it; leaves nobody.
    Loaded(CellRow),
}

/// Something accepted, that happens at an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Something is said of a batch.
    Batch(BatchRow),
    /// The blocks that were fed for `version` since it was last admitted now
    /// count. Their error lines and sightings are added to the row.
    Admit(FileRow),
    /// The version is live no more.
    Withdraw(FileRow),
    /// The blocks that were fed for this version never count.
    Abandon(VersionId),
    /// A batch that nothing happened to for a while comes back, before something happens to it.
    Recall(Box<Recall>),
    /// Cells as the lake has them, before anything else happens.
    Load(Vec<CellRow>),
}

impl Change {
    /// The batch that it is about.
    pub fn batch_id(&self) -> Option<Uuid> {
        match self {
            Change::Batch(batch) => Some(batch.batch_id),
            Change::Admit(file) | Change::Withdraw(file) => Some(file.batch_id),
            Change::Recall(recall) => Some(recall.batch.batch_id),
            Change::Abandon(_) | Change::Load(_) => None,
        }
    }

    /// The version whose blocks this change is about.
    pub fn version(&self) -> Option<VersionId> {
        match self {
            Change::Batch(_) | Change::Recall(_) | Change::Load(_) => None,
            Change::Admit(file) | Change::Withdraw(file) => Some(file.version),
            Change::Abandon(version) => Some(*version),
        }
    }
}

/// An epoch that is complete: the frontier has passed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedEpoch {
    /// The epoch. Each follows the one before by exactly one.
    pub epoch: u64,
    /// Its rows in order, each with its multiplicity, none of them zero.
    pub rows: Vec<(Row, i64)>,
}

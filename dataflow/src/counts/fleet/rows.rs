//! The input and output of the fleet operators: cells, codes of groups, and batches to load.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::counts::earliest::earliest;
use crate::counts::rows::{BatchRow, VersionId};

/// A vehicle as some of its batches describe it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vehicle {
    /// The firmware that was rolled out.
    pub firmware: Option<String>,
    /// The hardware platform.
    pub platform: Option<String>,
    /// The owner's name for the vehicle.
    pub vehicle_id: String,
    /// Its vehicle identification number.
    pub vin: String,
}

impl Vehicle {
    /// The vehicle that a batch is from.
    pub fn of(batch: &BatchRow) -> Vehicle {
        let BatchRow { firmware, platform, vehicle_id, vin, .. } = batch.clone();
        Vehicle { firmware, platform, vehicle_id, vin }
    }
}

/// What a cell counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Subject {
    /// Lines.
    Lines,
    /// Occurrences of a code.
    Code(String),
    /// Occurrences of a code in lines of a component, or in lines without one.
    CodeOf {
        /// The component.
        component: Option<String>,
        /// The code.
        code: String,
    },
}

/// When something was seen, and in which batch first. Several ranges merge to the extremes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SeenRange {
    /// The earliest time of a line, microseconds since 1970.
    pub first: Option<i64>,
    /// The latest.
    pub last: Option<i64>,
    /// Of the batches where it is active, the one recorded first.
    pub first_batch: Option<Recorded>,
}

/// The position of a batch in the order of the logs: by the first time on its lines, then by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recorded {
    /// The first plausible time on its lines, else when it was created; microseconds since 1970.
    pub at: i64,
    /// The batch.
    pub batch_id: Uuid,
}

impl SeenRange {
    /// The merged range.
    pub fn and(self, other: SeenRange) -> SeenRange {
        SeenRange {
            first: earliest(self.first, other.first),
            last: self.last.max(other.last),
            first_batch: earliest(self.first_batch, other.first_batch),
        }
    }
}

/// The value of a cell; the multiplicity is +1 when it becomes current, and -1 when another value replaces it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CellRow {
    /// Its vehicle.
    pub vehicle: Vehicle,
    /// What it counts.
    pub subject: Subject,
    /// Occurrences, or lines.
    pub count: u64,
    /// How many of them are inactive.
    pub inactive: u64,
    /// Batches with at least one.
    pub batches: u64,
    /// When they were seen.
    pub seen: SeenRange,
}

/// Vehicles, or lines, that are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FleetGroup {
    /// All vehicles with a firmware.
    Firmware(Option<String>),
    /// All vehicles of a platform.
    Platform(Option<String>),
    /// One vehicle.
    Vehicle {
        /// Its vehicle identification number.
        vin: String,
        /// The owner's name for it.
        vehicle_id: String,
    },
    /// All lines that name a component.
    Component(Option<String>),
}

/// The value of a code in a group, or of the group's lines if there is no code;
/// the multiplicity is as for [`CellRow`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FleetRow {
    /// The group.
    pub group: FleetGroup,
    /// The code.
    pub code: Option<String>,
    /// Its totals.
    pub totals: Totals,
}

/// The totals of several cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Totals {
    /// Occurrences, or lines.
    pub count: u64,
    /// Occurrences that are inactive.
    pub inactive: u64,
    /// Distinct batches with at least one.
    pub batches: u64,
    /// Distinct vehicles with at least one.
    pub vehicles: u64,
    /// Distinct vehicles where it is active.
    pub active_vehicles: u64,
    /// When they were seen.
    pub seen: SeenRange,
}

/// An unloaded batch to load, with its counts, before the next change to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoadedBatch {
    /// The batch, as it was created.
    pub batch: BatchRow,
    /// Whether files may be added. If not, it is unloaded at the end of the epoch, unless it is opened in it.
    pub is_open: bool,
    /// Its live versions.
    pub versions: Vec<LoadedVersion>,
    /// Their counts.
    pub counts: Vec<LoadedCount>,
    /// For each cell of this batch, when the other unloaded batches saw what it counts.
    pub rest: Vec<(Subject, SeenRange)>,
    /// Those other batches. After a restart, some may be loaded that were not when this was read: they are unloaded
    /// again.
    #[serde(default)]
    pub others: Vec<Uuid>,
}

/// A live version of a batch to load.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoadedVersion {
    /// The version.
    pub version: VersionId,
    /// Its lines.
    pub lines: u64,
    /// The first plausible time on them.
    pub first_ts: Option<i64>,
}

/// Occurrences of a code of a component in a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LoadedCount {
    /// The version.
    pub version: VersionId,
    /// The component.
    pub component: Option<String>,
    /// The code.
    pub code: String,
    /// Occurrences.
    pub count: u64,
    /// How many of them are inactive.
    pub inactive: u64,
    /// The earliest time of a line.
    pub first: Option<i64>,
    /// The latest.
    pub last: Option<i64>,
}

impl Totals {
    /// The sum of both; no vehicle may be in both.
    pub(super) fn and(self, other: Totals) -> Totals {
        Totals {
            count: self.count + other.count,
            inactive: self.inactive + other.inactive,
            batches: self.batches + other.batches,
            vehicles: self.vehicles + other.vehicles,
            active_vehicles: self.active_vehicles + other.active_vehicles,
            seen: self.seen.and(other.seen),
        }
    }
}

impl CellRow {
    /// The groups that it belongs to, each with the code that it counts there.
    pub(super) fn groups(&self) -> Vec<(FleetGroup, Option<String>)> {
        let code = match &self.subject {
            Subject::CodeOf { component, code } => {
                return vec![(FleetGroup::Component(component.clone()), Some(code.clone()))];
            }
            Subject::Code(code) => Some(code.clone()),
            Subject::Lines => None,
        };
        let Vehicle { firmware, platform, vehicle_id, vin } = self.vehicle.clone();
        let groups =
            [FleetGroup::Firmware(firmware), FleetGroup::Platform(platform), FleetGroup::Vehicle { vin, vehicle_id }];
        groups.into_iter().map(|group| (group, code.clone())).collect()
    }
}

//! What the fleet's part of the dataflow takes and gives: cells, codes of groups, and batches that come back.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::rows::{BatchRow, VersionId};

/// A vehicle as some of its batches describe it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vehicle {
    /// The firmware that was rolled out.
    pub firmware: Option<String>,
    /// The hardware platform.
    pub platform: Option<String>,
    /// The vehicle, by the name its owner gave it.
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
    /// Sightings of a code.
    Code(String),
    /// Sightings of a code in lines that name a component, or none.
    CodeOf {
        /// The component.
        component: Option<String>,
        /// The code.
        code: String,
    },
}

/// When something was seen, and first in which batch: what is kept of many is the extremes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seen {
    /// The earliest time of a line, microseconds since 1970.
    pub first: Option<i64>,
    /// The latest.
    pub last: Option<i64>,
    /// Of the batches where it is active, the one that was recorded first.
    pub first_batch: Option<Recorded>,
}

/// A batch in the order of the logs: by the first time that its lines name, then by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recorded {
    /// The first plausible time that its lines name, else when it was made; microseconds since 1970.
    pub at: i64,
    /// The batch.
    pub batch_id: Uuid,
}

impl Seen {
    /// What both say.
    pub fn and(self, other: Seen) -> Seen {
        Seen {
            first: [self.first, other.first].into_iter().flatten().min(),
            last: self.last.max(other.last),
            first_batch: [self.first_batch, other.first_batch].into_iter().flatten().min(),
        }
    }
}

/// A cell as it stands; the multiplicity is +1 from then on and -1 from when it stands otherwise.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CellRow {
    /// Whose it is.
    pub vehicle: Vehicle,
    /// What it counts.
    pub subject: Subject,
    /// How many there are.
    pub count: u64,
    /// How many of them are not active.
    pub inactive: u64,
    /// Batches with some.
    pub batches: u64,
    /// When they were seen.
    pub seen: Seen,
}

/// Vehicles, or lines, that are looked at together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Group {
    /// All with a firmware.
    Firmware(Option<String>),
    /// All of a platform.
    Platform(Option<String>),
    /// One vehicle.
    Vehicle {
        /// Its vehicle identification number.
        vin: String,
        /// The name its owner gave it.
        vehicle_id: String,
    },
    /// All lines that name a component.
    Component(Option<String>),
}

/// A code in a group as it stands, or the group's lines where it names no code;
/// the multiplicity is as that of [`CellRow`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FleetRow {
    /// The group.
    pub group: Group,
    /// The code.
    pub code: Option<String>,
    /// What is known of it.
    pub totals: Totals,
}

/// What many cells come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Totals {
    /// Sightings, or lines.
    pub count: u64,
    /// Sightings that are not active.
    pub inactive: u64,
    /// Different batches with some.
    pub batches: u64,
    /// Different vehicles with some.
    pub vehicles: u64,
    /// Different vehicles where it is active.
    pub active_vehicles: u64,
    /// When they were seen.
    pub seen: Seen,
}

/// A cold batch comes back, with its counts, before something happens to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recall {
    /// The batch, as it was made.
    pub batch: BatchRow,
    /// Its live versions.
    pub versions: Vec<RecalledVersion>,
    /// What was counted in them.
    pub counts: Vec<RecalledCount>,
    /// When the cold batches that stay saw what the cells of this one count.
    pub rest: Vec<(Subject, Seen)>,
    /// Those batches. After a restart more batches may be warm than were when this was read: they become cold again.
    #[serde(default)]
    pub others: Vec<Uuid>,
}

/// A live version of a batch that comes back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecalledVersion {
    /// The version.
    pub version: VersionId,
    /// Its lines.
    pub lines: u64,
    /// The first plausible time that they name.
    pub first_ts: Option<i64>,
}

/// Sightings of a code of a component in a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecalledCount {
    /// The version.
    pub version: VersionId,
    /// The component.
    pub component: Option<String>,
    /// The code.
    pub code: String,
    /// Sightings.
    pub count: u64,
    /// How many of them are not active.
    pub inactive: u64,
    /// The earliest time of a line.
    pub first: Option<i64>,
    /// The latest.
    pub last: Option<i64>,
}

impl Totals {
    /// What both have, when no vehicle is in both.
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
    pub(super) fn groups(&self) -> Vec<(Group, Option<String>)> {
        let code = match &self.subject {
            Subject::CodeOf { component, code } => {
                return vec![(Group::Component(component.clone()), Some(code.clone()))];
            }
            Subject::Code(code) => Some(code.clone()),
            Subject::Lines => None,
        };
        let Vehicle { firmware, platform, vehicle_id, vin } = self.vehicle.clone();
        let groups = [Group::Firmware(firmware), Group::Platform(platform), Group::Vehicle { vin, vehicle_id }];
        groups.into_iter().map(|group| (group, code.clone())).collect()
    }
}

//! The fleet's codes, kept while files come and go.
//!
//! ```text
//!  rows ──► cells ──(cell, ±1)──► by group ──► reduce, by parts of the fleet ──► fleet rows
//!             │
//!             └─(cell, ±1)──► the lake
//! ```
//!
//! 1. A **cell** is what one vehicle with one firmware says of one code (of one
//!    component, or of all). [`Cells`] keeps them current: a batch that changes
//!    has its old contribution to its cells replaced by the new one.
//! 2. Of a batch at rest only the cells are left: it is **cold**. Before
//!    something happens to it, it is **recalled** with its counts, which are read
//!    back from the tables, so state grows with cells and open batches and never
//!    with closed ones. The earliest and latest times of the cold batches that
//!    stay in a cell come with it, for those cannot be subtracted.
//! 3. A group's codes (all vehicles with a firmware, of a platform, …) are
//!    differential's: its cells are reduced in parts of the fleet, then the parts,
//!    so that one vehicle's change touches few of the others.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use differential_dataflow::{AsCollection, VecCollection};
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use uuid::Uuid;

use crate::rows::{BatchRow, CountRow, FileRow, Row, VersionId};

/// Cells are first reduced in 2 to this power parts of the fleet.
const PARTS_BITS: u32 = 12;
/// So many bits of parts' numbers go with each reduction, 16 parts into one.
const FAN_IN_BITS: u32 = 4;

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
    /// The batch that was made first.
    pub first_batch: Uuid,
}

impl Seen {
    /// What both say.
    pub fn and(self, other: Seen) -> Seen {
        Seen {
            first: [self.first, other.first].into_iter().flatten().min(),
            last: self.last.max(other.last),
            first_batch: self.first_batch.min(other.first_batch),
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
    /// Different batches with some.
    pub batches: u64,
    /// Different vehicles with some.
    pub vehicles: u64,
    /// When they were seen.
    pub seen: Seen,
}

/// A cold batch comes back, with its counts, before something happens to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Recall {
    /// The batch, as it was made.
    pub batch: BatchRow,
    /// Its live versions with their lines.
    pub versions: Vec<(VersionId, u64)>,
    /// What was counted in them.
    pub counts: Vec<RecalledCount>,
    /// When the cold batches that stay saw what the cells of this one count.
    pub rest: Vec<(Subject, Seen)>,
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
    /// The earliest time of a line.
    pub first: Option<i64>,
    /// The latest.
    pub last: Option<i64>,
}

type Update<D> = (D, u64, i64);

/// Keeps cells and groups for the rows that enter and leave; says what changes of both.
pub fn fleet(rows: StreamVec<'_, u64, Update<Row>>) -> VecCollection<'_, u64, Row, i64> {
    let cells = cells(rows).as_collection();
    let changed = cells.clone().flat_map(|(cell, is_news)| is_news.then_some(Row::Cell(cell)));
    let groups = groups(cells.map(|(cell, _)| cell)).map(Row::Fleet);
    changed.concat(groups)
}

/// The cells that change, and whether the lake has yet to learn of it.
fn cells(rows: StreamVec<'_, u64, Update<Row>>) -> StreamVec<'_, u64, Update<(CellRow, bool)>> {
    // One worker keeps them: what it sees is folded, and goes to one worker later anyway.
    let to_first_worker = Exchange::new(|_: &Update<Row>| 0);
    rows.unary_frontier::<CapacityContainerBuilder<_>, _, _, _>(to_first_worker, "Cells", |_, _| {
        let mut cells = Cells::default();
        let mut waiting = BTreeMap::new();
        move |(input, frontier), output| {
            input.for_each(|time, arrived| {
                // Epochs are totally ordered, so a message has exactly one.
                let Some(&epoch) = time.least() else { return };
                let (_, list) = waiting.entry(epoch).or_insert_with(|| (time.delayed(&epoch, 0), Vec::new()));
                list.append(arrived);
            });
            while let Some(entry) = waiting.first_entry() {
                let epoch = *entry.key();
                if frontier.less_equal(&epoch) {
                    break;
                }
                let (capability, rows) = entry.remove();
                let mut session = output.session(&capability);
                let rows = rows.into_iter().map(|(row, _, count)| (row, count));
                cells.apply(rows, |cell, is_news, diff| session.give(((cell, is_news), epoch, diff)));
            }
        }
    })
}

/// What the cells of each group come to.
fn groups<'s>(cells: VecCollection<'s, u64, CellRow, i64>) -> VecCollection<'s, u64, FleetRow, i64> {
    let members = cells.flat_map(|cell| {
        let totals = Totals { count: cell.count, batches: cell.batches, vehicles: 1, seen: cell.seen };
        let part = part_of(&cell.vehicle.vin);
        cell.groups().into_iter().map(move |(group, code)| ((group, code, part), (cell.vehicle.vin.clone(), totals)))
    });
    // A vehicle is in one part, so the vehicles of parts can be added.
    let mut parts = members.reduce_named("Cells by part", |_, cells, out| {
        let vins: HashSet<&str> = cells.iter().map(|((vin, _), _)| vin.as_str()).collect();
        let totals = cells.iter().map(|((_, totals), _)| *totals).reduce(Totals::and);
        out.extend(totals.map(|totals| (Totals { vehicles: vins.len() as u64, ..totals }, 1)));
    });
    for _ in 0..PARTS_BITS / FAN_IN_BITS {
        let wider = parts.map(|((group, code, part), totals)| ((group, code, part >> FAN_IN_BITS), totals));
        parts = wider.reduce_named("Parts", |_, parts, out| {
            let totals = parts.iter().flat_map(|(totals, count)| (0..*count).map(|_| **totals)).reduce(Totals::and);
            out.extend(totals.map(|totals| (totals, 1)));
        });
    }
    parts.map(|((group, code, _), totals)| FleetRow { group, code, totals })
}

fn part_of(vin: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    vin.hash(&mut hasher);
    hasher.finish() as u32 & ((1 << PARTS_BITS) - 1)
}

impl Totals {
    fn and(self, other: Totals) -> Totals {
        Totals {
            count: self.count + other.count,
            batches: self.batches + other.batches,
            vehicles: self.vehicles + other.vehicles,
            seen: self.seen.and(other.seen),
        }
    }
}

impl CellRow {
    /// The groups that it belongs to, each with the code that it counts there.
    fn groups(&self) -> Vec<(Group, Option<String>)> {
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

/// All cells, and the batches that something is happening to.
#[derive(Default)]
struct Cells {
    vehicles: HashMap<Vehicle, HashMap<Subject, Cell>>,
    warm: HashMap<Uuid, Batch>,
}

struct Cell {
    count: u64,
    batches: u64,
    /// When the cold batches saw it; `None` where none did.
    cold: Option<Seen>,
    /// When the warm ones did.
    warm: Vec<(Uuid, Seen)>,
}

/// A warm batch.
struct Batch {
    vehicle: Vehicle,
    versions: HashMap<VersionId, Version>,
    /// What it has in the cells of its vehicle.
    contribution: HashMap<Subject, Contribution>,
}

#[derive(Default)]
struct Version {
    live: i64,
    lines: u64,
    counts: Vec<RecalledCount>,
}

#[derive(Clone, Copy)]
struct Contribution {
    count: u64,
    seen: Seen,
}

impl Cells {
    /// Applies the rows of an epoch, whatever their order. Rows of batches
    /// that are neither new nor recalled are of no vehicle.
    fn apply(&mut self, rows: impl Iterator<Item = (Row, i64)>, mut give: impl FnMut(CellRow, bool, i64)) {
        let (mut recalled, mut begun, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let (mut counts, mut files) = (Vec::new(), Vec::new());
        for (row, count) in rows {
            match row {
                Row::Loaded(cell) => {
                    self.load(&cell);
                    give(cell, false, 1);
                }
                Row::Recalled(recall) => recalled.push(*recall),
                Row::Batch(batch) if batch.live > 0 => begun.push(batch),
                Row::Batch(batch) if batch.live < 0 || batch.completed > 0 => ended.push(batch),
                Row::Count(row) => counts.push((row, count)),
                Row::File(row) => files.push((row, count)),
                Row::Batch(_) | Row::Abandoned(_) | Row::Cell(_) | Row::Fleet(_) => {}
            }
        }
        // Each was read when those with earlier ids were warm, or in an epoch of its own.
        recalled.sort_by_key(|recall| recall.batch.batch_id);
        recalled.into_iter().for_each(|recall| self.recall(recall));
        for batch in begun {
            let vehicle = Vehicle::of(&batch);
            let made = Batch { vehicle, versions: HashMap::new(), contribution: HashMap::new() };
            self.warm.insert(batch.batch_id, made);
        }
        // A version that comes and goes at one epoch comes first.
        files.sort_by_key(|(row, _)| Reverse(row.live));
        let mut touched = HashSet::new();
        for (row, count) in counts {
            if let Some(batch) = self.warm.get_mut(&row.batch_id) {
                touched.insert(row.batch_id);
                batch.count(row, count);
            }
        }
        for (row, count) in files {
            if let Some(batch) = self.warm.get_mut(&row.batch_id) {
                touched.insert(row.batch_id);
                batch.file(&row, count);
            }
        }
        for id in touched {
            self.contribute(id, &mut give);
        }
        for batch in ended {
            match batch.live < 0 {
                true => self.forget(batch.batch_id, &mut give),
                false => self.cool(batch.batch_id),
            }
        }
    }

    fn load(&mut self, cell: &CellRow) {
        let CellRow { vehicle, subject, count, batches, seen } = cell.clone();
        let loaded = Cell { count, batches, cold: Some(seen), warm: Vec::new() };
        self.vehicles.entry(vehicle).or_default().insert(subject, loaded);
    }

    /// A cold batch becomes warm; what its cells say stays the same.
    fn recall(&mut self, recall: Recall) {
        let Recall { batch: BatchRow { batch_id, .. }, versions, counts, rest, .. } = &recall;
        let versions = versions.iter().map(|(version, lines)| {
            let counts = counts.iter().filter(|count| count.version == *version).cloned().collect();
            (*version, Version { live: 1, lines: *lines, counts })
        });
        let vehicle = Vehicle::of(&recall.batch);
        let mut batch = Batch { vehicle, versions: versions.collect(), contribution: HashMap::new() };
        batch.contribution = batch.contributes(*batch_id);
        let mut rest: HashMap<&Subject, Seen> = rest.iter().map(|(subject, seen)| (subject, *seen)).collect();
        if let Some(cells) = self.vehicles.get_mut(&batch.vehicle) {
            for (subject, contribution) in &batch.contribution {
                if let Some(cell) = cells.get_mut(subject) {
                    cell.cold = rest.remove(subject);
                    cell.warm.retain(|(warm, _)| warm != batch_id);
                    cell.warm.push((*batch_id, contribution.seen));
                }
            }
        }
        self.warm.insert(*batch_id, batch);
    }

    /// Puts what a warm batch has now in the place of what it had in its cells.
    fn contribute(&mut self, id: Uuid, give: &mut impl FnMut(CellRow, bool, i64)) {
        let Some(batch) = self.warm.get_mut(&id) else { return };
        let now = batch.contributes(id);
        let mut before = std::mem::replace(&mut batch.contribution, now.clone());
        let cells = self.vehicles.entry(batch.vehicle.clone()).or_default();
        for (subject, contribution) in now {
            let before = before.remove(&subject);
            replace(cells, &batch.vehicle, subject, id, before, Some(contribution), give);
        }
        for (subject, contribution) in before {
            replace(cells, &batch.vehicle, subject, id, Some(contribution), None, give);
        }
        if cells.is_empty() {
            self.vehicles.remove(&batch.vehicle);
        }
    }

    /// A warm batch is deleted.
    fn forget(&mut self, id: Uuid, give: &mut impl FnMut(CellRow, bool, i64)) {
        if let Some(batch) = self.warm.get_mut(&id) {
            batch.versions.clear();
        }
        self.contribute(id, give);
        self.warm.remove(&id);
    }

    /// A warm batch becomes cold; what its cells say stays the same.
    fn cool(&mut self, id: Uuid) {
        let Some(batch) = self.warm.remove(&id) else { return };
        let Some(cells) = self.vehicles.get_mut(&batch.vehicle) else { return };
        for (subject, contribution) in batch.contribution {
            if let Some(cell) = cells.get_mut(&subject) {
                cell.warm.retain(|(batch, _)| *batch != id);
                cell.cold = Some(cell.cold.map_or(contribution.seen, |cold| cold.and(contribution.seen)));
            }
        }
    }
}

/// Replaces a batch's contribution to a cell.
fn replace(
    cells: &mut HashMap<Subject, Cell>,
    vehicle: &Vehicle,
    subject: Subject,
    id: Uuid,
    before: Option<Contribution>,
    now: Option<Contribution>,
    give: &mut impl FnMut(CellRow, bool, i64),
) {
    let row = |cell: &Cell| {
        let seen = cell.seen()?;
        let (vehicle, subject) = (vehicle.clone(), subject.clone());
        Some(CellRow { vehicle, subject, count: cell.count, batches: cell.batches, seen })
    };
    let mut entry = match cells.entry(subject.clone()) {
        Entry::Occupied(entry) => entry,
        Entry::Vacant(entry) => entry.insert_entry(Cell { count: 0, batches: 0, cold: None, warm: Vec::new() }),
    };
    let cell = entry.get_mut();
    let row_before = row(cell);
    cell.warm.retain(|(batch, _)| *batch != id);
    if let Some(before) = before {
        cell.count = cell.count.saturating_sub(before.count);
        cell.batches = cell.batches.saturating_sub(1);
    }
    if let Some(now) = now {
        cell.count += now.count;
        cell.batches += 1;
        cell.warm.push((id, now.seen));
    }
    let row_now = row(cell);
    if cell.batches == 0 {
        entry.remove();
    }
    if row_before != row_now {
        if let Some(row) = row_before {
            give(row, true, -1);
        }
        if let Some(row) = row_now {
            give(row, true, 1);
        }
    }
}

impl Cell {
    /// When any batch saw it; `None` when no batch has it.
    fn seen(&self) -> Option<Seen> {
        self.warm.iter().map(|(_, seen)| *seen).chain(self.cold).reduce(Seen::and)
    }
}

impl Batch {
    fn count(&mut self, row: CountRow, count: i64) {
        let CountRow { version, component, code, first_seen: first, last_seen: last, .. } = row;
        let count = count.max(0) as u64;
        let seen = RecalledCount { version, component, code, count, first, last };
        self.versions.entry(version).or_default().counts.push(seen);
    }

    fn file(&mut self, row: &FileRow, count: i64) {
        let version = self.versions.entry(row.version).or_default();
        version.live += count * i64::from(row.live);
        version.lines += count.max(0) as u64 * row.lines;
        if version.live <= 0 {
            self.versions.remove(&row.version);
        }
    }

    fn contributes(&self, id: Uuid) -> HashMap<Subject, Contribution> {
        let mut all: HashMap<Subject, Contribution> = HashMap::new();
        let mut add = |subject, count, seen: Seen| {
            let contribution = all.entry(subject).or_insert(Contribution { count: 0, seen });
            contribution.count += count;
            contribution.seen = contribution.seen.and(seen);
        };
        for version in self.versions.values() {
            add(Subject::Lines, version.lines, Seen { first: None, last: None, first_batch: id });
            for RecalledCount { component, code, count, first, last, .. } in &version.counts {
                let seen = Seen { first: *first, last: *last, first_batch: id };
                add(Subject::Code(code.clone()), *count, seen);
                add(Subject::CodeOf { component: component.clone(), code: code.clone() }, *count, seen);
            }
        }
        all
    }
}

//! The cells as they stand, kept current by the batches that something is happening to.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::rows::{CellRow, Recall, RecalledCount, Recorded, Seen, Subject, Vehicle};
use crate::rows::{BatchRow, CountRow, FileRow, Row, VersionId};

/// All cells, and the batches that something is happening to.
#[derive(Default)]
pub(super) struct Cells {
    vehicles: HashMap<Vehicle, HashMap<Subject, Cell>>,
    warm: HashMap<Uuid, Batch>,
}

struct Cell {
    count: u64,
    inactive: u64,
    batches: u64,
    /// When the cold batches saw it; `None` where none did.
    cold: Option<Seen>,
    /// When the warm ones did.
    warm: Vec<(Uuid, Seen)>,
    /// As it was given last. What is taken back must be that to the letter, whatever batches that came back say.
    given: Option<Seen>,
}

/// A warm batch.
struct Batch {
    vehicle: Vehicle,
    /// When it was recorded if its lines do not say.
    created_at: i64,
    versions: HashMap<VersionId, Version>,
    /// What it has in the cells of its vehicle.
    contribution: HashMap<Subject, Contribution>,
}

#[derive(Default)]
struct Version {
    live: i64,
    lines: u64,
    first_ts: Option<i64>,
    /// By component and code, so that a file that grows for days takes no more room than its codes do.
    counts: HashMap<(Option<String>, String), Counted>,
}

/// What a version says of a code of a component.
struct Counted {
    count: u64,
    inactive: u64,
    first: Option<i64>,
    last: Option<i64>,
}

impl Version {
    fn add(&mut self, more: RecalledCount) {
        let RecalledCount { component, code, count, inactive, first, last, .. } = more;
        let counted = self.counts.entry((component, code)).or_insert(Counted { count: 0, inactive: 0, first, last });
        counted.count += count;
        counted.inactive += inactive;
        counted.first = [counted.first, first].into_iter().flatten().min();
        counted.last = counted.last.max(last);
    }
}

#[derive(Clone, Copy)]
struct Contribution {
    count: u64,
    inactive: u64,
    seen: Seen,
}

impl Cells {
    /// Applies the rows of an epoch, whatever their order. Rows of batches
    /// that are neither new nor recalled are of no vehicle.
    pub(super) fn apply(&mut self, rows: impl Iterator<Item = (Row, i64)>, mut give: impl FnMut(CellRow, bool, i64)) {
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
            self.warm.insert(batch.batch_id, Batch::of(&batch, HashMap::new()));
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
        let CellRow { vehicle, subject, count, inactive, batches, seen } = cell.clone();
        let loaded = Cell { count, inactive, batches, cold: Some(seen), warm: Vec::new(), given: Some(seen) };
        self.vehicles.entry(vehicle).or_default().insert(subject, loaded);
    }

    /// A cold batch becomes warm; what its cells say stays the same.
    fn recall(&mut self, recall: Recall) {
        // After a restart it may be warm already.
        if self.warm.contains_key(&recall.batch.batch_id) {
            return;
        }
        let Recall { batch: BatchRow { batch_id, .. }, versions, counts, rest, others } = &recall;
        // What they say is in the rest, and would stay there when they change.
        others.iter().for_each(|other| self.cool(*other));
        let versions = versions.iter();
        let mut versions: HashMap<VersionId, Version> = versions
            .map(|one| {
                (one.version, Version { live: 1, lines: one.lines, first_ts: one.first_ts, ..Version::default() })
            })
            .collect();
        for count in counts {
            if let Some(version) = versions.get_mut(&count.version) {
                version.add(count.clone());
            }
        }
        let mut batch = Batch::of(&recall.batch, versions);
        batch.contribution = batch.contributes(*batch_id);
        let mut rest: HashMap<&Subject, Seen> = rest.iter().map(|(subject, seen)| (subject, *seen)).collect();
        if let Some(cells) = self.vehicles.get_mut(&batch.vehicle) {
            for (subject, contribution) in &batch.contribution {
                if let Some(cell) = cells.get_mut(subject) {
                    cell.cold = rest.remove(subject);
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
        let seen = cell.given?;
        let (vehicle, subject) = (vehicle.clone(), subject.clone());
        Some(CellRow { vehicle, subject, count: cell.count, inactive: cell.inactive, batches: cell.batches, seen })
    };
    let mut entry = match cells.entry(subject.clone()) {
        Entry::Occupied(entry) => entry,
        Entry::Vacant(entry) => {
            entry.insert_entry(Cell { count: 0, inactive: 0, batches: 0, cold: None, warm: Vec::new(), given: None })
        }
    };
    let cell = entry.get_mut();
    let row_before = row(cell);
    cell.warm.retain(|(batch, _)| *batch != id);
    if let Some(before) = before {
        cell.count = cell.count.saturating_sub(before.count);
        cell.inactive = cell.inactive.saturating_sub(before.inactive);
        cell.batches = cell.batches.saturating_sub(1);
    }
    if let Some(now) = now {
        cell.count += now.count;
        cell.inactive += now.inactive;
        cell.batches += 1;
        cell.warm.push((id, now.seen));
    }
    cell.given = cell.seen().filter(|_| cell.batches > 0);
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
    fn of(batch: &BatchRow, versions: HashMap<VersionId, Version>) -> Batch {
        Batch { vehicle: Vehicle::of(batch), created_at: batch.created_at, versions, contribution: HashMap::new() }
    }

    fn count(&mut self, row: CountRow, count: i64) {
        let CountRow { version, component, code, active, first_seen: first, last_seen: last, .. } = row;
        let count = count.max(0) as u64;
        let inactive = if active { 0 } else { count };
        let seen = RecalledCount { version, component, code, count, inactive, first, last };
        self.versions.entry(version).or_default().add(seen);
    }

    fn file(&mut self, row: &FileRow, count: i64) {
        let version = self.versions.entry(row.version).or_default();
        version.live += count * i64::from(row.live);
        version.lines += count.max(0) as u64 * row.lines;
        version.first_ts = [version.first_ts, row.first_ts].into_iter().flatten().min();
        if version.live <= 0 {
            self.versions.remove(&row.version);
        }
    }

    fn contributes(&self, id: Uuid) -> HashMap<Subject, Contribution> {
        let mut all: HashMap<Subject, Contribution> = HashMap::new();
        let recorded = self.versions.values().filter_map(|version| version.first_ts).min();
        let recorded = Recorded { at: recorded.unwrap_or(self.created_at), batch_id: id };
        let mut add = |subject, count, inactive, (first, last)| {
            let seen = Seen { first, last, first_batch: (count > inactive || count == 0).then_some(recorded) };
            let contribution = all.entry(subject).or_insert(Contribution { count: 0, inactive: 0, seen });
            contribution.count += count;
            contribution.inactive += inactive;
            contribution.seen = contribution.seen.and(seen);
        };
        for version in self.versions.values() {
            add(Subject::Lines, version.lines, 0, (None, None));
            for ((component, code), Counted { count, inactive, first, last }) in &version.counts {
                add(Subject::Code(code.clone()), *count, *inactive, (*first, *last));
                let subject = Subject::CodeOf { component: component.clone(), code: code.clone() };
                add(subject, *count, *inactive, (*first, *last));
            }
        }
        all
    }
}

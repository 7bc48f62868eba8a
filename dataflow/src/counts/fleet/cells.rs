//! The current cells, maintained from the loaded batches.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::rows::{CellRow, LoadedBatch, LoadedCount, Recorded, SeenRange, Subject, Vehicle};
use crate::counts::changes::Row;
use crate::counts::earliest::earliest;
use crate::counts::rows::{BatchRow, CountRow, FileRow, VersionId};

/// All cells, and the loaded batches.
#[derive(Default)]
pub(super) struct Cells {
    vehicles: HashMap<Vehicle, HashMap<Subject, Cell>>,
    loaded: HashMap<Uuid, Batch>,
}

struct Cell {
    count: u64,
    inactive: u64,
    batches: u64,
    /// When the unloaded batches saw it; `None` if none did.
    unloaded: Option<SeenRange>,
    /// When the loaded batches saw it.
    loaded: Vec<(Uuid, SeenRange)>,
    /// The range that was emitted last. A retraction must repeat it exactly, whatever the loaded batches contain.
    emitted: Option<SeenRange>,
}

/// A loaded batch.
struct Batch {
    vehicle: Vehicle,
    /// When it was recorded, if its lines have no time.
    created_at: i64,
    versions: HashMap<VersionId, Version>,
    /// Its contribution to the cells of its vehicle.
    contribution: HashMap<Subject, Contribution>,
}

#[derive(Default)]
struct Version {
    live: i64,
    lines: u64,
    first_ts: Option<i64>,
    /// By component and code, so that a file that grows for days takes only the memory of its distinct codes.
    counts: HashMap<(Option<String>, String), VersionCounts>,
}

/// The counts of a code of a component in a version.
struct VersionCounts {
    count: u64,
    inactive: u64,
    first: Option<i64>,
    last: Option<i64>,
}

impl Version {
    fn add(&mut self, more: LoadedCount) {
        let LoadedCount { component, code, count, inactive, first, last, .. } = more;
        let counted =
            self.counts.entry((component, code)).or_insert(VersionCounts { count: 0, inactive: 0, first, last });
        counted.count += count;
        counted.inactive += inactive;
        counted.first = earliest(counted.first, first);
        counted.last = counted.last.max(last);
    }
}

#[derive(Clone, Copy)]
struct Contribution {
    count: u64,
    inactive: u64,
    seen: SeenRange,
}

impl Cells {
    /// Applies the rows of an epoch, in any order. Rows of batches that are
    /// neither new nor loaded are ignored.
    pub(super) fn apply(&mut self, rows: impl Iterator<Item = (Row, i64)>, mut give: impl FnMut(CellRow, bool, i64)) {
        let (mut loaded_batches, mut begun, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        let (mut counts, mut files) = (Vec::new(), Vec::new());
        let (mut to_unload, mut opened) = (HashSet::new(), Vec::new());
        for (row, count) in rows {
            match row {
                Row::RestoredCell(cell) => {
                    self.restore(&cell);
                    give(cell, false, 1);
                }
                Row::LoadedBatch(loaded) => {
                    if !loaded.is_open {
                        to_unload.insert(loaded.batch.batch_id);
                    }
                    loaded_batches.push(*loaded);
                }
                Row::Batch(batch) if batch.live > 0 => begun.push(batch),
                Row::Batch(batch) if batch.live < 0 || batch.completed > 0 => ended.push(batch),
                Row::Batch(batch) if batch.completed < 0 => opened.push(batch.batch_id),
                Row::Count(row) => counts.push((row, count)),
                Row::File(row) => files.push((row, count)),
                Row::Batch(_) | Row::Abandoned(_) | Row::Cell(_) | Row::Fleet(_) => {}
            }
        }
        // Each was read when those with smaller ids were loaded, or in an epoch of its own.
        loaded_batches.sort_by_key(|loaded| loaded.batch.batch_id);
        loaded_batches.into_iter().for_each(|loaded| self.load_batch(loaded));
        for batch in begun {
            self.loaded.insert(batch.batch_id, Batch::of(&batch, HashMap::new()));
        }
        // A version that is admitted and withdrawn in one epoch must be admitted first.
        files.sort_by_key(|(row, _)| Reverse(row.live));
        let mut touched = HashSet::new();
        for (row, count) in counts {
            if let Some(batch) = self.loaded.get_mut(&row.batch_id) {
                touched.insert(row.batch_id);
                batch.count(row, count);
            }
        }
        for (row, count) in files {
            if let Some(batch) = self.loaded.get_mut(&row.batch_id) {
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
                false => self.unload(batch.batch_id),
            }
        }
        // Only open batches stay loaded, so that a restart knows which were.
        for id in opened {
            to_unload.remove(&id);
        }
        to_unload.into_iter().for_each(|id| self.unload(id));
    }

    /// The batches that are loaded.
    #[cfg(test)]
    pub(super) fn loaded_ids(&self) -> std::collections::BTreeSet<Uuid> {
        self.loaded.keys().copied().collect()
    }

    fn restore(&mut self, cell: &CellRow) {
        let CellRow { vehicle, subject, count, inactive, batches, seen } = cell.clone();
        let loaded = Cell { count, inactive, batches, unloaded: Some(seen), loaded: Vec::new(), emitted: Some(seen) };
        self.vehicles.entry(vehicle).or_default().insert(subject, loaded);
    }

    /// Loads an unloaded batch; the values of its cells stay the same.
    fn load_batch(&mut self, loaded: LoadedBatch) {
        // After a restart it may be loaded already.
        if self.loaded.contains_key(&loaded.batch.batch_id) {
            return;
        }
        let LoadedBatch { batch: BatchRow { batch_id, .. }, versions, counts, rest, others, .. } = &loaded;
        // `rest` includes their ranges, and would be outdated when they change.
        others.iter().for_each(|other| self.unload(*other));
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
        let mut batch = Batch::of(&loaded.batch, versions);
        batch.contribution = batch.contributes(*batch_id);
        let mut rest: HashMap<&Subject, SeenRange> = rest.iter().map(|(subject, seen)| (subject, *seen)).collect();
        if let Some(cells) = self.vehicles.get_mut(&batch.vehicle) {
            for (subject, contribution) in &batch.contribution {
                if let Some(cell) = cells.get_mut(subject) {
                    cell.unloaded = rest.remove(subject);
                    cell.loaded.push((*batch_id, contribution.seen));
                }
            }
        }
        self.loaded.insert(*batch_id, batch);
    }

    /// Replaces the contribution of a loaded batch to its cells with its current one.
    fn contribute(&mut self, id: Uuid, give: &mut impl FnMut(CellRow, bool, i64)) {
        let Some(batch) = self.loaded.get_mut(&id) else { return };
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

    /// Removes a loaded batch that is deleted.
    fn forget(&mut self, id: Uuid, give: &mut impl FnMut(CellRow, bool, i64)) {
        if let Some(batch) = self.loaded.get_mut(&id) {
            batch.versions.clear();
        }
        self.contribute(id, give);
        self.loaded.remove(&id);
    }

    /// Unloads a loaded batch; the values of its cells stay the same.
    fn unload(&mut self, id: Uuid) {
        let Some(batch) = self.loaded.remove(&id) else { return };
        let Some(cells) = self.vehicles.get_mut(&batch.vehicle) else { return };
        for (subject, contribution) in batch.contribution {
            if let Some(cell) = cells.get_mut(&subject) {
                cell.loaded.retain(|(batch, _)| *batch != id);
                cell.unloaded =
                    Some(cell.unloaded.map_or(contribution.seen, |unloaded| unloaded.and(contribution.seen)));
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
        let seen = cell.emitted?;
        let (vehicle, subject) = (vehicle.clone(), subject.clone());
        Some(CellRow { vehicle, subject, count: cell.count, inactive: cell.inactive, batches: cell.batches, seen })
    };
    let mut entry = match cells.entry(subject.clone()) {
        Entry::Occupied(entry) => entry,
        Entry::Vacant(entry) => entry.insert_entry(Cell {
            count: 0,
            inactive: 0,
            batches: 0,
            unloaded: None,
            loaded: Vec::new(),
            emitted: None,
        }),
    };
    let cell = entry.get_mut();
    let row_before = row(cell);
    cell.loaded.retain(|(batch, _)| *batch != id);
    if let Some(before) = before {
        cell.count = cell.count.saturating_sub(before.count);
        cell.inactive = cell.inactive.saturating_sub(before.inactive);
        cell.batches = cell.batches.saturating_sub(1);
    }
    if let Some(now) = now {
        cell.count += now.count;
        cell.inactive += now.inactive;
        cell.batches += 1;
        cell.loaded.push((id, now.seen));
    }
    cell.emitted = cell.seen().filter(|_| cell.batches > 0);
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
    /// When any batch saw it; `None` if no batch did.
    fn seen(&self) -> Option<SeenRange> {
        self.loaded.iter().map(|(_, seen)| *seen).chain(self.unloaded).reduce(SeenRange::and)
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
        let seen = LoadedCount { version, component, code, count, inactive, first, last };
        self.versions.entry(version).or_default().add(seen);
    }

    fn file(&mut self, row: &FileRow, count: i64) {
        let version = self.versions.entry(row.version).or_default();
        version.live += count * i64::from(row.live);
        version.lines += count.max(0) as u64 * row.lines;
        version.first_ts = earliest(version.first_ts, row.first_ts);
        if version.live <= 0 {
            self.versions.remove(&row.version);
        }
    }

    fn contributes(&self, id: Uuid) -> HashMap<Subject, Contribution> {
        let mut all: HashMap<Subject, Contribution> = HashMap::new();
        let recorded = self.versions.values().filter_map(|version| version.first_ts).min();
        let recorded = Recorded { at: recorded.unwrap_or(self.created_at), batch_id: id };
        let mut add = |subject, count, inactive, (first, last)| {
            let seen = SeenRange { first, last, first_batch: (count > inactive || count == 0).then_some(recorded) };
            let contribution = all.entry(subject).or_insert(Contribution { count: 0, inactive: 0, seen });
            contribution.count += count;
            contribution.inactive += inactive;
            contribution.seen = contribution.seen.and(seen);
        };
        for version in self.versions.values() {
            add(Subject::Lines, version.lines, 0, (None, None));
            for ((component, code), VersionCounts { count, inactive, first, last }) in &version.counts {
                add(Subject::Code(code.clone()), *count, *inactive, (*first, *last));
                let subject = Subject::CodeOf { component: component.clone(), code: code.clone() };
                add(subject, *count, *inactive, (*first, *last));
            }
        }
        all
    }
}

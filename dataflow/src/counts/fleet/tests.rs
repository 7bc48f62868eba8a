//! Random histories of batches, with restarts at any point, equal a plain loop over the files.
//!
//! The test simulates the pipeline: it loads batches before they change, writes
//! a journal, and after a restart restores the cells of a committed epoch
//! and replays the journal. Every epoch must change the table as it did before
//! the restart, because the table may have been committed further than other tables.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::cells::Cells;
use super::rows::{CellRow, LoadedBatch, LoadedCount, LoadedVersion, Recorded, SeenRange, Subject, Vehicle};
use crate::counts::changes::Row;
use crate::counts::rows::{BatchRow, CountRow, FileRow, VersionId};
use crate::rules::Severity;

/// The number of histories.
const HISTORIES: u64 = 400;
/// Changes in each history.
const STEPS: usize = 60;
const CODES: [&str; 3] = ["E_A", "E_B", "E_C"];

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

#[derive(Clone)]
struct Count {
    component: Option<String>,
    code: String,
    count: u64,
    active: bool,
    time: Option<i64>,
}

#[derive(Clone)]
struct File {
    version: VersionId,
    lines: u64,
    first_ts: Option<i64>,
    counts: Vec<Count>,
}

#[derive(Clone)]
struct Batch {
    row: BatchRow,
    is_open: bool,
    files: BTreeMap<u64, File>,
}

/// All batches at an epoch.
type Model = BTreeMap<Uuid, Batch>;
/// The rows of the table, each with its multiplicity.
type Table = BTreeMap<CellRow, i64>;

fn seen(recorded: Recorded, count: &Count) -> SeenRange {
    SeenRange { first: count.time, last: count.time, first_batch: count.active.then_some(recorded) }
}

fn recorded(batch: &Batch) -> Recorded {
    let first = batch.files.values().filter_map(|file| file.first_ts).min();
    Recorded { at: first.unwrap_or(batch.row.created_at), batch_id: batch.row.batch_id }
}

/// Count, inactive count and seen range of each subject of a batch.
fn contributions(batch: &Batch) -> BTreeMap<Subject, (u64, u64, SeenRange)> {
    let recorded = recorded(batch);
    let mut all: BTreeMap<Subject, (u64, u64, SeenRange)> = BTreeMap::new();
    let mut add = |subject, count, inactive, seen: SeenRange| {
        let entry = all.entry(subject).or_insert((0, 0, seen));
        *entry = (entry.0 + count, entry.1 + inactive, entry.2.and(seen));
    };
    for file in batch.files.values() {
        let lines = SeenRange { first: None, last: None, first_batch: Some(recorded) };
        add(Subject::Lines, file.lines, 0, lines);
        for one in &file.counts {
            let inactive = if one.active { 0 } else { one.count };
            add(Subject::Code(one.code.clone()), one.count, inactive, seen(recorded, one));
            let subject = Subject::CodeOf { component: one.component.clone(), code: one.code.clone() };
            add(subject, one.count, inactive, seen(recorded, one));
        }
    }
    all
}

/// The cells by a plain loop.
fn plain_loop(model: &Model) -> Table {
    let mut cells: BTreeMap<(Vehicle, Subject), CellRow> = BTreeMap::new();
    for batch in model.values() {
        for (subject, (count, inactive, seen)) in contributions(batch) {
            let vehicle = Vehicle::of(&batch.row);
            let key = (vehicle.clone(), subject.clone());
            let new = CellRow { vehicle, subject, count: 0, inactive: 0, batches: 0, seen };
            let cell = cells.entry(key).or_insert(new);
            cell.count += count;
            cell.inactive += inactive;
            cell.batches += 1;
            cell.seen = cell.seen.and(seen);
        }
    }
    cells.into_values().map(|cell| (cell, 1)).collect()
}

/// A batch to load, as read from the tables, with the other unloaded batches of its vehicle.
fn loaded(model: &Model, id: Uuid, loaded_ids: &BTreeSet<Uuid>) -> LoadedBatch {
    let batch = &model[&id];
    let same = |other: &&Batch| {
        let other_id = other.row.batch_id;
        other_id != id && !loaded_ids.contains(&other_id) && Vehicle::of(&other.row) == Vehicle::of(&batch.row)
    };
    let others: Vec<&Batch> = model.values().filter(same).collect();
    let mut rest: BTreeMap<Subject, SeenRange> = BTreeMap::new();
    for other in &others {
        for (subject, (_, _, seen)) in contributions(other) {
            rest.entry(subject).and_modify(|rest| *rest = rest.and(seen)).or_insert(seen);
        }
    }
    let files = batch.files.values();
    LoadedBatch {
        batch: BatchRow { live: 0, completed: 0, ..batch.row.clone() },
        is_open: batch.is_open,
        versions: files
            .clone()
            .map(|file| LoadedVersion { version: file.version, lines: file.lines, first_ts: file.first_ts })
            .collect(),
        counts: files
            .flat_map(|file| {
                file.counts.iter().map(|one| LoadedCount {
                    version: file.version,
                    component: one.component.clone(),
                    code: one.code.clone(),
                    count: one.count,
                    inactive: if one.active { 0 } else { one.count },
                    first: one.time,
                    last: one.time,
                })
            })
            .collect(),
        rest: rest.into_iter().collect(),
        others: others.iter().map(|other| other.row.batch_id).collect(),
    }
}

fn file_row(batch: Uuid, file: &File, live: i8) -> FileRow {
    FileRow {
        batch_id: batch,
        file_id: Uuid::nil(),
        version: file.version,
        name: "a.log".to_owned(),
        generation: 1,
        live,
        erased: 0,
        open_line: false,
        bytes: 0,
        lines: if live > 0 { file.lines } else { 0 },
        long_lines: 0,
        last_line: 0,
        error_lines: 0,
        occurrences: 0,
        uploaded_at: 0,
        failure: None,
        binary: false,
        sha256: None,
        first_ts: if live > 0 { file.first_ts } else { None },
        last_ts: None,
        rules: None,
    }
}

fn count_row(batch: Uuid, version: VersionId, one: &Count) -> (Row, i64) {
    let row = CountRow {
        batch_id: batch,
        version,
        file: "a.log".to_owned(),
        component: one.component.clone(),
        code: one.code.clone(),
        rule: "err_symbol".to_owned(),
        severity: Severity::Error,
        active: one.active,
        first_seen: one.time,
        last_seen: one.time,
        example_line: 1,
        example_text: String::new(),
    };
    (Row::Count(row), one.count as i64)
}

/// The rows of an epoch, and the batches that they are about.
type Entry = (Vec<(Row, i64)>, BTreeSet<Uuid>);

/// The pipeline and the lake of a history.
struct History {
    random: Random,
    cells: Cells,
    loaded_ids: BTreeSet<Uuid>,
    /// The batches at the end of each epoch.
    models: Vec<Model>,
    /// The input rows of each epoch, and the batches that they are about.
    journal: Vec<Entry>,
    /// The changes of the table at each epoch.
    changes: Vec<Table>,
    created: u128,
}

impl History {
    fn new(seed: u64) -> History {
        let (models, journal, changes) = (vec![Model::new()], vec![Default::default()], vec![Table::new()]);
        History {
            random: Random(seed),
            cells: Cells::default(),
            loaded_ids: BTreeSet::new(),
            models,
            journal,
            changes,
            created: 0,
        }
    }

    fn id(&mut self) -> Uuid {
        self.created += 1;
        Uuid::from_u128(self.created)
    }

    /// The table up to an epoch.
    fn table(&self, epoch: usize) -> Table {
        let mut table = Table::new();
        for (row, count) in self.changes[..=epoch].iter().flatten() {
            *table.entry(row.clone()).or_default() += count;
        }
        table.retain(|_, count| *count != 0);
        table
    }

    fn apply(&mut self, rows: &[(Row, i64)]) -> Table {
        let mut changed = Table::new();
        self.cells.apply(rows.iter().cloned(), |cell, for_lake, count| {
            if for_lake {
                *changed.entry(cell).or_default() += count;
            }
        });
        changed.retain(|_, count| *count != 0);
        changed
    }

    /// Tracks which batches are loaded, as the pipeline does.
    fn track(&mut self, rows: &[(Row, i64)]) {
        for (row, _) in rows {
            match row {
                Row::LoadedBatch(loaded) if self.loaded_ids.contains(&loaded.batch.batch_id) => {}
                Row::LoadedBatch(loaded) => {
                    for other in &loaded.others {
                        self.loaded_ids.remove(other);
                    }
                    if loaded.is_open {
                        self.loaded_ids.insert(loaded.batch.batch_id);
                    }
                }
                Row::Batch(batch) if batch.live < 0 || batch.completed > 0 => {
                    self.loaded_ids.remove(&batch.batch_id);
                }
                Row::Batch(batch) if batch.live > 0 || batch.completed < 0 => {
                    self.loaded_ids.insert(batch.batch_id);
                }
                _ => {}
            }
        }
    }

    fn some_file(&mut self) -> File {
        let version = VersionId(self.id());
        let first_ts = (!self.random.one_in(3)).then(|| self.random.below(50) as i64);
        let mut counts: Vec<Count> = Vec::new();
        for _ in 0..self.random.below(4) {
            let code = CODES[self.random.below(3) as usize].to_owned();
            let component = self.random.one_in(2).then(|| "bms".to_owned());
            let (active, count) = (!self.random.one_in(3), 1 + self.random.below(3));
            let time = (!self.random.one_in(4)).then(|| self.random.below(50) as i64);
            counts.push(Count { component, code, count, active, time });
        }
        File { version, lines: self.random.below(9), first_ts, counts }
    }

    /// One epoch with one change.
    fn step(&mut self) {
        let mut model = self.models.last().expect("there is a first epoch").clone();
        let mut rows = Vec::new();
        let ids: Vec<Uuid> = model.keys().copied().collect();
        let id = if ids.is_empty() || self.random.one_in(6) {
            let id = self.id();
            let vehicle = self.random.below(2);
            let row = BatchRow {
                batch_id: id,
                vehicle_id: format!("veh-{vehicle}"),
                vin: format!("VIN{vehicle}"),
                platform: None,
                firmware: None,
                labels: None,
                created_at: self.random.below(50) as i64,
                live: 1,
                completed: 0,
            };
            rows.push((Row::Batch(row.clone()), 1));
            model.insert(id, Batch { row, is_open: true, files: BTreeMap::new() });
            id
        } else {
            let id = ids[self.random.below(ids.len() as u64) as usize];
            if !self.loaded_ids.contains(&id) {
                rows.push((Row::LoadedBatch(Box::new(loaded(&model, id, &self.loaded_ids))), 1));
            }
            let new = self.some_file();
            let (what, name) = (self.random.below(12), self.random.below(3));
            let batch = model.get_mut(&id).expect("the batch exists");
            let batch_row = |live, completed| Row::Batch(BatchRow { live, completed, ..batch.row.clone() });
            match what {
                0 => {
                    rows.push((batch_row(-1, if batch.is_open { 0 } else { -1 }), 1));
                    rows.extend(batch.files.values().map(|file| (Row::File(file_row(id, file, -1)), 1)));
                    model.remove(&id);
                }
                1..4 if batch.is_open => {
                    rows.push((batch_row(0, 1), 1));
                    batch.is_open = false;
                }
                // A completed batch is reopened, or its files are recounted.
                4..9 if !batch.is_open => {
                    rows.push((batch_row(0, -1), 1));
                    batch.is_open = true;
                }
                9 if batch.is_open => {
                    if let Some(old) = batch.files.remove(&name) {
                        rows.push((Row::File(file_row(id, &old, -1)), 1));
                    }
                }
                _ => {
                    rows.push((Row::File(file_row(id, &new, 1)), 1));
                    rows.extend(new.counts.iter().map(|one| count_row(id, new.version, one)));
                    if let Some(old) = batch.files.insert(name, new) {
                        rows.push((Row::File(file_row(id, &old, -1)), 1));
                    }
                    if !batch.is_open {
                        rows.extend([(batch_row(0, -1), 1), (batch_row(0, 1), 1)]);
                    }
                }
            }
            id
        };
        let changed = self.apply(&rows);
        self.track(&rows);
        self.models.push(model);
        self.journal.push((rows, BTreeSet::from([id])));
        self.changes.push(changed);
    }

    /// A restart after the lake has committed the epochs up to some earlier one.
    fn restart(&mut self) {
        let last = self.models.len() - 1;
        let committed = last - self.random.below(12).min(last as u64) as usize;
        self.cells = Cells::default();
        self.loaded_ids.clear();
        let mut rows: Vec<(Row, i64)> =
            self.table(committed).into_keys().map(|cell| (Row::RestoredCell(cell), 1)).collect();
        let model = self.models[committed].clone();
        let touched: BTreeSet<Uuid> =
            self.journal[committed + 1..].iter().flat_map(|(_, batches)| batches).copied().collect();
        // The committed tables do not have the vehicles of batches that the journal creates.
        let created =
            self.journal[committed + 1..].iter().flat_map(|(rows, _)| rows).filter_map(|(row, _)| match row {
                Row::Batch(batch) => Some(batch.vin.as_str()),
                _ => None,
            });
        let known = touched.iter().filter_map(|id| model.get(id)).map(|batch| batch.row.vin.as_str());
        let vins: BTreeSet<String> = created.chain(known).map(str::to_owned).collect();
        for (id, batch) in &model {
            if vins.contains(&batch.row.vin) && batch.is_open {
                rows.push((Row::LoadedBatch(Box::new(loaded(&model, *id, &self.loaded_ids))), 1));
                self.loaded_ids.insert(*id);
            }
        }
        let changed = self.apply(&rows);
        assert!(changed.is_empty(), "restoring must not change the table: {changed:?}");
        for epoch in committed + 1..=last {
            let rows = self.journal[epoch].0.clone();
            let changed = self.apply(&rows);
            assert_eq!(changed, self.changes[epoch], "epoch {epoch}, replayed from {committed}");
            self.track(&rows);
        }
    }

    fn check(&self) {
        assert_eq!(self.cells.loaded_ids(), self.loaded_ids, "the pipeline knows what is loaded");
        let last = self.models.len() - 1;
        assert_eq!(self.table(last), plain_loop(&self.models[last]), "epoch {last}");
    }
}

#[test]
fn cells_equal_a_plain_loop_over_any_history_and_restart() {
    for seed in 0..HISTORIES {
        let outcome = std::panic::catch_unwind(|| {
            let mut history = History::new(seed);
            for _ in 0..STEPS {
                history.step();
                history.check();
                if history.random.one_in(8) {
                    history.restart();
                    history.check();
                }
            }
        });
        if let Err(panic) = outcome {
            eprintln!("failed with seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

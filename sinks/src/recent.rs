//! Batches of late, in memory: what their tables come to at the epoch of a snapshot.
//!
//! An engineer who rolls out a firmware reads the report of a batch while its
//! lines come in, and a look-up takes microseconds where a query over the
//! tables takes milliseconds. A batch is kept from the epoch that makes it, so
//! that nothing of it is missing, until it is deleted or others need its room;
//! whoever does not find it here asks the tables.

use std::collections::{BTreeSet, HashSet};

use argus_dataflow::{ClosedEpoch, CountRow, FileRow, Row, VersionId};
use imbl::{HashMap, OrdMap};
use uuid::Uuid;

/// What is kept may take this much memory, roughly (16 MiB); batches that changed longest ago go first.
const BYTES_MAX: usize = 16 << 20;

/// What an entry takes beside its texts, roughly.
const ENTRY_BYTES: usize = 256;

/// The batches that are kept. Maps share what did not change, so a copy for a
/// snapshot costs next to nothing.
#[derive(Debug, Clone, Default)]
pub struct RecentView {
    batches: HashMap<Uuid, RecentBatch>,
}

/// The live versions of a batch's files, and their codes.
#[derive(Debug, Clone, Default)]
pub struct RecentBatch {
    files: OrdMap<VersionId, RecentFile>,
    counts: OrdMap<CountKey, RecentCount>,
    bytes: usize,
    changed_epoch: u64,
}

/// A version of a file, its measures summed.
#[derive(Debug, Clone)]
pub struct RecentFile {
    /// What all its rows say alike; of measures, the sums.
    pub row: FileRow,
    live: i64,
}

/// What tells the counts of a batch apart: a code of a component in a version.
type CountKey = (VersionId, String, Option<String>);

/// A code of a component in a version, its sightings summed.
#[derive(Debug, Clone)]
pub struct RecentCount {
    /// The sums; the example is the earliest.
    pub row: CountRow,
    /// Sightings.
    pub count: u64,
}

impl RecentView {
    /// A batch, where it is kept.
    pub fn batch(&self, id: Uuid) -> Option<&RecentBatch> {
        self.batches.get(&id)
    }
}

impl RecentBatch {
    /// Its live versions.
    pub fn files(&self) -> impl Iterator<Item = &RecentFile> {
        self.files.values()
    }

    /// The counts of its live versions.
    pub fn counts(&self) -> impl Iterator<Item = &RecentCount> {
        self.counts.values()
    }

    fn add_file(&mut self, row: &FileRow, count: i64) {
        let live = i64::from(row.live) * count;
        let Some(file) = self.files.get_mut(&row.version) else {
            self.bytes += ENTRY_BYTES + row.name.len();
            self.files.insert(row.version, RecentFile { row: row.clone(), live });
            return;
        };
        file.live += live;
        let (sums, more) = (&mut file.row, |measure: u64| if count < 0 { measure.wrapping_neg() } else { measure });
        sums.generation = sums.generation.max(row.generation);
        sums.bytes = sums.bytes.wrapping_add(more(row.bytes));
        sums.lines = sums.lines.wrapping_add(more(row.lines));
        sums.long_lines = sums.long_lines.wrapping_add(more(row.long_lines));
        sums.error_lines = sums.error_lines.wrapping_add(more(row.error_lines));
        sums.sightings = sums.sightings.wrapping_add(more(row.sightings));
    }

    fn add_count(&mut self, row: &CountRow, count: i64) {
        let count = u64::try_from(count).unwrap_or(0);
        let key = (row.version, row.code.clone(), row.component.clone());
        let Some(sum) = self.counts.get_mut(&key) else {
            self.bytes += ENTRY_BYTES + row.code.len() + row.file.len() + row.example_text.len();
            self.counts.insert(key, RecentCount { row: row.clone(), count });
            return;
        };
        sum.count += count;
        sum.row.severity = sum.row.severity.max(row.severity);
        sum.row.first_seen = [sum.row.first_seen, row.first_seen].into_iter().flatten().min();
        sum.row.last_seen = sum.row.last_seen.max(row.last_seen);
        if row.example_line < sum.row.example_line {
            sum.row.example_line = row.example_line;
            sum.row.rule.clone_from(&row.rule);
            sum.row.example_text.clone_from(&row.example_text);
        }
    }

    /// Lets go of versions that are replaced or deleted.
    fn bury(&mut self) {
        let dead: Vec<VersionId> =
            self.files.iter().filter(|(_, file)| file.live <= 0).map(|(version, _)| *version).collect();
        for version in dead {
            self.files.remove(&version);
            let from = (version, String::new(), None);
            let keys = self.counts.range(from..).map(|(key, _)| key).take_while(|key| key.0 == version);
            let keys: Vec<CountKey> = keys.cloned().collect();
            self.bytes = self.bytes.saturating_sub(ENTRY_BYTES * (1 + keys.len()));
            keys.iter().for_each(|key| drop(self.counts.remove(key)));
        }
    }
}

/// Keeps the view current, and within its room.
#[derive(Debug, Default)]
pub struct Recent {
    view: RecentView,
    bytes: usize,
    by_change: BTreeSet<(u64, Uuid)>,
}

impl Recent {
    /// The view as it is now.
    pub fn view(&self) -> RecentView {
        self.view.clone()
    }

    /// Takes the rows of an epoch.
    pub fn apply(&mut self, closed: &ClosedEpoch) {
        let mut made = HashSet::new();
        let mut gone = HashSet::new();
        for (row, count) in &closed.rows {
            match row {
                Row::Batch(row) if i64::from(row.live) * count > 0 => drop(made.insert(row.batch_id)),
                Row::Batch(row) if i64::from(row.live) * count < 0 => drop(gone.insert(row.batch_id)),
                _ => {}
            }
        }
        let mut changed: std::collections::HashMap<Uuid, RecentBatch> =
            made.difference(&gone).map(|id| (*id, RecentBatch::default())).collect();
        for (row, count) in &closed.rows {
            match row {
                Row::File(row) => self.change(&mut changed, row.batch_id, |batch| batch.add_file(row, *count)),
                Row::Count(row) => self.change(&mut changed, row.batch_id, |batch| batch.add_count(row, *count)),
                _ => {}
            }
        }
        for id in gone {
            changed.remove(&id);
            self.remove(id);
        }
        for (id, mut batch) in changed {
            batch.bury();
            self.remove(id);
            batch.changed_epoch = closed.epoch;
            self.bytes += ENTRY_BYTES + batch.bytes;
            self.by_change.insert((closed.epoch, id));
            self.view.batches.insert(id, batch);
        }
        while self.bytes > BYTES_MAX
            && let Some((_, id)) = self.by_change.first().copied()
        {
            self.remove(id);
        }
    }

    fn change(
        &self,
        changed: &mut std::collections::HashMap<Uuid, RecentBatch>,
        id: Uuid,
        change: impl FnOnce(&mut RecentBatch),
    ) {
        if let Some(batch) = changed.get_mut(&id) {
            change(batch);
        } else if let Some(batch) = self.view.batches.get(&id) {
            let mut batch = batch.clone();
            change(&mut batch);
            changed.insert(id, batch);
        }
    }

    fn remove(&mut self, id: Uuid) {
        if let Some(batch) = self.view.batches.remove(&id) {
            self.bytes = self.bytes.saturating_sub(ENTRY_BYTES + batch.bytes);
            self.by_change.remove(&(batch.changed_epoch, id));
        }
    }
}

//! Recently changed batches in memory: their files and counts at the epoch of a snapshot.
//!
//! During a firmware rollout, engineers read the report of a batch while its lines
//! arrive. A look-up here takes microseconds, a query over the tables milliseconds.
//! A batch is cached from the epoch that creates it, so it is complete, until it is
//! deleted or evicted. Other batches are read from the tables.

use std::collections::{BTreeSet, HashSet};

use argus_dataflow::{ClosedEpoch, CountRow, FileRow, Row, Severity, VersionId};
use imbl::{HashMap, OrdMap};
use uuid::Uuid;

/// Approximate memory limit (16 MiB); the least recently changed batches are evicted first.
const BYTES_MAX: usize = 16 << 20;

/// Approximate size of an entry without its strings.
const ENTRY_BYTES: usize = 256;

/// The cached batches. Persistent maps share unchanged entries, so a copy for a
/// snapshot is cheap.
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
    /// The common values of its rows, and the sums of measures.
    pub row: FileRow,
    live: i64,
}

/// The key of a count: version, code, component, severity, and whether the code is active.
type CountKey = (VersionId, String, Option<String>, Severity, bool);

/// A code of a component in a version, its occurrences summed.
#[derive(Debug, Clone)]
pub struct RecentCount {
    /// The sums; the example is the earliest.
    pub row: CountRow,
    /// Occurrences.
    pub count: u64,
}

impl RecentView {
    /// A batch, if it is cached.
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

    /// A batch from the rows of its tables.
    pub fn of_rows(
        files: impl IntoIterator<Item = FileRow>,
        counts: impl IntoIterator<Item = (CountRow, i64)>,
    ) -> RecentBatch {
        let mut batch = RecentBatch::default();
        files.into_iter().for_each(|row| batch.add_file(&row, 1));
        let versions: Vec<VersionId> = batch.files.keys().copied().collect();
        versions.into_iter().for_each(|version| batch.remove_if_dead(version));
        for (row, count) in counts {
            if batch.files.contains_key(&row.version) {
                batch.add_count(&row, count);
            }
        }
        batch
    }

    /// Adds the file and count rows of an epoch, of any batch.
    pub fn take(&mut self, closed: &ClosedEpoch) {
        for (row, count) in &closed.rows {
            match row {
                Row::File(row) => self.add_file(row, *count),
                Row::Count(row) => self.add_count(row, *count),
                _ => {}
            }
        }
    }

    fn add_file(&mut self, row: &FileRow, count: i64) {
        let new = || FileRow {
            bytes: 0,
            lines: 0,
            long_lines: 0,
            last_line: 0,
            error_lines: 0,
            occurrences: 0,
            ..row.clone()
        };
        if !self.files.contains_key(&row.version) {
            self.bytes += ENTRY_BYTES + row.name.len();
            self.files.insert(row.version, RecentFile { row: new(), live: 0 });
        }
        let Some(file) = self.files.get_mut(&row.version) else { return };
        file.live += i64::from(row.live) * count;
        let sums = &mut file.row;
        // The multiplicity of a row may be greater than 1 or negative.
        let add = |sum: &mut u64, measure: u64| *sum = sum.wrapping_add(measure.wrapping_mul(count as u64));
        sums.generation = sums.generation.max(row.generation);
        sums.binary |= row.binary;
        sums.first_ts = argus_dataflow::earliest(sums.first_ts, row.first_ts);
        sums.last_ts = sums.last_ts.max(row.last_ts);
        if row.failure > sums.failure {
            sums.failure.clone_from(&row.failure);
        }
        add(&mut sums.bytes, row.bytes);
        add(&mut sums.lines, row.lines);
        add(&mut sums.long_lines, row.long_lines);
        add(&mut sums.last_line, row.last_line);
        add(&mut sums.error_lines, row.error_lines);
        add(&mut sums.occurrences, row.occurrences);
    }

    fn add_count(&mut self, row: &CountRow, count: i64) {
        let count = u64::try_from(count).unwrap_or(0);
        let key = (row.version, row.code.clone(), row.component.clone(), row.severity, row.active);
        let Some(sum) = self.counts.get_mut(&key) else {
            self.bytes += bytes_of(row);
            self.counts.insert(key, RecentCount { row: row.clone(), count });
            return;
        };
        sum.count += count;
        sum.row.first_seen = argus_dataflow::earliest(sum.row.first_seen, row.first_seen);
        sum.row.last_seen = sum.row.last_seen.max(row.last_seen);
        if row.example_line < sum.row.example_line {
            self.bytes = self.bytes + row.example_text.len() - sum.row.example_text.len();
            sum.row.example_line = row.example_line;
            sum.row.rule.clone_from(&row.rule);
            sum.row.example_text.clone_from(&row.example_text);
        }
    }

    /// Removes a version that was replaced or deleted.
    fn remove_if_dead(&mut self, version: VersionId) {
        if self.files.get(&version).is_none_or(|file| file.live > 0) {
            return;
        }
        if let Some(file) = self.files.remove(&version) {
            self.bytes -= ENTRY_BYTES + file.row.name.len();
        }
        let from = (version, String::new(), None, Severity::Info, false);
        let keys: Vec<CountKey> =
            self.counts.range(from..).map(|(key, _)| key).take_while(|key| key.0 == version).cloned().collect();
        for key in keys {
            if let Some(count) = self.counts.remove(&key) {
                self.bytes -= bytes_of(&count.row);
            }
        }
    }
}

/// Approximate size of a count; its key repeats the code and the component.
fn bytes_of(row: &CountRow) -> usize {
    let component = row.component.as_ref().map_or(0, String::len);
    ENTRY_BYTES + 2 * (row.code.len() + component) + row.file.len() + row.rule.len() + row.example_text.len()
}

/// Maintains the view within its memory limit.
#[derive(Debug, Default)]
pub struct Recent {
    view: RecentView,
    bytes: usize,
    by_change: BTreeSet<(u64, Uuid)>,
}

impl Recent {
    /// The current view.
    pub fn view(&self) -> RecentView {
        self.view.clone()
    }

    /// Applies the rows of an epoch.
    pub fn apply(&mut self, closed: &ClosedEpoch) {
        let mut created = HashSet::new();
        let mut deleted = HashSet::new();
        for (row, count) in &closed.rows {
            match row {
                Row::Batch(row) if i64::from(row.live) * count > 0 => drop(created.insert(row.batch_id)),
                Row::Batch(row) if i64::from(row.live) * count < 0 => drop(deleted.insert(row.batch_id)),
                _ => {}
            }
        }
        let mut changed: std::collections::HashMap<Uuid, RecentBatch> =
            created.difference(&deleted).map(|id| (*id, RecentBatch::default())).collect();
        for (row, count) in &closed.rows {
            match row {
                Row::File(row) => self.change(&mut changed, row.batch_id, |batch| batch.add_file(row, *count)),
                Row::Count(row) => self.change(&mut changed, row.batch_id, |batch| batch.add_count(row, *count)),
                _ => {}
            }
        }
        for id in deleted {
            changed.remove(&id);
            self.remove(id);
        }
        for (row, _) in &closed.rows {
            if let Row::File(FileRow { batch_id, version, .. }) = row
                && let Some(batch) = changed.get_mut(batch_id)
            {
                batch.remove_if_dead(*version);
            }
        }
        for (id, mut batch) in changed {
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

#[cfg(test)]
mod tests {
    use super::*;
    use argus_dataflow::BatchRow;

    fn closed(epoch: u64, rows: Vec<(Row, i64)>) -> ClosedEpoch {
        ClosedEpoch { epoch, rows }
    }

    fn batch(id: Uuid, live: i8) -> Row {
        let (vehicle_id, vin) = ("v".to_owned(), "WVWZZZ1JZXW000001".to_owned());
        let (platform, firmware) = (None, None);
        Row::Batch(BatchRow {
            batch_id: id,
            vehicle_id,
            vin,
            platform,
            firmware,
            labels: None,
            created_at: 0,
            live,
            completed: 0,
        })
    }

    fn file(batch_id: Uuid, version: VersionId, live: i8, lines: u64) -> Row {
        Row::File(FileRow {
            batch_id,
            file_id: Uuid::nil(),
            version,
            name: "a.log".to_owned(),
            generation: 1,
            live,
            erased: 0,
            open_line: false,
            bytes: 7 * lines,
            lines,
            long_lines: 0,
            last_line: lines,
            error_lines: lines,
            occurrences: lines,
            uploaded_at: 0,
            failure: None,
            binary: false,
            sha256: None,
            first_ts: None,
            last_ts: None,
            rules: None,
        })
    }

    fn code(batch_id: Uuid, version: VersionId, text: &str) -> Row {
        Row::Count(CountRow {
            batch_id,
            version,
            file: "a.log".to_owned(),
            component: None,
            code: "E_FAIL".to_owned(),
            rule: "err_symbol".to_owned(),
            severity: Severity::Error,
            active: true,
            first_seen: None,
            last_seen: None,
            example_line: 1,
            example_text: text.to_owned(),
        })
    }

    #[test]
    fn equal_rows_of_one_epoch_each_count_and_a_replaced_version_is_removed() {
        let (id, old, new) = (Uuid::now_v7(), VersionId::new(), VersionId::new());
        let mut recent = Recent::default();
        recent.apply(&closed(1, vec![(batch(id, 1), 1), (file(id, old, 1, 0), 1)]));
        recent.apply(&closed(2, vec![(code(id, old, "x"), 6), (file(id, old, 0, 3), 2)]));
        let view = recent.view();
        let cached = view.batch(id).expect("it is cached");
        assert_eq!(cached.files().map(|file| file.row.lines).collect::<Vec<_>>(), [6]);
        assert_eq!(cached.counts().map(|count| count.count).collect::<Vec<_>>(), [6]);
        let empty = recent.bytes;
        recent.apply(&closed(3, vec![(file(id, new, 1, 1), 1), (code(id, new, "x"), 1), (file(id, old, -1, 0), 1)]));
        assert_eq!(recent.view().batch(id).map(|batch| batch.counts().count()), Some(1));
        assert_eq!(recent.bytes, empty, "a replaced version uses no memory");
        assert_eq!(view.batch(id).map(|batch| batch.files().count()), Some(1), "a snapshot does not change");
        recent.apply(&closed(4, vec![(batch(id, -1), 1)]));
        assert!(recent.view().batch(id).is_none() && recent.bytes == 0 && recent.by_change.is_empty());
    }

    #[test]
    fn the_least_recently_changed_batches_are_evicted() {
        let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
        let mut recent = Recent::default();
        let large = "x".repeat(BYTES_MAX * 2 / 3);
        for (id, epoch) in [(first, 1), (second, 2)] {
            let version = VersionId::new();
            recent.apply(&closed(
                epoch,
                vec![(batch(id, 1), 1), (file(id, version, 1, 1), 1), (code(id, version, &large), 1)],
            ));
        }
        assert!(recent.view().batch(first).is_none() && recent.view().batch(second).is_some());
    }
}

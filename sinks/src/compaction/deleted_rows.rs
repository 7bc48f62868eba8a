//! Finds the rows that compaction removes: rows of versions that were replaced at
//! or before `since`, and rows of deleted files and batches, whatever their epoch.
//! Only epochs that every table contains are considered.
//!
//! The tables `files` and `batches` record what was deleted. They are read once,
//! with the necessary columns, and only row groups whose statistics show a
//! retraction. The result is a set of ids of 16 bytes each, up to a limit; a
//! maintenance run that reaches it leaves the rest to the next run. A deleted file
//! is found with all its versions or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::error::ArrowError;
use object_store::ObjectStore;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use uuid::Uuid;

use crate::compaction::CompactionError;
use crate::compaction::read::FileRows;
use crate::schema::Table;
use crate::snapshot::{DataFile, Snapshot};

/// The number of deleted files, of deleted batches and of replaced versions that one run finds.
pub const FOUND_MAX: usize = 500_000;

/// Rows of a file that are read at once: they contain few columns, so they are small.
const CHUNK_ROWS: usize = 8192;

/// The deleted and replaced data that one compaction run removes. Numbers are UUIDs.
#[derive(Debug, Default)]
pub struct DeletedRows {
    /// Batch and version, sorted.
    versions: Vec<(u128, u128)>,
    batches: BTreeSet<u128>,
    /// Vehicles with deleted data: their cells are consolidated up to `committed`, so that nothing deleted remains.
    vins: BTreeSet<String>,
    /// The last epoch that every table contains. After a crash some tables may contain later epochs, which a restart
    /// replays: rows of later epochs are neither removed nor consolidated.
    committed: u64,
    /// Whether the limit was reached: another run will find more.
    pub is_partial: bool,
    /// Files of `files` and `batches` that could not be read; the deletions they record were not found.
    pub unread: Vec<(Table, CompactionError)>,
}

/// State of a search through the tables.
struct Search<'s> {
    store: &'s Arc<dyn ObjectStore>,
    snapshot: &'s Snapshot,
    gone: DeletedRows,
    /// Deleted files and their batches.
    erased: BTreeMap<u128, u128>,
    found_max: usize,
}

impl DeletedRows {
    /// Finds at most `found_max` of each kind. `committed` is the last epoch that every table contains.
    pub async fn find(
        store: &Arc<dyn ObjectStore>,
        snapshot: &Snapshot,
        committed: u64,
        since: u64,
        found_max: usize,
    ) -> Result<DeletedRows, CompactionError> {
        let (gone, erased) = (DeletedRows { committed, ..DeletedRows::default() }, BTreeMap::new());
        let mut search = Search { store, snapshot, gone, erased, found_max };
        search.find_batches().await?;
        search.find_replaced(since).await?;
        search.find_erased().await?;
        search.find_vins().await?;
        let mut gone = search.gone;
        gone.versions.sort_unstable();
        gone.versions.dedup();
        Ok(gone)
    }

    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty() && self.batches.is_empty() && self.vins.is_empty()
    }

    /// Whether a file may have rows to remove, by its statistics.
    pub fn may_be_in(&self, table: Table, file: &DataFile) -> bool {
        match &file.keys {
            Some(keys) => self.may_be_within(table, keys.start(), keys.end()),
            None => !self.is_empty(),
        }
    }

    /// Whether a file has rows to remove.
    pub async fn is_in(
        &self,
        store: &Arc<dyn ObjectStore>,
        table: Table,
        file: &DataFile,
    ) -> Result<bool, CompactionError> {
        if !self.may_be_in(table, file) {
            return Ok(false);
        }
        let columns: &[&str] = match table {
            Table::Batches => &["batch_id"],
            Table::Fleet => &["vin"],
            Table::Errors | Table::ErrorCounts | Table::Files => &["batch_id", "version"],
        };
        let failed = |source| CompactionError::read(&file.path, source);
        let rows = FileRows::open(Arc::clone(store), table, file, columns, CHUNK_ROWS).await;
        let mut rows = rows.map_err(failed)?;
        rows.retain_groups(|group| {
            let keys = bounds(group, columns[0]);
            keys.is_none_or(|keys| self.may_be_within(table, keys.start(), keys.end()))
        });
        while let Some(rows) = rows.next().await.map_err(failed)? {
            let has = match table {
                Table::Fleet => self.of_deleted_vehicles(&rows)?,
                _ => self.removed_rows(table, &rows)?,
            };
            if has.true_count() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The rows of a table that remain.
    pub fn without(&self, table: Table, rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
        if table == Table::Fleet || self.is_empty() {
            return Ok(rows);
        }
        let removed = self.removed_rows(table, &rows)?;
        if removed.true_count() == 0 { Ok(rows) } else { filter_record_batch(&rows, &not(&removed)?) }
    }

    /// Which rows of `fleet` are consolidated regardless of `since`, because data of their vehicle was deleted.
    pub fn summed(&self, rows: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let epochs = long(rows, "epoch")?;
        let of_vehicles = self.of_deleted_vehicles(rows)?;
        let is_summed = |row: usize| of_vehicles.value(row) && self.is_committed(epochs(row));
        Ok((0..rows.num_rows()).map(|row| Some(is_summed(row))).collect())
    }

    fn is_committed(&self, epoch: i64) -> bool {
        u64::try_from(epoch).is_ok_and(|epoch| epoch <= self.committed)
    }

    /// Which rows of `fleet` belong to a vehicle with deleted data.
    fn of_deleted_vehicles(&self, rows: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let vins = text(rows, "vin")?;
        Ok((0..rows.num_rows()).map(|row| Some(self.has_vehicle(vins.value(row)))).collect())
    }

    /// Whether data of the vehicle was deleted.
    pub fn has_vehicle(&self, vin: &str) -> bool {
        self.vins.contains(vin)
    }

    /// Which rows are removed, in tables with a `batch_id`.
    fn removed_rows(&self, table: Table, rows: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let batches = text(rows, "batch_id")?;
        let versions = if table == Table::Batches { None } else { Some(text(rows, "version")?) };
        let is_removed = |row: usize| {
            // A value that is not a UUID is never removed.
            let Some(batch) = id(batches.value(row)) else { return false };
            let version = || id(versions?.value(row));
            self.batches.contains(&batch)
                || version().is_some_and(|version| self.versions.binary_search(&(batch, version)).is_ok())
        };
        Ok((0..rows.num_rows()).map(|row| Some(is_removed(row))).collect())
    }

    fn may_be_within(&self, table: Table, least: &str, greatest: &str) -> bool {
        if least > greatest {
            return true;
        }
        if table == Table::Fleet {
            return self.vins.range::<str, _>((Bound::Included(least), Bound::Included(greatest))).next().is_some();
        }
        let (Some(least), Some(greatest)) = (id(least), id(greatest)) else { return true };
        let first = self.versions.partition_point(|(batch, _)| *batch < least);
        let has_version =
            table != Table::Batches && self.versions.get(first).is_some_and(|(batch, _)| *batch <= greatest);
        has_version || self.batches.range(least..=greatest).next().is_some()
    }
}

impl Search<'_> {
    fn is_committed(&self, epoch: i64) -> bool {
        self.gone.is_committed(epoch)
    }

    /// Deleted batches.
    async fn find_batches(&mut self) -> Result<(), CompactionError> {
        let wanted = |group: &RowGroupMetaData| has_negative(group, &["live"]);
        let visit = &mut |search: &mut Self, rows: &RecordBatch| -> Result<(), ArrowError> {
            let (batches, live, epochs) = (text(rows, "batch_id")?, int(rows, "live")?, long(rows, "epoch")?);
            let is_removed = |row: &usize| live(*row) < 0 && search.is_committed(epochs(*row));
            for row in (0..rows.num_rows()).filter(is_removed).collect::<Vec<_>>() {
                let Some(batch) = id(batches.value(row)) else { continue };
                if search.gone.batches.len() < search.found_max {
                    search.gone.batches.insert(batch);
                } else if !search.gone.batches.contains(&batch) {
                    search.gone.is_partial = true;
                }
            }
            Ok(())
        };
        self.scan_table(Table::Batches, &["epoch", "batch_id", "live"], |_, _| true, wanted, visit).await
    }

    /// Versions that were replaced at or before `since`, and deleted files.
    async fn find_replaced(&mut self, since: u64) -> Result<(), CompactionError> {
        let wanted = |group: &RowGroupMetaData| has_negative(group, &["live"]) || is_erased(group);
        let visit = &mut |search: &mut Self, rows: &RecordBatch| -> Result<(), ArrowError> {
            let (batches, files, versions) = (text(rows, "batch_id")?, text(rows, "file_id")?, text(rows, "version")?);
            let (live, erased, epochs) = (int(rows, "live")?, int(rows, "erased")?, long(rows, "epoch")?);
            for row in 0..rows.num_rows() {
                let Some(batch) = id(batches.value(row)) else { continue };
                if search.gone.batches.contains(&batch) {
                    continue;
                }
                if erased(row) > 0
                    && search.is_committed(epochs(row))
                    && let Some(file) = id(files.value(row))
                {
                    if search.erased.len() < search.found_max {
                        search.erased.insert(file, batch);
                    } else if !search.erased.contains_key(&file) {
                        search.gone.is_partial = true;
                    }
                } else if live(row) < 0
                    && epochs(row) <= since as i64
                    && let Some(version) = id(versions.value(row))
                {
                    if search.gone.versions.len() < search.found_max {
                        search.gone.versions.push((batch, version));
                    } else {
                        search.gone.is_partial = true;
                    }
                }
            }
            Ok(())
        };
        let columns = ["epoch", "batch_id", "file_id", "version", "live", "erased"];
        self.scan_table(Table::Files, &columns, |_, _| true, wanted, visit).await?;
        if self.erased.len() == self.found_max {
            // A version of a deleted file that is left to the next run must not be removed as a replaced version:
            // that would also remove the row that records the deletion of the file.
            self.gone.is_partial |= !self.gone.versions.is_empty();
            self.gone.versions.clear();
        }
        Ok(())
    }

    /// All versions of deleted files.
    async fn find_erased(&mut self) -> Result<(), CompactionError> {
        if self.erased.is_empty() {
            return Ok(());
        }
        let batches: BTreeSet<u128> = self.erased.values().copied().collect();
        let may_match = |_: &Self, file: &DataFile| file.keys.as_ref().is_none_or(|keys| has_within(&batches, keys));
        let wanted =
            |group: &RowGroupMetaData| bounds(group, "batch_id").is_none_or(|keys| has_within(&batches, &keys));
        let visit = &mut |search: &mut Self, rows: &RecordBatch| -> Result<(), ArrowError> {
            let (batches, files, versions) = (text(rows, "batch_id")?, text(rows, "file_id")?, text(rows, "version")?);
            for row in 0..rows.num_rows() {
                if id(files.value(row)).is_some_and(|file| search.erased.contains_key(&file))
                    && let (Some(batch), Some(version)) = (id(batches.value(row)), id(versions.value(row)))
                {
                    search.gone.versions.push((batch, version));
                }
            }
            Ok(())
        };
        self.scan_table(Table::Files, &["batch_id", "file_id", "version"], may_match, wanted, visit).await
    }

    /// The vehicles of deleted files and batches.
    async fn find_vins(&mut self) -> Result<(), CompactionError> {
        let mut batches: BTreeSet<u128> = self.erased.values().copied().collect();
        batches.extend(&self.gone.batches);
        if batches.is_empty() {
            return Ok(());
        }
        let may_match = |_: &Self, file: &DataFile| file.keys.as_ref().is_none_or(|keys| has_within(&batches, keys));
        let wanted =
            |group: &RowGroupMetaData| bounds(group, "batch_id").is_none_or(|keys| has_within(&batches, &keys));
        let visit = &mut |search: &mut Self, rows: &RecordBatch| -> Result<(), ArrowError> {
            let (ids, vins) = (text(rows, "batch_id")?, text(rows, "vin")?);
            for row in 0..rows.num_rows() {
                if id(ids.value(row)).is_some_and(|batch| batches.contains(&batch))
                    && !search.gone.vins.contains(vins.value(row))
                {
                    search.gone.vins.insert(vins.value(row).to_owned());
                }
            }
            Ok(())
        };
        self.scan_table(Table::Batches, &["batch_id", "vin"], may_match, wanted, visit).await
    }

    /// Passes the rows of a table to `visit`, skipping files that do not match `may_match` and row groups that do not
    /// match `wanted`. A file that cannot be read is recorded, and the others are read.
    async fn scan_table(
        &mut self,
        table: Table,
        columns: &[&str],
        may_match: impl Fn(&Self, &DataFile) -> bool,
        wanted: impl Fn(&RowGroupMetaData) -> bool,
        visit: &mut impl FnMut(&mut Self, &RecordBatch) -> Result<(), ArrowError>,
    ) -> Result<(), CompactionError> {
        let snapshot = self.snapshot;
        for file in snapshot.table(table).committed.iter() {
            if !may_match(self, file) {
                continue;
            }
            if let Err(error) = self.scan_file(table, file, columns, &wanted, visit).await {
                let CompactionError::Read { path, .. } = &error else { return Err(error) };
                let is_recorded = |(_, recorded): &(Table, CompactionError)| recorded.path() == Some(path);
                if !self.gone.unread.iter().any(is_recorded) {
                    self.gone.unread.push((table, error));
                }
            }
        }
        Ok(())
    }

    async fn scan_file(
        &mut self,
        table: Table,
        file: &DataFile,
        columns: &[&str],
        wanted: impl Fn(&RowGroupMetaData) -> bool,
        visit: &mut impl FnMut(&mut Self, &RecordBatch) -> Result<(), ArrowError>,
    ) -> Result<(), CompactionError> {
        let failed = |source: ParquetError| CompactionError::read(&file.path, source);
        let rows = FileRows::open(Arc::clone(self.store), table, file, columns, CHUNK_ROWS).await;
        let mut rows = rows.map_err(failed)?;
        rows.retain_groups(wanted);
        while let Some(rows) = rows.next().await.map_err(failed)? {
            visit(self, &rows)?;
        }
        Ok(())
    }
}

fn id(text: &str) -> Option<u128> {
    Uuid::try_parse(text).ok().map(|id| id.as_u128())
}

fn has_within<K: AsRef<str>>(ids: &BTreeSet<u128>, keys: &RangeInclusive<K>) -> bool {
    match (id(keys.start().as_ref()), id(keys.end().as_ref())) {
        (Some(least), Some(greatest)) if least <= greatest => ids.range(least..=greatest).next().is_some(),
        _ => true,
    }
}

fn statistics<'g>(group: &'g RowGroupMetaData, column: &str) -> Option<&'g Statistics> {
    group.columns().iter().find(|chunk| chunk.column_path().string() == column)?.statistics()
}

/// The minimum and maximum of a text column. Statistics may be truncated; the range is then wider than the values.
fn bounds(group: &RowGroupMetaData, column: &str) -> Option<RangeInclusive<String>> {
    let statistics = statistics(group, column)?;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some(text(statistics.min_bytes_opt()?)?..=text(statistics.max_bytes_opt()?)?)
}

/// Whether a row group may have a negative value in one of the columns.
fn has_negative(group: &RowGroupMetaData, columns: &[&str]) -> bool {
    columns.iter().any(|column| match statistics(group, column) {
        Some(Statistics::Int32(statistics)) => statistics.min_opt().is_none_or(|least| *least < 0),
        _ => true,
    })
}

fn is_erased(group: &RowGroupMetaData) -> bool {
    match statistics(group, "erased") {
        Some(Statistics::Int32(statistics)) => statistics.max_opt().is_none_or(|greatest| *greatest > 0),
        _ => true,
    }
}

fn text<'r>(rows: &'r RecordBatch, column: &str) -> Result<&'r arrow::array::StringArray, ArrowError> {
    let missing = || ArrowError::SchemaError(format!("no text column {column}"));
    rows.column_by_name(column).and_then(|column| column.as_string_opt::<i32>()).ok_or_else(missing)
}

fn int(rows: &RecordBatch, column: &str) -> Result<impl Fn(usize) -> i32, ArrowError> {
    let missing = || ArrowError::SchemaError(format!("no column {column} of 32 bits"));
    let values = rows.column_by_name(column).and_then(|column| column.as_primitive_opt::<Int32Type>());
    let values = values.ok_or_else(missing)?.clone();
    Ok(move |row| values.value(row))
}

fn long(rows: &RecordBatch, column: &str) -> Result<impl Fn(usize) -> i64, ArrowError> {
    let missing = || ArrowError::SchemaError(format!("no column {column} of 64 bits"));
    let values = rows.column_by_name(column).and_then(|column| column.as_primitive_opt::<Int64Type>());
    let values = values.ok_or_else(missing)?.clone();
    Ok(move |row| values.value(row))
}

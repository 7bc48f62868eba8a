//! Rows of a table lose what is gone, and differences of epochs that are told
//! apart no more become one.
//!
//! Rows come in the table's order, so all that may become one lie together: a
//! *unit* is one batch and code of `error_counts`, one batch of `batches` and
//! `files`, or one vehicle and code of `fleet`. Only the old rows of the last unit
//! are held until the next one begins, and when they are many they are summed on
//! the way. Newer rows pass. Of a vehicle of which something was deleted, all that
//! is committed counts as old.
//!
//! All measures are differences that readers sum, so a unit that is too large to
//! be held may be written in several parts and says the same. Only a unit of a
//! vehicle of which something was deleted is held whole: what was deleted leaves
//! no row when everything is summed.
//!
//! A row of `batches` or `files` that takes something back is never summed with
//! others: it says what is gone, and does so until that has left all tables.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, UInt32Array, make_comparator,
};
use arrow::compute::{SortOptions, concat_batches, filter_record_batch, not, or, take, take_record_batch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use crate::compaction::gone::Gone;
use crate::encode;
use crate::schema::Table;

/// Held rows of so many bytes (4 MiB) are summed before their unit ends.
const HELD_BYTES: usize = 4 << 20;

/// What becomes of a column when rows become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Rows with other values stay apart.
    Key,
    Sum,
    Least,
    Greatest,
    /// That of the row with the least `example_line`.
    OfExample,
    /// That of the row with the greatest `epoch`.
    OfNewest,
}

fn how(table: Table, column: &str) -> How {
    match (table, column) {
        (_, "epoch") => How::Greatest,
        (Table::ErrorCounts, "rule" | "example_line" | "example_text") => How::OfExample,
        (Table::ErrorCounts, "first_seen") => How::Least,
        (Table::ErrorCounts, "last_seen") => How::Greatest,
        (Table::ErrorCounts, "count") => How::Sum,
        (Table::Batches, "live" | "completed") => How::Sum,
        (Table::Fleet, "live") => How::Sum,
        (
            Table::Files,
            "live" | "erased" | "bytes" | "lines" | "long_lines" | "last_line" | "error_lines" | "sightings",
        ) => How::Sum,
        (Table::Files, "uploaded_at" | "failure" | "binary" | "last_ts") => How::Greatest,
        (Table::Files, "first_ts") => How::Least,
        (Table::Files, "sha256" | "rules") => How::OfNewest,
        _ => How::Key,
    }
}

/// Folds the rows of one table as they come.
pub struct Fold<'g> {
    table: Table,
    /// The last epoch that is not told apart.
    horizon: u64,
    gone: &'g Gone,
    /// Old rows of one unit.
    held: Vec<RecordBatch>,
    pub(super) held_bytes: usize,
    /// Held rows of so many bytes are summed.
    sum_at: usize,
    unit: Option<Unit>,
}

/// What rows lie together by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    first: String,
    /// Where the code belongs to it.
    code: Option<Option<String>>,
}

impl<'g> Fold<'g> {
    /// Folds the rows of a table up to `horizon`.
    pub fn new(table: Table, horizon: u64, gone: &'g Gone) -> Fold<'g> {
        Fold { table, horizon, gone, held: Vec::new(), held_bytes: 0, sum_at: HELD_BYTES, unit: None }
    }

    /// Takes rows in the table's order; gives those that are ready, in its order too.
    pub fn push(&mut self, rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
        let rows = self.gone.without(self.table, rows)?;
        if self.table == Table::Errors || rows.num_rows() == 0 {
            return Ok(rows);
        }
        let is_old = self.is_old(&rows)?;
        let newer = filter_record_batch(&rows, &not(&is_old)?)?;
        let old = filter_record_batch(&rows, &is_old)?;
        let last = self.unit_of(&rows, rows.num_rows() - 1)?;
        // What comes after a newer row of a unit is newer too, where epochs are part of the order.
        let is_complete = matches!(self.table, Table::Batches | Table::Files) && !is_old.value(rows.num_rows() - 1);
        let mut ready = Vec::new();
        if is_complete || self.unit.as_ref() != Some(&last) {
            ready.append(&mut self.held);
            self.held_bytes = 0;
            self.sum_at = HELD_BYTES;
        }
        let mut complete = old.num_rows();
        while !is_complete && complete > 0 && self.unit_of(&old, complete - 1)? == last {
            complete -= 1;
        }
        if complete > 0 {
            ready.push(old.slice(0, complete));
        }
        let mut summed = Vec::new();
        if !ready.is_empty() {
            summed.push(self.sum(&ready)?);
        }
        self.unit = Some(last);
        summed.extend(self.hold(old.slice(complete, old.num_rows() - complete))?);
        if summed.is_empty() {
            return Ok(newer);
        }
        summed.push(newer);
        self.in_order(&summed)
    }

    /// What is left when all rows were taken.
    pub fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        if self.held.is_empty() {
            return Ok(RecordBatch::new_empty(self.table.schema()));
        }
        let held = std::mem::take(&mut self.held);
        let rows = self.sum(&held)?;
        self.in_order(&[rows])
    }

    /// Holds old rows of the last unit; gives some back where they are too many.
    fn hold(&mut self, rows: RecordBatch) -> Result<Option<RecordBatch>, ArrowError> {
        if rows.num_rows() == 0 {
            return Ok(None);
        }
        // A slice would hold all that it is a slice of.
        self.held.push(compact(&rows)?);
        self.held_bytes += rows_bytes(&self.held[self.held.len() - 1]);
        if self.held_bytes < self.sum_at {
            return Ok(None);
        }
        let held = std::mem::take(&mut self.held);
        let summed = self.sum(&held)?;
        self.held_bytes = rows_bytes(&summed);
        if self.held_bytes > HELD_BYTES / 2 && !self.unit.as_ref().is_some_and(|unit| self.is_gone_vehicle(unit)) {
            self.held_bytes = 0;
            self.sum_at = HELD_BYTES;
            return Ok(Some(summed));
        }
        self.held.push(summed);
        self.sum_at = HELD_BYTES.max(2 * self.held_bytes);
        Ok(None)
    }

    fn is_gone_vehicle(&self, unit: &Unit) -> bool {
        self.table == Table::Fleet && self.gone.has_vehicle(&unit.first)
    }

    fn unit_of(&self, rows: &RecordBatch, row: usize) -> Result<Unit, ArrowError> {
        let text = |column: &str| -> Result<Option<String>, ArrowError> {
            let column = rows.column(rows.schema().index_of(column)?).as_string::<i32>();
            Ok(column.is_valid(row).then(|| column.value(row).to_owned()))
        };
        let has_code = matches!(self.table, Table::ErrorCounts | Table::Fleet);
        let first = text(if self.table == Table::Fleet { "vin" } else { "batch_id" })?.unwrap_or_default();
        let code = has_code.then(|| text("code")).transpose()?;
        Ok(Unit { first, code })
    }

    /// Which rows are not told apart by their epoch.
    fn is_old(&self, rows: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let epochs = rows.column(rows.schema().index_of("epoch")?).as_primitive::<Int64Type>();
        let is_old = epochs.iter().map(|epoch| epoch.map(|epoch| epoch <= self.horizon as i64)).collect();
        match self.table {
            Table::Fleet => or(&is_old, &self.gone.summed(rows)?),
            _ => Ok(is_old),
        }
    }

    /// Old rows of whole units, or of a part of one, each summed with those like it.
    fn sum(&self, rows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
        let rows = concat_batches(&self.table.schema(), rows)?;
        let schema = rows.schema();
        let how: Vec<How> = schema.fields().iter().map(|field| how(self.table, field.name())).collect();
        let mut keys: Vec<ArrayRef> = how
            .iter()
            .zip(rows.columns())
            .filter(|(how, _)| **how == How::Key)
            .map(|(_, column)| Arc::clone(column))
            .collect();
        if let Table::Batches | Table::Files = self.table {
            keys.push(Arc::new(epochs_of_what_is_taken_back(&rows)?));
        }
        let groups = Groups::of(&keys)?;
        let example = match schema.index_of("example_line") {
            Ok(line) => Some(groups.best(rows.column(line), How::Least)?),
            Err(_) => None,
        };
        let newest = groups.best(rows.column(schema.index_of("epoch")?), How::Greatest)?;
        let columns = how.iter().zip(rows.columns()).map(|(how, column)| match how {
            How::Key => take(column, &groups.first, None),
            How::Sum => groups.sum(column),
            How::Least | How::Greatest => take(column, &groups.best(column, *how)?, None),
            How::OfNewest => take(column, &newest, None),
            How::OfExample => take(column, example.as_ref().unwrap_or(&groups.first), None),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let rows = RecordBatch::try_new(schema, columns)?;
        if self.table != Table::Fleet {
            return Ok(rows);
        }
        let live = rows.column(rows.schema().index_of("live")?).as_primitive::<Int32Type>();
        let stands: BooleanArray = live.iter().map(|live| live.map(|live| live != 0)).collect();
        filter_record_batch(&rows, &stands)
    }

    fn in_order(&self, rows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
        encode::sorted(self.table, &concat_batches(&self.table.schema(), rows)?)
    }
}

/// 0 for rows that may be summed; the epoch of those that take something back.
fn epochs_of_what_is_taken_back(rows: &RecordBatch) -> Result<Int64Array, ArrowError> {
    let epochs = rows.column(rows.schema().index_of("epoch")?).as_primitive::<Int64Type>();
    let live = rows.column(rows.schema().index_of("live")?).as_primitive::<Int32Type>();
    Ok((0..rows.num_rows()).map(|row| if live.value(row) < 0 { epochs.value(row) } else { 0 }).collect())
}

fn rows_bytes(rows: &RecordBatch) -> usize {
    rows.get_array_memory_size()
}

/// A copy that holds no more than its rows.
fn compact(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let every: UInt32Array = (0..rows.num_rows() as u32).collect();
    take_record_batch(rows, &every)
}

/// Which rows become one.
struct Groups {
    /// The group of each row.
    of_row: Vec<usize>,
    /// The first row of each group.
    first: UInt32Array,
}

impl Groups {
    fn of(keys: &[ArrayRef]) -> Result<Groups, ArrowError> {
        let fields = keys.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let keys = RowConverter::new(fields)?.convert_columns(keys)?;
        let mut groups = HashMap::new();
        let mut first = Vec::new();
        let of_row = (0..keys.num_rows())
            .map(|row| {
                *groups.entry(keys.row(row)).or_insert_with(|| {
                    first.push(row as u32);
                    first.len() - 1
                })
            })
            .collect();
        Ok(Groups { of_row, first: first.into() })
    }

    /// The row of each group that has its least or greatest value; nulls are neither.
    fn best(&self, column: &ArrayRef, how: How) -> Result<UInt32Array, ArrowError> {
        let descending = how == How::Greatest;
        let order = make_comparator(column, column, SortOptions { descending, nulls_first: false })?;
        let mut best: Vec<u32> = self.first.values().to_vec();
        for (row, group) in self.of_row.iter().enumerate() {
            if order(row, best[*group] as usize).is_lt() {
                best[*group] = row as u32;
            }
        }
        Ok(best.into())
    }

    fn sum(&self, column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        let mut sums = vec![0_i64; self.first.len()];
        let mut add = |row: usize, value: i64| {
            let sum = &mut sums[self.of_row[row]];
            *sum = sum.wrapping_add(value);
        };
        match column.data_type() {
            DataType::Int32 => {
                column
                    .as_primitive::<Int32Type>()
                    .values()
                    .iter()
                    .enumerate()
                    .for_each(|(row, n)| add(row, i64::from(*n)));
                Ok(Arc::new(sums.into_iter().map(|sum| sum as i32).collect::<Int32Array>()))
            }
            DataType::Int64 => {
                column.as_primitive::<Int64Type>().values().iter().enumerate().for_each(|(row, n)| add(row, *n));
                Ok(Arc::new(Int64Array::from(sums)))
            }
            other => Err(ArrowError::InvalidArgumentError(format!("{other} has no sum"))),
        }
    }
}

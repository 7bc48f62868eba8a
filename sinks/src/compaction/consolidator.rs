//! Removes deleted rows of a table and consolidates differences at or before
//! `since` into one row each.
//!
//! Rows arrive in the table's sort order, so rows that may be consolidated are
//! adjacent: a *unit* is one batch and code of `error_counts`, one batch of
//! `batches` and `files`, or one vehicle and code of `fleet`. Only the old rows of
//! the last unit are buffered until the next unit begins; a large buffer is summed
//! early. Newer rows pass through unchanged. For a vehicle with deleted data, all
//! committed rows count as old.
//!
//! All measures are differences that readers sum, so a unit that exceeds the
//! buffer may be written in several parts without changing the result. Only a unit
//! of a vehicle with deleted data is buffered whole: deleted data cancels out only
//! when everything is summed.
//!
//! A row of `batches` or `files` with a negative `live` (a retraction) is never
//! summed with others: it records the deletion until no table has rows of the
//! deleted data.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RecordBatch, UInt32Array, make_comparator,
};
use arrow::compute::{SortOptions, concat_batches, filter_record_batch, not, or, take, take_record_batch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use crate::compaction::deleted_rows::DeletedRows;
use crate::convert::encode;
use crate::schema::Table;

/// Buffered rows of this many bytes (4 MiB) are summed before their unit ends.
const BUFFER_BYTES: usize = 4 << 20;

/// How a column is aggregated when rows are consolidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    /// Rows with different values are not consolidated.
    Key,
    Sum,
    Least,
    Greatest,
    /// The value of the row with the least `example_line`.
    OfExample,
    /// The value of the row with the greatest `epoch`.
    OfNewest,
}

fn aggregate_of(table: Table, column: &str) -> Aggregate {
    match (table, column) {
        (_, "epoch") => Aggregate::Greatest,
        (Table::ErrorCounts, "rule" | "example_line" | "example_text") => Aggregate::OfExample,
        (Table::ErrorCounts, "first_seen") => Aggregate::Least,
        (Table::ErrorCounts, "last_seen") => Aggregate::Greatest,
        (Table::ErrorCounts, "count") => Aggregate::Sum,
        (Table::Batches, "live" | "completed") => Aggregate::Sum,
        (Table::Fleet, "live") => Aggregate::Sum,
        (
            Table::Files,
            "live" | "erased" | "bytes" | "lines" | "long_lines" | "last_line" | "error_lines" | "occurrences",
        ) => Aggregate::Sum,
        (Table::Files, "uploaded_at" | "failure" | "binary" | "last_ts") => Aggregate::Greatest,
        (Table::Files, "first_ts") => Aggregate::Least,
        (Table::Files, "sha256" | "rules") => Aggregate::OfNewest,
        _ => Aggregate::Key,
    }
}

/// Consolidates the rows of one table as a stream.
pub struct Consolidator<'g> {
    table: Table,
    /// Rows up to this epoch are consolidated.
    since: u64,
    gone: &'g DeletedRows,
    /// Old rows of one unit.
    buffered: Vec<RecordBatch>,
    pub(super) buffered_bytes: usize,
    /// Buffered rows are summed when they reach this many bytes.
    sum_at: usize,
    unit: Option<Unit>,
}

/// The key of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    first: String,
    /// The code, in tables where it is part of the key.
    code: Option<Option<String>>,
}

impl<'g> Consolidator<'g> {
    /// Consolidates the rows of a table up to `since`.
    pub fn new(table: Table, since: u64, gone: &'g DeletedRows) -> Consolidator<'g> {
        Consolidator { table, since, gone, buffered: Vec::new(), buffered_bytes: 0, sum_at: BUFFER_BYTES, unit: None }
    }

    /// Takes rows in the table's sort order; returns the finished rows, in the same order.
    pub fn push(&mut self, rows: RecordBatch) -> Result<RecordBatch, ArrowError> {
        let rows = self.gone.without(self.table, rows)?;
        if self.table == Table::Errors || rows.num_rows() == 0 {
            return Ok(rows);
        }
        let is_old = self.is_old(&rows)?;
        let newer = filter_record_batch(&rows, &not(&is_old)?)?;
        let old = filter_record_batch(&rows, &is_old)?;
        let last = self.unit_of(&rows, rows.num_rows() - 1)?;
        // In tables sorted by epoch, the rows of a unit after a newer row are newer, too.
        let is_complete = matches!(self.table, Table::Batches | Table::Files) && !is_old.value(rows.num_rows() - 1);
        let mut ready = Vec::new();
        if is_complete || self.unit.as_ref() != Some(&last) {
            ready.append(&mut self.buffered);
            self.buffered_bytes = 0;
            self.sum_at = BUFFER_BYTES;
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
        summed.extend(self.buffer(old.slice(complete, old.num_rows() - complete))?);
        if summed.is_empty() {
            return Ok(newer);
        }
        summed.push(newer);
        self.in_order(&summed)
    }

    /// Returns the remaining rows at the end of the input.
    pub fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        if self.buffered.is_empty() {
            return Ok(RecordBatch::new_empty(self.table.schema()));
        }
        let buffered = std::mem::take(&mut self.buffered);
        let rows = self.sum(&buffered)?;
        self.in_order(&[rows])
    }

    /// Buffers old rows of the last unit; returns summed rows when the buffer is too large.
    fn buffer(&mut self, rows: RecordBatch) -> Result<Option<RecordBatch>, ArrowError> {
        if rows.num_rows() == 0 {
            return Ok(None);
        }
        // A slice would keep the memory of the whole batch.
        self.buffered.push(compact(&rows)?);
        self.buffered_bytes += rows_bytes(&self.buffered[self.buffered.len() - 1]);
        if self.buffered_bytes < self.sum_at {
            return Ok(None);
        }
        let buffered = std::mem::take(&mut self.buffered);
        let summed = self.sum(&buffered)?;
        self.buffered_bytes = rows_bytes(&summed);
        if self.buffered_bytes > BUFFER_BYTES / 2 && !self.unit.as_ref().is_some_and(|unit| self.has_deleted_data(unit))
        {
            self.buffered_bytes = 0;
            self.sum_at = BUFFER_BYTES;
            return Ok(Some(summed));
        }
        self.buffered.push(summed);
        self.sum_at = BUFFER_BYTES.max(2 * self.buffered_bytes);
        Ok(None)
    }

    fn has_deleted_data(&self, unit: &Unit) -> bool {
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

    /// Which rows are consolidated.
    fn is_old(&self, rows: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let epochs = rows.column(rows.schema().index_of("epoch")?).as_primitive::<Int64Type>();
        let is_old = epochs.iter().map(|epoch| epoch.map(|epoch| epoch <= self.since as i64)).collect();
        match self.table {
            Table::Fleet => or(&is_old, &self.gone.summed(rows)?),
            _ => Ok(is_old),
        }
    }

    /// Consolidates old rows of whole units, or of a part of one.
    fn sum(&self, rows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
        let rows = concat_batches(&self.table.schema(), rows)?;
        let schema = rows.schema();
        let aggregates: Vec<Aggregate> =
            schema.fields().iter().map(|field| aggregate_of(self.table, field.name())).collect();
        let mut keys: Vec<ArrayRef> = aggregates
            .iter()
            .zip(rows.columns())
            .filter(|(aggregate, _)| **aggregate == Aggregate::Key)
            .map(|(_, column)| Arc::clone(column))
            .collect();
        if let Table::Batches | Table::Files = self.table {
            keys.push(Arc::new(retraction_epochs(&rows)?));
        }
        let groups = EqualRows::of(&keys)?;
        let example = match schema.index_of("example_line") {
            Ok(line) => Some(groups.best(rows.column(line), Aggregate::Least)?),
            Err(_) => None,
        };
        let newest = groups.best(rows.column(schema.index_of("epoch")?), Aggregate::Greatest)?;
        let columns = aggregates.iter().zip(rows.columns()).map(|(aggregate, column)| match aggregate {
            Aggregate::Key => take(column, &groups.first, None),
            Aggregate::Sum => groups.sum(column),
            Aggregate::Least | Aggregate::Greatest => take(column, &groups.best(column, *aggregate)?, None),
            Aggregate::OfNewest => take(column, &newest, None),
            Aggregate::OfExample => take(column, example.as_ref().unwrap_or(&groups.first), None),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let rows = RecordBatch::try_new(schema, columns)?;
        if self.table != Table::Fleet {
            return Ok(rows);
        }
        let live = rows.column(rows.schema().index_of("live")?).as_primitive::<Int32Type>();
        let nonzero: BooleanArray = live.iter().map(|live| live.map(|live| live != 0)).collect();
        filter_record_batch(&rows, &nonzero)
    }

    fn in_order(&self, rows: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
        encode::sorted(self.table, &concat_batches(&self.table.schema(), rows)?)
    }
}

/// The epoch of each retraction; 0 for rows that may be summed.
fn retraction_epochs(rows: &RecordBatch) -> Result<Int64Array, ArrowError> {
    let epochs = rows.column(rows.schema().index_of("epoch")?).as_primitive::<Int64Type>();
    let live = rows.column(rows.schema().index_of("live")?).as_primitive::<Int32Type>();
    Ok((0..rows.num_rows()).map(|row| if live.value(row) < 0 { epochs.value(row) } else { 0 }).collect())
}

fn rows_bytes(rows: &RecordBatch) -> usize {
    rows.get_array_memory_size()
}

/// A copy that uses no more memory than its rows need.
fn compact(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let every: UInt32Array = (0..rows.num_rows() as u32).collect();
    take_record_batch(rows, &every)
}

/// Groups of rows with equal keys.
struct EqualRows {
    /// The group of each row.
    of_row: Vec<usize>,
    /// The first row of each group.
    first: UInt32Array,
}

impl EqualRows {
    fn of(keys: &[ArrayRef]) -> Result<EqualRows, ArrowError> {
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
        Ok(EqualRows { of_row, first: first.into() })
    }

    /// The row of each group with the least or greatest value; nulls are ignored.
    fn best(&self, column: &ArrayRef, aggregate: Aggregate) -> Result<UInt32Array, ArrowError> {
        let descending = aggregate == Aggregate::Greatest;
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
            other => Err(ArrowError::InvalidArgumentError(format!("cannot sum a column of type {other}"))),
        }
    }
}

//! Converts closed epochs and occurrences to Arrow rows.

use std::sync::Arc;

use argus_dataflow::{BatchRow, CellRow, CountRow, FileRow, Level, ScannedBlock, Subject};
use arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::{SortColumn, lexsort_to_indices, take_record_batch};
use arrow::error::ArrowError;

use crate::schema::Table;

/// The occurrences of a block as rows of `errors`.
pub fn errors(block: &ScannedBlock) -> Result<RecordBatch, ArrowError> {
    let rows = &block.occurrences;
    let count = rows.len();
    batch(
        Table::Errors,
        vec![
            text(std::iter::repeat_n(block.origin.batch_id.to_string(), count)),
            text(std::iter::repeat_n(block.origin.version.0.to_string(), count)),
            text(std::iter::repeat_n(block.origin.file.as_str(), count)),
            long(rows.iter().map(|row| row.line as i64)),
            long(rows.iter().map(|row| row.offset as i64)),
            time(rows.iter().map(|row| row.observed_at)),
            flag(rows.iter().map(|row| row.observed_at.map(|_| row.is_plausible))),
            text_or_null(rows.iter().map(|row| row.level.map(Level::as_str))),
            text_or_null(rows.iter().map(|row| row.component.as_deref())),
            text(rows.iter().map(|row| &*row.code)),
            text(rows.iter().map(|row| &*row.rule)),
            text(rows.iter().map(|row| row.severity.as_str())),
            flag(rows.iter().map(|row| Some(row.active))),
            text(rows.iter().map(|row| &*row.text)),
        ],
    )
}

/// Rows of `batches` at `epoch`, each with its multiplicity.
pub fn batches(epoch: u64, rows: &[(BatchRow, i64)]) -> Result<RecordBatch, ArrowError> {
    let each = || rows.iter().map(|(row, _)| row);
    batch(
        Table::Batches,
        vec![
            epochs(epoch, rows.len()),
            text(each().map(|row| row.batch_id.to_string())),
            text(each().map(|row| row.vehicle_id.as_str())),
            text(each().map(|row| row.vin.as_str())),
            text_or_null(each().map(|row| row.platform.as_deref())),
            text_or_null(each().map(|row| row.firmware.as_deref())),
            text_or_null(each().map(|row| row.labels.as_deref())),
            time(each().map(|row| Some(row.created_at))),
            int(rows.iter().map(|(row, n)| i32::from(row.live) * *n as i32)),
            int(rows.iter().map(|(row, n)| i32::from(row.completed) * *n as i32)),
        ],
    )
}

/// Rows of `files` at `epoch`, each with its multiplicity.
pub fn files(epoch: u64, rows: &[(FileRow, i64)]) -> Result<RecordBatch, ArrowError> {
    let each = || rows.iter().map(|(row, _)| row);
    let measure = |of: fn(&FileRow) -> u64| long(rows.iter().map(move |(row, n)| of(row) as i64 * n));
    batch(
        Table::Files,
        vec![
            epochs(epoch, rows.len()),
            text(each().map(|row| row.batch_id.to_string())),
            text(each().map(|row| row.file_id.to_string())),
            text(each().map(|row| row.version.0.to_string())),
            text(each().map(|row| row.name.as_str())),
            int(each().map(|row| row.generation as i32)),
            int(rows.iter().map(|(row, n)| i32::from(row.live) * *n as i32)),
            int(rows.iter().map(|(row, n)| i32::from(row.erased) * *n as i32)),
            measure(|row| row.bytes),
            measure(|row| row.lines),
            measure(|row| row.long_lines),
            measure(|row| row.last_line),
            measure(|row| row.error_lines),
            measure(|row| row.occurrences),
            time(each().map(|row| Some(row.uploaded_at))),
            text_or_null(each().map(|row| row.failure.as_deref())),
            int(each().map(|row| i32::from(row.binary))),
            text_or_null(each().map(|row| row.sha256.as_deref())),
            time(each().map(|row| row.first_ts)),
            time(each().map(|row| row.last_ts)),
            text_or_null(each().map(|row| row.rules.as_deref())),
        ],
    )
}

/// The value of `fleet.subject` for a cell.
pub fn subject_word(subject: &Subject) -> &'static str {
    match subject {
        Subject::Lines => "lines",
        Subject::Code(_) => "code",
        Subject::CodeOf { .. } => "component",
    }
}

/// Rows of `fleet` at `epoch`; `live` is the multiplicity.
pub fn fleet(epoch: u64, rows: &[(CellRow, i64)]) -> Result<RecordBatch, ArrowError> {
    let each = || rows.iter().map(|(row, _)| row);
    let component = |row| match row {
        &CellRow { subject: Subject::CodeOf { ref component, .. }, .. } => component.as_deref(),
        _ => None,
    };
    let code = |row| match row {
        &CellRow { subject: Subject::CodeOf { ref code, .. } | Subject::Code(ref code), .. } => Some(code.as_str()),
        _ => None,
    };
    batch(
        Table::Fleet,
        vec![
            epochs(epoch, rows.len()),
            text_or_null(each().map(|row| row.vehicle.firmware.as_deref())),
            text_or_null(each().map(|row| row.vehicle.platform.as_deref())),
            text(each().map(|row| row.vehicle.vehicle_id.as_str())),
            text(each().map(|row| row.vehicle.vin.as_str())),
            text(each().map(|row| subject_word(&row.subject))),
            text_or_null(each().map(component)),
            text_or_null(each().map(code)),
            int(rows.iter().map(|(_, n)| *n as i32)),
            long(each().map(|row| row.count as i64)),
            long(each().map(|row| row.inactive as i64)),
            long(each().map(|row| row.batches as i64)),
            time(each().map(|row| row.seen.first)),
            time(each().map(|row| row.seen.last)),
            text_or_null(each().map(|row| row.seen.first_batch.map(|first| first.batch_id.to_string()))),
            time(each().map(|row| row.seen.first_batch.map(|first| first.at))),
        ],
    )
}

/// Rows of `error_counts` at `epoch`; `count` is the multiplicity.
pub fn error_counts(epoch: u64, rows: &[(CountRow, i64)]) -> Result<RecordBatch, ArrowError> {
    let each = || rows.iter().map(|(row, _)| row);
    batch(
        Table::ErrorCounts,
        vec![
            epochs(epoch, rows.len()),
            text(each().map(|row| row.batch_id.to_string())),
            text(each().map(|row| row.version.0.to_string())),
            text(each().map(|row| row.file.as_str())),
            text_or_null(each().map(|row| row.component.as_deref())),
            text(each().map(|row| row.code.as_str())),
            text(each().map(|row| row.rule.as_str())),
            text(each().map(|row| row.severity.as_str())),
            flag(each().map(|row| Some(row.active))),
            long(rows.iter().map(|(_, n)| *n)),
            time(each().map(|row| row.first_seen)),
            time(each().map(|row| row.last_seen)),
            long(each().map(|row| row.example_line as i64)),
            text(each().map(|row| row.example_text.as_str())),
        ],
    )
}

/// The rows in the sort order of the table's files.
pub fn sorted(table: Table, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<SortColumn> = table
        .sort_columns()
        .iter()
        .filter_map(|name| rows.column_by_name(name))
        .map(|values| SortColumn { values: Arc::clone(values), options: None })
        .collect();
    take_record_batch(rows, &lexsort_to_indices(&columns, None)?)
}

fn batch(table: Table, columns: Vec<ArrayRef>) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(table.schema(), columns)
}

fn epochs(epoch: u64, count: usize) -> ArrayRef {
    long(std::iter::repeat_n(epoch as i64, count))
}

fn text<S: AsRef<str>>(values: impl Iterator<Item = S>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn text_or_null<S: AsRef<str>>(values: impl Iterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn long(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn int(values: impl Iterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values))
}

fn flag(values: impl Iterator<Item = Option<bool>>) -> ArrayRef {
    Arc::new(values.collect::<BooleanArray>())
}

fn time(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

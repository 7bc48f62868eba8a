//! Converts Arrow rows of the tables to values, for look-ups of one batch.

use argus_dataflow::{CountRow, FileRow, Severity, VersionId};
use arrow::array::{Array, ArrowPrimitiveType, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use uuid::Uuid;

/// Rows of `files` up to `epoch`; measures include the multiplicity, as in the table.
pub fn files(rows: &RecordBatch, epoch: u64) -> impl Iterator<Item = FileRow> {
    let columns = Columns(rows);
    (0..rows.num_rows()).filter(move |&row| columns.number("epoch", row) <= epoch).map(move |row| FileRow {
        batch_id: columns.id("batch_id", row),
        file_id: columns.id("file_id", row),
        version: VersionId(columns.id("version", row)),
        name: columns.text("name", row).to_owned(),
        generation: columns.value::<Int32Type>("generation", row).unwrap_or(0) as u32,
        live: columns.value::<Int32Type>("live", row).unwrap_or(0) as i8,
        erased: columns.value::<Int32Type>("erased", row).unwrap_or(0) as i8,
        open_line: false,
        bytes: columns.number("bytes", row),
        lines: columns.number("lines", row),
        long_lines: columns.number("long_lines", row),
        last_line: columns.number("last_line", row),
        error_lines: columns.number("error_lines", row),
        occurrences: columns.number("occurrences", row),
        uploaded_at: columns.value::<TimestampMicrosecondType>("uploaded_at", row).unwrap_or(0),
        failure: columns.text_or_null("failure", row).map(str::to_owned),
        binary: columns.value::<Int32Type>("binary", row).unwrap_or(0) > 0,
        sha256: columns.text_or_null("sha256", row).map(str::to_owned),
        first_ts: columns.value::<TimestampMicrosecondType>("first_ts", row),
        last_ts: columns.value::<TimestampMicrosecondType>("last_ts", row),
        rules: columns.text_or_null("rules", row).map(str::to_owned),
    })
}

/// Rows of `error_counts` up to `epoch`, each with its `count`.
pub fn counts(rows: &RecordBatch, epoch: u64) -> impl Iterator<Item = (CountRow, i64)> {
    let columns = Columns(rows);
    (0..rows.num_rows()).filter(move |&row| columns.number("epoch", row) <= epoch).map(move |row| {
        let count = CountRow {
            batch_id: columns.id("batch_id", row),
            version: VersionId(columns.id("version", row)),
            file: columns.text("file", row).to_owned(),
            component: columns.text_or_null("component", row).map(str::to_owned),
            code: columns.text("code", row).to_owned(),
            rule: columns.text("rule", row).to_owned(),
            severity: Severity::of(columns.text("severity", row)).unwrap_or(Severity::Error),
            active: columns.flag("active", row),
            first_seen: columns.value::<TimestampMicrosecondType>("first_seen", row),
            last_seen: columns.value::<TimestampMicrosecondType>("last_seen", row),
            example_line: columns.number("example_line", row),
            example_text: columns.text("example_text", row).to_owned(),
        };
        (count, columns.value::<Int64Type>("count", row).unwrap_or(0))
    })
}

/// The columns of rows, by name. A missing column reads as null.
#[derive(Clone, Copy)]
struct Columns<'r>(&'r RecordBatch);

impl<'r> Columns<'r> {
    fn text_or_null(self, name: &str, row: usize) -> Option<&'r str> {
        let texts = self.0.column_by_name(name)?.as_string_opt::<i32>()?;
        texts.is_valid(row).then(|| texts.value(row))
    }

    fn text(self, name: &str, row: usize) -> &'r str {
        self.text_or_null(name, row).unwrap_or_default()
    }

    fn id(self, name: &str, row: usize) -> Uuid {
        Uuid::parse_str(self.text(name, row)).unwrap_or_default()
    }

    fn value<T: ArrowPrimitiveType>(self, name: &str, row: usize) -> Option<T::Native> {
        let values = self.0.column_by_name(name)?.as_primitive_opt::<T>()?;
        values.is_valid(row).then(|| values.value(row))
    }

    fn flag(self, name: &str, row: usize) -> bool {
        let flags = self.0.column_by_name(name).and_then(|flags| flags.as_boolean_opt());
        flags.is_some_and(|flags| flags.is_valid(row) && flags.value(row))
    }

    /// A 64-bit integer read as unsigned; negative values (retractions) wrap.
    fn number(self, name: &str, row: usize) -> u64 {
        self.value::<Int64Type>(name, row).unwrap_or(0) as u64
    }
}

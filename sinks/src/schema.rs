//! The tables, defined once.
//!
//! Each is a table of differences: a row is a change at its `epoch`, and readers
//! sum the rows. `errors` has no epoch: readers join it with the versions that are
//! live in `files`.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// A table of the lake, in commit order: `files`, which makes rows visible, comes
/// last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// One row per occurrence.
    Errors,
    /// Occurrences of a code of a component in a version of a file: sum `count`.
    ErrorCounts,
    /// Batches: sum `live` and `completed`.
    Batches,
    /// Cells, the totals of each code per vehicle: rows whose `live` sums to one.
    Fleet,
    /// Versions of files: sum `live` and the measures.
    Files,
}

impl Table {
    /// All tables, in the order of commits.
    pub const ALL: [Table; 5] = [Table::Errors, Table::ErrorCounts, Table::Batches, Table::Fleet, Table::Files];

    /// The folder of the Delta table, and its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Table::Errors => "errors",
            Table::ErrorCounts => "error_counts",
            Table::Batches => "batches",
            Table::Fleet => "fleet",
            Table::Files => "files",
        }
    }

    /// The description in the Delta table's metadata.
    pub fn comment(self) -> &'static str {
        match self {
            Table::Errors => {
                "one row per occurrence of a code in a line; use only rows of live versions of `files`; see README.md"
            }
            Table::ErrorCounts => {
                "differences: sum `count` over live versions of `files`; see README.md in the parent folder"
            }
            Table::Batches => "differences: a batch exists if its `live` sums to more than 0; see README.md",
            Table::Fleet => "differences: use rows whose `live` sums to more than 0; see README.md",
            Table::Files => "differences: a version is live if its `live` sums to more than 0; see README.md",
        }
    }

    /// The names of its columns.
    pub fn columns(self) -> impl Iterator<Item = &'static str> {
        SCHEMAS[self as usize].fields().iter().map(|field| field.name().as_str())
    }

    /// The columns of its rows.
    pub fn schema(self) -> SchemaRef {
        Arc::clone(&SCHEMAS[self as usize])
    }

    /// The columns its files are sorted by, so that rows of one batch (or vehicle) are adjacent.
    pub fn sort_columns(self) -> &'static [&'static str] {
        match self {
            Table::Errors => &["batch_id", "file", "line"],
            Table::ErrorCounts => &["batch_id", "code"],
            Table::Fleet => &["vin", "code"],
            Table::Batches | Table::Files => &["batch_id", "epoch"],
        }
    }

    /// The columns with a different value in nearly every row or batch.
    pub fn distinct_columns(self) -> &'static [&'static str] {
        match self {
            Table::Errors => &["batch_id", "version", "text"],
            Table::ErrorCounts => &["batch_id", "version", "example_text"],
            Table::Batches => &["batch_id"],
            Table::Fleet => &["vin", "vehicle_id", "first_batch"],
            Table::Files => &["batch_id", "file_id", "version", "sha256"],
        }
    }
}

/// A time in microseconds since 1970, UTC.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

static SCHEMAS: LazyLock<[SchemaRef; 5]> =
    LazyLock::new(|| Table::ALL.map(|table| Arc::new(Schema::new(fields(table)))));

fn fields(table: Table) -> Vec<Field> {
    let text = |name| Field::new(name, DataType::Utf8, false);
    let text_or_null = |name| Field::new(name, DataType::Utf8, true);
    let long = |name| Field::new(name, DataType::Int64, false);
    let int = |name| Field::new(name, DataType::Int32, false);
    let time = |name| Field::new(name, timestamp(), false);
    let time_or_null = |name| Field::new(name, timestamp(), true);
    match table {
        Table::Errors => vec![
            text("batch_id"),
            text("version"),
            text("file"),
            long("line"),
            long("offset"),
            time_or_null("ts"),
            Field::new("ts_plausible", DataType::Boolean, true),
            text_or_null("level"),
            text_or_null("component"),
            text("code"),
            text("rule"),
            text("severity"),
            Field::new("active", DataType::Boolean, false),
            text("text"),
        ],
        Table::ErrorCounts => vec![
            long("epoch"),
            text("batch_id"),
            text("version"),
            text("file"),
            text_or_null("component"),
            text("code"),
            text("rule"),
            text("severity"),
            Field::new("active", DataType::Boolean, false),
            long("count"),
            time_or_null("first_seen"),
            time_or_null("last_seen"),
            long("example_line"),
            text("example_text"),
        ],
        Table::Batches => vec![
            long("epoch"),
            text("batch_id"),
            text("vehicle_id"),
            text("vin"),
            text_or_null("platform"),
            text_or_null("firmware"),
            text_or_null("labels"),
            time("created_at"),
            int("live"),
            int("completed"),
        ],
        Table::Fleet => vec![
            long("epoch"),
            text_or_null("firmware"),
            text_or_null("platform"),
            text("vehicle_id"),
            text("vin"),
            // `lines`: line totals of all components, no code; `code`: a code in all components;
            // `component`: a code in one component, or in lines without one.
            text("subject"),
            text_or_null("component"),
            text_or_null("code"),
            int("live"),
            long("count"),
            long("inactive"),
            long("batches"),
            time_or_null("first_seen"),
            time_or_null("last_seen"),
            text_or_null("first_batch"),
            time_or_null("first_recorded"),
        ],
        Table::Files => vec![
            long("epoch"),
            text("batch_id"),
            text("file_id"),
            text("version"),
            text("name"),
            int("generation"),
            int("live"),
            int("erased"),
            long("bytes"),
            long("lines"),
            long("long_lines"),
            long("last_line"),
            long("error_lines"),
            long("occurrences"),
            time("uploaded_at"),
            text_or_null("failure"),
            int("binary"),
            text_or_null("sha256"),
            time_or_null("first_ts"),
            time_or_null("last_ts"),
            text_or_null("rules"),
        ],
    }
}

//! The lines with codes of one batch, looked up in the tables' files without a query.
//!
//! Planning a query takes longer than reading the lines of most batches. The lines of a
//! larger batch are not all held in memory: a query reads them.

use std::collections::HashMap;
use std::sync::Arc;

use argus_dataflow::VersionId;
use argus_sinks::{Snapshot, Table};
use arrow::array::{Array, AsArray, BooleanArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{ArrowPrimitiveType, Int64Type, TimestampMicrosecondType};
use uuid::Uuid;

use crate::engine::{Engine, with_timeout};
use crate::error::QueryError;
use crate::reads::lookup::{BatchIds, Condition};

/// The most occurrences of a batch whose lines are looked up (10,000): at 1 KiB a line, they need 10 MiB.
const OCCURRENCES_MAX: u64 = 10_000;

/// The rows of the table `errors` of a batch that are visible at the snapshot's epoch, in no order; `None` if the batch
/// has too many.
pub(crate) async fn lines_of_batch(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    id: Uuid,
) -> Result<Option<Vec<RecordBatch>>, QueryError> {
    with_timeout(async {
        let _permit = engine.internal_permit().await?;
        let batch = engine.lookup.batch_or_recent(snapshot, id).await?;
        let files = || batch.files().map(|file| &file.row);
        if files().map(|file| file.occurrences).fold(0, u64::saturating_add) > OCCURRENCES_MAX {
            return Ok(None);
        }
        let last_lines: HashMap<VersionId, u64> = files().map(|file| (file.version, file.last_line)).collect();
        // A replaced version may have many more: of those, only versions and numbers of lines are read.
        let is_met = Arc::new(move |rows: &RecordBatch| is_visible(rows, &last_lines));
        let visible = Condition { columns: &["version", "line"], is_met };
        let rows = engine.lookup.rows_that(snapshot.table(Table::Errors), &BatchIds::new([id]), Some(&visible)).await?;
        Ok(Some(rows))
    })
    .await
}

/// Which rows are lines of a live version, up to its last line.
fn is_visible(rows: &RecordBatch, last_lines: &HashMap<VersionId, u64>) -> BooleanArray {
    let (versions, lines) = (text(rows, "version"), numbers::<Int64Type>(rows, "line"));
    let is_visible = |row: usize| {
        let version = versions.value(row).parse().ok().map(VersionId);
        version.and_then(|version| last_lines.get(&version)).is_some_and(|last| lines.value(row) as u64 <= *last)
    };
    (0..rows.num_rows()).map(|row| Some(is_visible(row))).collect()
}

/// A text column of a table, which the schema of the tables guarantees.
pub(crate) fn text<'r>(rows: &'r RecordBatch, name: &str) -> &'r StringArray {
    rows[name].as_string::<i32>()
}

/// A column of numbers or times of a table.
pub(crate) fn numbers<'r, T: ArrowPrimitiveType>(rows: &'r RecordBatch, name: &str) -> &'r PrimitiveArray<T> {
    rows[name].as_primitive::<T>()
}

/// The plausible times of lines.
#[derive(Clone, Copy)]
pub(crate) struct Times<'r> {
    times: &'r PrimitiveArray<TimestampMicrosecondType>,
    plausible: &'r BooleanArray,
}

impl<'r> Times<'r> {
    pub(crate) fn of(rows: &'r RecordBatch) -> Times<'r> {
        Times { times: numbers(rows, "ts"), plausible: rows["ts_plausible"].as_boolean() }
    }

    /// The time of a line in microseconds since 1970, if it has one that is plausible.
    pub(crate) fn plausible(self, row: usize) -> Option<i64> {
        let is_plausible = self.plausible.is_valid(row) && self.plausible.value(row) && self.times.is_valid(row);
        is_plausible.then(|| self.times.value(row))
    }

    /// Whether a line has a plausible time in a range.
    pub(crate) fn is_within(self, row: usize, since: Option<i64>, until: Option<i64>) -> bool {
        let is_in = |ts| since.is_none_or(|since| ts >= since) && until.is_none_or(|until| ts < until);
        self.plausible(row).is_some_and(is_in)
    }
}

/// Whether a text is the wanted one, if one is wanted.
pub(crate) fn is(column: &StringArray, row: usize, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| column.is_valid(row) && column.value(row) == wanted)
}

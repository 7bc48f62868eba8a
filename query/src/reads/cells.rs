//! Past state that the dataflow loads: fleet cells when it starts, and an unloaded batch when it changes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use argus_dataflow::{
    BatchRow, CellRow, CountRow, FileRow, LoadedBatch, LoadedCount, LoadedVersion, Recorded, SeenRange, Subject,
    Vehicle,
};
use argus_sinks::{RecentCount, Snapshot};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::sql::sqlparser::ast::{Expr, Value};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::lookup::BatchIds;
use crate::tables::views::batches_sql;

/// Batches that are looked up together; their rows must fit in memory.
const OTHERS_AT_ONCE: usize = 64;

/// All cells at the snapshot's epoch, in a stream of parts.
pub async fn cells(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
) -> Result<BoxStream<'static, Result<Vec<CellRow>, QueryError>>, QueryError> {
    let columns = "firmware, platform, vehicle_id, vin, subject, component, code, count, inactive, \
                   batches, first_seen, last_seen, first_batch, first_recorded";
    let sql = format!(
        "SELECT {columns} FROM lake.fleet WHERE epoch <= {} GROUP BY {columns} HAVING sum(live) > 0",
        snapshot.epoch
    );
    let rows = engine.stream(snapshot, &sql).await?.map_err(QueryError::of);
    Ok(rows.map_ok(|rows| (0..rows.num_rows()).map(|row| cell(&rows, row)).collect()).boxed())
}

fn cell(rows: &RecordBatch, row: usize) -> CellRow {
    let (component, code) = (optional(rows, 5, row), optional(rows, 6, row));
    let subject = match (text(rows, 4, row).as_str(), code) {
        ("component", Some(code)) => Subject::CodeOf { component, code },
        (_, Some(code)) => Subject::Code(code),
        (_, None) => Subject::Lines,
    };
    let first_batch = time(rows, 13, row).map(|at| Recorded { at, batch_id: id(rows, 12, row) });
    let seen = SeenRange { first: time(rows, 10, row), last: time(rows, 11, row), first_batch };
    let vehicle = Vehicle {
        firmware: optional(rows, 0, row),
        platform: optional(rows, 1, row),
        vehicle_id: text(rows, 2, row),
        vin: text(rows, 3, row),
    };
    let (count, inactive, batches) = (number(rows, 7, row), number(rows, 8, row), number(rows, 9, row));
    CellRow { vehicle, subject, count, inactive, batches, seen }
}

/// The rows of a batch at the snapshot's epoch, and of the unloaded `others` (each with its creation time) that share
/// its cells. Looked up without a query and without a reader's permit, so that readers cannot block writers.
pub async fn load_batch(
    engine: &Engine,
    snapshot: &Snapshot,
    batch: BatchOfVehicle,
    others: &[(Uuid, i64)],
) -> Result<LoadedBatch, QueryError> {
    let BatchOfVehicle { batch, is_open } = batch;
    let found = engine.lookup.batch_or_recent(snapshot, batch.batch_id).await?;
    let versions = found.files().map(|file| LoadedVersion {
        version: file.row.version,
        lines: file.row.lines,
        first_ts: file.row.first_ts,
    });
    let versions = versions.collect();
    let counts = found.counts().map(|counted| {
        let CountRow { version, component, code, active, first_seen: first, last_seen: last, .. } = counted.row.clone();
        let inactive = if active { 0 } else { counted.count };
        LoadedCount { version, component, code, count: counted.count, inactive, first, last }
    });
    let counts = counts.collect();
    let mut rest: HashMap<Subject, SeenRange> = HashMap::new();
    let mut add = |subject, seen: SeenRange| {
        let entry = rest.entry(subject).or_insert(seen);
        *entry = entry.and(seen);
    };
    for some in others.chunks(OTHERS_AT_ONCE) {
        let found = engine.lookup.batches(snapshot, &BatchIds::new(some.iter().map(|(id, _)| *id))).await?;
        let mut recorded: HashMap<Uuid, Option<i64>> = HashMap::new();
        for FileRow { batch_id, first_ts, .. } in found.files().map(|file| &file.row) {
            let first = recorded.entry(*batch_id).or_default();
            *first = argus_dataflow::earliest(*first, *first_ts);
        }
        let recorded: HashMap<Uuid, Recorded> = some
            .iter()
            .map(|(id, created_at)| {
                let at = recorded.get(id).copied().flatten().unwrap_or(*created_at);
                (*id, Recorded { at, batch_id: *id })
            })
            .collect();
        for file in found.files() {
            let first_batch = recorded.get(&file.row.batch_id).copied();
            add(Subject::Lines, SeenRange { first: None, last: None, first_batch });
        }
        for RecentCount { row, .. } in found.counts() {
            let first_batch = recorded.get(&row.batch_id).copied().filter(|_| row.active);
            let seen = SeenRange { first: row.first_seen, last: row.last_seen, first_batch };
            add(Subject::Code(row.code.clone()), seen);
            add(Subject::CodeOf { component: row.component.clone(), code: row.code.clone() }, seen);
        }
    }
    let others = others.iter().map(|(id, _)| *id).collect();
    Ok(LoadedBatch { batch, is_open, versions, counts, rest: rest.into_iter().collect(), others })
}

/// A batch of the tables as an input row of the dataflow, and whether it is open.
#[derive(Debug, Clone)]
pub struct BatchOfVehicle {
    /// The batch.
    pub batch: BatchRow,
    /// Whether files can still be added.
    pub is_open: bool,
}

/// All batches of the vehicles `vins`, and of the vehicles of `batches`, sorted by id. Runs once, before the server
/// answers clients.
pub async fn batches_of_same_vehicles(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    vins: &HashSet<String>,
    batches: &HashSet<Uuid>,
) -> Result<Vec<BatchOfVehicle>, QueryError> {
    if batches.is_empty() && vins.is_empty() {
        return Ok(Vec::new());
    }
    let literal = |text: String| Expr::Value(Value::SingleQuotedString(text).into()).to_string();
    let list = |texts: Vec<String>| if texts.is_empty() { "NULL".to_owned() } else { texts.join(", ") };
    let ids = list(batches.iter().map(|id| literal(id.to_string())).collect());
    let vins = list(vins.iter().map(|vin| literal(vin.clone())).collect());
    let sql = format!(
        "SELECT batch_id, vehicle_id, vin, platform, firmware, labels, created_at, status FROM ({batches}) \
         WHERE vin IN ({vins}) OR vin IN (SELECT vin FROM ({batches}) WHERE batch_id IN ({ids})) ORDER BY batch_id",
        batches = batches_sql(snapshot.epoch, snapshot.is_past),
    );
    let mut found = Vec::new();
    for rows in engine.collect_without_timeout(snapshot, &sql).await? {
        found.extend((0..rows.num_rows()).map(|row| BatchOfVehicle {
            batch: BatchRow {
                batch_id: id(&rows, 0, row),
                vehicle_id: text(&rows, 1, row),
                vin: text(&rows, 2, row),
                platform: optional(&rows, 3, row),
                firmware: optional(&rows, 4, row),
                labels: optional(&rows, 5, row),
                created_at: time(&rows, 6, row).unwrap_or_default(),
                live: 0,
                completed: 0,
            },
            is_open: text(&rows, 7, row) == "pending",
        }));
    }
    Ok(found)
}

fn text(rows: &RecordBatch, column: usize, row: usize) -> String {
    rows.column(column).as_string::<i32>().value(row).to_owned()
}

fn optional(rows: &RecordBatch, column: usize, row: usize) -> Option<String> {
    rows.column(column).is_valid(row).then(|| text(rows, column, row))
}

fn number(rows: &RecordBatch, column: usize, row: usize) -> u64 {
    rows.column(column).as_primitive::<Int64Type>().value(row).max(0) as u64
}

fn time(rows: &RecordBatch, column: usize, row: usize) -> Option<i64> {
    let times = rows.column(column).as_primitive::<TimestampMicrosecondType>();
    times.is_valid(row).then(|| times.value(row))
}

/// Argus wrote the column, so its values are valid ids.
fn id(rows: &RecordBatch, column: usize, row: usize) -> Uuid {
    text(rows, column, row).parse().unwrap_or_default()
}

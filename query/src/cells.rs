//! What the dataflow is told of the past: cells when it starts, and a batch
//! that something happens to after a while.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use argus_dataflow::{BatchRow, CellRow, Recall, RecalledCount, Seen, Subject, Vehicle, VersionId};
use argus_sinks::Snapshot;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use uuid::Uuid;

use crate::engine::Engine;
use crate::query_error::QueryError;
use crate::views::{literal, live};

/// All cells at the snapshot's epoch, some at a time.
pub async fn cells(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
) -> Result<BoxStream<'static, Result<Vec<CellRow>, QueryError>>, QueryError> {
    let columns = "firmware, platform, vehicle_id, vin, subject, component, code, count, batches, \
                   first_seen, last_seen, first_batch";
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
    let seen = Seen { first: time(rows, 9, row), last: time(rows, 10, row), first_batch: id(rows, 11, row) };
    let vehicle = Vehicle {
        firmware: optional(rows, 0, row),
        platform: optional(rows, 1, row),
        vehicle_id: text(rows, 2, row),
        vin: text(rows, 3, row),
    };
    CellRow { vehicle, subject, count: number(rows, 7, row), batches: number(rows, 8, row), seen }
}

/// What the tables hold of a batch, and of the others that share its cells
/// and are not `warm`; `None` when there is no such batch.
pub async fn recall(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    batch_id: Uuid,
    warm: impl Fn(&Uuid) -> bool,
) -> Result<Option<Recall>, QueryError> {
    let sql =
        format!("SELECT vehicle_id, vin, platform, firmware, created_at FROM batches WHERE batch_id = '{batch_id}'");
    let found = engine.collect(snapshot, &sql).await?;
    let Some(row) = found.iter().find(|rows| rows.num_rows() > 0) else { return Ok(None) };
    let batch = BatchRow {
        batch_id,
        vehicle_id: text(row, 0, 0),
        vin: text(row, 1, 0),
        platform: optional(row, 2, 0),
        firmware: optional(row, 3, 0),
        created_at: time(row, 4, 0).unwrap_or_default(),
        live: 0,
        completed: 0,
    };
    let epoch = snapshot.epoch;
    let sql = format!(
        "SELECT version, sum(lines) FROM lake.files WHERE batch_id = '{batch_id}' AND epoch <= {epoch} \
         GROUP BY version HAVING sum(live) > 0"
    );
    let mut versions = Vec::new();
    for rows in engine.collect(snapshot, &sql).await? {
        versions.extend((0..rows.num_rows()).map(|row| (VersionId(id(&rows, 0, row)), number(&rows, 1, row))));
    }
    let sql = format!(
        "SELECT c.version, c.component, c.code, sum(c.count), min(c.first_seen), max(c.last_seen) \
         FROM ({}) f JOIN lake.error_counts c ON c.batch_id = f.batch_id AND c.version = f.version \
         WHERE c.batch_id = '{batch_id}' AND c.epoch <= {epoch} GROUP BY c.version, c.component, c.code",
        live(epoch)
    );
    let mut counts = Vec::new();
    for rows in engine.collect(snapshot, &sql).await? {
        counts.extend((0..rows.num_rows()).map(|row| RecalledCount {
            version: VersionId(id(&rows, 0, row)),
            component: optional(&rows, 1, row),
            code: text(&rows, 2, row),
            count: number(&rows, 3, row),
            first: time(&rows, 4, row),
            last: time(&rows, 5, row),
        }));
    }
    let rest = rest(engine, snapshot, &batch, warm).await?;
    Ok(Some(Recall { batch, versions, counts, rest }))
}

/// The open batches of the vehicles that some batches are of, in order of their ids.
pub async fn open_batches_beside(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    batches: &HashSet<Uuid>,
) -> Result<Vec<Uuid>, QueryError> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = batches.iter().map(|id| format!("'{id}'")).collect();
    let sql = format!(
        "SELECT batch_id FROM batches WHERE status = 'pending' \
         AND vin IN (SELECT vin FROM batches WHERE batch_id IN ({})) ORDER BY batch_id",
        ids.join(", ")
    );
    let mut open = Vec::new();
    for rows in engine.collect(snapshot, &sql).await? {
        open.extend((0..rows.num_rows()).map(|row| id(&rows, 0, row)));
    }
    Ok(open)
}

/// When the vehicle's other batches that are not warm saw what they count.
async fn rest(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    batch: &BatchRow,
    warm: impl Fn(&Uuid) -> bool,
) -> Result<Vec<(Subject, Seen)>, QueryError> {
    let is = |column: &str, value: &Option<String>| match value {
        Some(value) => format!("{column} = {}", literal(value)),
        None => format!("{column} IS NULL"),
    };
    let sql = format!(
        "SELECT batch_id FROM batches WHERE vin = {} AND vehicle_id = {} AND {} AND {} AND batch_id <> '{}'",
        literal(&batch.vin),
        literal(&batch.vehicle_id),
        is("platform", &batch.platform),
        is("firmware", &batch.firmware),
        batch.batch_id
    );
    let mut others = Vec::new();
    for rows in engine.collect(snapshot, &sql).await? {
        let ids = (0..rows.num_rows()).map(|row| id(&rows, 0, row));
        others.extend(ids.filter(|id| !warm(id)).map(|id| format!("'{id}'")));
    }
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let others = others.join(", ");
    let mut all: HashMap<Subject, Seen> = HashMap::new();
    let mut add = |subject, seen: Seen| {
        let entry = all.entry(subject).or_insert(seen);
        *entry = entry.and(seen);
    };
    let sql = format!("SELECT min(batch_id) FROM files WHERE batch_id IN ({others}) HAVING count(*) > 0");
    for rows in engine.collect(snapshot, &sql).await? {
        for row in 0..rows.num_rows() {
            add(Subject::Lines, Seen { first: None, last: None, first_batch: id(&rows, 0, row) });
        }
    }
    let epoch = snapshot.epoch;
    let sql = format!(
        "SELECT c.component, c.code, min(c.first_seen), max(c.last_seen), min(c.batch_id) \
         FROM ({}) f JOIN lake.error_counts c ON c.batch_id = f.batch_id AND c.version = f.version \
         WHERE c.batch_id IN ({others}) AND c.epoch <= {epoch} GROUP BY c.component, c.code",
        live(epoch)
    );
    for rows in engine.collect(snapshot, &sql).await? {
        for row in 0..rows.num_rows() {
            let (component, code) = (optional(&rows, 0, row), text(&rows, 1, row));
            let first_batch = id(&rows, 4, row);
            let seen = Seen { first: time(&rows, 2, row), last: time(&rows, 3, row), first_batch };
            add(Subject::Code(code.clone()), seen);
            add(Subject::CodeOf { component, code }, seen);
        }
    }
    Ok(all.into_iter().collect())
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

/// What stands in an id's column is an id, for we wrote it.
fn id(rows: &RecordBatch, column: usize, row: usize) -> Uuid {
    text(rows, column, row).parse().unwrap_or_default()
}

//! What a vehicle has said of each code, over all its batches.

use std::sync::Arc;

use argus_dataflow::{Group, Recorded};
use argus_sinks::{FleetView, Snapshot};
use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::engine::Engine;
use crate::fleet::as_rfc3339;
use crate::query_error::QueryError;
use crate::views::literal;

/// A code of a vehicle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VehicleCode {
    /// The code.
    pub code: String,
    /// Sightings.
    pub count: u64,
    /// How many of them say that the code is not active.
    pub inactive: u64,
    /// Different batches with it.
    pub batches: u64,
    /// The earliest plausible time of a line with it, RFC 3339.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_seen: Option<i64>,
    /// The latest.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub last_seen: Option<i64>,
    /// Of the batches where it is active, the one that was recorded first.
    pub first_batch: Option<Uuid>,
    /// When that was.
    #[serde(skip)]
    recorded: Option<Recorded>,
}

/// A batch of a vehicle, by when it was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedBatch {
    /// The batch.
    pub id: Uuid,
    /// The first plausible time that its lines name, else when it was made; microseconds since 1970.
    pub first: i64,
    /// The last.
    pub last: i64,
}

/// Batches of a vehicle, those recorded last first, from behind one on: at most so many.
pub async fn batches_of_vehicle(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    vin: &str,
    behind: Option<(i64, Uuid)>,
    limit: usize,
) -> Result<Vec<RecordedBatch>, QueryError> {
    let behind = behind.map_or_else(String::new, |(first, id)| {
        let first = format!("arrow_cast({first}, 'Timestamp(Microsecond, Some(\"UTC\"))')");
        format!(" AND (recorded_first < {first} OR (recorded_first = {first} AND batch_id < '{id}'))")
    });
    let sql = format!(
        "SELECT batch_id, recorded_first, recorded_last FROM batches WHERE vin = {}{behind} \
         ORDER BY recorded_first DESC, batch_id DESC LIMIT {limit}",
        literal(vin)
    );
    let mut batches = Vec::new();
    for rows in engine.collect(snapshot, &sql).await? {
        let ids = rows.column(0).as_string::<i32>();
        let time =
            |column: usize, row: usize| rows.column(column).as_primitive::<TimestampMicrosecondType>().value(row);
        batches.extend((0..rows.num_rows()).filter_map(|row| {
            Some(RecordedBatch { id: ids.value(row).parse().ok()?, first: time(1, row), last: time(2, row) })
        }));
    }
    Ok(batches)
}

impl VehicleCode {
    /// All codes of the vehicle, by count, highest first, then by code. A vehicle
    /// that went by several names is one.
    pub fn all(fleet: &FleetView, vin: &str) -> Vec<VehicleCode> {
        let mut codes: Vec<VehicleCode> = Vec::new();
        let from = Group::Vehicle { vin: vin.to_owned(), vehicle_id: String::new() };
        for (group, code, totals) in fleet.from(from) {
            match (group, code) {
                (Group::Vehicle { vin: found, .. }, _) if found != vin => break,
                (Group::Vehicle { .. }, Some(code)) => codes.push(VehicleCode {
                    code: code.to_owned(),
                    count: totals.count,
                    inactive: totals.inactive,
                    batches: totals.batches,
                    first_seen: totals.seen.first,
                    last_seen: totals.seen.last,
                    first_batch: None,
                    recorded: totals.seen.first_batch,
                }),
                (Group::Vehicle { .. }, None) => {}
                _ => break,
            }
        }
        codes.sort_by(|a, b| a.code.cmp(&b.code));
        codes.dedup_by(|next, kept| {
            let same = next.code == kept.code;
            if same {
                kept.count += next.count;
                kept.inactive += next.inactive;
                kept.batches += next.batches;
                kept.first_seen = [kept.first_seen, next.first_seen].into_iter().flatten().min();
                kept.last_seen = kept.last_seen.max(next.last_seen);
                kept.recorded = [kept.recorded, next.recorded].into_iter().flatten().min();
            }
            same
        });
        codes.iter_mut().for_each(|code| code.first_batch = code.recorded.map(|first| first.batch_id));
        // Stable, so codes of one count stay in order of their names.
        codes.sort_by_key(|code| std::cmp::Reverse(code.count));
        codes
    }
}

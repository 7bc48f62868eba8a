//! The codes of a vehicle, over all its batches.

use std::sync::Arc;

use argus_dataflow::{FleetGroup, Recorded};
use argus_sinks::{FleetView, Snapshot};
use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::fleet_codes::as_rfc3339;
use crate::tables::views::{literal, time_literal};

/// A code of a vehicle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VehicleCode {
    /// The code.
    pub code: String,
    /// Occurrences.
    pub count: u64,
    /// Occurrences that mark the code as not active.
    pub inactive: u64,
    /// Distinct batches with the code.
    pub batches: u64,
    /// The earliest plausible timestamp of a line with the code, RFC 3339.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_seen: Option<i64>,
    /// The latest plausible timestamp of a line with the code.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub last_seen: Option<i64>,
    /// The earliest recorded batch in which the code is active.
    pub first_batch: Option<Uuid>,
    /// When that batch was recorded.
    #[serde(skip)]
    recorded: Option<Recorded>,
}

/// A batch of a vehicle, with the time it was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedBatch {
    /// The batch.
    pub id: Uuid,
    /// The first plausible timestamp of its lines, else its creation time; microseconds since 1970.
    pub first: i64,
    /// The last plausible timestamp of its lines, else its creation time.
    pub last: i64,
}

/// At most `limit` batches of a vehicle that follow `after`, most recently recorded first.
pub async fn batches_of_vehicle(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    vin: &str,
    after: Option<(i64, Uuid)>,
    limit: usize,
) -> Result<Vec<RecordedBatch>, QueryError> {
    let after = after.map_or_else(String::new, |(first, id)| {
        let first = time_literal(first);
        format!(" AND (recorded_first < {first} OR (recorded_first = {first} AND batch_id < '{id}'))")
    });
    let sql = format!(
        "SELECT batch_id, recorded_first, recorded_last FROM batches WHERE vin = {}{after} \
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
    /// All codes of the vehicle, by count, highest first, then by code. Several vehicle ids with one VIN are merged.
    pub fn all(fleet: &FleetView, vin: &str) -> Vec<VehicleCode> {
        let mut codes: Vec<VehicleCode> = Vec::new();
        let from = FleetGroup::Vehicle { vin: vin.to_owned(), vehicle_id: String::new() };
        for (group, code, totals) in fleet.from(from) {
            match (group, code) {
                (FleetGroup::Vehicle { vin: found, .. }, _) if found != vin => break,
                (FleetGroup::Vehicle { .. }, Some(code)) => codes.push(VehicleCode {
                    code: code.to_owned(),
                    count: totals.count,
                    inactive: totals.inactive,
                    batches: totals.batches,
                    first_seen: totals.seen.first,
                    last_seen: totals.seen.last,
                    first_batch: None,
                    recorded: totals.seen.first_batch,
                }),
                (FleetGroup::Vehicle { .. }, None) => {}
                _ => break,
            }
        }
        codes.sort_by(|a, b| a.code.cmp(&b.code));
        codes.dedup_by(|next, merged| {
            let same = next.code == merged.code;
            if same {
                merged.count += next.count;
                merged.inactive += next.inactive;
                merged.batches += next.batches;
                merged.first_seen = argus_dataflow::earliest(merged.first_seen, next.first_seen);
                merged.last_seen = merged.last_seen.max(next.last_seen);
                merged.recorded = argus_dataflow::earliest(merged.recorded, next.recorded);
            }
            same
        });
        codes.iter_mut().for_each(|code| code.first_batch = code.recorded.map(|first| first.batch_id));
        // The sort is stable: codes with the same count stay sorted by name.
        codes.sort_by_key(|code| std::cmp::Reverse(code.count));
        codes
    }
}

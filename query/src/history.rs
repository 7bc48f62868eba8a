//! What a vehicle has said of each code, over all its batches.

use argus_dataflow::{Group, Recorded};
use argus_sinks::FleetView;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::fleet::as_rfc3339;

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
    /// The earliest time of a line with it, microseconds since 1970.
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

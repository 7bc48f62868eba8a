//! The size of the fleet and its firmwares, from the totals in memory.

use argus_dataflow::{FleetGroup, Recorded};
use argus_sinks::FleetView;
use serde::Serialize;
use utoipa::ToSchema;

use crate::reads::fleet_codes::as_rfc3339;

/// A firmware is as old as its first batch. A batch that was recorded more than this before it was created, in
/// microseconds (a year), counts as recorded when it was created: its clock was reset.
const LATE_MAX: i64 = 365 * 24 * 3600 * 1_000_000;

/// The fleet: batches and vehicles that have sent lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FleetTotals {
    /// Batches.
    pub batches: u64,
    /// Vehicles, by their VIN.
    pub vehicles: u64,
    /// Lines.
    pub lines: u64,
    /// The latest first.
    pub firmwares: Vec<FirmwareTotals>,
}

/// A firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FirmwareTotals {
    /// Its name.
    pub firmware: String,
    /// Vehicles that have sent lines with it.
    pub vehicles: u64,
    /// Their batches.
    pub batches: u64,
    /// Their lines.
    pub lines: u64,
    /// When its first batch was recorded.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_recorded: Option<i64>,
}

impl FleetTotals {
    /// The totals of a view.
    pub fn of(view: &FleetView) -> FleetTotals {
        let mut totals = FleetTotals { batches: 0, vehicles: view.vehicles(), lines: 0, firmwares: Vec::new() };
        for (group, code, of_group) in view.from(FleetGroup::Firmware(None)) {
            let FleetGroup::Firmware(name) = group else { break };
            if code.is_some() {
                continue;
            }
            // A batch has one firmware, or none.
            totals.batches += of_group.batches;
            totals.lines += of_group.count;
            totals.firmwares.extend(name.as_ref().map(|name| FirmwareTotals {
                firmware: name.clone(),
                vehicles: of_group.vehicles,
                batches: of_group.batches,
                lines: of_group.count,
                first_recorded: of_group.seen.first_batch.map(begun),
            }));
        }
        totals.firmwares.sort_by(|a, b| (b.first_recorded, &b.firmware).cmp(&(a.first_recorded, &a.firmware)));
        totals
    }
}

/// When a firmware was first recorded.
fn begun(first: Recorded) -> i64 {
    let created = first.batch_id.get_timestamp().map(|created| {
        let (seconds, nanos) = created.to_unix();
        i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000) + i64::from(nanos) / 1000
    });
    created.filter(|created| created.saturating_sub(first.at) > LATE_MAX).unwrap_or(first.at)
}

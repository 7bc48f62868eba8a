//! The vehicles of the fleet, page by page, sorted by VIN.

use std::sync::Arc;

use argus_sinks::Snapshot;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::fleet_codes::as_rfc3339;
use crate::tables::views::literal;

/// Selects vehicles, as their latest batch describes them.
#[derive(Debug, Clone, Default)]
pub struct VehiclesRequest {
    /// Only this vehicle.
    pub vin: Option<String>,
    /// Only vehicles with this id.
    pub vehicle_id: Option<String>,
    /// Only vehicles of this platform.
    pub platform: Option<String>,
    /// Only vehicles with this firmware.
    pub firmware: Option<String>,
    /// Only vehicles after this VIN.
    pub after: Option<String>,
    /// The maximum number of vehicles.
    pub limit: usize,
}

/// A vehicle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct VehicleRow {
    /// The vehicle identification number.
    pub vin: String,
    /// Its id, as its latest batch names it.
    pub vehicle_id: String,
    /// Its hardware platform.
    pub platform: Option<String>,
    /// Its firmware.
    pub firmware: Option<String>,
    /// The number of its batches.
    pub batches: u64,
    /// The earliest plausible time of its lines.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_seen: Option<i64>,
    /// The latest plausible time of its lines.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub last_seen: Option<i64>,
}

impl VehiclesRequest {
    /// Reads a page, and whether there are more vehicles.
    pub async fn read(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<(Vec<VehicleRow>, bool), QueryError> {
        let mut wanted = String::new();
        let equal = [
            ("vin", &self.vin),
            ("vehicle_id", &self.vehicle_id),
            ("platform", &self.platform),
            ("firmware", &self.firmware),
        ];
        for (column, value) in equal {
            if let Some(value) = value {
                wanted += &format!(" AND {column} = {}", literal(value));
            }
        }
        if let Some(after) = &self.after {
            wanted += &format!(" AND vin > {}", literal(after));
        }
        let sql = format!(
            "SELECT vin, vehicle_id, platform, firmware, batches, first_seen, last_seen FROM vehicles WHERE TRUE{wanted} \
             ORDER BY vin LIMIT {}",
            self.limit + 1
        );
        let mut vehicles = Vec::new();
        for rows in engine.collect_large(snapshot, &sql).await? {
            let text = |column: usize, row| {
                let texts = rows.column(column).as_string::<i32>();
                texts.is_valid(row).then(|| texts.value(row).to_owned())
            };
            let time = |column: usize, row| {
                let times = rows.column(column).as_primitive::<TimestampMicrosecondType>();
                times.is_valid(row).then(|| times.value(row))
            };
            let batches = rows.column(4).as_primitive::<Int64Type>();
            vehicles.extend((0..rows.num_rows()).map(|row| VehicleRow {
                vin: text(0, row).unwrap_or_default(),
                vehicle_id: text(1, row).unwrap_or_default(),
                platform: text(2, row),
                firmware: text(3, row),
                batches: batches.value(row).max(0) as u64,
                first_seen: time(5, row),
                last_seen: time(6, row),
            }));
        }
        let more = vehicles.len() > self.limit;
        vehicles.truncate(self.limit);
        Ok((vehicles, more))
    }
}

//! What a vehicle has said.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_query::rows::rfc3339;
use argus_query::{Engine, RecordedBatch, Report, VehicleCode, batches_of_vehicle};
use argus_sinks::Snapshot;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::extract::{Parameters, Segments};
use crate::http::problem::Problem;
use crate::http::refusals::{Invalid, Late, NotFound, TooMany, Unavailable};
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::metadata::Metadata;
use crate::service::Service;

const LIMIT_DEFAULT: usize = 20;
const LIMIT_MAX: usize = 100;

#[derive(Clone)]
struct Parts {
    engine: Engine,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/vehicles`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        engine: service.engine.clone(),
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new().routes(routes!(history)).with_state(parts)
}

/// What a vehicle has said.
#[derive(Serialize, ToSchema)]
struct HistoryBody {
    vin: String,
    /// Over all its batches, the most frequent first.
    codes: Vec<VehicleCode>,
    batches: Vec<BatchHistory>,
    next_cursor: Option<String>,
    epoch: u64,
}

/// What a vehicle said in one batch.
#[derive(Serialize, ToSchema)]
struct BatchHistory {
    batch_id: Uuid,
    vehicle_id: String,
    platform: Option<String>,
    firmware: Option<String>,
    status: &'static str,
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    created_at: Value,
    /// The first plausible time that its lines name, else when it was made.
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    recorded_first: Value,
    /// The last.
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    recorded_last: Value,
    total_files: u64,
    total_lines: u64,
    error_lines: u64,
    total_errors: u64,
    /// Sightings by code.
    codes: BTreeMap<String, u64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HistoryParameters {
    /// How many at most.
    limit: Option<usize>,
    /// Where the page before ended: its `next_cursor`.
    cursor: Option<String>,
    /// Waits until the answer covers this epoch, as of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch`, in milliseconds; 5000 when nobody says, then 504.
    timeout_ms: Option<u64>,
}

/// A vehicle's batches, those whose lines were recorded last first, each with its codes; and its codes over all of them.
#[utoipa::path(
    get,
    path = "/api/v1/vehicles/{vin}/history",
    tag = "fleet",
    params(("vin" = String, Path, description = "the vehicle identification number"), HistoryParameters),
    responses(
        (status = 200, description = "its batches and codes", body = HistoryBody),
        NotFound, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn history(
    State(parts): State<Parts>,
    Segments(vin): Segments<String>,
    Parameters(wanted): Parameters<HistoryParameters>,
) -> Result<Json<HistoryBody>, Problem> {
    let limit = wanted.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let behind = wanted.cursor.as_deref().map(|cursor| {
        let (first, id) = cursor.split_once('_')?;
        Some((first.parse::<i64>().ok()?, Uuid::parse_str(id).ok()?))
    });
    let Some(behind) = behind.map_or(Some(None), |behind| behind.map(Some)) else {
        return Err(Problem::invalid("the cursor is not one of ours; begin without it"));
    };
    let timeout_ms = wanted.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&parts.snapshots, wanted.min_epoch, timeout_ms).await?;
    let mut batches = batches_of_vehicle(&parts.engine, &snapshot, &vin, behind, limit + 1).await?;
    if batches.is_empty() && behind.is_none() {
        let detail = format!("no batch is of vehicle {}", vin.escape_default());
        return Err(Problem::new(StatusCode::NOT_FOUND, "vehicle-not-found", detail));
    }
    let more = batches.len() > limit;
    batches.truncate(limit);
    let next_cursor = batches.last().filter(|_| more).map(|last| format!("{}_{}", last.first, last.id));
    let mut told = Vec::with_capacity(batches.len());
    for RecordedBatch { id, first, last } in batches {
        // It was deleted since.
        let Some(batch) = parts.metadata.batch(id).await? else { continue };
        let report = Report::of_batch(&parts.engine, &snapshot, id).await?;
        told.push(BatchHistory {
            batch_id: id,
            status: batch.status_at(snapshot.epoch).word(),
            created_at: rfc3339(batch.created_at),
            recorded_first: rfc3339(first),
            recorded_last: rfc3339(last),
            vehicle_id: batch.described.vehicle_id,
            platform: batch.described.platform,
            firmware: batch.described.firmware,
            total_files: report.total_files,
            total_lines: report.total_lines,
            error_lines: report.error_lines,
            total_errors: report.total_errors,
            codes: report.codes.into_iter().map(|code| (code.code, code.count)).collect(),
        });
    }
    let codes = snapshot.fleet.as_ref().map_or_else(Vec::new, |fleet| VehicleCode::all(fleet, &vin));
    Ok(Json(HistoryBody { vin, codes, batches: told, next_cursor, epoch: snapshot.epoch }))
}

//! Vehicles: the list, one with its codes, and its history.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_query::results::json::rfc3339;
use argus_query::{Engine, RecordedBatch, Report, VehicleCode, VehicleRow, VehiclesRequest, batches_of_vehicle};
use argus_sinks::Snapshot;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::access::Access;
use crate::app::Service;
use crate::http::error_responses::{GatewayTimeout, Invalid, NotFound, TooManyRequests, Unavailable};
use crate::http::extract::{Parameters, Segments};
use crate::http::list::{List, limit_within};
use crate::http::problem::Problem;
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least, visible};
use crate::metadata::{BatchFilter, Metadata, Refused};
use crate::pipeline::{Pipeline, PipelineError};

/// Batches that are erased before more are looked for.
const ERASED_AT_ONCE: u32 = 100;

const LIST_LIMIT_DEFAULT: u32 = 100;
const LIST_LIMIT_MAX: u32 = 1000;
const LIMIT_DEFAULT: usize = 20;
const LIMIT_MAX: usize = 100;

#[derive(Clone)]
struct VehiclesContext {
    engine: Engine,
    metadata: Metadata,
    pipeline: Pipeline,
    access: Access,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/vehicles`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = VehiclesContext {
        engine: service.engine.clone(),
        metadata: service.metadata.clone(),
        pipeline: service.pipeline.clone(),
        access: service.access.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, erase)).routes(routes!(history)).with_state(context)
}

/// The columns of the list as CSV.
const COLUMNS: [&str; 7] = ["vin", "vehicle_id", "platform", "firmware", "batches", "first_seen", "last_seen"];

/// A page of vehicles.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct VehiclesBody {
    vehicles: Vec<VehicleRow>,
    next_cursor: Option<String>,
    epoch: u64,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// Only vehicles with this id.
    vehicle_id: Option<String>,
    /// Only vehicles of this platform.
    platform: Option<String>,
    /// Only vehicles with this firmware.
    firmware: Option<String>,
    /// The maximum number of vehicles, 1 to 1000; default 100.
    limit: Option<u32>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// Lists the vehicles, by VIN, as their latest batches describe them.
#[utoipa::path(
    get,
    path = "/api/v1/vehicles",
    tag = "fleet",
    params(ListParameters),
    responses(
        (status = 200, description = "the vehicles, by VIN", content((VehiclesBody = "application/json"), (String = "text/csv"))),
        Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn list(
    State(context): State<VehiclesContext>,
    Parameters(parameters): Parameters<ListParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = VehiclesRequest {
        vin: None,
        vehicle_id: parameters.vehicle_id,
        platform: parameters.platform,
        firmware: parameters.firmware,
        // The cursor is the last VIN.
        after: parameters.cursor,
        limit: limit_within(parameters.limit, LIST_LIMIT_DEFAULT, LIST_LIMIT_MAX)? as usize,
    };
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let (vehicles, more) = request.read(&context.engine, &snapshot).await?;
    let next_cursor = vehicles.last().filter(|_| more).map(|last| last.vin.clone());
    List::new("vehicles", &COLUMNS, vehicles, next_cursor)?.with("epoch", snapshot.epoch).respond(&headers)
}

/// A vehicle.
#[derive(Serialize, ToSchema)]
struct VehicleBody {
    #[serde(flatten)]
    vehicle: VehicleRow,
    /// The codes of all its batches, most frequent first.
    codes: Vec<VehicleCode>,
    epoch: u64,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ShowParameters {
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// Shows a vehicle, as its latest batch describes it, and its codes.
#[utoipa::path(
    get,
    path = "/api/v1/vehicles/{vin}",
    tag = "fleet",
    params(("vin" = String, Path, description = "the vehicle identification number"), ShowParameters),
    responses(
        (status = 200, description = "the vehicle", body = VehicleBody),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn show(
    State(context): State<VehiclesContext>,
    Segments(vin): Segments<String>,
    Parameters(parameters): Parameters<ShowParameters>,
) -> Result<Json<VehicleBody>, Problem> {
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let request = VehiclesRequest { vin: Some(vin.clone()), limit: 1, ..VehiclesRequest::default() };
    let (vehicles, _) = request.read(&context.engine, &snapshot).await?;
    let vehicle = vehicles.into_iter().next().ok_or_else(|| no_vehicle(&vin))?;
    let codes = snapshot.fleet.as_ref().map_or_else(Vec::new, |fleet| VehicleCode::all(fleet, &vin));
    Ok(Json(VehicleBody { vehicle, codes, epoch: snapshot.epoch }))
}

/// Erases a vehicle: its batches with all that belongs to them, and its tokens.
///
/// When it answers, nobody sees them any more. The next maintenance erases the bytes. A vehicle that goes on sending begins
/// anew; objects of the inbox, and events that Kafka has, are not touched.
#[utoipa::path(
    delete,
    path = "/api/v1/vehicles/{vin}",
    tag = "fleet",
    params(("vin" = String, Path, description = "the vehicle identification number")),
    responses((status = 204, description = "nothing of it is seen any more"), NotFound, Unavailable, GatewayTimeout),
)]
async fn erase(State(context): State<VehiclesContext>, Segments(vin): Segments<String>) -> Result<StatusCode, Problem> {
    // A separate task: it completes even if the client disconnects.
    let work = tokio::spawn(async move {
        let mut last = None;
        loop {
            let filter = BatchFilter { vin: Some(vin.clone()), limit: ERASED_AT_ONCE, ..BatchFilter::default() };
            let batches = context.metadata.batches(&filter, 0).await?;
            if batches.is_empty() {
                break;
            }
            for (batch, _) in batches {
                match context.pipeline.delete_batch(batch.id).await {
                    Ok(epoch) => last = last.max(Some(epoch)),
                    // Somebody else has deleted it.
                    Err(PipelineError::Refused(Refused::BatchNotFound(_))) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let tokens = context.access.forget_vehicle(&vin).await?;
        match last {
            Some(epoch) => drop(visible(&context.snapshots, epoch, WAIT_MS_DEFAULT).await?),
            None if tokens == 0 => return Err(no_vehicle(&vin)),
            None => {}
        }
        Ok(StatusCode::NO_CONTENT)
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

fn no_vehicle(vin: &str) -> Problem {
    let detail = format!("there is no batch of vehicle {}", vin.escape_default());
    Problem::new(StatusCode::NOT_FOUND, "vehicle-not-found", detail)
}

/// The history of a vehicle.
#[derive(Serialize, ToSchema)]
struct HistoryBody {
    vin: String,
    /// The codes of all its batches, most frequent first.
    codes: Vec<VehicleCode>,
    batches: Vec<BatchHistory>,
    next_cursor: Option<String>,
    epoch: u64,
}

/// One batch of a vehicle.
#[derive(Serialize, ToSchema)]
struct BatchHistory {
    batch_id: Uuid,
    vehicle_id: String,
    platform: Option<String>,
    firmware: Option<String>,
    status: &'static str,
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    created_at: Value,
    /// The first plausible time of its lines; without one, `created_at`.
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    recorded_first: Value,
    /// The last plausible time of its lines; without one, `created_at`.
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    recorded_last: Value,
    total_files: u64,
    total_lines: u64,
    error_lines: u64,
    total_errors: u64,
    /// The number of occurrences of each code.
    codes: BTreeMap<String, u64>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HistoryParameters {
    /// The maximum number of batches, 1 to 100; default 20.
    limit: Option<usize>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// The history of a vehicle.
///
/// Its batches with their codes, the latest recorded first, and its codes over all batches.
#[utoipa::path(
    get,
    path = "/api/v1/vehicles/{vin}/history",
    tag = "fleet",
    params(("vin" = String, Path, description = "the vehicle identification number"), HistoryParameters),
    responses(
        (status = 200, description = "the vehicle's batches and codes", body = HistoryBody),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn history(
    State(context): State<VehiclesContext>,
    Segments(vin): Segments<String>,
    Parameters(parameters): Parameters<HistoryParameters>,
) -> Result<Json<HistoryBody>, Problem> {
    let limit = parameters.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let after = parameters.cursor.as_deref().map(|cursor| {
        let (first, id) = cursor.split_once('_')?;
        Some((first.parse::<i64>().ok()?, Uuid::parse_str(id).ok()?))
    });
    let Some(after) = after.map_or(Some(None), |after| after.map(Some)) else {
        return Err(Problem::invalid("the cursor is invalid; omit it to start at the first page"));
    };
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let mut batches = batches_of_vehicle(&context.engine, &snapshot, &vin, after, limit + 1).await?;
    if batches.is_empty() && after.is_none() {
        return Err(no_vehicle(&vin));
    }
    let more = batches.len() > limit;
    batches.truncate(limit);
    let next_cursor = batches.last().filter(|_| more).map(|last| format!("{}_{}", last.first, last.id));
    let mut histories = Vec::with_capacity(batches.len());
    for RecordedBatch { id, first, last } in batches {
        // The batch was deleted after the snapshot.
        let Some(batch) = context.metadata.batch(id).await? else { continue };
        let report = Report::of_batch(&context.engine, &snapshot, id).await?;
        histories.push(BatchHistory {
            batch_id: id,
            status: batch.status_at(snapshot.epoch).as_str(),
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
    Ok(Json(HistoryBody { vin, codes, batches: histories, next_cursor, epoch: snapshot.epoch }))
}

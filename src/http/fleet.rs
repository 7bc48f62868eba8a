//! Questions about the fleet: its codes, two firmwares side by side, what a vehicle has said.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_query::rows::rfc3339;
use argus_query::{Comparison, Engine, FleetRequest, GroupBy, Report, VehicleCode};
use argus_sinks::Snapshot;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::DateTime;
use metrics::counter;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::answer::Answers;
use crate::http::extract::{Parameters, Segments};
use crate::http::problem::Problem;
use crate::http::refusals::{Invalid, Late, NotFound, TooMany, Unavailable};
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::metadata::{BatchFilter, Metadata};
use crate::service::Service;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;
const HISTORY_LIMIT_DEFAULT: usize = 20;
const HISTORY_LIMIT_MAX: usize = 100;

#[derive(Clone)]
struct Parts {
    engine: Engine,
    metadata: Metadata,
    answers: Answers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/fleet` and `/vehicles`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        engine: service.engine.clone(),
        metadata: service.metadata.clone(),
        answers: service.answers.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new().routes(routes!(codes)).routes(routes!(compare)).routes(routes!(history)).with_state(parts)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CodesParameters {
    group_by: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    min_epoch: Option<u64>,
    timeout_ms: Option<u64>,
}

/// Codes over the fleet.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/codes",
    tag = "fleet",
    params(CodesParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    responses(
        (status = 200, description = "codes by group, the most frequent first", body = Object),
        (status = 304, description = "the answer that is known still holds"),
        Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn codes(
    State(parts): State<Parts>,
    Parameters(wanted): Parameters<CodesParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = wanted.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let group_by = wanted.group_by.as_deref().map_or(Ok(GroupBy::Firmware), str::parse);
    let request = FleetRequest {
        group_by: group_by.map_err(|error| Problem::invalid(error.to_string()))?,
        since: wanted.since.as_deref().map(|text| time("since", text)).transpose()?,
        until: wanted.until.as_deref().map(|text| time("until", text)).transpose()?,
        limit,
    };
    let timeout_ms = wanted.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&parts.snapshots, wanted.min_epoch, timeout_ms).await?;
    let engine = parts.engine.clone();
    let epoch = snapshot.epoch;
    let compute = || {
        let request = request.clone();
        async move { codes_body(&engine, &snapshot, &request).await }
    };
    let (answer, found) = parts.answers.json(format!("fleet/codes {request:?}"), epoch, compute).await?;
    Ok(answer.respond(found, &headers))
}

async fn codes_body(engine: &Engine, snapshot: &Arc<Snapshot>, request: &FleetRequest) -> Result<Value, Problem> {
    counter!("argus_computed_total", "kind" => "fleet").increment(1);
    let (codes, truncated) = request.read(engine, snapshot).await?;
    let by = request.group_by.to_string();
    let rows = codes.into_iter().map(|code| {
        let mut row = json!(code);
        // The group is also found under its dimension's name, as in the table.
        row[&by] = row["group"].clone();
        row
    });
    let codes: Vec<Value> = rows.collect();
    Ok(json!({"group_by": by, "codes": codes, "epoch": snapshot.epoch, "truncated": truncated}))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CompareParameters {
    firmware: String,
    against: String,
    min_epoch: Option<u64>,
    timeout_ms: Option<u64>,
}

/// Which codes more vehicles have with one firmware than with another.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/compare",
    tag = "fleet",
    params(CompareParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    responses(
        (status = 200, description = "the codes of both, the most different first", body = Comparison),
        (status = 304, description = "the answer that is known still holds"),
        NotFound, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn compare(
    State(parts): State<Parts>,
    Parameters(wanted): Parameters<CompareParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let timeout_ms = wanted.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&parts.snapshots, wanted.min_epoch, timeout_ms).await?;
    let epoch = snapshot.epoch;
    let question = format!("fleet/compare {:?} {:?}", wanted.firmware, wanted.against);
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "fleet").increment(1);
        let fleet = snapshot.fleet.as_ref().ok_or_else(|| Problem::busy("the server is starting; try again"))?;
        let compared = Comparison::of(fleet, &wanted.firmware, &wanted.against)
            .map_err(|unknown| Problem::new(StatusCode::NOT_FOUND, "firmware-not-found", unknown.to_string()))?;
        let mut body = json!(compared);
        body["epoch"] = json!(epoch);
        Ok(body)
    };
    let (answer, found) = parts.answers.json(question, epoch, compute).await?;
    Ok(answer.respond(found, &headers))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HistoryParameters {
    limit: Option<usize>,
    cursor: Option<String>,
    min_epoch: Option<u64>,
    timeout_ms: Option<u64>,
}

/// A vehicle's batches, newest first, each with its codes; and its codes over all of them.
#[utoipa::path(
    get,
    path = "/api/v1/vehicles/{vin}/history",
    tag = "fleet",
    params(("vin" = String, Path, description = "the vehicle identification number"), HistoryParameters),
    responses(
        (status = 200, description = "its batches and codes", body = Object),
        NotFound, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn history(
    State(parts): State<Parts>,
    Segments(vin): Segments<String>,
    Parameters(wanted): Parameters<HistoryParameters>,
) -> Result<Json<Value>, Problem> {
    let limit = wanted.limit.unwrap_or(HISTORY_LIMIT_DEFAULT);
    if !(1..=HISTORY_LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {HISTORY_LIMIT_MAX}")));
    }
    let before = wanted.cursor.as_deref().map(Uuid::parse_str).transpose();
    let before = before.map_err(|_| Problem::invalid("the cursor is not one of ours; begin without it"))?;
    let timeout_ms = wanted.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    snapshot_at_least(&parts.snapshots, wanted.min_epoch, timeout_ms).await?;
    let filter = BatchFilter { vin: Some(vin.clone()), before, limit: limit as u32 + 1, ..BatchFilter::default() };
    let mut batches = parts.metadata.batches(&filter).await?;
    if batches.is_empty() && before.is_none() {
        let detail = format!("no batch is of vehicle {}", vin.escape_default());
        return Err(Problem::new(StatusCode::NOT_FOUND, "vehicle-not-found", detail));
    }
    // The status first, then what readers see.
    let snapshot = Arc::clone(&parts.snapshots.borrow());
    let more = batches.len() > limit;
    batches.truncate(limit);
    let next_cursor = batches.last().filter(|_| more).map(|last| last.id);
    let mut told = Vec::with_capacity(batches.len());
    for batch in batches {
        let report = Report::of_batch(&parts.engine, &snapshot, batch.id).await?;
        let codes: BTreeMap<&str, u64> = report.codes.iter().map(|code| (&*code.code, code.count)).collect();
        told.push(json!({
            "batch_id": batch.id,
            "vehicle_id": batch.described.vehicle_id,
            "platform": batch.described.platform,
            "firmware": batch.described.firmware,
            "status": batch.status.word(),
            "created_at": rfc3339(batch.created_at),
            "total_files": report.total_files,
            "total_lines": report.total_lines,
            "error_lines": report.error_lines,
            "total_errors": report.total_errors,
            "codes": codes,
        }));
    }
    let codes = snapshot.fleet.as_ref().map_or_else(Vec::new, |fleet| VehicleCode::all(fleet, &vin));
    Ok(Json(json!({
        "vin": vin, "codes": codes, "batches": told, "next_cursor": next_cursor, "epoch": snapshot.epoch,
    })))
}

fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_micros());
    time.map_err(|_| Problem::invalid(format!("{name} must be a time like 2026-03-01T10:15:30Z")))
}

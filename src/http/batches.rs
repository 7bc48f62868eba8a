//! Batches: made, listed, shown, completed.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_query::rows::rfc3339;
use argus_sinks::Snapshot;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::extract::{JsonBody, Parameters, Segments, idempotency_key};
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{Conflict, Invalid, Late, NotFound, TimedOut, TooLong, Unavailable};
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::metadata::{BatchFilter, Metadata};
use crate::model::{Batch, FileTotals, NewBatch};
use crate::pipeline::Pipeline;
use crate::rescan::Rescan;
use crate::service::Service;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 1000;

#[derive(Clone)]
struct Parts {
    pipeline: Pipeline,
    metadata: Metadata,
    rescan: Rescan,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// Paths below `/batches` that are about the batch itself.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        rescan: service.rescan.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show, delete))
        .routes(routes!(reopen))
        .routes(routes!(recount))
        .routes(routes!(complete))
        .with_state(parts)
}

/// A batch as clients see it.
#[derive(Serialize, ToSchema)]
struct BatchBody {
    id: Uuid,
    vehicle_id: String,
    vin: String,
    platform: Option<String>,
    firmware: Option<String>,
    expected_files: Option<u32>,
    labels: BTreeMap<String, String>,
    status: &'static str,
    total_files: u64,
    parsed_files: u64,
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    created_at: Value,
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    updated_at: Value,
    epoch: u64,
}

impl BatchBody {
    fn new(batch: Batch, totals: FileTotals, seen: u64) -> BatchBody {
        let status = batch.status_at(seen);
        let NewBatch { vehicle_id, vin, platform, firmware, expected_files, labels } = batch.described;
        BatchBody {
            id: batch.id,
            vehicle_id,
            vin,
            platform,
            firmware,
            expected_files,
            labels,
            status: status.word(),
            total_files: totals.total_files,
            parsed_files: totals.parsed_files,
            created_at: rfc3339(batch.created_at),
            updated_at: rfc3339(batch.updated_at),
            epoch: batch.epoch,
        }
    }
}

impl Parts {
    async fn body(&self, batch: Batch) -> Result<BatchBody, Problem> {
        let seen = self.snapshots.borrow().epoch;
        let totals = self.metadata.file_totals(batch.id, seen).await?;
        Ok(BatchBody::new(batch, totals, seen))
    }
}

/// Makes a batch.
#[utoipa::path(
    post,
    path = "/api/v1/batches",
    tag = "batches",
    params(("Idempotency-Key" = Option<String>, Header, description = "makes a retry return the first answer")),
    request_body(content = NewBatch),
    responses(
        (status = 201, description = "the batch", body = BatchBody),
        TimedOut, TooLong, Invalid, Unavailable,
    ),
)]
async fn create(
    State(parts): State<Parts>,
    headers: HeaderMap,
    JsonBody(described): JsonBody<NewBatch>,
) -> Result<Response, Problem> {
    described.check()?;
    let key = idempotency_key(&headers)?;
    let batch = parts.pipeline.create_batch(described, key).await?;
    let location = format!("/api/v1/batches/{}", batch.id);
    let body = parts.body(batch).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(body)).into_response())
}

/// A page of batches.
#[derive(Serialize, ToSchema)]
struct BatchList {
    batches: Vec<BatchBody>,
    next_cursor: Option<Uuid>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// Only batches that stand so.
    status: Option<String>,
    /// Only of the vehicle with this identification number.
    vin: Option<String>,
    /// Only of the vehicle with this name.
    vehicle_id: Option<String>,
    /// Only with this firmware.
    firmware: Option<String>,
    /// How many at most.
    limit: Option<u32>,
    /// Where the page before ended: its `next_cursor`.
    cursor: Option<String>,
}

/// Lists batches, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/batches",
    tag = "batches",
    params(ListParameters),
    responses(
        (status = 200, description = "batches, newest first", body = BatchList),
        Invalid,
    ),
)]
async fn list(
    State(parts): State<Parts>,
    Parameters(wanted): Parameters<ListParameters>,
) -> Result<Json<BatchList>, Problem> {
    let limit = wanted.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let before = wanted.cursor.as_deref().map(Uuid::parse_str).transpose();
    let filter = BatchFilter {
        status: wanted
            .status
            .map(|word| word.parse())
            .transpose()
            .map_err(|error| Problem::invalid(format!("{error}")))?,
        vin: wanted.vin,
        vehicle_id: wanted.vehicle_id,
        firmware: wanted.firmware,
        before: before.map_err(|_| Problem::invalid("the cursor is not one of ours; begin without it"))?,
        limit: limit + 1,
    };
    let seen = parts.snapshots.borrow().epoch;
    let mut batches = parts.metadata.batches(&filter, seen).await?;
    let more = batches.len() > limit as usize;
    batches.truncate(limit as usize);
    let next_cursor = batches.last().filter(|_| more).map(|(last, _)| last.id);
    let batches = batches.into_iter().map(|(batch, totals)| BatchBody::new(batch, totals, seen)).collect();
    Ok(Json(BatchList { batches, next_cursor }))
}

/// Shows a batch.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 200, description = "the batch", body = BatchBody),
        NotFound,
    ),
)]
async fn show(State(parts): State<Parts>, Segments(id): Segments<String>) -> Result<Json<BatchBody>, Problem> {
    let id = batch_id(&id)?;
    let batch = parts.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    Ok(Json(parts.body(batch).await?))
}

/// Completes a batch: no file comes any more.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/complete",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 202, description = "the batch", body = BatchBody),
        NotFound, Conflict, Unavailable,
    ),
)]
async fn complete(
    State(parts): State<Parts>,
    Segments(id): Segments<String>,
) -> Result<(StatusCode, Json<BatchBody>), Problem> {
    let batch = parts.pipeline.complete(batch_id(&id)?).await?;
    Ok((StatusCode::ACCEPTED, Json(parts.body(batch).await?)))
}

/// Opens a completed batch again.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/reopen",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 200, description = "the batch", body = BatchBody),
        NotFound, Conflict, Unavailable,
    ),
)]
async fn reopen(State(parts): State<Parts>, Segments(id): Segments<String>) -> Result<Json<BatchBody>, Problem> {
    let batch = parts.pipeline.reopen(batch_id(&id)?).await?;
    Ok(Json(parts.body(batch).await?))
}

/// The files of a batch are counted again under the rules of today, one after another and beside everything else. Each
/// takes the place of what was counted before in one epoch; `rules` of the table `files` says which are done.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/recount",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 202, description = "the batch, whose files will be counted again", body = BatchBody),
        NotFound, Unavailable,
    ),
)]
async fn recount(
    State(parts): State<Parts>,
    Segments(id): Segments<String>,
) -> Result<(StatusCode, Json<BatchBody>), Problem> {
    let id = batch_id(&id)?;
    let batch = parts.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    parts.rescan.begin(id).map_err(|full| Problem::busy(full.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(parts.body(batch).await?)))
}

/// Answers when no reader sees the batch any more.
#[utoipa::path(
    delete,
    path = "/api/v1/batches/{id}",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 204, description = "it is gone from every view"),
        NotFound, Unavailable, Late,
    ),
)]
async fn delete(State(parts): State<Parts>, Segments(id): Segments<String>) -> Result<StatusCode, Problem> {
    let epoch = parts.pipeline.delete_batch(batch_id(&id)?).await?;
    snapshot_at_least(&parts.snapshots, Some(epoch), WAIT_MS_DEFAULT).await?;
    Ok(StatusCode::NO_CONTENT)
}

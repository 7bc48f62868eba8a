//! Batches: create, list, show, complete, reopen, recount, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_query::results::json::rfc3339;
use argus_sinks::Snapshot;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::access::Caller;
use crate::app::Service;
use crate::domain::batch::{Batch, FileTotals, NewBatch};
use crate::http::error_responses::{Conflict, GatewayTimeout, Invalid, NotFound, TimedOut, TooLong, Unavailable};
use crate::http::extract;
use crate::http::extract::{JsonBody, Segments, WithLabels, idempotency_key, time};
use crate::http::list::{List, limit_within};
use crate::http::problem::{Problem, batch_id};
use crate::http::waiting::{WAIT_MS_DEFAULT, visible};
use crate::maintenance::rescan::Rescan;
use crate::metadata::{BatchFilter, Metadata};
use crate::pipeline::Pipeline;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 1000;

#[derive(Clone)]
struct BatchesContext {
    pipeline: Pipeline,
    metadata: Metadata,
    rescan: Rescan,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/batches`, and the paths below it that concern the batch itself.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = BatchesContext {
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
        .with_state(context)
}

/// A batch.
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
            status: status.as_str(),
            total_files: totals.total_files,
            parsed_files: totals.parsed_files,
            created_at: rfc3339(batch.created_at),
            updated_at: rfc3339(batch.updated_at),
            epoch: batch.epoch,
        }
    }
}

impl BatchesContext {
    async fn body(&self, batch: Batch) -> Result<BatchBody, Problem> {
        let seen = self.snapshots.borrow().epoch;
        let totals = self.metadata.file_totals(batch.id, seen).await?;
        Ok(BatchBody::new(batch, totals, seen))
    }
}

/// Creates a batch.
#[utoipa::path(
    post,
    path = "/api/v1/batches",
    tag = "batches",
    params(
        (
            "Idempotency-Key" = Option<String>,
            Header,
            description = "a retry with the same key gets the first response again"
        ),
    ),
    request_body(content = NewBatch),
    responses(
        (status = 201, description = "the batch", body = BatchBody),
        TimedOut, TooLong, Invalid, Unavailable,
    ),
)]
async fn create(
    State(context): State<BatchesContext>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    JsonBody(described): JsonBody<NewBatch>,
) -> Result<Response, Problem> {
    described.check()?;
    let mut key = idempotency_key(&headers)?;
    if let Some(vin) = caller.and_then(|Extension(caller)| caller.vin) {
        if described.vin != vin {
            let detail = "the token of a vehicle may only create batches of its vehicle";
            return Err(Problem::new(StatusCode::FORBIDDEN, "scope", detail));
        }
        // The key of another vehicle must not find its batch.
        key = key.map(|key| format!("{vin}/{key}"));
    }
    let batch = context.pipeline.create_batch(described, key).await?;
    let location = format!("/api/v1/batches/{}", batch.id);
    let body = context.body(batch).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(body)).into_response())
}

/// The columns of the list as CSV.
const COLUMNS: [&str; 13] = [
    "id",
    "vehicle_id",
    "vin",
    "platform",
    "firmware",
    "labels",
    "status",
    "expected_files",
    "total_files",
    "parsed_files",
    "created_at",
    "updated_at",
    "epoch",
];

/// A page of batches.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct BatchList {
    batches: Vec<BatchBody>,
    next_cursor: Option<Uuid>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// Only batches with this status.
    status: Option<String>,
    /// Only batches of the vehicle with this VIN.
    vin: Option<String>,
    /// Only batches of the vehicle with this id.
    vehicle_id: Option<String>,
    /// Only batches with this firmware.
    firmware: Option<String>,
    /// Only batches of this platform. Labels are filters too: `label.NAME=VALUE`.
    platform: Option<String>,
    /// Only batches created at or after this, RFC 3339.
    since: Option<String>,
    /// Only batches created before this, RFC 3339.
    until: Option<String>,
    /// The maximum number of batches, 1 to 1000; default 50.
    limit: Option<u32>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
}

/// Lists batches, newest first.
#[utoipa::path(
    get,
    path = "/api/v1/batches",
    tag = "batches",
    params(ListParameters),
    responses(
        (status = 200, description = "batches, newest first", content((BatchList = "application/json"), (String = "text/csv"))),
        Invalid,
    ),
)]
async fn list(
    State(context): State<BatchesContext>,
    WithLabels(parameters, labels): WithLabels<ListParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = limit_within(parameters.limit, LIMIT_DEFAULT, LIMIT_MAX)?;
    let before = parameters.cursor.as_deref().map(Uuid::parse_str).transpose();
    let filter = BatchFilter {
        status: parameters
            .status
            .map(|word| word.parse())
            .transpose()
            .map_err(|error| Problem::invalid(format!("{error}")))?,
        vin: parameters.vin,
        vehicle_id: parameters.vehicle_id,
        firmware: parameters.firmware,
        platform: parameters.platform,
        labels,
        since: time("since", parameters.since.as_deref())?,
        until: time("until", parameters.until.as_deref())?,
        before: before.map_err(|_| Problem::invalid("the cursor is invalid; omit it to start at the first page"))?,
        limit: limit + 1,
    };
    let seen = context.snapshots.borrow().epoch;
    let mut batches = context.metadata.batches(&filter, seen).await?;
    let more = batches.len() > limit as usize;
    batches.truncate(limit as usize);
    let next_cursor = batches.last().filter(|_| more).map(|(last, _)| last.id.to_string());
    let batches = batches.into_iter().map(|(batch, totals)| BatchBody::new(batch, totals, seen));
    List::new("batches", &COLUMNS, batches, next_cursor)?.respond(&headers)
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
async fn show(
    State(context): State<BatchesContext>,
    Segments(id): Segments<String>,
) -> Result<Json<BatchBody>, Problem> {
    let id = batch_id(&id)?;
    let batch = context.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    Ok(Json(context.body(batch).await?))
}

/// Completes a batch: no more files can be added.
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
    State(context): State<BatchesContext>,
    Segments(id): Segments<String>,
) -> Result<(StatusCode, Json<BatchBody>), Problem> {
    let batch = context.pipeline.complete(batch_id(&id)?).await?;
    Ok((StatusCode::ACCEPTED, Json(context.body(batch).await?)))
}

/// Reopens a completed batch.
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
async fn reopen(
    State(context): State<BatchesContext>,
    Segments(id): Segments<String>,
) -> Result<Json<BatchBody>, Problem> {
    let batch = context.pipeline.reopen(batch_id(&id)?).await?;
    Ok(Json(context.body(batch).await?))
}

/// Counts the files of a batch again with the current rules.
///
/// This runs in the background, one file after another. The new counts of a file replace the old ones in one epoch. The
/// column `rules` of the table `files` shows which files are done.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/recount",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 202, description = "the batch; its files will be counted again", body = BatchBody),
        NotFound, Unavailable,
    ),
)]
async fn recount(
    State(context): State<BatchesContext>,
    Segments(id): Segments<String>,
) -> Result<(StatusCode, Json<BatchBody>), Problem> {
    let id = batch_id(&id)?;
    let batch = context.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    context.rescan.begin(id).map_err(|error| Problem::busy(error.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(context.body(batch).await?)))
}

/// Deletes a batch.
///
/// The response is sent when no reader sees the batch any more.
#[utoipa::path(
    delete,
    path = "/api/v1/batches/{id}",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 204, description = "deleted"),
        NotFound, Unavailable, GatewayTimeout,
    ),
)]
async fn delete(State(context): State<BatchesContext>, Segments(id): Segments<String>) -> Result<StatusCode, Problem> {
    let epoch = context.pipeline.delete_batch(batch_id(&id)?).await?;
    visible(&context.snapshots, epoch, WAIT_MS_DEFAULT).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl extract::Body for NewBatch {}

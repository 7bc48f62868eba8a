//! Batches: made, listed, shown, completed.

use std::sync::Arc;

use argus_query::rows::rfc3339;
use argus_sinks::Snapshot;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use crate::http::extract::{JsonBody, Parameters, Segments, idempotency_key};
use crate::http::problem::{Problem, batch_id};
use crate::http::report::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::metadata::{BatchFilter, Metadata};
use crate::model::{Batch, FileTotals, NewBatch};
use crate::pipeline::Pipeline;
use crate::service::Service;

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 1000;

#[derive(Clone)]
struct Parts {
    pipeline: Pipeline,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// Paths below `/batches` that are about the batch itself.
pub fn router(service: &Service) -> Router {
    let parts = Parts {
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
    };
    Router::new()
        .route("/batches", post(create).get(list))
        .route("/batches/{id}", get(show).delete(delete))
        .route("/batches/{id}/reopen", post(reopen))
        .route("/batches/{id}/complete", post(complete))
        .with_state(parts)
}

/// A batch as clients see it.
#[derive(Serialize)]
struct BatchBody {
    id: Uuid,
    #[serde(flatten)]
    described: NewBatch,
    status: &'static str,
    total_files: u64,
    parsed_files: u64,
    created_at: Value,
    updated_at: Value,
    epoch: u64,
}

impl BatchBody {
    fn new(batch: Batch, totals: FileTotals) -> BatchBody {
        BatchBody {
            id: batch.id,
            described: batch.described,
            status: batch.status.word(),
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
        Ok(BatchBody::new(batch, totals))
    }
}

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

#[derive(Deserialize)]
struct ListParameters {
    status: Option<String>,
    vin: Option<String>,
    vehicle_id: Option<String>,
    firmware: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

async fn list(
    State(parts): State<Parts>,
    Parameters(wanted): Parameters<ListParameters>,
) -> Result<Json<Value>, Problem> {
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
    let mut batches = parts.metadata.batches(&filter).await?;
    let more = batches.len() > limit as usize;
    batches.truncate(limit as usize);
    let next_cursor = batches.last().filter(|_| more).map(|last| last.id);
    let mut bodies = Vec::with_capacity(batches.len());
    for batch in batches {
        bodies.push(parts.body(batch).await?);
    }
    Ok(Json(json!({"batches": bodies, "next_cursor": next_cursor})))
}

async fn show(State(parts): State<Parts>, Segments(id): Segments<String>) -> Result<Json<BatchBody>, Problem> {
    let id = batch_id(&id)?;
    let batch = parts.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    Ok(Json(parts.body(batch).await?))
}

async fn complete(
    State(parts): State<Parts>,
    Segments(id): Segments<String>,
) -> Result<(StatusCode, Json<BatchBody>), Problem> {
    let batch = parts.pipeline.complete(batch_id(&id)?).await?;
    Ok((StatusCode::ACCEPTED, Json(parts.body(batch).await?)))
}

async fn reopen(State(parts): State<Parts>, Segments(id): Segments<String>) -> Result<Json<BatchBody>, Problem> {
    let batch = parts.pipeline.reopen(batch_id(&id)?).await?;
    Ok(Json(parts.body(batch).await?))
}

/// Answers when no reader sees the batch any more.
async fn delete(State(parts): State<Parts>, Segments(id): Segments<String>) -> Result<StatusCode, Problem> {
    let epoch = parts.pipeline.delete_batch(batch_id(&id)?).await?;
    snapshot_at_least(&parts.snapshots, Some(epoch), WAIT_MS_DEFAULT).await?;
    Ok(StatusCode::NO_CONTENT)
}

//! Ad-hoc SQL.

use std::sync::Arc;
use std::time::Duration;

use argus_query::{Engine, rows};
use argus_sinks::Snapshot;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use metrics::counter;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use crate::http::extract::JsonBody;
use crate::http::problem::Problem;
use crate::http::report::snapshot_at_least;
use crate::service::Service;

const ROWS_DEFAULT: usize = 10_000;
const ROWS_MAX: usize = 1_000_000;
const TIMEOUT_MS_DEFAULT: u64 = 30_000;
const TIMEOUT_MS_MAX: u64 = 600_000;

#[derive(Clone)]
struct Parts {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/query`.
pub fn router(service: &Service) -> Router {
    let parts = Parts { engine: service.engine.clone(), snapshots: service.snapshots.clone() };
    Router::new().route("/query", post(query)).with_state(parts)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueryBody {
    sql: String,
    limit: Option<usize>,
    timeout_ms: Option<u64>,
    min_epoch: Option<u64>,
    as_of: Option<u64>,
}

async fn query(State(parts): State<Parts>, JsonBody(asked): JsonBody<QueryBody>) -> Result<Json<Value>, Problem> {
    let limit = asked.limit.unwrap_or(ROWS_DEFAULT);
    if limit > ROWS_MAX {
        return Err(Problem::invalid(format!("limit must be at most {ROWS_MAX}")));
    }
    let timeout_ms = asked.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT).min(TIMEOUT_MS_MAX);
    let mut snapshot = snapshot_at_least(&parts.snapshots, asked.min_epoch.max(asked.as_of), timeout_ms).await?;
    if let Some(epoch) = asked.as_of {
        snapshot = Arc::new(snapshot.as_of(epoch)?);
    }
    counter!("argus_computed_total", "kind" => "sql").increment(1);
    let answer = parts.engine.sql(&snapshot, &asked.sql, limit, Duration::from_millis(timeout_ms)).await?;
    let body = rows::answer(&answer).map_err(|error| Problem::internal(&error))?;
    Ok(Json(body))
}

//! Codes over the fleet.

use std::sync::Arc;

use argus_query::{Engine, FleetRequest, GroupBy};
use argus_sinks::Snapshot;
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use chrono::DateTime;
use metrics::counter;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::http::extract::Parameters;
use crate::http::problem::Problem;
use crate::http::report::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::service::Service;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

#[derive(Clone)]
struct Parts {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/fleet/codes`.
pub fn router(service: &Service) -> Router {
    let parts = Parts { engine: service.engine.clone(), snapshots: service.snapshots.clone() };
    Router::new().route("/fleet/codes", get(codes)).with_state(parts)
}

#[derive(Deserialize)]
struct CodesParameters {
    group_by: Option<String>,
    since: Option<String>,
    until: Option<String>,
    limit: Option<usize>,
    min_epoch: Option<u64>,
    timeout_ms: Option<u64>,
}

async fn codes(
    State(parts): State<Parts>,
    Parameters(wanted): Parameters<CodesParameters>,
) -> Result<Json<Value>, Problem> {
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
    counter!("argus_computed_total", "kind" => "fleet").increment(1);
    let (codes, truncated) = request.read(&parts.engine, &snapshot).await?;
    let by = request.group_by.to_string();
    let rows = codes.into_iter().map(|code| {
        let mut row = json!(code);
        // The group is also found under its dimension's name, as in the table.
        row[&by] = row["group"].clone();
        row
    });
    let codes: Vec<Value> = rows.collect();
    Ok(Json(json!({"group_by": by, "codes": codes, "epoch": snapshot.epoch, "truncated": truncated})))
}

fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_micros());
    time.map_err(|_| Problem::invalid(format!("{name} must be a time like 2026-03-01T10:15:30Z")))
}

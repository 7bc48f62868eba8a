//! The fleet: its codes, and the comparison of two firmwares.

use std::sync::Arc;

use argus_query::{Comparison, Engine, FleetCode, FleetCodes, FleetRequest, GroupBy};
use argus_sinks::{FleetView, Snapshot};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chrono::DateTime;
use metrics::counter;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Service;
use crate::http::cached::{CachedAnswers, respond};
use crate::http::error_responses::{GatewayTimeout, Invalid, NotFound, TooManyRequests, Unavailable};
use crate::http::extract::Parameters;
use crate::http::problem::Problem;
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

#[derive(Clone)]
struct FleetContext {
    engine: Engine,
    answers: CachedAnswers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/fleet`.
pub fn router(service: &Service, answers: CachedAnswers) -> OpenApiRouter {
    let context = FleetContext { engine: service.engine.clone(), answers, snapshots: service.snapshots.clone() };
    OpenApiRouter::new().routes(routes!(codes)).routes(routes!(compare)).with_state(context)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CodesParameters {
    /// `firmware` (default), `platform`, `vehicle` or `component`.
    group_by: Option<String>,
    /// Only occurrences on lines with a plausible time at or after this, RFC 3339.
    since: Option<String>,
    /// Only occurrences on lines with a plausible time before this, RFC 3339.
    until: Option<String>,
    /// The maximum number of rows, 1 to 10000; default 100.
    limit: Option<usize>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// The codes of the fleet, grouped by one dimension.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct CodesBody {
    /// The dimension.
    group_by: GroupBy,
    /// A row for each code and group. The group is also under the name of the dimension.
    codes: Vec<FleetCode>,
    epoch: u64,
    /// Whether there are more rows than the limit.
    truncated: bool,
    /// With `since` or `until`: the number of occurrences left out because their lines have no plausible time.
    without_time: Option<u64>,
}

/// The codes of the fleet.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/codes",
    tag = "fleet",
    params(CodesParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy")),
    responses(
        (status = 200, description = "codes by group, most frequent first", body = CodesBody),
        (status = 304, description = "the client's copy is current"),
        Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn codes(
    State(context): State<FleetContext>,
    Parameters(parameters): Parameters<CodesParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = parameters.limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {LIMIT_MAX}")));
    }
    let group_by = parameters.group_by.as_deref().map_or(Ok(GroupBy::Firmware), str::parse);
    let request = FleetRequest {
        group_by: group_by.map_err(|error| Problem::invalid(error.to_string()))?,
        since: parameters.since.as_deref().map(|text| time("since", text)).transpose()?,
        until: parameters.until.as_deref().map(|text| time("until", text)).transpose()?,
        limit,
    };
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let engine = context.engine.clone();
    let epoch = snapshot.epoch;
    // A time filter reads the lines, which may change when the fleet's counts do not.
    let changed = if request.since.is_some() || request.until.is_some() { epoch } else { fleet_changed(&snapshot) };
    let compute = || {
        let request = request.clone();
        async move { codes_body(&engine, &snapshot, &request).await }
    };
    let (answer, found) = context.answers.get(format!("fleet/codes {request:?}"), changed, epoch, compute).await?;
    Ok(respond(&answer, found, &headers))
}

async fn codes_body(engine: &Engine, snapshot: &Arc<Snapshot>, request: &FleetRequest) -> Result<Value, Problem> {
    counter!("argus_computed_total", "kind" => "fleet").increment(1);
    let FleetCodes { codes, more, without_time } = request.read(engine, snapshot).await?;
    let by = request.group_by.to_string();
    let rows = codes.into_iter().map(|code| {
        let mut row = json!(code);
        // The group is also under the name of its dimension, as in the table `fleet_codes`.
        row[&by] = row["group"].clone();
        row
    });
    let codes: Vec<Value> = rows.collect();
    let mut body = json!({"group_by": by, "codes": codes, "truncated": more});
    if let Some(without_time) = without_time {
        body["without_time"] = without_time.into();
    }
    Ok(body)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CompareParameters {
    /// The firmware to examine.
    firmware: String,
    /// The firmware to compare it with.
    against: String,
    /// Whether to include codes that their lines report as inactive.
    #[param(default = false)]
    inactive: Option<bool>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// Compares two firmwares: for each code, the share of vehicles that have it.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/compare",
    tag = "fleet",
    params(
        CompareParameters,
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "the codes of both firmwares, the largest difference first", body = Comparison),
        (status = 304, description = "the client's copy is current"),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn compare(
    State(context): State<FleetContext>,
    Parameters(parameters): Parameters<CompareParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let (epoch, changed) = (snapshot.epoch, fleet_changed(&snapshot));
    let inactive = parameters.inactive.unwrap_or(false);
    let request = format!("fleet/compare {:?} {:?} {inactive}", parameters.firmware, parameters.against);
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "fleet").increment(1);
        let fleet = snapshot.fleet.as_ref().ok_or_else(|| Problem::busy("the server is starting; retry later"))?;
        let compared = Comparison::of(fleet, &parameters.firmware, &parameters.against, inactive)
            .map_err(|unknown| Problem::new(StatusCode::NOT_FOUND, "firmware-not-found", unknown.to_string()))?;
        Ok(json!(compared))
    };
    let (answer, found) = context.answers.get(request, changed, epoch, compute).await?;
    Ok(respond(&answer, found, &headers))
}

/// The last epoch that changed the fleet's counts.
fn fleet_changed(snapshot: &Snapshot) -> u64 {
    snapshot.fleet.as_ref().map_or(snapshot.epoch, FleetView::changed)
}

fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_micros());
    time.map_err(|_| Problem::invalid(format!("{name} must be a time in RFC 3339, for example 2026-03-01T10:15:30Z")))
}

//! Questions about the fleet: its codes, and two firmwares side by side.

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

use crate::http::answer::Answers;
use crate::http::extract::Parameters;
use crate::http::problem::Problem;
use crate::http::refusals::{Invalid, Late, NotFound, TooMany, Unavailable};
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::service::Service;

const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

#[derive(Clone)]
struct Parts {
    engine: Engine,
    answers: Answers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/fleet`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        engine: service.engine.clone(),
        answers: service.answers.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new().routes(routes!(codes)).routes(routes!(compare)).with_state(parts)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CodesParameters {
    /// `firmware` (when nobody says), `platform`, `vehicle` or `component`.
    group_by: Option<String>,
    /// Only occurrences whose lines name a plausible time from this on, RFC 3339.
    since: Option<String>,
    /// Only occurrences whose lines name a plausible time before this, RFC 3339.
    until: Option<String>,
    /// How many at most.
    limit: Option<usize>,
    /// Waits until the answer covers this epoch, as of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch`, in milliseconds; 5000 when nobody says, then 504.
    timeout_ms: Option<u64>,
}

/// Codes over the fleet, by one dimension.
#[derive(ToSchema)]
#[expect(dead_code, reason = "says what is written piece by piece")]
struct CodesBody {
    /// The dimension.
    group_by: GroupBy,
    /// Each with its group under the dimension's name, too.
    codes: Vec<FleetCode>,
    epoch: u64,
    /// Whether there are more.
    truncated: bool,
    /// With `since` or `until`: how many sightings those leave out because their lines name no plausible time.
    without_time: Option<u64>,
}

/// Codes over the fleet.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/codes",
    tag = "fleet",
    params(CodesParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    responses(
        (status = 200, description = "codes by group, the most frequent first", body = CodesBody),
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
    // With a span of time, lines are counted, which may change where the fleet's codes do not.
    let changed = if request.since.is_some() || request.until.is_some() { epoch } else { fleet_changed(&snapshot) };
    let compute = || {
        let request = request.clone();
        async move { codes_body(&engine, &snapshot, &request).await }
    };
    let (answer, found) = parts.answers.json(format!("fleet/codes {request:?}"), changed, epoch, compute).await?;
    Ok(answer.respond(found, &headers))
}

async fn codes_body(engine: &Engine, snapshot: &Arc<Snapshot>, request: &FleetRequest) -> Result<Value, Problem> {
    counter!("argus_computed_total", "kind" => "fleet").increment(1);
    let FleetCodes { codes, more, without_time } = request.read(engine, snapshot).await?;
    let by = request.group_by.to_string();
    let rows = codes.into_iter().map(|code| {
        let mut row = json!(code);
        // The group is also found under its dimension's name, as in the table.
        row[&by] = row["group"].clone();
        row
    });
    let codes: Vec<Value> = rows.collect();
    let mut body = json!({"group_by": by, "codes": codes, "epoch": snapshot.epoch, "truncated": more});
    if let Some(without_time) = without_time {
        body["without_time"] = without_time.into();
    }
    Ok(body)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CompareParameters {
    /// The firmware that is looked at.
    firmware: String,
    /// The one that it is held against.
    against: String,
    /// Whether codes count that their lines say are not active.
    #[param(default = false)]
    inactive: Option<bool>,
    /// Waits until the answer covers this epoch, as of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch`, in milliseconds; 5000 when nobody says, then 504.
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
    let (epoch, changed) = (snapshot.epoch, fleet_changed(&snapshot));
    let inactive = wanted.inactive.unwrap_or(false);
    let question = format!("fleet/compare {:?} {:?} {inactive}", wanted.firmware, wanted.against);
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "fleet").increment(1);
        let fleet = snapshot.fleet.as_ref().ok_or_else(|| Problem::busy("the server is starting; try again"))?;
        let compared = Comparison::of(fleet, &wanted.firmware, &wanted.against, inactive)
            .map_err(|unknown| Problem::new(StatusCode::NOT_FOUND, "firmware-not-found", unknown.to_string()))?;
        let mut body = json!(compared);
        body["epoch"] = json!(epoch);
        Ok(body)
    };
    let (answer, found) = parts.answers.json(question, changed, epoch, compute).await?;
    Ok(answer.respond(found, &headers))
}

/// The last epoch that changed what is kept of the fleet.
fn fleet_changed(snapshot: &Snapshot) -> u64 {
    snapshot.fleet.as_ref().map_or(snapshot.epoch, FleetView::changed)
}

fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let time = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_micros());
    time.map_err(|_| Problem::invalid(format!("{name} must be a time like 2026-03-01T10:15:30Z")))
}

//! The fleet: its codes, and the comparison of two firmwares.

use std::collections::BTreeMap;
use std::sync::Arc;

use argus_query::{
    Bucket, Comparison, ComparisonError, ComparisonRequest, Counted, Engine, FleetCode, FleetCodes, FleetFilter,
    FleetRequest, FleetTotals, GroupBy, Timeline, TimelineGroup, TimelineRequest,
};
use argus_sinks::{FleetView, Snapshot};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use metrics::counter;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::answers::answer::AnswerError;
use crate::app::Service;
use crate::http::cached::{CachedAnswers, respond};
use crate::http::error_responses::{GatewayTimeout, Invalid, NotFound, TooManyRequests, Unavailable};
use crate::http::extract::{Parameters, WithLabels, severity, time};
use crate::http::list::{CODE_COLUMNS, COMPARED_COLUMNS, accepts_csv, csv_of, limit_within};
use crate::http::problem::Problem;
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 10_000;
const TIMELINE_LIMIT_DEFAULT: u32 = 1000;

/// The longest bucket: 366 days.
const BUCKET_S_MAX: u64 = 366 * 24 * 3600;

#[derive(Clone)]
struct FleetContext {
    engine: Engine,
    answers: CachedAnswers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `/fleet`.
pub fn router(service: &Service, answers: CachedAnswers) -> OpenApiRouter {
    let context = FleetContext { engine: service.engine.clone(), answers, snapshots: service.snapshots.clone() };
    OpenApiRouter::new()
        .routes(routes!(totals))
        .routes(routes!(codes))
        .routes(routes!(compare))
        .routes(routes!(timeline))
        .with_state(context)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TotalsParameters {
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// The size of the fleet at an epoch.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct TotalsBody {
    epoch: u64,
    #[schema(inline)]
    #[serde(flatten)]
    totals: FleetTotals,
}

/// The size of the fleet, and its firmwares: batches and vehicles that have sent lines.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/totals",
    tag = "fleet",
    params(TotalsParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy")),
    responses(
        (status = 200, description = "the totals; the latest firmware first", content((TotalsBody = "application/json"), (String = "text/csv"))),
        (status = 304, description = "the client's copy is current"),
        Invalid, Unavailable, GatewayTimeout,
    ),
)]
async fn totals(
    State(context): State<FleetContext>,
    Parameters(parameters): Parameters<TotalsParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let (changed, epoch) = (fleet_changed(&snapshot), snapshot.epoch);
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "fleet").increment(1);
        // Only a snapshot of a past epoch has no fleet.
        let view = snapshot.fleet.as_ref().ok_or(AnswerError::Starting)?;
        Ok(json!(FleetTotals::of(view)))
    };
    let (answer, found) = context.answers.get("fleet/totals".to_owned(), changed, epoch, compute).await?;
    match accepts_csv(&headers) {
        true => csv_of(&answer, "firmwares", &["firmware", "vehicles", "batches", "lines", "first_recorded"]),
        false => Ok(respond(&answer, found, &headers)),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CodesParameters {
    /// `firmware` (default), `platform`, `vehicle` or `component`.
    group_by: Option<String>,
    /// Only batches of this platform. Labels are filters too: `label.NAME=VALUE`.
    platform: Option<String>,
    /// Only batches with this firmware.
    firmware: Option<String>,
    /// Only occurrences on lines of this component.
    component: Option<String>,
    /// Only codes of this severity: `critical`, `error`, `warning` or `info`.
    severity: Option<String>,
    /// Only occurrences on lines with a plausible time at or after this, RFC 3339.
    since: Option<String>,
    /// Only occurrences on lines with a plausible time before this, RFC 3339.
    until: Option<String>,
    /// The maximum number of rows, 1 to 10000; default 100.
    limit: Option<u32>,
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
        (status = 200, description = "codes by group, most frequent first", content((CodesBody = "application/json"), (String = "text/csv"))),
        (status = 304, description = "the client's copy is current"),
        Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn codes(
    State(context): State<FleetContext>,
    WithLabels(parameters, labels): WithLabels<CodesParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let limit = limit_within(parameters.limit, LIMIT_DEFAULT, LIMIT_MAX)?;
    let group_by = parameters.group_by.as_deref().map_or(Ok(GroupBy::Firmware), str::parse);
    let request = FleetRequest {
        group_by: group_by.map_err(|error| Problem::invalid(error.to_string()))?,
        filter: FleetFilter {
            platform: parameters.platform,
            firmware: parameters.firmware,
            labels,
            component: parameters.component,
            severity: parameters.severity.map(severity).transpose()?,
            since: time("since", parameters.since.as_deref())?,
            until: time("until", parameters.until.as_deref())?,
        },
        limit: limit as usize,
    };
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let engine = context.engine.clone();
    let epoch = snapshot.epoch;
    // A filter reads the lines, which may change when the fleet's counts do not.
    let changed = if request.filter.is_all() { fleet_changed(&snapshot) } else { epoch };
    let compute = || {
        let request = request.clone();
        async move { codes_body(&engine, &snapshot, &request).await }
    };
    let (answer, found) = context.answers.get(format!("fleet/codes {request:?}"), changed, epoch, compute).await?;
    match accepts_csv(&headers) {
        true => csv_of(&answer, "codes", &CODE_COLUMNS),
        false => Ok(respond(&answer, found, &headers)),
    }
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
    /// Only batches of this platform. Labels are filters too: `label.NAME=VALUE`.
    platform: Option<String>,
    /// Only occurrences on lines of this component.
    component: Option<String>,
    /// Only codes of this severity: `critical`, `error`, `warning` or `info`.
    severity: Option<String>,
    /// Only occurrences on lines with a plausible time at or after this, RFC 3339, and batches with lines after it.
    since: Option<String>,
    /// Only occurrences on lines with a plausible time before this, RFC 3339, and batches with lines before it.
    until: Option<String>,
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
        (status = 200, description = "the codes of both firmwares, the lowest p-value first", content((Comparison = "application/json"), (String = "text/csv"))),
        (status = 304, description = "the client's copy is current"),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn compare(
    State(context): State<FleetContext>,
    WithLabels(parameters, labels): WithLabels<CompareParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let request = ComparisonRequest {
        firmware: parameters.firmware,
        against: parameters.against,
        inactive: parameters.inactive.unwrap_or(false),
        filter: FleetFilter {
            platform: parameters.platform,
            firmware: None,
            labels,
            component: parameters.component,
            severity: parameters.severity.map(severity).transpose()?,
            since: time("since", parameters.since.as_deref())?,
            until: time("until", parameters.until.as_deref())?,
        },
    };
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    let snapshot = snapshot_at_least(&context.snapshots, parameters.min_epoch, timeout_ms).await?;
    let (engine, epoch) = (context.engine.clone(), snapshot.epoch);
    let changed = if request.is_of_fleet() { fleet_changed(&snapshot) } else { epoch };
    let key = format!("fleet/compare {request:?}");
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "fleet").increment(1);
        let compared = request.read(&engine, &snapshot).await.map_err(|error| match error {
            ComparisonError::UnknownFirmware(..) => {
                Problem::new(StatusCode::NOT_FOUND, "firmware-not-found", error.to_string())
            }
            ComparisonError::Query(error) => error.into(),
        })?;
        Ok(json!(compared))
    };
    let (answer, found) = context.answers.get(key, changed, epoch, compute).await?;
    match accepts_csv(&headers) {
        true => csv_of(&answer, "codes", &COMPARED_COLUMNS),
        false => Ok(respond(&answer, found, &headers)),
    }
}

/// The last epoch that changed the fleet's counts.
fn fleet_changed(snapshot: &Snapshot) -> u64 {
    snapshot.fleet.as_ref().map_or(snapshot.epoch, FleetView::changed)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct TimelineParameters {
    /// `occurrences` (default) or `batches`.
    of: Option<String>,
    /// Only occurrences of this code.
    code: Option<String>,
    /// Only this batch.
    batch_id: Option<Uuid>,
    /// `firmware`, `platform` or `vehicle`; for occurrences also `component`, `severity` or `code`; default all together.
    group_by: Option<String>,
    /// The length of a bucket, for example 15m or 1d; default 1h.
    bucket: Option<String>,
    /// Only batches of this platform. Labels are filters too: `label.NAME=VALUE`.
    platform: Option<String>,
    /// Only batches with this firmware.
    firmware: Option<String>,
    /// Only occurrences on lines of this component.
    component: Option<String>,
    /// Only codes of this severity: `critical`, `error`, `warning` or `info`.
    severity: Option<String>,
    /// Only plausible times at or after this, RFC 3339.
    since: Option<String>,
    /// Only plausible times before this, RFC 3339.
    until: Option<String>,
    /// The maximum number of rows, 1 to 10000; default 1000.
    limit: Option<u32>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

impl TimelineParameters {
    fn request(self, labels: BTreeMap<String, String>) -> Result<TimelineRequest, Problem> {
        let counted = match self.of.as_deref() {
            None | Some("occurrences") => Counted::Occurrences,
            Some("batches") => Counted::Batches,
            Some(of) => return Err(Problem::invalid(format!("of is {of:?}, but must be occurrences or batches"))),
        };
        let group_by = self.group_by.as_deref().map(str::parse::<TimelineGroup>).transpose();
        let group_by = group_by.map_err(|error| Problem::invalid(error.to_string()))?;
        let is_of_lines = self.code.is_some() || self.component.is_some() || self.severity.is_some();
        if counted == Counted::Batches && (is_of_lines || group_by.is_some_and(TimelineGroup::is_of_lines)) {
            let detail = "batches have no code, component or severity; count occurrences, or omit these";
            return Err(Problem::invalid(detail));
        }
        let bucket = self.bucket.as_deref().unwrap_or("1h");
        let bucket_s = humantime::parse_duration(bucket).ok().map(|bucket| bucket.as_secs());
        let bucket_s = bucket_s.filter(|seconds| (1..=BUCKET_S_MAX).contains(seconds));
        let bucket_s = bucket_s.ok_or_else(|| {
            Problem::invalid(format!("bucket is {bucket:?}, but must be from 1s to 366d, for example 15m or 1d"))
        })?;
        Ok(TimelineRequest {
            counted,
            code: self.code,
            batch_id: self.batch_id,
            group_by,
            bucket_s,
            filter: FleetFilter {
                platform: self.platform,
                firmware: self.firmware,
                labels,
                component: self.component,
                severity: self.severity.map(severity).transpose()?,
                since: time("since", self.since.as_deref())?,
                until: time("until", self.until.as_deref())?,
            },
            limit: limit_within(self.limit, TIMELINE_LIMIT_DEFAULT, LIMIT_MAX)? as usize,
        })
    }
}

/// Counts over time.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct TimelineBody {
    /// The buckets that have any, by time and group.
    buckets: Vec<Bucket>,
    bucket_seconds: u64,
    epoch: u64,
    /// Whether there are more rows than the limit.
    truncated: bool,
}

/// Occurrences or batches over time.
#[utoipa::path(
    get,
    path = "/api/v1/fleet/timeline",
    tag = "fleet",
    params(
        TimelineParameters,
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "counts by time and group", content((TimelineBody = "application/json"), (String = "text/csv"))),
        (status = 304, description = "the client's copy is current"),
        Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn timeline(
    State(context): State<FleetContext>,
    WithLabels(parameters, labels): WithLabels<TimelineParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (min_epoch, timeout_ms) = (parameters.min_epoch, parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT));
    let request = parameters.request(labels)?;
    let snapshot = snapshot_at_least(&context.snapshots, min_epoch, timeout_ms).await?;
    let (engine, epoch) = (context.engine.clone(), snapshot.epoch);
    let key = format!("fleet/timeline {request:?}");
    let compute = || async move {
        counter!("argus_computed_total", "kind" => "fleet").increment(1);
        let Timeline { buckets, more } = request.read(&engine, &snapshot).await?;
        Ok(json!({"buckets": buckets, "bucket_seconds": request.bucket_s, "truncated": more}))
    };
    let (answer, found) = context.answers.get(key, epoch, epoch, compute).await?;
    match accepts_csv(&headers) {
        true => csv_of(&answer, "buckets", &["at", "group", "count", "batches", "vehicles"]),
        false => Ok(respond(&answer, found, &headers)),
    }
}

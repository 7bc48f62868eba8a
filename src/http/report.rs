//! What a batch's files say: report, progress, lines with codes.

use std::sync::Arc;

use argus_query::cache::Found;
use argus_query::{Engine, ErrorLine, ErrorsPage, ErrorsRequest, Report};
use argus_sinks::Snapshot;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use metrics::counter;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::answer::{Answer, JSON};
use crate::http::extract::{Parameters, Segments};
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{Gone, Invalid, Late, NotFound, TooMany, Unavailable};
use crate::http::waiting::{WAIT_MS_DEFAULT, batch_at_least, check_as_of};
use crate::metadata::Metadata;
use crate::model::{Batch, FileTotals};
use crate::reports::Reports;
use crate::service::Service;
use crate::status::BatchStatus;

const ERRORS_LIMIT_DEFAULT: usize = 100;
const ERRORS_LIMIT_MAX: usize = 10_000;

struct Parts {
    metadata: Metadata,
    engine: Engine,
    reports: Reports,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// Paths below `/batches/{id}` that read what was counted.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        metadata: service.metadata.clone(),
        engine: service.engine.clone(),
        reports: service.reports.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new()
        .routes(routes!(report))
        .routes(routes!(progress))
        .routes(routes!(errors))
        .with_state(Arc::new(parts))
}

impl Parts {
    async fn batch(&self, id: &str) -> Result<Batch, Problem> {
        let id = batch_id(id)?;
        self.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    async fn past_report(&self, id: Uuid, epoch: u64, top: Option<usize>) -> Result<Answer, Problem> {
        // One that was deleted has no past either.
        self.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        let past = Arc::new(self.snapshot().as_of(epoch)?);
        counter!("argus_computed_total", "kind" => "report").increment(1);
        let report = Report::of_past_batch(&self.engine, &past, id).await?;
        let mut report = report.ok_or_else(|| {
            let detail = format!("there was no batch {id} at epoch {epoch}");
            Problem::new(StatusCode::NOT_FOUND, "batch-not-found", detail)
        })?;
        if let Some(top) = top {
            report.cut(top);
        }
        Ok(Answer::new(JSON, serde_json::to_vec(&report).map_err(|error| Problem::internal(&error))?))
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReportParameters {
    /// How many codes at most.
    top: Option<usize>,
    /// The answer as it was at this epoch.
    as_of: Option<u64>,
    /// Waits until the answer covers this epoch, as of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch`, in milliseconds; 5000 when nobody says, then 504.
    timeout_ms: Option<u64>,
}

/// The report of a batch, also while it is uploaded.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/report",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch"), ReportParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    responses(
        (status = 200, description = "the report", body = Report),
        (status = 304, description = "the answer that is known still holds"),
        NotFound, Gone, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn report(
    State(parts): State<Arc<Parts>>,
    Segments(id): Segments<String>,
    Parameters(wanted): Parameters<ReportParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = batch_id(&id)?;
    let timeout_ms = wanted.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    check_as_of(&parts.metadata, wanted.as_of).await?;
    batch_at_least(&parts.metadata, &parts.snapshots, id, wanted.min_epoch.max(wanted.as_of), timeout_ms).await?;
    let (answer, found) = match wanted.as_of {
        Some(epoch) => (Arc::new(parts.past_report(id, epoch, wanted.top).await?), Found::Bypass),
        None => parts.reports.present(id, wanted.top).await?,
    };
    Ok(answer.respond(found, &headers))
}

/// How far a batch is.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/progress",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 200, description = "how far the batch is", body = ProgressBody),
        NotFound,
    ),
)]
async fn progress(
    State(parts): State<Arc<Parts>>,
    Segments(id): Segments<String>,
) -> Result<Json<ProgressBody>, Problem> {
    let batch = parts.batch(&id).await?;
    let epoch = parts.snapshot().epoch;
    let totals = parts.metadata.file_totals(batch.id, epoch).await?;
    Ok(Json(ProgressBody::new(&batch, totals, epoch)))
}

/// How far a batch is at an epoch.
#[derive(Serialize, ToSchema)]
pub struct ProgressBody {
    batch_id: Uuid,
    status: &'static str,
    total_files: u64,
    parsed_files: u64,
    bytes_received: u64,
    bytes_parsed: u64,
    lines: u64,
    percent: f64,
    epoch: u64,
}

impl ProgressBody {
    /// How far a batch is that has come to `totals`.
    pub fn new(batch: &Batch, totals: FileTotals, epoch: u64) -> ProgressBody {
        let status = batch.status_at(epoch);
        let percent = match (totals.bytes_received, status) {
            (_, BatchStatus::Completed) => 100.0,
            (0, _) => 0.0,
            (received, _) => 100.0 * totals.bytes_parsed as f64 / received as f64,
        };
        ProgressBody {
            batch_id: batch.id,
            status: status.word(),
            total_files: totals.total_files,
            parsed_files: totals.parsed_files,
            bytes_received: totals.bytes_received,
            bytes_parsed: totals.bytes_parsed,
            lines: totals.lines,
            percent,
            epoch,
        }
    }
}

/// A page of lines with codes.
#[derive(Serialize, ToSchema)]
struct ErrorsBody {
    errors: Vec<ErrorLine>,
    next_cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ErrorsParameters {
    /// Only this code.
    code: Option<String>,
    /// Only this file.
    file: Option<String>,
    /// How many at most.
    limit: Option<usize>,
    /// Where the page before ended: its `next_cursor`.
    cursor: Option<String>,
}

/// The lines with codes.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/errors",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch"), ErrorsParameters),
    responses(
        (status = 200, description = "the lines with codes, in order of file and line", body = ErrorsBody),
        NotFound, Invalid, TooMany, Unavailable,
    ),
)]
async fn errors(
    State(parts): State<Arc<Parts>>,
    Segments(id): Segments<String>,
    Parameters(wanted): Parameters<ErrorsParameters>,
) -> Result<Json<ErrorsBody>, Problem> {
    let Batch { id: batch_id, .. } = parts.batch(&id).await?;
    let limit = wanted.limit.unwrap_or(ERRORS_LIMIT_DEFAULT);
    if !(1..=ERRORS_LIMIT_MAX).contains(&limit) {
        return Err(Problem::invalid(format!("limit must be from 1 to {ERRORS_LIMIT_MAX}")));
    }
    let after = wanted.cursor.as_deref().map(read_cursor).transpose()?;
    let request = ErrorsRequest { batch_id, code: wanted.code, file: wanted.file, limit, after };
    let page = ErrorsPage::read(&parts.engine, &parts.snapshot(), &request).await?;
    let next_cursor =
        page.errors.last().filter(|_| page.more).map(|last| write_cursor(&last.file, last.line, &last.code));
    Ok(Json(ErrorsBody { errors: page.errors, next_cursor }))
}

/// A cursor is the place of the last line, in hexadecimal so that it needs no escaping.
fn write_cursor(file: &str, line: u64, code: &str) -> String {
    let place = json!([file, line, code]).to_string();
    place.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_cursor(cursor: &str) -> Result<(String, u64, String), Problem> {
    let foreign = || Problem::invalid("the cursor is not one of ours; begin without it");
    let digits: Option<Vec<u8>> = cursor
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    serde_json::from_slice(&digits.ok_or_else(foreign)?).map_err(|_| foreign())
}

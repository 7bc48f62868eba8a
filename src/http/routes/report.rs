//! The results of a batch: report, progress, lines with codes.

use std::collections::HashMap;
use std::sync::Arc;

use argus_dataflow::Level;
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

use crate::answers::answer::Answer;
use crate::answers::reports::Reports;
use crate::answers::texts::{Surroundings, Texts};
use crate::app::Service;
use crate::domain::batch::{Batch, FileTotals};
use crate::domain::status::BatchStatus;
use crate::http::cached::respond;
use crate::http::error_responses::{GatewayTimeout, Gone, Invalid, NotFound, TooManyRequests, Unavailable};
use crate::http::extract::{Parameters, Segments, severity, time};
use crate::http::list::{List, limit_within};
use crate::http::problem::{Problem, batch_id};
use crate::http::waiting::{WAIT_MS_DEFAULT, batch_at_least, check_as_of};
use crate::metadata::Metadata;

const ERRORS_LIMIT_DEFAULT: u32 = 100;
const ERRORS_LIMIT_MAX: u32 = 10_000;

/// Lines that are shown before and after a line.
const CONTEXT_MAX: usize = 50;

struct ReportContext {
    metadata: Metadata,
    engine: Engine,
    reports: Reports,
    texts: Texts,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// The paths below `/batches/{id}` that read its results.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = ReportContext {
        metadata: service.metadata.clone(),
        engine: service.engine.clone(),
        reports: service.reports.clone(),
        texts: service.texts.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new()
        .routes(routes!(report))
        .routes(routes!(progress))
        .routes(routes!(errors))
        .with_state(Arc::new(context))
}

impl ReportContext {
    async fn batch(&self, id: &str) -> Result<Batch, Problem> {
        let id = batch_id(id)?;
        self.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    async fn past_report(&self, id: Uuid, epoch: u64, top: Option<usize>) -> Result<Answer, Problem> {
        // A deleted batch has no past reports.
        self.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        let past = Arc::new(self.snapshot().as_of(epoch)?);
        counter!("argus_computed_total", "kind" => "report").increment(1);
        let report = Report::of_past_batch(&self.engine, &past, id).await?;
        let mut report = report.ok_or_else(|| {
            let detail = format!("there was no batch {id} at epoch {epoch}; it is newer");
            Problem::new(StatusCode::NOT_FOUND, "batch-not-found", detail)
        })?;
        if let Some(top) = top {
            report.cut(top);
        }
        Ok(Answer::at_epoch(&report, epoch)?)
    }
}

/// A report at an epoch.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ReportBody {
    /// The epoch of the report.
    epoch: u64,
    #[schema(inline)]
    #[serde(flatten)]
    report: Report,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReportParameters {
    /// The maximum number of codes; default all.
    top: Option<usize>,
    /// The report as it was at this epoch.
    as_of: Option<u64>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// The report of a batch, also while it is being uploaded.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/report",
    tag = "reports",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ReportParameters,
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "the report", body = ReportBody),
        (status = 304, description = "the client's copy is current"),
        NotFound, Gone, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn report(
    State(context): State<Arc<ReportContext>>,
    Segments(id): Segments<String>,
    Parameters(parameters): Parameters<ReportParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = batch_id(&id)?;
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    check_as_of(&context.metadata, parameters.as_of).await?;
    batch_at_least(&context.metadata, &context.snapshots, id, parameters.min_epoch.max(parameters.as_of), timeout_ms)
        .await?;
    let (answer, found) = match parameters.as_of {
        Some(epoch) => (Arc::new(context.past_report(id, epoch, parameters.top).await?), Found::Bypass),
        None => context.reports.present(id, parameters.top).await?,
    };
    Ok(respond(&answer, found, &headers))
}

/// The progress of a batch.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/progress",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch")),
    responses(
        (status = 200, description = "the progress of the batch", body = ProgressBody),
        NotFound,
    ),
)]
async fn progress(
    State(context): State<Arc<ReportContext>>,
    Segments(id): Segments<String>,
) -> Result<Json<ProgressBody>, Problem> {
    let batch = context.batch(&id).await?;
    let epoch = context.snapshot().epoch;
    let totals = context.metadata.file_totals(batch.id, epoch).await?;
    Ok(Json(ProgressBody::new(&batch, totals, epoch)))
}

/// The progress of a batch at an epoch.
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
    /// The progress of a batch with these totals.
    pub fn new(batch: &Batch, totals: FileTotals, epoch: u64) -> ProgressBody {
        let status = batch.status_at(epoch);
        let percent = match (totals.bytes_received, status) {
            (_, BatchStatus::Completed) => 100.0,
            (0, _) => 0.0,
            (received, _) => 100.0 * totals.bytes_parsed as f64 / received as f64,
        };
        ProgressBody {
            batch_id: batch.id,
            status: status.as_str(),
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
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ErrorsBody {
    errors: Vec<ErrorBody>,
    next_cursor: Option<String>,
    /// The epoch of the data.
    epoch: u64,
}

/// A code in a line, and with `context` the lines around it.
#[derive(Serialize, ToSchema)]
struct ErrorBody {
    #[serde(flatten)]
    line: ErrorLine,
    /// The lines before it, each at most 1,024 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Vec<String>>,
    /// The lines after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Vec<String>>,
}

/// The columns of the lines as CSV.
const ERROR_COLUMNS: [&str; 10] =
    ["file", "line", "offset", "ts", "ts_plausible", "level", "component", "code", "severity", "text"];

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ErrorsParameters {
    /// Only this code.
    code: Option<String>,
    /// Only this file.
    file: Option<String>,
    /// Only lines from this number on; needs `file`.
    from_line: Option<u64>,
    /// Only lines with this level, as logs name it: `warn` and `WARNING` are the same.
    level: Option<String>,
    /// Only lines of this component.
    component: Option<String>,
    /// Only codes of this severity: `critical`, `error`, `warning` or `info`.
    severity: Option<String>,
    /// Only lines with a plausible time at or after this, RFC 3339.
    since: Option<String>,
    /// Only lines with a plausible time before this, RFC 3339.
    until: Option<String>,
    /// Show this many lines before and after each, at most 50; then at most 10,000 lines are shown in all.
    context: Option<usize>,
    /// The maximum number of rows, 1 to 10000; default 100.
    limit: Option<u32>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

/// The lines with codes of a batch.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/errors",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch"), ErrorsParameters),
    responses(
        (
            status = 200,
            description = "the lines with codes, in order of file and line",
            content((ErrorsBody = "application/json"), (String = "text/csv"))
        ),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn errors(
    State(context): State<Arc<ReportContext>>,
    Segments(id): Segments<String>,
    Parameters(parameters): Parameters<ErrorsParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Batch { id: batch_id, .. } = context.batch(&id).await?;
    let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
    batch_at_least(&context.metadata, &context.snapshots, batch_id, parameters.min_epoch, timeout_ms).await?;
    let neighbours = parameters.context.unwrap_or(0);
    if neighbours > CONTEXT_MAX {
        return Err(Problem::invalid(format!("context is {neighbours}, but must be at most {CONTEXT_MAX}")));
    }
    let max = ERRORS_LIMIT_MAX / (2 * neighbours as u32 + 1);
    let limit = limit_within(parameters.limit, ERRORS_LIMIT_DEFAULT.min(max), max)? as usize;
    let file = parameters.file.clone();
    let request = ErrorsRequest {
        batch_id,
        code: parameters.code,
        file: parameters.file,
        level: parameters.level.map(level).transpose()?,
        component: parameters.component,
        severity: parameters.severity.map(severity).transpose()?,
        since: time("since", parameters.since.as_deref())?,
        until: time("until", parameters.until.as_deref())?,
        limit,
        after: match (parameters.cursor.as_deref(), parameters.from_line) {
            (Some(cursor), _) => Some(read_cursor(cursor)?),
            (None, Some(from)) => Some(before_line(file, from)?),
            (None, None) => None,
        },
    };
    let snapshot = context.snapshot();
    let page = ErrorsPage::read(&context.engine, &snapshot, &request).await?;
    let next_cursor =
        page.errors.last().filter(|_| page.more).map(|last| write_cursor(&last.file, last.line, &last.code));
    let errors = context.with_neighbours(batch_id, page.errors, neighbours).await?;
    List::new("errors", &ERROR_COLUMNS, errors, next_cursor)?.with("epoch", snapshot.epoch).respond(&headers)
}

/// The name of a level in the tables.
fn level(word: String) -> Result<String, Problem> {
    let level = Level::parse(word.as_bytes()).map(|level| level.as_str().to_owned());
    level.ok_or_else(|| {
        let detail = format!("level is {word:?}, but must be trace, debug, info, notice, warning, error or critical");
        Problem::invalid(detail)
    })
}

impl ReportContext {
    /// Adds the lines around each line.
    async fn with_neighbours(
        &self,
        batch_id: Uuid,
        lines: Vec<ErrorLine>,
        neighbours: usize,
    ) -> Result<Vec<ErrorBody>, Problem> {
        if neighbours == 0 {
            return Ok(lines.into_iter().map(|line| ErrorBody { line, before: None, after: None }).collect());
        }
        let mut bodies = Vec::with_capacity(lines.len());
        // Lines are sorted by file.
        for of_file in lines.chunk_by(|one, next| one.file == next.file) {
            let around = match self.metadata.stored_file(batch_id, &of_file[0].file).await? {
                Some(file) => {
                    let numbers = of_file.iter().map(|line| line.line).collect();
                    self.texts.around(file, numbers, neighbours).await?
                }
                // It was deleted after the lines were read.
                None => HashMap::new(),
            };
            for line in of_file {
                let Surroundings { before, after } = around.get(&line.line).cloned().unwrap_or_default();
                let texts = |lines: Vec<Arc<str>>| Some(lines.iter().map(|line| line.to_string()).collect());
                bodies.push(ErrorBody { line: line.clone(), before: texts(before), after: texts(after) });
            }
        }
        Ok(bodies)
    }
}

/// A cursor is the position of the last line, in hexadecimal so that it needs no escaping.
fn write_cursor(file: &str, line: u64, code: &str) -> String {
    hex::encode(json!([file, line, code]).to_string())
}

/// The position before all codes of a line.
fn before_line(file: Option<String>, line: u64) -> Result<(String, u64, String), Problem> {
    let file = file.ok_or_else(|| Problem::invalid("from_line needs file: lines are numbered in their file"))?;
    Ok((file, line, String::new()))
}

fn read_cursor(cursor: &str) -> Result<(String, u64, String), Problem> {
    let invalid = || Problem::invalid("the cursor is invalid; omit it to start at the first page");
    serde_json::from_slice(&hex::decode(cursor).map_err(|_| invalid())?).map_err(|_| invalid())
}

//! Ad-hoc SQL.
//!
//! The first rows are gathered before the answer begins, so that what goes wrong
//! early is a problem and not a broken-off body. What is all there by then, and
//! would be the same again, is kept; more is sent as it is computed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argus_query::cache::{Flights, Lost, Redis};
use argus_query::encode::EncodeError;
use argus_query::{Encoder, Engine, Limits, QueryError, RowFormat, Rows};
use argus_sinks::Snapshot;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::answer::{self, Answer};
use crate::http::binary::Binary;
use crate::http::extract::JsonBody;
use crate::http::problem::Problem;
use crate::http::refusals::{Forbidden, Gone, Invalid, Late, NotAcceptable, TimedOut, TooLong, TooMany, Unavailable};
use crate::http::waiting::{check_as_of, snapshot_at_least};
use crate::metadata::Metadata;
use crate::service::{Service, Stopping};

/// The header, or trailer, that says whether there were more rows than the limit.
const TRUNCATED: &str = "argus-truncated";

const ROWS_DEFAULT: usize = 10_000;
const ROWS_MAX: usize = 1_000_000;
const TIMEOUT_MS_DEFAULT: u64 = 30_000;
const TIMEOUT_MS_MAX: u64 = 600_000;

/// An answer up to this long is kept whole; a longer one is sent as it comes (256 KiB).
const KEPT_BYTES_MAX: usize = 256 << 10;
/// Answers to queries may take this much memory (16 MiB).
const ANSWERS_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone)]
struct Parts {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    flights: Flights<Question, Kept, Unkept>,
    redis: Option<Redis>,
    metadata: Metadata,
    stopping: watch::Receiver<Stopping>,
}

/// `/query`.
pub fn router(service: &Service) -> OpenApiRouter {
    let bytes_of = |question: &Question, kept: &Kept| {
        let body = if let Kept::Whole(answer, _) = kept { answer.bytes() } else { 0 };
        question.sql.len() + body + 256
    };
    let parts = Parts {
        engine: service.engine.clone(),
        snapshots: service.snapshots.clone(),
        flights: Flights::new(ANSWERS_BYTES_MAX, bytes_of),
        redis: service.redis.clone(),
        metadata: service.metadata.clone(),
        stopping: service.stopping.clone(),
    };
    OpenApiRouter::new().routes(routes!(query)).with_state(parts)
}

/// A question.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"sql": "SELECT code, sum(count) AS times FROM error_counts GROUP BY code ORDER BY times DESC"}))]
struct QueryBody {
    /// One query.
    sql: String,
    /// Rows at most; 10,000 when nobody says.
    limit: Option<usize>,
    /// How long it may take; 30 seconds when nobody says.
    timeout_ms: Option<u64>,
    /// Waits until readers see this epoch.
    min_epoch: Option<u64>,
    /// Asks the tables as they were at this epoch.
    as_of: Option<u64>,
}

/// Rows as JSON.
#[derive(ToSchema)]
#[expect(dead_code, reason = "says what the encoder writes")]
struct RowsBody {
    columns: Vec<ColumnBody>,
    /// Each a list of values in the order of the columns.
    rows: Vec<Vec<serde_json::Value>>,
    /// The epoch that the question saw.
    epoch: u64,
    /// Whether there were more rows than the limit.
    truncated: bool,
}

/// A column of rows.
#[derive(ToSchema)]
#[expect(dead_code, reason = "says what the encoder writes")]
struct ColumnBody {
    name: String,
    /// Its type in Arrow.
    r#type: String,
}

/// What names an answer: rows of the same epoch are the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    sql: String,
    limit: usize,
    format: RowFormat,
    epoch: u64,
    /// Who has more time must not share the end of one who has less.
    time: Duration,
}

/// An answer that is kept.
#[derive(Clone)]
enum Kept {
    /// All of it, and whether there were more rows than the limit.
    Whole(Arc<Answer>, bool),
    /// That it is long, or never the same: everybody has it computed.
    Nothing,
}

/// Why there is no answer.
#[derive(Clone)]
enum Unkept {
    Problem(Problem),
    /// It is to be sent as it comes.
    Streamed,
}

impl From<Lost> for Unkept {
    fn from(lost: Lost) -> Unkept {
        Unkept::Problem(lost.into())
    }
}

impl From<Problem> for Unkept {
    fn from(problem: Problem) -> Unkept {
        Unkept::Problem(problem)
    }
}

/// An answer that has begun.
struct Begun {
    rows: Rows,
    encoder: Encoder,
    /// What is encoded and not sent.
    body: Vec<u8>,
    /// Whether that is all.
    ended: bool,
}

/// Answers a query in SQL.
#[utoipa::path(
    post,
    path = "/api/v1/query",
    tag = "query",
    params(("Accept" = Option<String>, Header, description = "the format of the rows"), ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    request_body(content = QueryBody),
    responses(
        (status = 200, description = "the rows", headers(
            ("argus-epoch" = u64, description = "the epoch that the question saw"),
            ("argus-limit" = u64, description = "rows at most"),
            ("argus-truncated" = Option<bool>, description = "whether there were more; a trailer where that is known behind the rows only (send TE: trailers)")
        ), content(
            (RowsBody = "application/json"),
            (String = "text/csv"),
            (Binary = "application/vnd.apache.arrow.stream"),
            (Binary = "application/vnd.apache.parquet")
        )),
        (status = 304, description = "the answer that is known still holds"),
        Forbidden, NotAcceptable, TimedOut, Gone, TooLong, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn query(
    State(parts): State<Parts>,
    headers: HeaderMap,
    JsonBody(asked): JsonBody<QueryBody>,
) -> Result<Response, Problem> {
    let format = accepted(&headers)?;
    let limit = asked.limit.unwrap_or(ROWS_DEFAULT);
    if limit > ROWS_MAX {
        return Err(Problem::invalid(format!("limit must be at most {ROWS_MAX}")));
    }
    let timeout_ms = asked.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT).min(TIMEOUT_MS_MAX);
    check_as_of(&parts.metadata, asked.as_of).await?;
    let mut snapshot = snapshot_at_least(&parts.snapshots, asked.min_epoch.max(asked.as_of), timeout_ms).await?;
    if let Some(epoch) = asked.as_of {
        snapshot = Arc::new(snapshot.as_of(epoch)?);
    }
    let limits = Limits { rows: limit, time: Duration::from_millis(timeout_ms) };
    let question = Question { sql: asked.sql, limit, format, epoch: snapshot.epoch, time: limits.time };
    if asked.as_of.is_some() {
        // What is erased is gone from the past too, so that is never kept.
        let mut begun = parts.begin(&question, &snapshot, limits).await?;
        begun.gather(KEPT_BYTES_MAX).await?;
        return Ok(begun.respond(&question, parts.stopping.clone()));
    }
    let mut stopping = parts.stopping.clone();
    tokio::select! {
        answered = parts.answer(question, snapshot, limits, &headers) => answered,
        () = told(&mut stopping) => Err(Problem::busy("the server is stopping; ask again when it is back")),
    }
}

impl Parts {
    async fn answer(
        &self,
        question: Question,
        snapshot: Arc<Snapshot>,
        limits: Limits,
        asked: &HeaderMap,
    ) -> Result<Response, Problem> {
        // Whoever computes leaves here what is too long to be kept.
        let left = Arc::new(Mutex::new(None));
        let compute = || {
            let (parts, question, snapshot) = (self.clone(), question.clone(), Arc::clone(&snapshot));
            let left = Arc::clone(&left);
            async move { parts.compute(&question, &snapshot, limits, &left).await }
        };
        let (kept, found) = self.flights.get(question.clone(), compute).await;
        match kept {
            // A posted question changes nothing, so it is treated as one that is got: RFC 9110, 13.1.2, has 304 for those only.
            Ok(Kept::Whole(answer, truncated)) => {
                let mut response = answer.respond(found, asked);
                describe(response.headers_mut(), &question, Some(truncated));
                return Ok(response);
            }
            Ok(Kept::Nothing) | Err(Unkept::Streamed) => {}
            Err(Unkept::Problem(problem)) => return Err(problem),
        }
        let begun = left.lock().unwrap_or_else(PoisonError::into_inner).take();
        let begun = match begun {
            Some(begun) => begun,
            None => self.begin(&question, &snapshot, limits).await?,
        };
        Ok(begun.respond(&question, self.stopping.clone()))
    }

    async fn begin(&self, question: &Question, snapshot: &Arc<Snapshot>, limits: Limits) -> Result<Begun, Problem> {
        let rows = self.engine.ask(snapshot, &question.sql, limits).await?;
        let encoder = Encoder::begin(question.format, &rows.schema, rows.epoch);
        let encoder = encoder.map_err(|error| Problem::invalid(error.to_string()))?;
        Ok(Begun { rows, encoder, body: Vec::new(), ended: false })
    }

    async fn compute(
        &self,
        question: &Question,
        snapshot: &Arc<Snapshot>,
        limits: Limits,
        left: &Mutex<Option<Begun>>,
    ) -> Result<Kept, Unkept> {
        let media_type = question.format.media_type();
        let whole = async {
            let mut begun = self.begin(question, snapshot, limits).await?;
            begun.gather(KEPT_BYTES_MAX).await?;
            if begun.rows.repeatable && begun.ended {
                let truncated = u8::from(begun.rows.truncated());
                begun.body.push(truncated);
                return Ok(begun.body);
            }
            *left.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
            Err(Unkept::Streamed)
        };
        let body = match &self.redis {
            Some(redis) => {
                let asked = format!("{} {} {:?}", question.sql, question.limit, question.format);
                redis.get(&format!("rows/{}", answer::name(&asked, question.epoch)), whole).await
            }
            None => whole.await,
        };
        match body {
            // Between processes, whether it was cut goes with it as its last byte.
            Ok(mut body) => {
                let truncated = body.pop().is_some_and(|truncated| truncated != 0);
                Ok(Kept::Whole(Arc::new(Answer::new(media_type, body)), truncated))
            }
            Err(Unkept::Streamed) => Ok(Kept::Nothing),
            Err(problem) => Err(problem),
        }
    }
}

impl Begun {
    /// Gathers up to about `enough` bytes.
    async fn gather(&mut self, enough: usize) -> Result<(), Problem> {
        while self.body.len() < enough && !self.ended {
            self.step().await?;
        }
        Ok(())
    }

    /// Encodes the next rows. After the last, the answer is ended.
    async fn step(&mut self) -> Result<(), Problem> {
        let unencodable = |error: EncodeError| Problem::invalid(error.to_string());
        match self.rows.next().await {
            Some(rows) => self.encoder.write(&rows?).map_err(unencodable)?,
            None => {
                self.encoder.finish(self.rows.truncated()).map_err(unencodable)?;
                self.ended = true;
            }
        }
        self.body.append(&mut self.encoder.take());
        Ok(())
    }

    /// Sends what is there and the rest as it comes. When that fails the body breaks off,
    /// and when the client leaves the query ends.
    fn respond(self, question: &Question, stopping: watch::Receiver<Stopping>) -> Response {
        let truncated = self.ended.then(|| self.rows.truncated());
        let frames = stream::unfold(Some((self, stopping)), |begun| async move {
            let (mut begun, mut stopping) = begun?;
            loop {
                if !begun.body.is_empty() {
                    let chunk = Bytes::from(std::mem::take(&mut begun.body));
                    return Some((Ok(Frame::data(chunk)), Some((begun, stopping))));
                }
                if begun.ended {
                    let mut last = HeaderMap::new();
                    last.insert(TRUNCATED, flag(begun.rows.truncated()));
                    return Some((Ok(Frame::trailers(last)), None));
                }
                let stepped = tokio::select! {
                    stepped = begun.step() => stepped.is_ok(),
                    () = told(&mut stopping) => false,
                };
                if !stepped {
                    return Some((Err(std::io::Error::other(QueryError::BrokeOff)), None));
                }
            }
        });
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        let headers = response.headers_mut();
        headers.insert(header::TRAILER, HeaderValue::from_static(TRUNCATED));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(question.format.media_type()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        describe(headers, question, truncated);
        headers.insert("cache-status", HeaderValue::from_static("argus; fwd=bypass"));
        response
    }
}

/// Says in headers what only JSON has room for: the epoch, the limit of rows, and where it is known whether there were more.
fn describe(headers: &mut HeaderMap, question: &Question, truncated: Option<bool>) {
    headers.insert("argus-epoch", question.epoch.into());
    headers.insert("argus-limit", question.limit.into());
    if let Some(truncated) = truncated {
        headers.insert(TRUNCATED, flag(truncated));
    }
}

fn flag(is_so: bool) -> HeaderValue {
    HeaderValue::from_static(if is_so { "true" } else { "false" })
}

/// Ends when the server is told to stop: queries are given up at once, so that it stops within a second.
async fn told(stopping: &mut watch::Receiver<Stopping>) {
    if stopping.wait_for(|stopping| *stopping != Stopping::No).await.is_err() {
        std::future::pending().await
    }
}

/// The format that the client wants most of those that there are.
fn accepted(headers: &HeaderMap) -> Result<RowFormat, Problem> {
    let wanted: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if wanted.is_empty() {
        return Ok(RowFormat::Json);
    }
    let mut best: Option<(RowFormat, f32)> = None;
    for range in wanted.iter().flat_map(|list| list.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        let fits = |format: &RowFormat| {
            let kind = format.media_type();
            let family = kind.split('/').next().unwrap_or_default();
            name == kind || name == "*/*" || name.strip_suffix("/*") == Some(family)
        };
        if let Some(format) = RowFormat::ALL.into_iter().find(fits)
            && weight > best.map_or(0.0, |(_, best)| best)
        {
            best = Some((format, weight));
        }
    }
    let formats = || RowFormat::ALL.map(RowFormat::media_type).join(", ");
    best.map(|(format, _)| format).ok_or_else(|| {
        Problem::new(StatusCode::NOT_ACCEPTABLE, "no-such-format", format!("rows come as one of {}", formats()))
    })
}

//! Ad-hoc SQL.
//!
//! The first rows are computed before the response starts, so that an early error
//! is a problem and not an interrupted body. If these are all rows, and the query
//! is repeatable, the answer is cached; otherwise the rows are streamed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use argus_query::cache::{ComputationAborted, Redis, SingleFlight};
use argus_query::results::encode::EncodeError;
use argus_query::{Encoder, Engine, Limits, QueryError, RowFormat, Rows};
use argus_sinks::Snapshot;
use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answers::answer::Answer;
use crate::app::Service;
use crate::http::audit::Detail;
use crate::http::binary::Binary;
use crate::http::cached::{remote_name, respond};
use crate::http::error_responses::{
    Forbidden, GatewayTimeout, Gone, Invalid, NotAcceptable, TimedOut, TooLong, TooManyRequests, Unavailable,
};
use crate::http::extract;
use crate::http::extract::JsonBody;
use crate::http::problem::Problem;
use crate::http::waiting::{check_as_of, snapshot_at_least};
use crate::metadata::Metadata;
use crate::shutdown::Stopping;

/// The header or trailer that is `true` if there were more rows than the limit.
const TRUNCATED: &str = "argus-truncated";

const ROWS_DEFAULT: usize = 10_000;
const ROWS_MAX: usize = 1_000_000;
const TIMEOUT_MS_DEFAULT: u64 = 30_000;
const TIMEOUT_MS_MAX: u64 = 600_000;

/// An answer up to this size is cached; a larger one is streamed (256 KiB).
const CACHED_BYTES_MAX: usize = 256 << 10;
/// The memory limit of cached answers (16 MiB).
const ANSWERS_BYTES_MAX: u64 = 16 << 20;

#[derive(Clone)]
struct QueryContext {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    cache: SingleFlight<QueryKey, CachedRows, NotCached>,
    redis: Option<Redis>,
    metadata: Metadata,
    stopping: watch::Receiver<Stopping>,
}

/// `/query`.
pub fn router(service: &Service) -> OpenApiRouter {
    let bytes_of = |key: &QueryKey, cached: &CachedRows| {
        let body = if let CachedRows::Whole(answer, _) = cached { answer.bytes() } else { 0 };
        key.sql.len() + body + 256
    };
    let context = QueryContext {
        engine: service.engine.clone(),
        snapshots: service.snapshots.clone(),
        cache: SingleFlight::new(ANSWERS_BYTES_MAX, bytes_of),
        redis: service.redis.clone(),
        metadata: service.metadata.clone(),
        stopping: service.stopping.clone(),
    };
    OpenApiRouter::new().routes(routes!(query)).with_state(context)
}

/// A query.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"sql": "SELECT code, sum(count) AS times FROM error_counts GROUP BY code ORDER BY times DESC"}))]
struct QueryBody {
    /// One query in SQL.
    sql: String,
    /// The maximum number of rows; default 10000, at most 1000000.
    limit: Option<usize>,
    /// The timeout of the query, in milliseconds; default 30000, at most 600000.
    timeout_ms: Option<u64>,
    /// Wait until readers see this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// Query the tables as they were at this epoch.
    as_of: Option<u64>,
}

/// Rows as JSON.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct RowsBody {
    columns: Vec<ColumnBody>,
    /// Each row is a list of values in the order of the columns.
    rows: Vec<Vec<serde_json::Value>>,
    /// The epoch of the tables.
    epoch: u64,
    /// Whether there were more rows than the limit.
    truncated: bool,
}

/// A column of rows.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct ColumnBody {
    name: String,
    /// The Arrow data type.
    r#type: String,
}

/// The cache key of an answer: at one epoch, a query has the same rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct QueryKey {
    sql: String,
    limit: usize,
    format: RowFormat,
    epoch: u64,
    /// A request must not share a computation that has a shorter timeout.
    time: Duration,
}

/// What the cache stores.
#[derive(Clone)]
enum CachedRows {
    /// The whole answer, and whether there were more rows than the limit.
    Whole(Arc<Answer>, bool),
    /// The answer is too large or not repeatable: each request computes it.
    Uncacheable,
}

/// Why a computation has no answer for the cache.
#[derive(Clone)]
enum NotCached {
    Problem(Problem),
    /// The answer is streamed.
    Streamed,
}

impl From<ComputationAborted> for NotCached {
    fn from(lost: ComputationAborted) -> NotCached {
        NotCached::Problem(lost.into())
    }
}

impl From<Problem> for NotCached {
    fn from(problem: Problem) -> NotCached {
        NotCached::Problem(problem)
    }
}

/// An answer whose first rows are encoded.
struct PartialAnswer {
    rows: Rows,
    encoder: Encoder,
    /// Encoded bytes that are not sent yet.
    body: Vec<u8>,
    /// Whether all rows are encoded.
    is_complete: bool,
}

/// Runs a query in SQL.
#[utoipa::path(
    post,
    path = "/api/v1/query",
    tag = "query",
    params(
        ("Accept" = Option<String>, Header, description = "the format of the rows; default JSON"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    request_body(content = QueryBody),
    responses(
        (status = 200, description = "the rows", headers(
            ("argus-epoch" = u64, description = "the epoch of the tables"),
            ("argus-limit" = u64, description = "the maximum number of rows"),
            (
                "argus-truncated" = Option<bool>,
                description = "whether there were more rows; a trailer if known only after them (send `TE: trailers`)"
            )
        ), content(
            (RowsBody = "application/json"),
            (String = "text/csv"),
            (Binary = "application/vnd.apache.arrow.stream"),
            (Binary = "application/vnd.apache.parquet")
        )),
        (status = 304, description = "the client's copy is current"),
        Forbidden, NotAcceptable, TimedOut, Gone, TooLong, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn query(
    State(context): State<QueryContext>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<QueryBody>,
) -> Result<Response, Problem> {
    let format = accepted_format(&headers)?;
    let limit = body.limit.unwrap_or(ROWS_DEFAULT);
    if limit > ROWS_MAX {
        return Err(Problem::invalid(format!("limit is {limit}, and must be at most {ROWS_MAX}")));
    }
    if body.timeout_ms == Some(0) {
        return Err(Problem::invalid("timeout_ms is 0, and must be at least 1"));
    }
    let timeout_ms = body.timeout_ms.unwrap_or(TIMEOUT_MS_DEFAULT).min(TIMEOUT_MS_MAX);
    check_as_of(&context.metadata, body.as_of).await?;
    let mut snapshot = snapshot_at_least(&context.snapshots, body.min_epoch.max(body.as_of), timeout_ms).await?;
    if let Some(epoch) = body.as_of {
        snapshot = Arc::new(snapshot.as_of(epoch)?);
    }
    let limits = Limits { rows: limit, time: Duration::from_millis(timeout_ms) };
    let detail = Detail::statement(&body.sql);
    let key = QueryKey { sql: body.sql, limit, format, epoch: snapshot.epoch, time: limits.time };
    if body.as_of.is_some() {
        // Never cached: an erasure also changes past epochs.
        let mut answer = context.start(&key, &snapshot, limits).await?;
        answer.encode_up_to(CACHED_BYTES_MAX).await?;
        return Ok((Extension(detail), answer.respond(&key, context.stopping.clone())).into_response());
    }
    let mut stopping = context.stopping.clone();
    tokio::select! {
        response = context.answer(key, snapshot, limits, &headers) => {
            Ok((Extension(detail), response).into_response())
        }
        () = stopped(&mut stopping) => Err(Problem::busy("the server is stopping; retry later")),
    }
}

impl QueryContext {
    async fn answer(
        &self,
        key: QueryKey,
        snapshot: Arc<Snapshot>,
        limits: Limits,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        // The computation leaves an answer here that it cannot cache.
        let uncached = Arc::new(Mutex::new(None));
        let compute = || {
            let (context, key, snapshot) = (self.clone(), key.clone(), Arc::clone(&snapshot));
            let uncached = Arc::clone(&uncached);
            async move { context.compute(&key, &snapshot, limits, &uncached).await }
        };
        let (cached, found) = self.cache.get(key.clone(), compute).await;
        match cached {
            // RFC 9110, 13.1.2, allows 304 for GET and HEAD only. A query in a POST changes nothing, so it is treated
            // like a GET.
            Ok(CachedRows::Whole(answer, truncated)) => {
                let mut response = respond(&answer, found, headers);
                insert_query_headers(response.headers_mut(), &key, Some(truncated));
                return Ok(response);
            }
            Ok(CachedRows::Uncacheable) | Err(NotCached::Streamed) => {}
            Err(NotCached::Problem(problem)) => return Err(problem),
        }
        let partial = uncached.lock().unwrap_or_else(PoisonError::into_inner).take();
        let partial = match partial {
            Some(partial) => partial,
            None => self.start(&key, &snapshot, limits).await?,
        };
        Ok(partial.respond(&key, self.stopping.clone()))
    }

    async fn start(&self, key: &QueryKey, snapshot: &Arc<Snapshot>, limits: Limits) -> Result<PartialAnswer, Problem> {
        let rows = self.engine.ask(snapshot, &key.sql, limits).await?;
        let encoder = Encoder::begin(key.format, &rows.schema, rows.epoch);
        let encoder = encoder.map_err(|error| Problem::invalid(error.to_string()))?;
        Ok(PartialAnswer { rows, encoder, body: Vec::new(), is_complete: false })
    }

    async fn compute(
        &self,
        key: &QueryKey,
        snapshot: &Arc<Snapshot>,
        limits: Limits,
        uncached: &Mutex<Option<PartialAnswer>>,
    ) -> Result<CachedRows, NotCached> {
        let media_type = key.format.media_type();
        let computed = async {
            let mut partial = self.start(key, snapshot, limits).await?;
            partial.encode_up_to(CACHED_BYTES_MAX).await?;
            if partial.rows.repeatable && partial.is_complete {
                let truncated = u8::from(partial.rows.truncated());
                partial.body.push(truncated);
                return Ok(partial.body);
            }
            *uncached.lock().unwrap_or_else(PoisonError::into_inner) = Some(partial);
            Err(NotCached::Streamed)
        };
        let body = match &self.redis {
            Some(redis) => {
                let request = format!("{} {} {:?}", key.sql, key.limit, key.format);
                redis.get(&format!("rows/{}", remote_name(&request, key.epoch)), computed).await
            }
            None => computed.await,
        };
        match body {
            // The last byte of a cached body is the flag `truncated`.
            Ok(mut body) => {
                let truncated = body.pop().is_some_and(|truncated| truncated != 0);
                Ok(CachedRows::Whole(Arc::new(Answer::new(media_type, body)), truncated))
            }
            Err(NotCached::Streamed) => Ok(CachedRows::Uncacheable),
            Err(problem) => Err(problem),
        }
    }
}

impl PartialAnswer {
    /// Encodes rows until there are about `bytes` bytes, or no more rows.
    async fn encode_up_to(&mut self, bytes: usize) -> Result<(), Problem> {
        while self.body.len() < bytes && !self.is_complete {
            self.step().await?;
        }
        Ok(())
    }

    /// Encodes the next rows, or the end after the last.
    async fn step(&mut self) -> Result<(), Problem> {
        let unencodable = |error: EncodeError| Problem::invalid(error.to_string());
        match self.rows.next().await {
            Some(rows) => self.encoder.write(&rows?).map_err(unencodable)?,
            None => {
                self.encoder.finish(self.rows.truncated()).map_err(unencodable)?;
                self.is_complete = true;
            }
        }
        self.body.append(&mut self.encoder.take());
        Ok(())
    }

    /// Streams the answer: first the encoded bytes, then the other rows as they are computed. An error interrupts the
    /// body. If the client disconnects, the query is cancelled.
    fn respond(self, key: &QueryKey, stopping: watch::Receiver<Stopping>) -> Response {
        let truncated = self.is_complete.then(|| self.rows.truncated());
        let frames = stream::unfold(Some((self, stopping)), |state| async move {
            let (mut partial, mut stopping) = state?;
            loop {
                if !partial.body.is_empty() {
                    let chunk = Bytes::from(std::mem::take(&mut partial.body));
                    return Some((Ok(Frame::data(chunk)), Some((partial, stopping))));
                }
                if partial.is_complete {
                    let mut last = HeaderMap::new();
                    last.insert(TRUNCATED, flag(partial.rows.truncated()));
                    return Some((Ok(Frame::trailers(last)), None));
                }
                let stepped = tokio::select! {
                    stepped = partial.step() => stepped.is_ok(),
                    () = stopped(&mut stopping) => false,
                };
                if !stepped {
                    return Some((Err(std::io::Error::other(QueryError::Aborted)), None));
                }
            }
        });
        let mut response = Response::new(Body::new(StreamBody::new(frames)));
        let headers = response.headers_mut();
        headers.insert(header::TRAILER, HeaderValue::from_static(TRUNCATED));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(key.format.media_type()));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        insert_query_headers(headers, key, truncated);
        headers.insert("cache-status", HeaderValue::from_static("argus; fwd=bypass"));
        response
    }
}

/// Inserts as headers what only the JSON format has in its body: the epoch, the row limit, and `truncated` if it is
/// known.
fn insert_query_headers(headers: &mut HeaderMap, key: &QueryKey, truncated: Option<bool>) {
    headers.insert("argus-epoch", key.epoch.into());
    headers.insert("argus-limit", key.limit.into());
    if let Some(truncated) = truncated {
        headers.insert(TRUNCATED, flag(truncated));
    }
}

fn flag(value: bool) -> HeaderValue {
    HeaderValue::from_static(if value { "true" } else { "false" })
}

/// Returns when the server stops. Queries are then cancelled at once, so that the server stops within a second.
async fn stopped(stopping: &mut watch::Receiver<Stopping>) {
    if stopping.wait_for(|stopping| *stopping != Stopping::No).await.is_err() {
        std::future::pending().await
    }
}

/// The supported format that the client prefers.
fn accepted_format(headers: &HeaderMap) -> Result<RowFormat, Problem> {
    let wanted: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if wanted.is_empty() {
        return Ok(RowFormat::Json);
    }
    let mut best: Option<(RowFormat, f32)> = None;
    for range in wanted.iter().flat_map(|list| list.split(',')) {
        let mut fields = range.split(';').map(str::trim);
        let name = fields.next().unwrap_or_default().to_ascii_lowercase();
        let weight = fields.find_map(|field| field.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
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
        Problem::new(StatusCode::NOT_ACCEPTABLE, "no-such-format", format!("Accept must have one of {}", formats()))
    })
}

impl extract::Body for QueryBody {}

//! A user's query: its permit, its limits and the stream of its rows.
//!
//! It runs on the background threads. Rows wait for the client in a short queue;
//! when the client drops them, the query is aborted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argus_sinks::Snapshot;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::Instrument;

use crate::engine::admission::Permit;
use crate::engine::background::AbortOnDrop;
use crate::engine::{Engine, run};
use crate::error::QueryError;
use crate::outcome::Outcome;
use crate::sql::joins::{Deadline, Wanted};
use crate::sql::statement::{check_statement, is_repeatable};

/// Batches of rows that wait for the client.
const WAITING_MAX: usize = 1;

/// How long a client may read no rows before the permit is released; less than other queries wait for it.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(2);

/// How long after its time limit a query may still report that it has timed out.
pub(crate) const TIMEOUT_GRACE: Duration = Duration::from_millis(500);

/// The limits of one query.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of the answer; further rows are cut off.
    pub rows: usize,
    /// From the request to the last row.
    pub time: Duration,
}

/// The rows of an answer, as they are computed.
#[derive(Debug)]
pub struct Rows {
    /// Their columns.
    pub schema: SchemaRef,
    /// The epoch that the query saw.
    pub epoch: u64,
    /// Whether the same query at the same epoch always has this answer.
    pub repeatable: bool,
    rows: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    end: Arc<End>,
    until: Instant,
    time: Duration,
    outcome: Outcome,
    /// When dropped, joins in the query see that the client is gone.
    _wanted: Wanted,
    _query: AbortOnDrop,
}

/// How the rows ended.
#[derive(Debug, Default)]
struct End {
    /// There were more rows than the limit.
    cut: AtomicBool,
    /// The query ended by itself.
    reached: AtomicBool,
}

impl Rows {
    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        let next = self.receive().await.transpose();
        if !matches!(next, Ok(Some(_))) {
            self.outcome.ended(&next);
        }
        next.transpose()
    }

    async fn receive(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        // The query checks its time limit too, when it can.
        let Ok(next) = timeout_at(self.until + TIMEOUT_GRACE, self.rows.recv()).await else {
            self.end.reached.store(true, Ordering::Release);
            self.rows.close();
            return Some(Err(QueryError::TimedOut(self.time)));
        };
        match next {
            // The query did not end by itself: it timed out or panicked.
            None if !self.end.reached.swap(true, Ordering::AcqRel) => Some(Err(match Instant::now() >= self.until {
                true => QueryError::TimedOut(self.time),
                false => QueryError::Aborted,
            })),
            next => next,
        }
    }

    /// Whether there were more rows than the limit; known after the last.
    pub fn truncated(&self) -> bool {
        self.end.cut.load(Ordering::Acquire)
    }
}

impl Engine {
    /// Starts a user's query; returns when its columns are known.
    pub async fn ask(&self, snapshot: &Arc<Snapshot>, sql: &str, limits: Limits) -> Result<Rows, QueryError> {
        self.ask_with(snapshot, sql, Vec::new(), limits).await
    }

    /// Starts a user's query with its parameter values.
    pub(crate) async fn ask_with(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
        values: Vec<ScalarValue>,
        limits: Limits,
    ) -> Result<Rows, QueryError> {
        check_statement(sql)?;
        let until = Instant::now() + limits.time;
        let permit = timeout_at(until, self.permit()).await.map_err(|_| QueryError::Busy)??;
        let mut outcome = Outcome::begin();
        let (planned, plan) = oneshot::channel();
        let (to, rows) = mpsc::channel(WAITING_MAX);
        let end = Arc::new(End::default());
        let (engine, sql, seen, reached) = (self.clone(), sql.to_owned(), Arc::clone(snapshot), Arc::clone(&end));
        let (deadline, wanted) = Deadline::at(until, limits.time);
        let query = async move {
            let started = async { run(&engine.session(&seen, Some(deadline))?, &sql, values).await };
            match started.await {
                Ok((plan, stream)) => {
                    // If the client has left, the query is aborted anyway.
                    let _ = planned.send(Ok((stream.schema(), is_repeatable(&plan))));
                    let to = ResultSender::new(engine, Some(permit), to);
                    send_rows(stream, to, limits, until, &reached).await;
                }
                Err(error) => drop(planned.send(Err(error))),
            }
        };
        let query = query.instrument(tracing::info_span!("query"));
        let query = AbortOnDrop(self.background.handle().spawn(query).abort_handle());
        // Planning does not yield, so the time limit is checked here.
        let planned = match timeout_at(until, plan).await {
            Ok(Ok(planned)) => planned,
            Ok(Err(_)) => Err(QueryError::Aborted),
            Err(_) => Err(QueryError::TimedOut(limits.time)),
        };
        // Until its rows have ended, a planned query counts as cancelled.
        if planned.is_err() {
            outcome.ended(&planned);
        }
        let (schema, repeatable) = planned?;
        let (epoch, time) = (snapshot.epoch, limits.time);
        Ok(Rows { schema, epoch, repeatable, rows, end, until, time, outcome, _wanted: wanted, _query: query })
    }
}

/// Sends results to a client, and holds the permit of the query that computes them.
pub(crate) struct ResultSender<T> {
    engine: Engine,
    /// `None` while the client reads nothing.
    permit: Option<Permit>,
    to: mpsc::Sender<T>,
}

impl<T> ResultSender<T> {
    /// A sender for a query that has the permit, or acquires it before the first result.
    pub(crate) fn new(engine: Engine, permit: Option<Permit>, to: mpsc::Sender<T>) -> ResultSender<T> {
        ResultSender { engine, permit, to }
    }

    /// Acquires the permit if it was released.
    pub(crate) async fn acquire_permit(&mut self) -> Result<(), QueryError> {
        if self.permit.is_none() {
            self.permit = Some(self.engine.permit().await?);
        }
        Ok(())
    }

    /// Sends a result when the queue has room; `false` when the client wants no more. While the queue stays full, the
    /// permit is released; if it cannot be acquired again, `busy` makes the last result.
    pub(crate) async fn send(&mut self, result: T, busy: impl FnOnce(QueryError) -> T) -> bool {
        let mut result = result;
        let mut goes_on = true;
        if self.to.capacity() == 0 && timeout(STALL_MAX, self.to.reserve()).await.is_err() {
            self.permit = None;
            if self.to.reserve().await.is_err() {
                return false;
            }
            if let Err(error) = self.acquire_permit().await {
                (result, goes_on) = (busy(error), false);
            }
        }
        self.to.send(result).await.is_ok() && goes_on
    }
}

/// Sends rows within the limits.
async fn send_rows(
    mut stream: SendableRecordBatchStream,
    mut to: ResultSender<Result<RecordBatch, QueryError>>,
    limits: Limits,
    until: Instant,
    end: &End,
) {
    let mut remaining = limits.rows;
    let all = async {
        while let Some(rows) = stream.next().await {
            let rows = match rows {
                Ok(rows) if rows.num_rows() > remaining => {
                    end.cut.store(true, Ordering::Release);
                    // `End` reports that rows were cut off.
                    to.send(Ok(rows.slice(0, remaining)), Err).await;
                    return;
                }
                Ok(rows) => Ok(rows),
                Err(error) => Err(QueryError::of(error)),
            };
            let failed = rows.is_err();
            remaining -= rows.as_ref().map_or(0, RecordBatch::num_rows);
            if !to.send(rows, Err).await || failed {
                return;
            }
        }
    };
    if timeout_at(until, all).await.is_err() {
        // The queue may be full of rows that nobody reads. Then the client sees a stream without an end.
        let sent = timeout(Duration::from_secs(1), to.to.send(Err(QueryError::TimedOut(limits.time)))).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
    end.reached.store(true, Ordering::Release);
}

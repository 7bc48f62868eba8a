//! A user's question: its turn, its limits, and its rows as they come.
//!
//! It runs on the background threads. Rows wait in a short queue for whoever
//! asked; when they are let go of, the query ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argus_sinks::Snapshot;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::physical_plan::SendableRecordBatchStream;
use futures::StreamExt;
use metrics::counter;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::background::AbortOnDrop;
use crate::engine::{Engine, run};
use crate::joins::{Deadline, Wanted};
use crate::query_error::QueryError;
use crate::statement::{check_statement, is_repeatable};
use crate::turns::Turn;

/// Batches of rows that wait for the asker.
const WAITING_MAX: usize = 1;

/// How long whoever asked may take no rows before others get the turn; less than those wait for one.
pub(crate) const REST_MAX: Duration = Duration::from_secs(2);

/// How much later than its time a query may say that it is over.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(500);

/// What one question may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Rows of the answer; what is more is cut off.
    pub rows: usize,
    /// From asking to the last row.
    pub time: Duration,
}

/// The rows of an answer, as they are computed.
#[derive(Debug)]
pub struct Rows {
    /// Their columns.
    pub schema: SchemaRef,
    /// The epoch that the question saw.
    pub epoch: u64,
    /// Whether the same question at the same epoch always has this answer.
    pub repeatable: bool,
    rows: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    end: Arc<End>,
    until: Instant,
    time: Duration,
    /// Tells whoever computes them that nobody wants them, where it looks.
    _wanted: Wanted,
    _query: AbortOnDrop,
}

/// How the rows ended.
#[derive(Debug, Default)]
struct End {
    /// There were more than the limit.
    cut: AtomicBool,
    /// Whoever computed them came to the end.
    reached: AtomicBool,
}

impl Rows {
    /// The next rows; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        // Whoever computes them looks at the clock too, when it can.
        let Ok(next) = timeout_at(self.until + LATE_MAX, self.rows.recv()).await else {
            self.end.reached.store(true, Ordering::Release);
            self.rows.close();
            return Some(Err(QueryError::TimedOut(self.time)));
        };
        match next {
            // Without having come to the end, it was late or it died.
            None if !self.end.reached.swap(true, Ordering::AcqRel) => Some(Err(match Instant::now() >= self.until {
                true => QueryError::TimedOut(self.time),
                false => QueryError::BrokeOff,
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
    /// Asks a user's query; returns when its columns are known.
    pub async fn ask(&self, snapshot: &Arc<Snapshot>, sql: &str, limits: Limits) -> Result<Rows, QueryError> {
        self.ask_with(snapshot, sql, Vec::new(), limits).await
    }

    /// Asks a user's query with the values of its parameters.
    pub(crate) async fn ask_with(
        &self,
        snapshot: &Arc<Snapshot>,
        sql: &str,
        values: Vec<ScalarValue>,
        limits: Limits,
    ) -> Result<Rows, QueryError> {
        check_statement(sql)?;
        let until = Instant::now() + limits.time;
        let turn = timeout_at(until, self.turn()).await.map_err(|_| QueryError::Busy)??;
        counter!("argus_computed_total", "kind" => "sql").increment(1);
        let (planned, plan) = oneshot::channel();
        let (to, rows) = mpsc::channel(WAITING_MAX);
        let end = Arc::new(End::default());
        let (engine, sql, seen, reached) = (self.clone(), sql.to_owned(), Arc::clone(snapshot), Arc::clone(&end));
        let (deadline, wanted) = Deadline::at(until, limits.time);
        let query = async move {
            let started = async { run(&engine.session(&seen, Some(deadline))?, &sql, values).await };
            match started.await {
                Ok((plan, stream)) => {
                    // Whoever asked may have gone away, and ends the query by that.
                    let _ = planned.send(Ok((stream.schema(), is_repeatable(&plan))));
                    let to = Outlet::new(engine, Some(turn), to);
                    pump(stream, to, limits, until, &reached).await;
                }
                Err(error) => drop(planned.send(Err(error))),
            }
        };
        let query = AbortOnDrop(self.background.handle().spawn(query).abort_handle());
        // A plan is made in one go, so the time is kept here.
        let (schema, repeatable) = match timeout_at(until, plan).await {
            Ok(Ok(planned)) => planned?,
            Ok(Err(_)) => return Err(QueryError::BrokeOff),
            Err(_) => return Err(QueryError::TimedOut(limits.time)),
        };
        let (epoch, time) = (snapshot.epoch, limits.time);
        Ok(Rows { schema, epoch, repeatable, rows, end, until, time, _wanted: wanted, _query: query })
    }
}

/// Where what is computed goes, and the turn of who computes it.
pub(crate) struct Outlet<T> {
    engine: Engine,
    /// `None` while whoever asked takes nothing.
    turn: Option<Turn>,
    to: mpsc::Sender<T>,
}

impl<T> Outlet<T> {
    /// An outlet of who has the turn, or is to take it before the first.
    pub(crate) fn new(engine: Engine, turn: Option<Turn>, to: mpsc::Sender<T>) -> Outlet<T> {
        Outlet { engine, turn, to }
    }

    /// Takes the turn where it was given up.
    pub(crate) async fn take_turn(&mut self) -> Result<(), QueryError> {
        if self.turn.is_none() {
            self.turn = Some(self.engine.turn().await?);
        }
        Ok(())
    }

    /// Sends something when there is room for it; `false` when nobody wants more. While there is no room for long,
    /// others have the turn; when it cannot be taken again, `busy` is what is said of it, and the last.
    pub(crate) async fn send(&mut self, what: T, busy: impl FnOnce(QueryError) -> T) -> bool {
        let mut what = what;
        let mut goes_on = true;
        if self.to.capacity() == 0 && timeout(REST_MAX, self.to.reserve()).await.is_err() {
            self.turn = None;
            if self.to.reserve().await.is_err() {
                return false;
            }
            if let Err(error) = self.take_turn().await {
                (what, goes_on) = (busy(error), false);
            }
        }
        self.to.send(what).await.is_ok() && goes_on
    }
}

/// Sends rows within the limits.
async fn pump(
    mut stream: SendableRecordBatchStream,
    mut to: Outlet<Result<RecordBatch, QueryError>>,
    limits: Limits,
    until: Instant,
    end: &End,
) {
    let mut room = limits.rows;
    let all = async {
        while let Some(rows) = stream.next().await {
            let rows = match rows {
                Ok(rows) if rows.num_rows() > room => {
                    end.cut.store(true, Ordering::Release);
                    // The end of the stream says the rest.
                    to.send(Ok(rows.slice(0, room)), Err).await;
                    return;
                }
                Ok(rows) => Ok(rows),
                Err(error) => Err(QueryError::of(error)),
            };
            let failed = rows.is_err();
            room -= rows.as_ref().map_or(0, RecordBatch::num_rows);
            if !to.send(rows, Err).await || failed {
                return;
            }
        }
    };
    if timeout_at(until, all).await.is_err() {
        // The queue may be full of rows that nobody takes. Then there is no end, which says that it broke off.
        let said = timeout(Duration::from_secs(1), to.to.send(Err(QueryError::TimedOut(limits.time)))).await;
        if !matches!(said, Ok(Ok(()))) {
            return;
        }
    }
    end.reached.store(true, Ordering::Release);
}

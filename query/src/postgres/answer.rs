//! The rows of an answer, held to the limits of their query while a client reads them in its own time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use datafusion_postgres::pgwire::api::results::{QueryResponse, Response};
use datafusion_postgres::pgwire::error::PgWireResult;
use datafusion_postgres::pgwire::messages::data::DataRow;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use metrics::counter;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{refused, unpanicked, with_state};
use crate::ask::{Limits, REST_MAX};
use crate::background::AbortOnDrop;
use crate::engine::Engine;
use crate::query_error::QueryError;
use crate::turns::Turn;

/// A query's turn, from its beginning until its rows are read or its time is over.
pub(super) struct Stay {
    held: Arc<Held>,
    _watch: AbortOnDrop,
}

struct Held {
    engine: Engine,
    limits: Limits,
    until: Instant,
    /// `None` while the client rests.
    turn: SyncMutex<Option<Turn>>,
    /// Whether rows were asked for lately.
    asked: AtomicBool,
}

impl Stay {
    /// Begins with a turn that was taken at a time until which `limits` let it go on.
    pub(super) fn begin(engine: Engine, limits: Limits, until: Instant, turn: Turn) -> Arc<Stay> {
        let (turn, asked) = (SyncMutex::new(Some(turn)), AtomicBool::new(true));
        let held = Arc::new(Held { engine, limits, until, turn, asked });
        let watched = Arc::clone(&held);
        let watch = tokio::spawn(async move {
            while Instant::now() < until {
                sleep_until(until.min(Instant::now() + REST_MAX)).await;
                if !watched.asked.swap(false, Ordering::Relaxed) {
                    watched.give_up_turn();
                }
            }
            watched.give_up_turn();
        });
        Arc::new(Stay { held, _watch: AbortOnDrop(watch.abort_handle()) })
    }

    /// Holds an answer's rows to the limits.
    pub(super) fn bound(self: &Arc<Stay>, response: Response) -> Response {
        let Response::Query(mut answer) = response else { return response };
        counter!("argus_computed_total", "kind" => "sql").increment(1);
        let fields = answer.row_schema();
        let rows = std::mem::replace(answer.data_rows(), stream::empty().boxed());
        let bounded = stream::unfold((Rows::begin(rows, self), false), |(mut rows, ended)| async move {
            if ended {
                return None;
            }
            match rows.next().await {
                Ok(Some(row)) => Some((Ok(row), (rows, false))),
                Ok(None) => None,
                Err(error) => Some((Err(error), (rows, true))),
            }
        });
        Response::Query(QueryResponse::new(fields, bounded))
    }
}

impl Held {
    fn give_up_turn(&self) {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Takes the turn again where it was given up.
    async fn turn(&self) -> Result<(), QueryError> {
        self.asked.store(true, Ordering::Relaxed);
        let is_held = self.turn.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_held {
            let turn = self.engine.turn().await?;
            self.turn.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(turn);
        }
        Ok(())
    }
}

/// Rows as they are computed. Left half read, they give back their memory when their time is over.
struct Rows {
    rows: Arc<Mutex<Option<BoxStream<'static, PgWireResult<DataRow>>>>>,
    count: usize,
    stay: Arc<Stay>,
    _expiry: AbortOnDrop,
}

impl Rows {
    fn begin(rows: BoxStream<'static, PgWireResult<DataRow>>, stay: &Arc<Stay>) -> Rows {
        let rows = Arc::new(Mutex::new(Some(rows)));
        let (expired, until) = (Arc::downgrade(&rows), stay.held.until);
        let expiry = tokio::spawn(async move {
            sleep_until(until).await;
            if let Some(rows) = expired.upgrade() {
                rows.lock().await.take();
            }
        });
        Rows { rows, count: 0, stay: Arc::clone(stay), _expiry: AbortOnDrop(expiry.abort_handle()) }
    }

    async fn next(&mut self) -> PgWireResult<Option<DataRow>> {
        let held = &self.stay.held;
        let Limits { rows: rows_max, time } = held.limits;
        let timed_out = || refused(QueryError::TimedOut(time));
        held.turn().await.map_err(refused)?;
        let mut rows = self.rows.lock().await;
        let next = match rows.as_mut() {
            Some(rows) => {
                let next = unpanicked(async { rows.next().await.transpose() });
                timeout_at(held.until, next).await.map_err(|_| timed_out())?.transpose()
            }
            None => return Err(timed_out()),
        };
        self.count += 1;
        match next {
            Some(Ok(_)) if self.count > rows_max => Err(refused(QueryError::TooManyRows(rows_max))),
            Some(row) => row.map(Some).map_err(with_state),
            None => Ok(None),
        }
    }
}

//! Enforces the limits of a query on its rows while a client reads them at its own speed.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion_postgres::pgwire::api::results::{QueryResponse, Response};
use datafusion_postgres::pgwire::error::PgWireResult;
use datafusion_postgres::pgwire::messages::data::DataRow;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::field_names::named_as_written;
use super::{refused, with_state};
use crate::engine::Engine;
use crate::engine::admission::Permit;
use crate::engine::background::AbortOnDrop;
use crate::error::QueryError;
use crate::execute::{Limits, ResultSender, TIMEOUT_GRACE};
use crate::outcome::Outcome;
use crate::sql::joins::Wanted;

/// Rows that wait for the client.
const WAITING_MAX: usize = 64;

/// A running statement: from its permit until its rows are read or its time limit is reached.
pub(super) struct RunningStatement {
    engine: Engine,
    limits: Limits,
    until: Instant,
    /// The computation of the rows takes it.
    permit: Mutex<Option<Permit>>,
    _wanted: Wanted,
}

impl RunningStatement {
    /// Begins with a permit; `until` is when the time limit in `limits` is reached.
    pub(super) fn begin(
        engine: Engine,
        limits: Limits,
        until: Instant,
        permit: Permit,
        wanted: Wanted,
    ) -> Arc<RunningStatement> {
        Arc::new(RunningStatement { engine, limits, until, permit: Mutex::new(Some(permit)), _wanted: wanted })
    }

    /// Releases the permit until rows are read.
    pub(super) fn release_permit(&self) {
        self.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Enforces the limits on an answer's rows.
    pub(super) fn bound(self: &Arc<RunningStatement>, response: Response) -> Response {
        let Response::Query(mut answer) = response else { return response };
        let fields = answer.row_schema();
        let source = std::mem::replace(answer.data_rows(), stream::empty().boxed());
        let (running, outcome) = (Arc::clone(self), Outcome::begin());
        let rows = Rows { source: Some(source), computed: None, count: 0, running, outcome };
        let bounded = stream::unfold((rows, false), |(mut rows, ended)| async move {
            if ended {
                return None;
            }
            match rows.next().await {
                Ok(Some(row)) => Some((Ok(row), (rows, false))),
                Ok(None) => None,
                Err(error) => Some((Err(error), (rows, true))),
            }
        });
        let fields = Arc::new(fields.iter().cloned().map(named_as_written).collect::<Vec<_>>());
        // A cursor can be read after its end.
        Response::Query(QueryResponse::new(fields, bounded.fuse()))
    }
}

type RowStream = BoxStream<'static, PgWireResult<DataRow>>;

/// Rows, computed in a separate task from the first read on, so that the connection can be closed meanwhile.
struct Rows {
    /// Before the first read.
    source: Option<RowStream>,
    /// After it; the last item is `None`.
    computed: Option<(mpsc::Receiver<Option<PgWireResult<DataRow>>>, AbortOnDrop)>,
    count: usize,
    running: Arc<RunningStatement>,
    outcome: Outcome,
}

impl Rows {
    async fn next(&mut self) -> PgWireResult<Option<DataRow>> {
        let next = self.receive().await;
        if !matches!(next, Ok(Some(_))) {
            self.outcome.ended(&next);
        }
        next
    }

    async fn receive(&mut self) -> PgWireResult<Option<DataRow>> {
        let RunningStatement { limits, until, .. } = *self.running;
        if let Some(source) = self.source.take() {
            self.computed = Some(compute(source, &self.running));
        }
        let next = match &mut self.computed {
            Some((rows, _)) => timeout_at(until + TIMEOUT_GRACE, rows.recv()).await.unwrap_or_default(),
            None => None,
        };
        self.count += 1;
        match next {
            Some(Some(Ok(_))) if self.count > limits.rows => Err(refused(QueryError::TooManyRows(limits.rows))),
            Some(Some(row)) => row.map(Some),
            Some(None) => Ok(None),
            // Without an end, it timed out or panicked.
            None if Instant::now() >= until => Err(refused(QueryError::TimedOut(limits.time))),
            None => Err(refused(QueryError::Aborted)),
        }
    }
}

/// Computes rows until the client wants no more or the time limit of the statement is reached. Then rows that were only
/// partly read release their memory.
fn compute(
    mut source: RowStream,
    running: &RunningStatement,
) -> (mpsc::Receiver<Option<PgWireResult<DataRow>>>, AbortOnDrop) {
    let (to, rows) = mpsc::channel(WAITING_MAX);
    // Of several statements in one message, the first takes it.
    let permit = running.permit.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut to = ResultSender::new(running.engine.clone(), permit, to);
    let busy = |error| Some(Err(refused(error)));
    let all = async move {
        if let Err(error) = to.acquire_permit().await {
            to.send(busy(error), busy).await;
            return;
        }
        while let Some(row) = source.next().await {
            let failed = row.is_err();
            if !to.send(Some(row.map_err(with_state)), busy).await || failed {
                return;
            }
        }
        to.send(None, busy).await;
    };
    let task = tokio::spawn(timeout_at(running.until, all));
    (rows, AbortOnDrop(task.abort_handle()))
}

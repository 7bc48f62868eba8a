//! The rows of an answer, held to the limits of their query while a client reads them in its own time.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion_postgres::pgwire::api::results::{QueryResponse, Response};
use datafusion_postgres::pgwire::error::PgWireResult;
use datafusion_postgres::pgwire::messages::data::DataRow;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::door::named_as_written;
use super::{refused, with_state};
use crate::ask::{LATE_MAX, Limits, Outlet};
use crate::background::AbortOnDrop;
use crate::engine::Engine;
use crate::joins::Wanted;
use crate::query_error::QueryError;
use crate::turns::Turn;

/// Rows that wait for the client.
const WAITING_MAX: usize = 64;

/// A statement's stay: from its turn on until its rows are read or its time is over.
pub(super) struct Stay {
    engine: Engine,
    limits: Limits,
    until: Instant,
    /// Until rows are computed, which takes it.
    turn: Mutex<Option<Turn>>,
    _wanted: Wanted,
}

impl Stay {
    /// Begins with a turn that was taken at a time until which `limits` let it go on.
    pub(super) fn begin(engine: Engine, limits: Limits, until: Instant, turn: Turn, wanted: Wanted) -> Arc<Stay> {
        Arc::new(Stay { engine, limits, until, turn: Mutex::new(Some(turn)), _wanted: wanted })
    }

    /// Lets others have the turn until rows are asked for.
    pub(super) fn give_back_turn(&self) {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Holds an answer's rows to the limits.
    pub(super) fn bound(self: &Arc<Stay>, response: Response) -> Response {
        let Response::Query(mut answer) = response else { return response };
        counter!("argus_computed_total", "kind" => "sql").increment(1);
        let fields = answer.row_schema();
        let source = std::mem::replace(answer.data_rows(), stream::empty().boxed());
        let rows = Rows { source: Some(source), computed: None, count: 0, stay: Arc::clone(self) };
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
        // A cursor is asked for more behind its end.
        Response::Query(QueryResponse::new(fields, bounded.fuse()))
    }
}

type RowStream = BoxStream<'static, PgWireResult<DataRow>>;

/// Rows, computed in a task of their own once somebody asks for the first: the connection can be ended meanwhile.
struct Rows {
    /// Before that.
    source: Option<RowStream>,
    /// From then on; the last is `None`.
    computed: Option<(mpsc::Receiver<Option<PgWireResult<DataRow>>>, AbortOnDrop)>,
    count: usize,
    stay: Arc<Stay>,
}

impl Rows {
    async fn next(&mut self) -> PgWireResult<Option<DataRow>> {
        let Stay { limits, until, .. } = *self.stay;
        if let Some(source) = self.source.take() {
            self.computed = Some(compute(source, &self.stay));
        }
        let next = match &mut self.computed {
            Some((rows, _)) => timeout_at(until + LATE_MAX, rows.recv()).await.unwrap_or_default(),
            None => None,
        };
        self.count += 1;
        match next {
            Some(Some(Ok(_))) if self.count > limits.rows => Err(refused(QueryError::TooManyRows(limits.rows))),
            Some(Some(row)) => row.map(Some),
            Some(None) => Ok(None),
            // Without an end, it was late or it died.
            None if Instant::now() >= until => Err(refused(QueryError::TimedOut(limits.time))),
            None => Err(refused(QueryError::BrokeOff)),
        }
    }
}

/// Computes rows until nobody wants more or the time of their statement is over. Left half read, they give back their
/// memory then.
fn compute(mut source: RowStream, stay: &Stay) -> (mpsc::Receiver<Option<PgWireResult<DataRow>>>, AbortOnDrop) {
    let (to, rows) = mpsc::channel(WAITING_MAX);
    // Of several statements in one message, the first has it.
    let turn = stay.turn.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut to = Outlet::new(stay.engine.clone(), turn, to);
    let busy = |error| Some(Err(refused(error)));
    let all = async move {
        if let Err(error) = to.take_turn().await {
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
    let task = tokio::spawn(timeout_at(stay.until, all));
    (rows, AbortOnDrop(task.abort_handle()))
}

//! SQL over the PostgreSQL protocol, for psql, Grafana and drivers.
//!
//! The crate `datafusion-postgres` speaks the protocol and knows what clients ask
//! of `pg_catalog`. What is ours stands around it:
//!
//! ```text
//!  client ──► guard ──► (the crate) ──► door ──► engine
//!                            │
//!              only_queries, tidy: what a statement may be
//! ```
//!
//! Only queries run. `SET` and `SHOW`, `BEGIN` and `COMMIT`, `RESET` and `DISCARD`
//! are answered, for drivers send them, and change at most the connection.

mod answer;
mod arriving;
mod commands;
mod door;
mod execute;
mod functions;
mod guard;
mod kept;
mod only_queries;
mod tidy;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use datafusion::catalog::SchemaProvider;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::setup_pg_catalog;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::tokio::process_socket_unix;
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::arriving::Arriving;
use self::door::Door;
use self::guard::guard;
use crate::ask::Limits;
use crate::engine::{CATALOG, Engine};
use crate::query_error::QueryError;

/// Clients at once; one more is told so and sent away.
const CLIENTS_MAX: usize = 100;
/// Connections that have not said yet what they want, or want to end a client's query; for one more, the oldest is closed.
const ARRIVING_MAX: usize = 32;

/// The settings and the `pg_catalog` of sessions that PostgreSQL clients get.
pub(crate) struct PgSessions {
    pub(crate) state: SessionState,
    pub(crate) catalog: Arc<dyn SchemaProvider>,
}

impl PgSessions {
    /// What the tables are called does not change, so that is made once, from a session without rows.
    pub(crate) fn of(empty: &SessionContext) -> Result<PgSessions, DataFusionError> {
        setup_pg_catalog(empty, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
        empty.register_udf(tidy::unlock_all());
        functions::register(empty)?;
        let state = empty.state();
        let catalog = state.catalog_list().catalog(CATALOG).and_then(|catalog| catalog.schema("pg_catalog"));
        let catalog = catalog.ok_or_else(|| DataFusionError::Internal("pg_catalog was not made".into()))?;
        Ok(PgSessions { state, catalog })
    }
}

/// Answers connections until `stopped`.
pub fn serve(
    listener: TcpListener,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<impl Future<Output = ()> + Send + 'static, QueryError> {
    let threads = engine.background.handle();
    let door = Arc::new(Door::new(engine, snapshots, limits)?);
    let (clients, arriving) = (Arc::new(Semaphore::new(CLIENTS_MAX)), Arriving::new(ARRIVING_MAX));
    let answering = async move {
        // Those that are open end with it.
        let mut connections = JoinSet::new();
        tokio::pin!(stopped);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stopped => return,
            };
            let Ok((socket, _)) = accepted else {
                // Too many open files, say: what closes makes room.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            let (door, clients, place) = (Arc::clone(&door), Arc::clone(&clients), arriving.take_place());
            connections.spawn(async move {
                if let Err(error) = guard(socket, place, &clients, |socket| process_socket_unix(socket, door)).await {
                    tracing::debug!(%error, "a PostgreSQL connection broke off");
                }
            });
        }
    };
    // Statements are planned and run where a connection is answered.
    let task = threads.spawn(answering);
    Ok(async move {
        // Whatever ended it, there is nothing to answer any more.
        let _ = task.await;
    })
}

fn failed(error: DataFusionError) -> PgWireError {
    refused(QueryError::of(error))
}

/// What a part of a statement comes to. The engine has faults that panic, which must not end the connection.
async fn unpanicked<T>(part: impl Future<Output = PgWireResult<T>>) -> PgWireResult<T> {
    AssertUnwindSafe(part).catch_unwind().await.unwrap_or_else(|_| Err(refused(QueryError::BrokeOff)))
}

/// What the crate says of a statement that it could not plan or run, with the SQLSTATE that it leaves out.
fn with_state(error: PgWireError) -> PgWireError {
    let PgWireError::ApiError(error) = error else { return error };
    match error.downcast::<DataFusionError>().map(|error| failed(*error)) {
        Ok(known) => known,
        Err(error) => match error.downcast::<ParserError>() {
            Ok(error) => failed(DataFusionError::SQL(error, None)),
            Err(error) => PgWireError::ApiError(error),
        },
    }
}

fn refused(error: QueryError) -> PgWireError {
    with_code(error.sqlstate(), error.to_string())
}

fn with_code(state: &str, what: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), state.to_owned(), what.into())))
}

//! SQL over the PostgreSQL protocol, for psql, Grafana and drivers.
//!
//! The crate `datafusion-postgres` ("the crate" below) implements the protocol and `pg_catalog`.
//! Our code wraps it:
//!
//! ```text
//!  client ──► guard ──► (the crate) ──► handlers ──► engine
//!                            │
//!              only_queries, session_reset: which statements are allowed
//! ```
//!
//! Only queries run. `SET` and `SHOW`, `BEGIN` and `COMMIT`, `RESET` and `DISCARD`
//! are answered because drivers send them; they change the connection at most.

mod commands;
mod execute;
mod field_names;
mod functions;
mod guard;
mod handlers;
mod only_queries;
mod prepared_statements;
mod running_statement;
mod session_reset;
mod session_template;
mod startup;
mod startup_slots;

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::tokio::process_socket_unix;
use futures::FutureExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use self::guard::guard;
use self::handlers::Handlers;
use self::startup_slots::Arriving;
use super::authenticator::Authenticator;
use crate::engine::Engine;
use crate::error::QueryError;
use crate::execute::Limits;

/// Clients at once; further ones get an error.
const CLIENTS_MAX: usize = 100;
/// Connections that have not sent their first message yet, or that cancel a query; a further one evicts the oldest.
const ARRIVING_MAX: usize = 32;

/// Serves connections until `stopped`.
pub fn serve(
    listener: TcpListener,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    authenticator: Arc<dyn Authenticator>,
    stopped: impl Future<Output = ()> + Send + 'static,
) -> Result<impl Future<Output = ()> + Send + 'static, QueryError> {
    let threads = engine.background.handle();
    let handlers = Arc::new(Handlers::new(engine, snapshots, limits, authenticator)?);
    let (clients, arriving) = (Arc::new(Semaphore::new(CLIENTS_MAX)), Arriving::new(ARRIVING_MAX));
    let serving = async move {
        // Open connections end when this is dropped.
        let mut connections = JoinSet::new();
        tokio::pin!(stopped);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stopped => return,
            };
            let Ok((socket, _)) = accepted else {
                // For example too many open files: retry when others may have closed.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            while connections.try_join_next().is_some() {}
            let (handlers, clients, slot) = (Arc::clone(&handlers), Arc::clone(&clients), arriving.take_slot());
            connections.spawn(async move {
                if let Err(error) = guard(socket, slot, &clients, |socket| process_socket_unix(socket, handlers)).await
                {
                    tracing::debug!(%error, "a PostgreSQL connection failed");
                }
            });
        }
    };
    // Statements are planned and run on the threads that serve the connection.
    let task = threads.spawn(serving);
    Ok(async move {
        // However the task ended, there is nothing left to serve.
        let _ = task.await;
    })
}

fn failed(error: DataFusionError) -> PgWireError {
    refused(QueryError::of(error))
}

/// Runs a part of a statement. The engine has bugs that panic, which must not end the connection.
async fn catch_panic<T>(part: impl Future<Output = PgWireResult<T>>) -> PgWireResult<T> {
    AssertUnwindSafe(part).catch_unwind().await.unwrap_or_else(|_| Err(refused(QueryError::Aborted)))
}

/// The crate's error for a statement that it could not plan or run, with the SQLSTATE that the crate omits.
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

fn with_code(state: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), state.to_owned(), message.into())))
}

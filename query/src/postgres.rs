//! SQL over the PostgreSQL protocol, for psql, Grafana and drivers.
//!
//! The crate `datafusion-postgres` speaks the protocol and knows what clients ask
//! of `pg_catalog`. Its service keeps one session for good; ours must see a new
//! snapshot with every statement. So each statement gets a service of its own
//! over a session of its own, and a prepared one is planned anew when it runs.
//!
//! Only queries run. `SET` and `SHOW`, `BEGIN` and `COMMIT` are answered, for
//! drivers send them, and change nothing.

mod guard;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use async_trait::async_trait;
use datafusion::catalog::SchemaProvider;
use datafusion::common::ParamValues;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::{Set, Statement};
use datafusion_postgres::arrow_pg::datatypes::df::encode_dataframe;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::setup_pg_catalog;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::auth::StartupHandler;
use datafusion_postgres::pgwire::api::auth::noop::NoopStartupHandler;
use datafusion_postgres::pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::results::{FieldInfo, QueryResponse, Response};
use datafusion_postgres::pgwire::api::stmt::{QueryParser, StoredStatement};
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, ConnectionManager, PgWireServerHandlers, Type};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::tokio::process_socket_unix;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use datafusion_postgres::{DfSessionService, Parser, QueryHook};
use futures::{Sink, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ask::Limits;
use crate::background::AbortOnDrop;
use crate::engine::{CATALOG, Engine};
use crate::postgres::guard::guard;
use crate::query_error::QueryError;
use crate::statement::{check_plan, check_size};
use crate::turns::Turn;

/// Connections at once; one more is closed.
const CONNECTIONS_MAX: usize = 100;

/// The settings and the `pg_catalog` of sessions that PostgreSQL clients get.
pub(crate) struct PgSessions {
    pub(crate) state: SessionState,
    pub(crate) catalog: Arc<dyn SchemaProvider>,
}

impl PgSessions {
    /// What the tables are called does not change, so that is made once, from a session without rows.
    pub(crate) fn of(empty: &SessionContext) -> Result<PgSessions, DataFusionError> {
        setup_pg_catalog(empty, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
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
            if connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let door = Arc::clone(&door);
            connections.spawn(async move {
                if let Err(error) = guard(socket, |socket| process_socket_unix(socket, door)).await {
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

#[derive(Clone)]
struct Door {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    /// Knows the tables' columns, and has no rows.
    planner: Arc<Parser>,
    startup: Arc<Startup>,
    cancel: Arc<DefaultCancelHandler>,
}

type DoorStatement = <DfSessionService as ExtendedQueryHandler>::Statement;

impl Door {
    fn new(engine: Engine, snapshots: watch::Receiver<Arc<Snapshot>>, limits: Limits) -> Result<Door, QueryError> {
        let planner = service(engine.pg_session(&Arc::default())?).query_parser();
        let connections = Arc::new(ConnectionManager::new());
        let startup = Arc::new(Startup(Arc::clone(&connections)));
        Ok(Door {
            engine,
            snapshots,
            limits,
            planner,
            startup,
            cancel: Arc::new(DefaultCancelHandler::new(connections)),
        })
    }

    /// A service that sees the snapshot of now.
    fn service(&self) -> Result<DfSessionService, QueryError> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        Ok(service(self.engine.pg_session(&snapshot)?))
    }

    /// Runs a statement within a turn and the time.
    async fn within<T>(&self, statement: impl Future<Output = PgWireResult<T>>) -> PgWireResult<(T, Stay)> {
        let until = Instant::now() + self.limits.time;
        let turn = self.engine.turn().await.map_err(refused)?;
        let stay = Stay::begin(turn, until);
        match tokio::time::timeout_at(until, statement).await {
            Ok(done) => Ok((done?, stay)),
            Err(_) => Err(refused(QueryError::TimedOut(self.limits.time))),
        }
    }

    /// Holds an answer's rows to the limits.
    fn bounded(&self, response: Response, stay: &Arc<Stay>) -> Response {
        let Response::Query(mut answer) = response else { return response };
        let (limits, stay) = (self.limits, Arc::clone(stay));
        let fields = answer.row_schema();
        let rows = std::mem::replace(answer.data_rows(), futures::stream::empty().boxed());
        // An answer that is left half read gives back its memory when its time is over.
        let rows = Arc::new(Mutex::new(Some(rows)));
        let expiry = {
            let (rows, until) = (Arc::downgrade(&rows), stay.until);
            AbortOnDrop(
                tokio::spawn(async move {
                    tokio::time::sleep_until(until).await;
                    if let Some(rows) = rows.upgrade() {
                        rows.lock().await.take();
                    }
                })
                .abort_handle(),
            )
        };
        let begin = (rows, 0_usize, false, (stay, expiry));
        let rows = futures::stream::unfold(begin, move |(rows, count, ended, held)| async move {
            if ended {
                return None;
            }
            let next = match rows.lock().await.as_mut() {
                Some(rows) => tokio::time::timeout_at(held.0.until, rows.next()).await.ok(),
                None => None,
            };
            let (said, ended) = match next {
                Some(Some(_)) if count >= limits.rows => (Err(refused(QueryError::TooManyRows(limits.rows))), true),
                Some(Some(row)) => (row, false),
                Some(None) => return None,
                None => (Err(refused(QueryError::TimedOut(limits.time))), true),
            };
            Some((said, (rows, count + 1, ended, held)))
        });
        Response::Query(QueryResponse::new(fields, rows))
    }
}

fn service(context: SessionContext) -> DfSessionService {
    let hooks: Vec<Arc<dyn QueryHook>> =
        vec![Arc::new(OnlyQueries), Arc::new(SetShowHook), Arc::new(TransactionStatementHook)];
    DfSessionService::new_with_hooks(Arc::new(context), hooks)
}

/// A turn that ends with its answer, and at the latest when its time is over:
/// a client may leave an answer half read.
struct Stay {
    until: Instant,
    _done: oneshot::Sender<()>,
}

impl Stay {
    fn begin(turn: Turn, until: Instant) -> Stay {
        let (_done, done) = oneshot::channel::<()>();
        tokio::spawn(async move {
            // Done or out of time, the turn is over.
            let _ = tokio::time::timeout_at(until, done).await;
            drop(turn);
        });
        Stay { until, _done }
    }
}

#[async_trait]
impl SimpleQueryHandler for Door {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_size(query).map_err(refused)?;
        // All statements of one message see one snapshot.
        let service = self.service().map_err(refused)?;
        let (responses, stay) = self.within(SimpleQueryHandler::do_query(&service, client, query)).await?;
        let stay = Arc::new(stay);
        Ok(responses.into_iter().map(|response| self.bounded(response, &stay)).collect())
    }
}

#[async_trait]
impl ExtendedQueryHandler for Door {
    type Statement = DoorStatement;
    type QueryParser = Planner;

    fn query_parser(&self) -> Arc<Planner> {
        Arc::new(Planner { parser: Arc::clone(&self.planner), engine: self.engine.clone() })
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<DoorStatement>,
        max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = DoorStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let service = self.service().map_err(refused)?;
        let run = async {
            // It was planned without rows; now it is planned with those of now.
            let prepared = &portal.statement;
            let sql = &prepared.statement.0;
            let planned = service.query_parser().parse_sql(client, sql, &prepared.parameter_types).await?;
            let Some(statement) = planned else { return Ok(Response::EmptyQuery) };
            let statement = StoredStatement::new(prepared.id.clone(), statement, prepared.parameter_types.clone());
            let mut planned = Portal::new_cursor(portal.name.clone(), Arc::new(statement));
            planned.parameter_format = portal.parameter_format.clone();
            planned.parameters.clone_from(&portal.parameters);
            planned.result_column_format = portal.result_column_format.clone();
            ExtendedQueryHandler::do_query(&service, client, &planned, max_rows).await
        };
        let (response, stay) = self.within(run).await?;
        Ok(self.bounded(response, &Arc::new(stay)))
    }
}

/// Plans statements that are prepared.
struct Planner {
    parser: Arc<Parser>,
    engine: Engine,
}

#[async_trait]
impl QueryParser for Planner {
    type Statement = DoorStatement;

    async fn parse_sql<C>(&self, client: &C, sql: &str, types: &[Option<Type>]) -> PgWireResult<Option<DoorStatement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        check_size(sql).map_err(refused)?;
        // A plan takes a thread like the rows do.
        let _turn = self.engine.turn().await.map_err(refused)?;
        self.parser.parse_sql(client, sql, types).await
    }

    fn get_parameter_types(&self, statement: &DoorStatement) -> PgWireResult<Vec<Type>> {
        self.parser.get_parameter_types(statement)
    }

    fn get_result_schema(&self, statement: &DoorStatement, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        self.parser.get_result_schema(statement, format)
    }
}

impl PgWireServerHandlers for Door {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::new(self.clone())
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::new(self.clone())
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        Arc::clone(&self.startup)
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::clone(&self.cancel)
    }
}

/// Everybody may come in who can reach the address.
struct Startup(Arc<ConnectionManager>);

impl NoopStartupHandler for Startup {
    fn connection_manager(&self) -> Option<Arc<ConnectionManager>> {
        Some(Arc::clone(&self.0))
    }
}

/// Lets queries through, and what drivers say around them.
struct OnlyQueries;

impl OnlyQueries {
    fn check(statement: &Statement) -> PgWireResult<()> {
        let harmless = match statement {
            Statement::Query(_)
            | Statement::Explain { .. }
            | Statement::ShowVariable { .. }
            | Statement::ShowStatus { .. }
            | Statement::ShowCatalogs { .. }
            | Statement::StartTransaction { .. }
            | Statement::Commit { .. }
            | Statement::Rollback { .. } => true,
            // The engine's own settings hold its limits.
            Statement::Set(set) => !sets_engine(set),
            _ => false,
        };
        if harmless { Ok(()) } else { Err(refused(QueryError::NotAQuery)) }
    }
}

fn sets_engine(set: &Set) -> bool {
    set.to_string().to_ascii_lowercase().contains("datafusion")
}

#[async_trait]
impl QueryHook for OnlyQueries {
    async fn handle_simple_query(
        &self,
        statement: &Statement,
        context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if let Err(error) = OnlyQueries::check(statement) {
            return Some(Err(error));
        }
        if !matches!(statement, Statement::Query(_) | Statement::Explain { .. }) {
            return None;
        }
        let run = async {
            let parsed = Parsed::Statement(Box::new(statement.clone()));
            let plan = context.state().statement_to_plan(parsed).await.map_err(failed)?;
            check_plan(&plan).map_err(refused)?;
            let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
            let options = FormatOptions::from_client_metadata(client.metadata());
            encode_dataframe(frame, &Format::UnifiedText, Some(Arc::new(options))).await.map(Response::Query)
        };
        Some(run.await)
    }

    async fn handle_extended_parse_query(
        &self,
        statement: &Statement,
        _context: &SessionContext,
        _client: &(dyn ClientInfo + Send + Sync),
    ) -> Option<PgWireResult<LogicalPlan>> {
        OnlyQueries::check(statement).err().map(Err)
    }

    async fn handle_extended_query(
        &self,
        statement: &Statement,
        plan: &LogicalPlan,
        _parameters: &ParamValues,
        _context: &SessionContext,
        _client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if !matches!(statement, Statement::Query(_) | Statement::Explain { .. }) {
            return OnlyQueries::check(statement).err().map(Err);
        }
        check_plan(plan).err().map(|error| Err(refused(error)))
    }
}

fn failed(error: DataFusionError) -> PgWireError {
    refused(QueryError::of(error))
}

/// An error with its SQLSTATE (PostgreSQL, appendix A).
fn refused(error: QueryError) -> PgWireError {
    let state = match &error {
        QueryError::NotAQuery => "25006",
        QueryError::Invalid(_) => "42000",
        QueryError::TimedOut(_) => "57014",
        QueryError::TooLarge | QueryError::TooManyRows(_) => "53200",
        QueryError::TooLong | QueryError::TooManyCalls => "54000",
        QueryError::Busy => "53300",
        QueryError::Failed(_) | QueryError::BrokeOff => "58000",
    };
    PgWireError::UserError(Box::new(ErrorInfo::new("ERROR".to_owned(), state.to_owned(), error.to_string())))
}

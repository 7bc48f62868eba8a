//! Where the PostgreSQL protocol's statements reach the engine.
//!
//! The crate's service keeps one session for good; ours must see a new snapshot
//! with every statement. So each statement gets a service of its own over a
//! session of its own, and a prepared one is planned anew when it runs.

use std::future::Future;
use std::sync::Arc;

use argus_sinks::Snapshot;
use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::auth::StartupHandler;
use datafusion_postgres::pgwire::api::auth::noop::NoopStartupHandler;
use datafusion_postgres::pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use datafusion_postgres::pgwire::api::results::{FieldInfo, QueryResponse, Response};
use datafusion_postgres::pgwire::api::stmt::{QueryParser, StoredStatement};
use datafusion_postgres::pgwire::api::store::{Entry, PortalStore};
use datafusion_postgres::pgwire::api::{
    ClientInfo, ClientPortalStore, ConnectionHandle, ConnectionManager, DEFAULT_NAME, PgWireServerHandlers, Type,
};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Parse, ParseComplete, TARGET_TYPE_BYTE_STATEMENT,
};
use datafusion_postgres::pgwire::messages::{Message, PgWireBackendMessage, PgWireFrontendMessage};
use datafusion_postgres::{DfSessionService, Parser, QueryHook};
use futures::channel::oneshot::Receiver;
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Sink, SinkExt, StreamExt};
use metrics::counter;
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::Instant;

use super::kept::{Kept, Name};
use super::only_queries::OnlyQueries;
use super::tidy::{Tidy, remember_settings};
use super::{refused, with_state};
use crate::ask::Limits;
use crate::background::AbortOnDrop;
use crate::engine::Engine;
use crate::query_error::QueryError;
use crate::statement::check_size;
use crate::turns::Turn;

/// Answers the statements of all connections. Clones share what is behind it.
#[derive(Clone)]
pub(super) struct Door {
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
    pub(super) fn new(
        engine: Engine,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        limits: Limits,
    ) -> Result<Door, QueryError> {
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

    /// Runs a statement within a turn and the time. From then on what `cancels` says ends its rows.
    async fn within<T>(
        &self,
        cancels: Option<Arc<Cancels>>,
        statement: impl Future<Output = PgWireResult<T>>,
    ) -> PgWireResult<(T, Stay)> {
        let until = Instant::now() + self.limits.time;
        let turn = self.engine.turn().await.map_err(refused)?;
        let done = tokio::time::timeout_at(until, statement).await;
        let done = done.unwrap_or_else(|_| Err(refused(QueryError::TimedOut(self.limits.time)))).map_err(with_state)?;
        // The crate listens for a cancel until the rows are there; this listens while they are computed.
        let asked = match cancels {
            Some(cancels) => Some(cancels.start_query().await),
            None => None,
        };
        Ok((done, Stay::begin(turn, until, asked)))
    }

    /// Holds an answer's rows to the limits.
    fn bounded(&self, response: Response, stay: &Arc<Stay>) -> Response {
        let Response::Query(mut answer) = response else { return response };
        counter!("argus_computed_total", "kind" => "sql").increment(1);
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
                Some(rows) => tokio::select! {
                    next = tokio::time::timeout_at(held.0.until, rows.next()) => next.ok(),
                    () = held.0.cancelled.clone() => Some(Some(Err(PgWireError::QueryCanceled))),
                },
                None => None,
            };
            let (said, ended) = match next {
                Some(Some(Err(error))) => (Err(error), true),
                Some(Some(Ok(_))) if count >= limits.rows => (Err(refused(QueryError::TooManyRows(limits.rows))), true),
                Some(Some(Ok(row))) => (Ok(row), false),
                Some(None) => return None,
                None => (Err(refused(QueryError::TimedOut(limits.time))), true),
            };
            if ended {
                rows.lock().await.take();
            }
            Some((said, (rows, count + 1, ended, held)))
        });
        Response::Query(QueryResponse::new(fields, rows))
    }
}

fn service(context: SessionContext) -> DfSessionService {
    let hooks: Vec<Arc<dyn QueryHook>> =
        vec![Arc::new(OnlyQueries), Arc::new(Tidy), Arc::new(SetShowHook), Arc::new(TransactionStatementHook)];
    DfSessionService::new_with_hooks(Arc::new(context), hooks)
}

/// A turn that ends with its answer, and at the latest when its time is over:
/// a client may leave an answer half read.
struct Stay {
    until: Instant,
    cancelled: Shared<BoxFuture<'static, ()>>,
    _done: oneshot::Sender<()>,
}

/// By which another connection ends this one's query.
type Cancels = Arc<ConnectionHandle>;

impl Stay {
    fn begin(turn: Turn, until: Instant, asked: Option<Receiver<()>>) -> Stay {
        let (_done, done) = oneshot::channel::<()>();
        tokio::spawn(async move {
            // Done or out of time, the turn is over.
            let _ = tokio::time::timeout_at(until, done).await;
            drop(turn);
        });
        let cancelled = async move {
            let cancelled = match asked {
                Some(asked) => asked.await.is_ok(),
                None => false,
            };
            if !cancelled {
                // The next statement listens now.
                std::future::pending().await
            }
        };
        Stay { until, cancelled: cancelled.boxed().shared(), _done }
    }
}

fn cancels(client: &impl ClientInfo) -> Option<Arc<Cancels>> {
    client.session_extensions().get::<Cancels>()
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
        let (responses, stay) =
            self.within(cancels(client), SimpleQueryHandler::do_query(&service, client, query)).await?;
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

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = DoorStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let parsed = StoredStatement::parse(client, &message, self.query_parser()).await?;
        let bytes = message.message_length();
        let name = message.name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
        Kept::of(client).note(Name::Statement(name.clone()), bytes)?;
        match parsed {
            Some(statement) => client.portal_store().put_statement(Arc::new(statement)),
            None => client.portal_store().put_empty_statement(&name),
        }
        client.send(PgWireBackendMessage::ParseComplete(ParseComplete::new())).await?;
        Ok(())
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = DoorStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let bytes = message.message_length();
        let statement = message.statement_name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let Some(statement) = client.portal_store().get_statement(&statement) else {
            return Err(PgWireError::StatementNotFound(statement));
        };
        let name = message.portal_name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        match statement {
            Entry::Value(statement) => {
                let portal = Portal::try_new(&message, statement)?;
                Kept::of(client).note(Name::Portal(name), bytes)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Entry::Empty => {
                Kept::of(client).note(Name::Portal(name.clone()), bytes)?;
                client.portal_store().put_empty_portal(&name);
            }
        }
        client.send(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = DoorStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.unwrap_or_else(|| DEFAULT_NAME.to_owned());
        if message.target_type == TARGET_TYPE_BYTE_STATEMENT {
            client.portal_store().rm_statement(&name);
            Kept::of(client).close(&Name::Statement(name));
        } else {
            client.portal_store().rm_portal(&name);
            Kept::of(client).close(&Name::Portal(name));
        }
        client.send(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
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
        let cancels = cancels(client);
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
        let (response, stay) = self.within(cancels, run).await?;
        Ok(self.bounded(response, &Arc::new(stay)))
    }
}

/// Plans statements that are prepared.
pub(super) struct Planner {
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
        self.parser.parse_sql(client, sql, types).await.map_err(with_state)
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

#[async_trait]
impl NoopStartupHandler for Startup {
    fn connection_manager(&self) -> Option<Arc<ConnectionManager>> {
        Some(Arc::clone(&self.0))
    }

    async fn post_startup<C>(&self, client: &mut C, _message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        remember_settings(client);
        Ok(())
    }
}

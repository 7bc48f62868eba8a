//! Runs the statements of PostgreSQL clients on the engine.
//!
//! The crate's service has one permanent session, but every statement must see a new
//! snapshot. So each statement gets its own service with its own session, and a
//! prepared statement is planned again when it runs.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argus_sinks::Snapshot;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser as SqlParser;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use datafusion_postgres::pgwire::api::METADATA_USER;
use datafusion_postgres::pgwire::api::auth::StartupHandler;
use datafusion_postgres::pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler, send_ready_for_query};
use datafusion_postgres::pgwire::api::results::{FieldInfo, Response};
use datafusion_postgres::pgwire::api::stmt::{QueryParser, StoredStatement};
use datafusion_postgres::pgwire::api::store::{Entry, PortalStore};
use datafusion_postgres::pgwire::api::{
    ClientInfo, ClientPortalStore, ConnectionGuard, ConnectionHandle, ConnectionManager, DEFAULT_NAME,
    PgWireConnectionState, PgWireServerHandlers, Type,
};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Execute, Parse, ParseComplete, Sync as PgSync, TARGET_TYPE_BYTE_STATEMENT,
};
use datafusion_postgres::pgwire::messages::simplequery::Query;
use datafusion_postgres::pgwire::messages::{Message, PgWireBackendMessage};
use datafusion_postgres::{DfSessionService, Parser, QueryHook};
use futures::channel::oneshot::Receiver;
use futures::{Sink, SinkExt};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::only_queries::OnlyQueries;
use super::prepared_statements::{Name, PreparedStatements, end_portals};
use super::running_statement::RunningStatement;
use super::session_reset::{STATEMENT_TIMEOUT, Tidy};
use super::startup::Startup;
use super::{catch_panic, failed, refused, with_code, with_state};
use crate::engine::Engine;
use crate::error::QueryError;
use crate::execute::Limits;
use crate::servers::authenticator::{Authenticator, RunBy, RunStatement};
use crate::servers::postgres::field_names::named_as_written;
use crate::servers::postgres::session_template::session_template;
use crate::sql::joins::{Deadline, Wanted};
use crate::sql::rewrite::{rewrite, rewrite_of_catalog};
use crate::sql::statement::check_size;

/// Answers the statements of all connections. Clones share everything.
#[derive(Clone)]
pub(super) struct Handlers {
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    limits: Limits,
    /// Plans prepared statements, on tables without rows.
    planner: Arc<Parser>,
    connections: Arc<ConnectionManager>,
    authenticator: Arc<dyn Authenticator>,
    cancel: Arc<DefaultCancelHandler>,
}

/// A statement that the crate has prepared.
pub(super) type ParsedStatement = <DfSessionService as ExtendedQueryHandler>::Statement;

impl Handlers {
    pub(super) fn new(
        engine: Engine,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        limits: Limits,
        authenticator: Arc<dyn Authenticator>,
    ) -> Result<Handlers, QueryError> {
        let planner = service(engine.pg_session(&Arc::default(), None, session_template)?).query_parser();
        let connections = Arc::new(ConnectionManager::new());
        Ok(Handlers {
            engine,
            snapshots,
            limits,
            planner,
            cancel: Arc::new(DefaultCancelHandler::new(Arc::clone(&connections))),
            connections,
            authenticator,
        })
    }

    /// A session that sees the latest snapshot, for a statement with a time limit.
    fn session(&self, until: Instant, time: Duration) -> Result<(SessionContext, Wanted), QueryError> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let (deadline, wanted) = Deadline::at(until, time);
        Ok((self.engine.pg_session(&snapshot, Some(deadline), session_template)?, wanted))
    }

    /// Runs a statement with a permit and a time limit. The permit and the remaining time then apply to its rows.
    pub(super) async fn within<T>(
        &self,
        limits: Limits,
        statement: impl AsyncFnOnce(SessionContext) -> PgWireResult<T>,
    ) -> PgWireResult<(T, Arc<RunningStatement>)> {
        let until = Instant::now() + limits.time;
        let timed_out = |_| refused(QueryError::TimedOut(limits.time));
        let permit = timeout_at(until, self.engine.permit()).await.map_err(timed_out)?.map_err(refused)?;
        let (session, wanted) = self.session(until, limits.time).map_err(refused)?;
        let done = timeout_at(until, catch_panic(statement(session))).await.map_err(timed_out)?.map_err(with_state)?;
        Ok((done, RunningStatement::begin(self.engine.clone(), limits, until, permit, wanted)))
    }

    fn note(&self, client: &impl ClientInfo, sql: &str) {
        let user = client.metadata().get(METADATA_USER).map(String::as_str);
        let from = Some(client.socket_addr().ip());
        self.authenticator.note(&RunStatement {
            protocol: "postgres",
            by: user.map_or(RunBy::Anybody, RunBy::User),
            from,
            sql,
        });
    }

    /// The limits of a client's statements: `statement_timeout` may lower those of the server.
    pub(super) fn limits_for(&self, client: &impl ClientInfo) -> Limits {
        let time = client.metadata().get(STATEMENT_TIMEOUT).and_then(|time| time.parse().ok());
        let time = time.map_or(self.limits.time, |time| self.limits.time.min(Duration::from_millis(time)));
        Limits { time, ..self.limits }
    }
}

fn service(context: SessionContext) -> DfSessionService {
    let hooks: Vec<Arc<dyn QueryHook>> =
        vec![Arc::new(OnlyQueries), Arc::new(Tidy), Arc::new(SetShowHook), Arc::new(TransactionStatementHook)];
    DfSessionService::new_with_hooks(Arc::new(context), hooks)
}

/// Rewrites statements for the engine's dialect.
pub(super) fn rewrite_for_engine(sql: &str) -> PgWireResult<Cow<'_, str>> {
    if !names_catalog(sql) {
        return rewrite(sql, &PostgreSqlDialect {}).map_err(refused);
    }
    // The crate recognises many known catalog queries and rewrites them.
    static KNOWN: LazyLock<PostgresCompatibilityParser> = LazyLock::new(PostgresCompatibilityParser::new);
    let Ok(statements) = KNOWN.parse(sql) else { return Ok(Cow::Borrowed(sql)) };
    Ok(rewrite_of_catalog(statements).map_err(refused)?.map_or(Cow::Borrowed(sql), Cow::Owned))
}

/// Whether a statement names `pg_catalog` outside of strings and comments.
fn names_catalog(sql: &str) -> bool {
    const NAME: &str = "pg_catalog";
    let names = |token: &Token| matches!(token, Token::Word(word) if word.value.eq_ignore_ascii_case(NAME));
    sql.to_ascii_lowercase().contains(NAME)
        && Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().is_ok_and(|tokens| tokens.iter().any(names))
}

/// Whether the text is more than one statement.
fn is_several(sql: &str) -> bool {
    SqlParser::parse_sql(&PostgreSqlDialect {}, sql).is_ok_and(|statements| statements.len() > 1)
}

/// The parameter values of a portal. PostgreSQL accepts a timestamp without seconds or without a time of day. The crate
/// would read it as null, so it is completed here.
fn parameters_for_crate(
    portal: &Portal<ParsedStatement>,
    planned: &StoredStatement<ParsedStatement>,
) -> PgWireResult<Vec<Option<Bytes>>> {
    let mut values = portal.parameters.clone();
    let Some((_, plan)) = &planned.statement.1 else { return Ok(values) };
    let types = plan.get_parameter_types().map_err(failed)?;
    for (index, value) in values.iter_mut().enumerate() {
        let declared = portal.statement.parameter_types.get(index).cloned().flatten();
        let is_time = matches!(declared, Some(Type::TIMESTAMP | Type::TIMESTAMPTZ))
            || matches!(types.get(&format!("${}", index + 1)), Some(Some(DataType::Timestamp(..))));
        if !is_time || !portal.parameter_format.is_text(index) {
            continue;
        }
        if let Some(text) = value.as_deref().and_then(|value| std::str::from_utf8(value).ok())
            && let Some(complete) = complete_time(text.trim())
        {
            *value = Some(Bytes::from(complete));
        }
    }
    Ok(values)
}

/// Completes a date or a time without seconds; `None` for other texts.
fn complete_time(text: &str) -> Option<String> {
    let is_like = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(byte, form)| match form {
                b'0' => byte.is_ascii_digit(),
                b' ' => matches!(byte, b' ' | b'T'),
                form => byte == form,
            })
    };
    const DATE: &str = "0000-00-00";
    const MINUTE: &str = "0000-00-00 00:00";
    if is_like(text, DATE) {
        return Some(format!("{text} 00:00:00"));
    }
    let (minute, rest) = text.split_at_checked(MINUTE.len())?;
    (is_like(minute, MINUTE) && !rest.starts_with(':')).then(|| format!("{minute}:00{rest}"))
}

/// A client's registration, by which another connection can cancel its query.
pub(super) struct Cancellable {
    handle: Arc<ConnectionHandle>,
    _guard: ConnectionGuard,
}

impl Cancellable {
    pub(super) fn new(handle: Arc<ConnectionHandle>, guard: ConnectionGuard) -> Cancellable {
        Cancellable { handle, _guard: guard }
    }
}

/// Receives the request to cancel the statement that `client` starts now.
async fn on_cancel(client: &impl ClientInfo) -> Option<Receiver<()>> {
    let cancellable = client.session_extensions().get::<Cancellable>()?;
    Some(cancellable.handle.start_query().await)
}

/// Returns when the statement is cancelled.
async fn cancelled(request: Option<Receiver<()>>) {
    let is_cancelled = match request {
        Some(request) => request.await.is_ok(),
        None => false,
    };
    if !is_cancelled {
        std::future::pending().await
    }
}

/// The approximate memory of a prepared statement: a plan takes about sixteen times the bytes of its text.
fn bytes_of((sql, planned): &ParsedStatement) -> usize {
    sql.len() + planned.as_ref().map_or(0, |(_, plan)| 16 * plan.display_indent().to_string().len())
}

#[async_trait]
impl SimpleQueryHandler for Handlers {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.note(client, &query.query);
        let cancel = on_cancel(client).await;
        let answered = tokio::select! {
            biased;
            () = cancelled(cancel) => Err(PgWireError::QueryCanceled),
            answered = self.answer(client, &query.query) => answered,
        };
        if let Ok(status) = answered {
            client.set_transaction_status(status);
        }
        end_portals(client);
        // After this, nothing else may be sent for the statement.
        let status = answered?;
        client.set_state(PgWireConnectionState::ReadyForQuery);
        send_ready_for_query(client, status).await
    }

    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_size(query).map_err(refused)?;
        let query = &*rewrite_for_engine(query)?;
        // All statements of one message see one snapshot.
        let limits = self.limits_for(client);
        let run = async |session| SimpleQueryHandler::do_query(&service(session), client, query).await;
        let (responses, running) = self.within(limits, run).await?;
        Ok(responses.into_iter().map(|response| running.bound(response)).collect())
    }
}

#[async_trait]
impl ExtendedQueryHandler for Handlers {
    type Statement = ParsedStatement;
    type QueryParser = Planner;

    fn query_parser(&self) -> Arc<Planner> {
        Arc::new(Planner { parser: Arc::clone(&self.planner), engine: self.engine.clone() })
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let parsed = StoredStatement::parse(client, &message, self.query_parser()).await?;
        let bytes = message.message_length() + parsed.as_ref().map_or(0, |parsed| bytes_of(&parsed.statement));
        let name = name_of(message.name);
        PreparedStatements::of(client).note(Name::Statement(name.clone()), bytes)?;
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
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let bytes = message.message_length();
        let name = name_of(message.portal_name.clone());
        let statement = name_of(message.statement_name.clone());
        match client.portal_store().get_statement(&statement) {
            Some(Entry::Value(statement)) => {
                // A portal keeps its statement in memory, even after the statement's name is closed.
                let bytes = bytes + bytes_of(&statement.statement);
                let columns = self.planner.get_result_schema(&statement.statement, None)?.len();
                if !matches!(message.result_column_format_codes.len(), 0 | 1)
                    && message.result_column_format_codes.len() != columns
                {
                    let formats = message.result_column_format_codes.len();
                    let reason = format!("the statement has {columns} columns, but Bind has {formats} result formats");
                    return Err(with_code("08P01", reason));
                }
                let portal = Portal::try_new(&message, statement)?;
                PreparedStatements::of(client).note(Name::Portal(name), bytes)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Some(Entry::Empty) if message.parameters.is_empty() => {
                PreparedStatements::of(client).note(Name::Portal(name.clone()), bytes)?;
                client.portal_store().put_empty_portal(&name);
            }
            Some(Entry::Empty) => return Err(with_code("08P01", "an empty statement has no parameters")),
            None => return Err(PgWireError::StatementNotFound(statement)),
        }
        client.send(PgWireBackendMessage::BindComplete(BindComplete::new())).await?;
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = name_of(message.name);
        let is_statement = message.target_type == TARGET_TYPE_BYTE_STATEMENT;
        let name = if is_statement { Name::Statement(name) } else { Name::Portal(name) };
        PreparedStatements::of(client).close(client.portal_store(), &name);
        client.send(PgWireBackendMessage::CloseComplete(CloseComplete::new())).await?;
        Ok(())
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = name_of(message.name);
        let cancel = on_cancel(client).await;
        let executed = tokio::select! {
            biased;
            () = cancelled(cancel) => Err(PgWireError::QueryCanceled),
            executed = self.execute(client, &name, message.max_rows) => executed,
        };
        if executed.is_err() {
            // Its remaining rows must not pass for a complete answer.
            PreparedStatements::of(client).close(client.portal_store(), &Name::Portal(name));
        }
        executed
    }

    async fn on_sync<C>(&self, client: &mut C, _message: PgSync) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        end_portals(client);
        send_ready_for_query(client, client.transaction_status()).await
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<ParsedStatement>,
        max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.run_portal(client, portal, max_rows).await.map(|(response, _)| response)
    }
}

impl Handlers {
    /// Starts the query of a portal. Its permit and its remaining time apply to its rows.
    pub(super) async fn run_portal<C>(
        &self,
        client: &mut C,
        portal: &Portal<ParsedStatement>,
        max_rows: usize,
    ) -> PgWireResult<(Response, Arc<RunningStatement>)>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.note(client, &portal.statement.statement.0);
        let limits = self.limits_for(client);
        let run = async |session: SessionContext| {
            let service = service(session);
            // It was planned without rows; now it is planned on the latest snapshot.
            let prepared = &portal.statement;
            let sql = &prepared.statement.0;
            let planned = service.query_parser().parse_sql(client, sql, &prepared.parameter_types).await?;
            let Some(statement) = planned else { return Ok(Response::EmptyQuery) };
            let statement = StoredStatement::new(prepared.id.clone(), statement, prepared.parameter_types.clone());
            let mut planned = Portal::new_cursor(portal.name.clone(), Arc::new(statement));
            planned.parameter_format = portal.parameter_format.clone();
            planned.parameters = parameters_for_crate(portal, &planned.statement)?;
            planned.result_column_format = portal.result_column_format.clone();
            ExtendedQueryHandler::do_query(&service, client, &planned, max_rows).await
        };
        let (response, running) = self.within(limits, run).await?;
        Ok((running.bound(response), running))
    }
}

/// Plans prepared statements.
pub(super) struct Planner {
    parser: Arc<Parser>,
    engine: Engine,
}

#[async_trait]
impl QueryParser for Planner {
    type Statement = ParsedStatement;

    async fn parse_sql<C>(&self, client: &C, sql: &str, types: &[Option<Type>]) -> PgWireResult<Option<ParsedStatement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        check_size(sql).map_err(refused)?;
        if is_several(sql) {
            return Err(with_code(
                "42601",
                "a prepared statement must be one statement; use a simple query for several",
            ));
        }
        let sql = &*rewrite_for_engine(sql)?;
        // Planning occupies a thread, as running does.
        let _permit = self.engine.permit().await.map_err(refused)?;
        catch_panic(self.parser.parse_sql(client, sql, types)).await.map_err(with_state)
    }

    fn get_parameter_types(&self, statement: &ParsedStatement) -> PgWireResult<Vec<Type>> {
        self.parser.get_parameter_types(statement)
    }

    fn get_result_schema(&self, statement: &ParsedStatement, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        Ok(self.parser.get_result_schema(statement, format)?.into_iter().map(named_as_written).collect())
    }
}

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::new(self.clone())
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::new(self.clone())
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        // Its state is that of one connection.
        Arc::new(Startup::new(Arc::clone(&self.connections), Arc::clone(&self.authenticator)))
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::clone(&self.cancel)
    }
}

/// The name of a statement or portal; unnamed ones have the crate's default name.
fn name_of(name: Option<String>) -> String {
    name.unwrap_or_else(|| DEFAULT_NAME.to_owned())
}

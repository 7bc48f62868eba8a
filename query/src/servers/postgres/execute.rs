//! Answers the statements of simple queries and of portals, and streams their rows.
//!
//! The crate would first collect the rows of a portal, and allocate memory for as many
//! rows as the client requests.

use datafusion_postgres::pgwire::api::portal::{Portal, PortalExecutionState};
use datafusion_postgres::pgwire::api::query::{
    ExtendedQueryHandler, SimpleQueryHandler, send_execution_response, send_partial_query_response, send_query_response,
};
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::api::store::{Entry, PortalStore};
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore, PgWireConnectionState};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
use futures::{Sink, SinkExt};

use super::commands::Command;
use super::handlers::{Handlers, ParsedStatement};
use super::refused;
use crate::error::QueryError;

impl Handlers {
    /// Sends the next rows of a portal: at most `max_rows`, or all if that is not positive.
    pub(super) async fn execute<C>(&self, client: &mut C, name: &str, max_rows: i32) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let max_rows = usize::try_from(max_rows).unwrap_or_default();
        client.set_state(PgWireConnectionState::QueryInProgress);
        let mut status = client.transaction_status();
        match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => {
                let state = portal.state();
                let mut state = state.lock().await;
                if matches!(*state, PortalExecutionState::Initial) {
                    status = self.begin(client, &portal, &mut state, max_rows).await?;
                }
                match &mut *state {
                    // The statement has no rows.
                    PortalExecutionState::Initial => {}
                    PortalExecutionState::Suspended(rows) => {
                        if !send_partial_query_response(client, rows, max_rows).await? {
                            *state = PortalExecutionState::Finished;
                        }
                    }
                    PortalExecutionState::Finished => {
                        send_execution_response(client, Tag::new("SELECT").with_rows(0)).await?;
                    }
                }
            }
            Some(Entry::Empty) => send_empty(client).await?,
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        client.set_transaction_status(status);
        Ok(())
    }

    /// Starts the statement of a portal: puts its rows into `state`, or answers a statement without rows. Returns the
    /// transaction status after it.
    async fn begin<C>(
        &self,
        client: &mut C,
        portal: &Portal<ParsedStatement>,
        state: &mut PortalExecutionState,
        max_rows: usize,
    ) -> PgWireResult<TransactionStatus>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let Some(command) = Command::of(&portal.statement.statement.0) {
            return match command {
                Command::Declare { cursor, query } => self.declare(client, cursor, &query, portal).await,
                command => self.command(client, command).await,
            };
        }
        let status = client.transaction_status();
        match ExtendedQueryHandler::do_query(self, client, portal, max_rows).await? {
            Response::Query(rows) => {
                *state = PortalExecutionState::Suspended(rows);
                Ok(status)
            }
            done => send_done(client, done, status).await,
        }
    }

    /// Answers the statements in one message; returns the transaction status after them.
    pub(super) async fn answer<C>(&self, client: &mut C, query: &str) -> PgWireResult<TransactionStatus>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::QueryInProgress);
        if let Some(command) = Command::of(query) {
            return self.command(client, command).await;
        }
        let mut status = client.transaction_status();
        for response in SimpleQueryHandler::do_query(self, client, query).await? {
            match response {
                Response::Query(rows) => send_query_response(client, rows, true).await?,
                done => status = send_done(client, done, status).await?,
            }
        }
        Ok(status)
    }
}

/// Answers a statement without rows; returns the transaction status after it.
async fn send_done<C>(client: &mut C, done: Response, status: TransactionStatus) -> PgWireResult<TransactionStatus>
where
    C: Sink<PgWireBackendMessage> + Unpin,
    C::Error: std::fmt::Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let (tag, status) = match done {
        Response::Execution(tag) => (tag, status),
        // In a failed transaction, only ROLLBACK TO SAVEPOINT comes here, and ends the failure.
        Response::TransactionStart(tag) => (tag, TransactionStatus::Transaction),
        Response::TransactionEnd(tag) => (tag, status.to_idle_state()),
        Response::EmptyQuery => {
            send_empty(client).await?;
            return Ok(status);
        }
        Response::Error(error) => return Err(PgWireError::UserError(error)),
        // No other statement is allowed.
        Response::Query(_) | Response::CopyIn(_) | Response::CopyOut(_) | Response::CopyBoth(_) => {
            return Err(refused(QueryError::NotAQuery));
        }
    };
    send_execution_response(client, tag).await?;
    Ok(status)
}

/// Answers an empty statement.
async fn send_empty<C>(client: &mut C) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
    Ok(())
}

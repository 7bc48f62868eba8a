//! How statements are answered, those of a message and those of a portal: rows go out as they come.
//!
//! The crate would gather the rows of a portal first, and make room for as many as
//! the client says that it takes.

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
use super::door::{Door, DoorStatement};
use super::refused;
use crate::query_error::QueryError;

impl Door {
    /// Sends the rows of a portal, or the next of them: at most `max_rows`, where that is more than 0.
    pub(super) async fn execute<C>(&self, client: &mut C, name: &str, max_rows: i32) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = DoorStatement>,
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
                    // It had no rows.
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
            Some(Entry::Empty) => send_nothing(client).await?,
            None => return Err(PgWireError::PortalNotFound(name.to_owned())),
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        client.set_transaction_status(status);
        Ok(())
    }

    /// Begins the statement of a portal: its rows wait in `state`, and what has none is answered. Says how the
    /// transaction stands then.
    async fn begin<C>(
        &self,
        client: &mut C,
        portal: &Portal<DoorStatement>,
        state: &mut PortalExecutionState,
        max_rows: usize,
    ) -> PgWireResult<TransactionStatus>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = DoorStatement>,
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

    /// Sends the answers of the statements in one message; says how the transaction stands then.
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

/// Sends what is said of a statement without rows; says how the transaction stands then.
async fn send_done<C>(client: &mut C, done: Response, status: TransactionStatus) -> PgWireResult<TransactionStatus>
where
    C: Sink<PgWireBackendMessage> + Unpin,
    C::Error: std::fmt::Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let (tag, status) = match done {
        Response::Execution(tag) => (tag, status),
        // Nothing but ROLLBACK TO SAVEPOINT comes here in a failed transaction, and mends it.
        Response::TransactionStart(tag) => (tag, TransactionStatus::Transaction),
        Response::TransactionEnd(tag) => (tag, status.to_idle_state()),
        Response::EmptyQuery => {
            send_nothing(client).await?;
            return Ok(status);
        }
        Response::Error(error) => return Err(PgWireError::UserError(error)),
        // Nothing else is let through.
        Response::Query(_) | Response::CopyIn(_) | Response::CopyOut(_) | Response::CopyBoth(_) => {
            return Err(refused(QueryError::NotAQuery));
        }
    };
    send_execution_response(client, tag).await?;
    Ok(status)
}

/// What a statement without words is answered.
async fn send_nothing<C>(client: &mut C) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
    Ok(())
}

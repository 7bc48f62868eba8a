//! What a statement over the PostgreSQL protocol may be.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::ParamValues;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::{Set, Statement};
use datafusion_postgres::QueryHook;
use datafusion_postgres::arrow_pg::datatypes::df::encode_dataframe;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::pgwire::api::ClientInfo;
use datafusion_postgres::pgwire::api::portal::Format;
use datafusion_postgres::pgwire::api::results::Response;
use datafusion_postgres::pgwire::error::PgWireResult;
use datafusion_postgres::pgwire::messages::response::TransactionStatus;
use datafusion_postgres::pgwire::types::format::FormatOptions;

use super::tidy::is_tidying;
use super::{failed, refused, with_code};
use crate::query_error::QueryError;
use crate::statement::check_plan;

/// Lets queries through, and what drivers say around them.
pub(super) struct OnlyQueries;

impl OnlyQueries {
    fn check(statement: &Statement) -> PgWireResult<()> {
        let harmless = match statement {
            Statement::Query(_)
            | Statement::ShowVariable { .. }
            | Statement::ShowStatus { .. }
            | Statement::ShowCatalogs { .. }
            | Statement::StartTransaction { .. }
            | Statement::Commit { .. }
            | Statement::Rollback { .. } => true,
            // The engine's own settings hold its limits.
            Statement::Set(set) => !sets_engine(set),
            _ => is_tidying(statement),
        };
        if harmless { Ok(()) } else { Err(refused(QueryError::NotAQuery)) }
    }

    /// After an error, a transaction has to end before anything else is answered.
    fn check_transaction(statement: &Statement, client: &dyn HookClient) -> PgWireResult<()> {
        match (client.transaction_status(), statement) {
            (TransactionStatus::Error, Statement::Commit { .. } | Statement::Rollback { .. }) => Ok(()),
            (TransactionStatus::Error, _) => Err(with_code("25P02", "the transaction has failed; end it first")),
            _ => Ok(()),
        }
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
        let checked = OnlyQueries::check(statement);
        if let Err(error) = checked.and_then(|()| OnlyQueries::check_transaction(statement, client)) {
            return Some(Err(error));
        }
        if !matches!(statement, Statement::Query(_)) {
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
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        let checked = OnlyQueries::check(statement);
        let checked = checked.and_then(|()| OnlyQueries::check_transaction(statement, client));
        let checked = match statement {
            Statement::Query(_) => checked.and_then(|()| check_plan(plan).map_err(refused)),
            _ => checked,
        };
        checked.err().map(Err)
    }
}

//! Which statements are allowed over the PostgreSQL protocol.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use async_trait::async_trait;
use datafusion::common::{DFSchema, ParamValues};
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::prelude::{DataFrame, SessionContext};
use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::{CopyTarget, Set, Statement};
use datafusion_postgres::QueryHook;
use datafusion_postgres::arrow_pg::datatypes::df::encode_dataframe;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::pgwire::api::ClientInfo;
use datafusion_postgres::pgwire::api::portal::Format;
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::response::TransactionStatus;
use datafusion_postgres::pgwire::types::format::FormatOptions;

use super::session_reset::is_tidying;
use super::{failed, refused, with_code};
use crate::error::QueryError;
use crate::sql::statement::check_plan;

/// Allows queries, and the other statements that drivers send.
pub(super) struct OnlyQueries;

impl OnlyQueries {
    fn check(statement: &Statement) -> PgWireResult<()> {
        let allowed = match statement {
            Statement::Query(_)
            | Statement::ShowVariable { .. }
            | Statement::ShowStatus { .. }
            | Statement::ShowCatalogs { .. }
            | Statement::StartTransaction { .. }
            | Statement::Savepoint { .. }
            | Statement::ReleaseSavepoint { .. }
            | Statement::Commit { .. }
            | Statement::Rollback { .. } => true,
            Statement::Set(set) => {
                check_zone(set)?;
                // The engine's settings include its limits.
                !sets_engine(set)
            }
            Statement::Explain { statement, .. } => matches!(**statement, Statement::Query(_)),
            // The read-only forms of these were handled before, as commands.
            Statement::Copy { to: true, target: CopyTarget::Stdout, .. }
            | Statement::Declare { .. }
            | Statement::Fetch { .. } => true,
            _ => is_tidying(statement),
        };
        if allowed { Ok(()) } else { Err(refused(QueryError::NotAQuery)) }
    }

    /// After an error, a transaction must end before another statement runs.
    fn check_transaction(statement: &Statement, client: &dyn HookClient) -> PgWireResult<()> {
        match (client.transaction_status(), statement) {
            (TransactionStatus::Error, Statement::Commit { .. } | Statement::Rollback { .. }) => Ok(()),
            (TransactionStatus::Error, _) => Err(with_code("25P02", "the transaction has failed; send ROLLBACK first")),
            _ => Ok(()),
        }
    }
}

/// Times are in UTC; other time zones are refused.
fn check_zone(set: &Set) -> PgWireResult<()> {
    let text = set.to_string().to_ascii_lowercase();
    let words: Vec<&str> =
        text.split(|character: char| !character.is_ascii_alphanumeric() && !"+-/:_".contains(character)).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let sets_zone = words.contains(&"timezone") || text.contains("time zone");
    let is_utc = words.last().is_some_and(|last| {
        ["utc", "gmt", "etc/utc", "z", "default", "local", "0", "+00", "+00:00", "zulu", "uct"].contains(last)
    });
    if sets_zone && !is_utc {
        let reason = "times are always in UTC; convert them with ts AT TIME ZONE 'Europe/Berlin'";
        return Err(with_code("0A000", reason));
    }
    Ok(())
}

/// Savepoints: nothing is written, so rolling back to one only restores the transaction status.
fn savepoint(statement: &Statement, client: &dyn HookClient) -> Option<PgWireResult<Response>> {
    let is_open = client.transaction_status() != TransactionStatus::Idle;
    let done = match statement {
        Statement::Savepoint { .. } => Response::Execution(Tag::new("SAVEPOINT")),
        Statement::ReleaseSavepoint { .. } => Response::Execution(Tag::new("RELEASE")),
        Statement::Rollback { savepoint: Some(_), .. } => Response::TransactionStart(Tag::new("ROLLBACK")),
        _ => return None,
    };
    if is_open {
        Some(Ok(done))
    } else {
        Some(Err(with_code("25P01", "savepoints can only be used in a transaction; send BEGIN first")))
    }
}

/// Refuses a command that was not handled before, because of its form or because of other statements in its message.
fn command_among_others(statement: &Statement) -> Option<PgWireError> {
    matches!(statement, Statement::Copy { .. } | Statement::Declare { .. } | Statement::Fetch { .. }).then(|| {
        let reason = "only COPY (query) TO STDOUT, DECLARE name CURSOR FOR query and FETCH n FROM name are supported; \
             send each of them alone";
        with_code("0A000", reason)
    })
}

/// A query's plan as rows of text. It contains table names, but no file names.
async fn explained(statement: &Statement, context: &SessionContext) -> PgWireResult<DataFrame> {
    let state = context.state();
    let parsed = Parsed::Statement(Box::new(statement.clone()));
    let plan = state.statement_to_plan(parsed).await.map_err(failed)?;
    check_plan(&plan).map_err(refused)?;
    let plan = state.optimize(&plan).map_err(failed)?;
    let text = plan.display_indent().to_string();
    let lines: ArrayRef = Arc::new(StringArray::from(text.lines().collect::<Vec<_>>()));
    let rows = RecordBatch::try_from_iter([("QUERY PLAN", lines)]).map_err(|error| failed(error.into()))?;
    context.read_batch(rows).map_err(failed)
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
        if let Some(done) = savepoint(statement, client) {
            return Some(done);
        }
        if let Some(refused) = command_among_others(statement) {
            return Some(Err(refused));
        }
        let options = FormatOptions::from_client_metadata(client.metadata());
        if let Statement::Explain { statement, .. } = statement {
            let explain = async {
                let frame = explained(statement, context).await?;
                encode_dataframe(frame, &Format::UnifiedText, Some(Arc::new(options))).await.map(Response::Query)
            };
            return Some(explain.await);
        }
        if !matches!(statement, Statement::Query(_)) {
            return None;
        }
        let run = async {
            let parsed = Parsed::Statement(Box::new(statement.clone()));
            let plan = context.state().statement_to_plan(parsed).await.map_err(failed)?;
            check_plan(&plan).map_err(refused)?;
            let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
            encode_dataframe(frame, &Format::UnifiedText, Some(Arc::new(options))).await.map(Response::Query)
        };
        Some(run.await)
    }

    async fn handle_extended_parse_query(
        &self,
        statement: &Statement,
        context: &SessionContext,
        _client: &(dyn ClientInfo + Send + Sync),
    ) -> Option<PgWireResult<LogicalPlan>> {
        if let Err(error) = OnlyQueries::check(statement) {
            return Some(Err(error));
        }
        match statement {
            Statement::Explain { statement, .. } => {
                Some(explained(statement, context).await.map(|frame| frame.logical_plan().clone()))
            }
            // There is nothing to plan.
            Statement::Savepoint { .. }
            | Statement::ReleaseSavepoint { .. }
            | Statement::Copy { .. }
            | Statement::Declare { .. }
            | Statement::Fetch { .. } => Some(Ok(LogicalPlan::EmptyRelation(EmptyRelation {
                produce_one_row: false,
                schema: Arc::new(DFSchema::empty()),
            }))),
            _ => None,
        }
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
        let refused = checked.err().or_else(|| command_among_others(statement));
        refused.map(Err).or_else(|| savepoint(statement, client))
    }
}

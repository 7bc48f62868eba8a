//! Statements by which a connection pool resets a connection before it is reused.
//!
//! `RESET`, `DISCARD`, `DEALLOCATE`, `CLOSE` and `UNLISTEN` change only the connection,
//! and do the same as in PostgreSQL: they restore the settings that the client started
//! with, and close statements and portals. Locks, channels and temporary tables do not
//! exist, so there is nothing to reset.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{DFSchema, ParamValues, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, EmptyRelation, LogicalPlan, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{CloseCursor, DiscardObject, Ident, Reset, ResetStatement, Statement};
use datafusion_postgres::QueryHook;
use datafusion_postgres::hooks::HookClient;
use datafusion_postgres::pgwire::api::ClientInfo;
use datafusion_postgres::pgwire::api::auth::DefaultServerParameterProvider;
use datafusion_postgres::pgwire::api::results::{Response, Tag};
use datafusion_postgres::pgwire::error::PgWireResult;
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::startup::ParameterStatus;
use datafusion_postgres::pgwire::types::format::FormatOptions;

use super::prepared_statements::{Name, PreparedStatements};
use super::with_code;

/// Whether a statement is one of these.
pub(super) fn is_tidying(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Reset(_)
            | Statement::Discard { .. }
            | Statement::Deallocate { .. }
            | Statement::Close { .. }
            | Statement::UNLISTEN { .. }
    )
}

/// `pg_advisory_unlock_all()`: does nothing, because there are no locks.
pub(super) fn unlock_all() -> ScalarUDF {
    let nothing = |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(String::new()))));
    create_udf("pg_advisory_unlock_all", Vec::new(), DataType::Utf8, Volatility::Volatile, Arc::new(nothing))
}

/// The crate's setting for the time limit of a client's statements, in milliseconds.
pub(super) const STATEMENT_TIMEOUT: &str = "statement_timeout_ms";

/// The settings that a client started with.
struct AtStart(HashMap<String, String>);

/// Stores the settings of a client that has just started.
pub(super) fn remember_settings(client: &impl ClientInfo) {
    client.session_extensions().insert(AtStart(client.metadata().clone()));
}

/// Answers these statements.
pub(super) struct Tidy;

#[async_trait]
impl QueryHook for Tidy {
    async fn handle_simple_query(
        &self,
        statement: &Statement,
        _context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        if !is_tidying(statement) {
            return None;
        }
        Some(tidy(statement, client).await.map(|tag| Response::Execution(Tag::new(tag))))
    }

    async fn handle_extended_parse_query(
        &self,
        statement: &Statement,
        _context: &SessionContext,
        _client: &(dyn ClientInfo + Send + Sync),
    ) -> Option<PgWireResult<LogicalPlan>> {
        // There is nothing to plan.
        let nothing = EmptyRelation { produce_one_row: false, schema: Arc::new(DFSchema::empty()) };
        is_tidying(statement).then(|| Ok(LogicalPlan::EmptyRelation(nothing)))
    }

    async fn handle_extended_query(
        &self,
        statement: &Statement,
        _plan: &LogicalPlan,
        _parameters: &ParamValues,
        context: &SessionContext,
        client: &mut dyn HookClient,
    ) -> Option<PgWireResult<Response>> {
        self.handle_simple_query(statement, context, client).await
    }
}

/// Runs a statement and returns its tag.
async fn tidy(statement: &Statement, client: &mut dyn HookClient) -> PgWireResult<&'static str> {
    Ok(match statement {
        Statement::Reset(ResetStatement { reset: Reset::ALL }) => {
            reset(client, |_| true).await?;
            "RESET"
        }
        Statement::Reset(ResetStatement { reset: Reset::ConfigurationParameter(name) }) => {
            let name = name.0.iter().filter_map(|part| part.as_ident()).map(|part| part.value.to_lowercase());
            let name = name.collect::<Vec<_>>().join(".");
            // The crate stores this one in milliseconds, under another name.
            let name = if name == "statement_timeout" { STATEMENT_TIMEOUT } else { &name };
            reset(client, |key| key == name).await?;
            "RESET"
        }
        Statement::Deallocate { name, .. } if is_all(name) => {
            PreparedStatements::of(client).close_all(client.portal_store(), |name| matches!(name, Name::Statement(_)));
            "DEALLOCATE ALL"
        }
        Statement::Deallocate { name, .. } => {
            close(client, &Name::Statement(folded(name)))?;
            "DEALLOCATE"
        }
        Statement::Close { cursor: CloseCursor::All } => {
            PreparedStatements::of(client).close_all(client.portal_store(), |name| matches!(name, Name::Portal(_)));
            "CLOSE CURSOR ALL"
        }
        Statement::Close { cursor: CloseCursor::Specific { name } } => {
            close(client, &Name::Portal(folded(name)))?;
            "CLOSE CURSOR"
        }
        Statement::Discard { object_type: DiscardObject::ALL } => {
            PreparedStatements::of(client).close_all(client.portal_store(), |_| true);
            reset(client, |_| true).await?;
            "DISCARD ALL"
        }
        Statement::Discard { object_type: DiscardObject::PLANS } => "DISCARD PLANS",
        Statement::Discard { object_type: DiscardObject::SEQUENCES } => "DISCARD SEQUENCES",
        Statement::Discard { object_type: DiscardObject::TEMP } => "DISCARD TEMP",
        _ => "UNLISTEN",
    })
}

/// Restores the chosen settings to their values at the start, and reports the changes that PostgreSQL reports.
async fn reset(client: &mut dyn HookClient, chosen: impl Fn(&str) -> bool + Send) -> PgWireResult<()> {
    let Some(start) = client.session_extensions().get::<AtStart>() else { return Ok(()) };
    let set = client.metadata().iter().filter(|(key, value)| start.0.get(*key) != Some(value) && chosen(key));
    let set: Vec<String> = set.map(|(key, _)| key.clone()).collect();
    for key in set {
        let before = start.0.get(&key).cloned();
        match before.clone() {
            Some(before) => client.metadata_mut().insert(key.clone(), before),
            None => client.metadata_mut().remove(&key),
        };
        if let Some((name, default)) = reported(&key) {
            let status = ParameterStatus::new(name.to_owned(), before.unwrap_or(default));
            client.send_message(PgWireBackendMessage::ParameterStatus(status)).await?;
        }
    }
    Ok(())
}

/// The name of a setting whose changes the crate reports to a client, and its default value.
fn reported(key: &str) -> Option<(&'static str, String)> {
    let (defaults, formats) = (DefaultServerParameterProvider::default(), FormatOptions::default());
    Some(match key {
        "application_name" => ("application_name", defaults.application_name.unwrap_or_default()),
        "bytea_output" => ("bytea_output", formats.bytea_output),
        "extra_float_digits" => ("extra_float_digits", formats.extra_float_digits.to_string()),
        "datestyle" => ("DateStyle", defaults.date_style),
        "intervalstyle" => ("IntervalStyle", defaults.interval_style),
        "search_path" => ("search_path", defaults.search_path),
        "timezone" => ("TimeZone", defaults.time_zone),
        _ => return None,
    })
}

/// Closes a statement or cursor; an error if there is none with this name.
fn close(client: &dyn HookClient, name: &Name) -> PgWireResult<()> {
    if PreparedStatements::of(client).close(client.portal_store(), name) {
        return Ok(());
    }
    let (state, message) = match name {
        Name::Statement(name) => ("26000", format!("the prepared statement \"{name}\" does not exist")),
        Name::Portal(name) => ("34000", format!("the cursor \"{name}\" does not exist")),
    };
    Err(with_code(state, message))
}

/// Whether the name is the keyword `ALL`, which the parser reads as a name.
fn is_all(name: &Ident) -> bool {
    name.quote_style.is_none() && name.value.eq_ignore_ascii_case("all")
}

/// A name as PostgreSQL reads it: in lower case unless it is quoted.
pub(super) fn folded(name: &Ident) -> String {
    if name.quote_style.is_some() { name.value.clone() } else { name.value.to_lowercase() }
}

//! Commands that must be sent alone: `COPY (query) TO STDOUT`, and `DECLARE` and `FETCH` of cursors.
//!
//! A cursor is a named portal: it ends with its transaction, or at the time limit of
//! its query. The copy formats are those of `COPY` in PostgreSQL's documentation.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{
    CopyLegacyOption, CopyOption, CopySource, CopyTarget, Declare, FetchDirection, Statement, Value,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion_postgres::arrow_pg::datatypes::df::encode_dataframe;
use datafusion_postgres::pgwire::api::portal::{Format, Portal};
use datafusion_postgres::pgwire::api::query::{ExtendedQueryHandler, send_execution_response};
use datafusion_postgres::pgwire::api::results::{QueryResponse, Response, Tag};
use datafusion_postgres::pgwire::api::stmt::{QueryParser, StoredStatement};
use datafusion_postgres::pgwire::api::store::PortalStore;
use datafusion_postgres::pgwire::api::{ClientInfo, ClientPortalStore};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::PgWireBackendMessage;
use datafusion_postgres::pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};
use datafusion_postgres::pgwire::messages::data::{DataRow, RowDescription};
use datafusion_postgres::pgwire::messages::response::TransactionStatus;
use datafusion_postgres::pgwire::types::format::FormatOptions;
use futures::{Sink, SinkExt, StreamExt};

use super::handlers::{Handlers, ParsedStatement, rewrite_for_engine};
use super::prepared_statements::{Name, PreparedStatements};
use super::running_statement::RunningStatement;
use super::session_reset::folded;
use super::{failed, refused, with_code};
use crate::error::QueryError;
use crate::sql::rewrite::printed;
use crate::sql::statement::{check_plan, check_size};

/// One of these statements.
pub(super) enum Command {
    Copy {
        query: String,
        form: Form,
    },
    Declare {
        cursor: String,
        query: String,
    },
    Fetch {
        cursor: String,
        rows: usize,
    },
    /// Not supported in this form; contains the reason.
    Refused(String),
}

/// The copy format.
pub(super) enum Form {
    Binary,
    Text { delimiter: char, null: String },
    Csv { delimiter: char, null: String, header: bool },
}

impl Command {
    /// The command in a message, if it contains exactly one statement and that is a command.
    pub(super) fn of(message: &str) -> Option<Command> {
        let begins = message.trim_start();
        let is_command = |word: &str| begins.get(..word.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(word));
        // Any command may follow a comment.
        if !["copy", "declare", "fetch", "--", "/*"].into_iter().any(is_command) {
            return None;
        }
        let mut statements = Parser::parse_sql(&PostgreSqlDialect {}, message).ok()?.into_iter();
        match (statements.next(), statements.next()) {
            (Some(statement), None) => of_statement(statement),
            _ => None,
        }
    }
}

fn of_statement(statement: Statement) -> Option<Command> {
    Some(match statement {
        Statement::Copy { source, to: true, target: CopyTarget::Stdout, options, legacy_options, .. } => {
            let query = match source {
                CopySource::Query(query) => printed(query),
                CopySource::Table { table_name, columns } if columns.is_empty() => {
                    format!("SELECT * FROM {table_name}")
                }
                CopySource::Table { table_name, columns } => {
                    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
                    format!("SELECT {} FROM {table_name}", columns.join(", "))
                }
            };
            match form(&options, &legacy_options) {
                Ok(form) => Command::Copy { query, form },
                Err(reason) => Command::Refused(reason),
            }
        }
        Statement::Declare { stmts } => match &stmts[..] {
            [Declare { names, for_query: Some(query), .. }] if names.len() == 1 => {
                Command::Declare { cursor: folded(&names[0]), query: printed(query.clone()) }
            }
            _ => return None,
        },
        Statement::Fetch { name, direction, into: None, .. } => {
            let rows = match &direction {
                FetchDirection::Next => Some(1),
                FetchDirection::All | FetchDirection::ForwardAll => Some(usize::MAX),
                FetchDirection::Forward { limit: None } => Some(1),
                FetchDirection::Forward { limit: Some(limit) } | FetchDirection::Count { limit } => {
                    match &limit.value {
                        Value::Number(number, _) => number.to_string().parse().ok(),
                        _ => None,
                    }
                }
                _ => None,
            };
            match rows {
                Some(rows) => Command::Fetch { cursor: folded(&name), rows },
                None => Command::Refused(format!("FETCH {direction} is not supported; cursors only move forward")),
            }
        }
        _ => return None,
    })
}

fn form(options: &[CopyOption], legacy: &[CopyLegacyOption]) -> Result<Form, String> {
    let mut format = "text".to_owned();
    let (mut delimiter, mut null, mut header) = (None, None, false);
    for option in options {
        match option {
            CopyOption::Format(name) => format = name.value.to_ascii_lowercase(),
            CopyOption::Delimiter(character) => delimiter = Some(*character),
            CopyOption::Null(text) => null = Some(text.clone()),
            CopyOption::Header(is_wanted) => header = *is_wanted,
            CopyOption::Quote('"') | CopyOption::Escape('"') => {}
            CopyOption::Encoding(name) if name.eq_ignore_ascii_case("utf8") || name.eq_ignore_ascii_case("utf-8") => {}
            other => return Err(format!("COPY … TO STDOUT with {other} is not supported")),
        }
    }
    for option in legacy {
        match option {
            CopyLegacyOption::Binary => format = "binary".to_owned(),
            CopyLegacyOption::Csv(options) => {
                format = "csv".to_owned();
                header |= options.iter().any(|option| option.to_string().eq_ignore_ascii_case("header"));
            }
            CopyLegacyOption::Header => header = true,
            CopyLegacyOption::Delimiter(character) => delimiter = Some(*character),
            CopyLegacyOption::Null(text) => null = Some(text.clone()),
            other => return Err(format!("COPY … TO STDOUT with {other} is not supported")),
        }
    }
    match format.as_str() {
        "binary" => Ok(Form::Binary),
        "text" => {
            Ok(Form::Text { delimiter: delimiter.unwrap_or('\t'), null: null.unwrap_or_else(|| "\\N".to_owned()) })
        }
        "csv" => Ok(Form::Csv { delimiter: delimiter.unwrap_or(','), null: null.unwrap_or_default(), header }),
        other => Err(format!("COPY format {other} is not supported; use text, csv or binary")),
    }
}

impl Handlers {
    /// Runs a command; returns the transaction status after it.
    pub(super) async fn command<C>(&self, client: &mut C, command: Command) -> PgWireResult<TransactionStatus>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let status = client.transaction_status();
        check_transaction(status)?;
        match command {
            Command::Refused(reason) => return Err(with_code("0A000", reason)),
            Command::Copy { query, form } => {
                let (rows, _) = self.rows_of(client, &query, matches!(form, Form::Binary)).await?;
                copy_out(client, rows, &form).await?;
            }
            Command::Declare { cursor, query } => {
                check_declare(client)?;
                let (rows, running) = self.rows_of(client, &query, false).await?;
                store_cursor(client, cursor, &query, rows, &running).await?;
            }
            Command::Fetch { cursor, rows: wanted } => {
                let Some(mut rows) = PreparedStatements::of(client).take_cursor(&cursor) else {
                    return Err(with_code("34000", format!("the cursor \"{cursor}\" does not exist")));
                };
                let fields = rows.row_schema();
                let described = RowDescription::new(fields.iter().map(Into::into).collect());
                client.feed(PgWireBackendMessage::RowDescription(described)).await?;
                let mut count = 0;
                while count < wanted {
                    let Some(row) = rows.data_rows().next().await else { break };
                    client.feed(PgWireBackendMessage::DataRow(row?)).await?;
                    count += 1;
                }
                PreparedStatements::of(client).put_cursor(cursor, rows);
                send_execution_response(client, Tag::new("FETCH").with_rows(count)).await?;
            }
        }
        Ok(status)
    }

    /// Declares a cursor for a query, with the parameters of `from`, the portal of the `DECLARE` statement. The cursor is
    /// a portal, so a client can describe its columns.
    pub(super) async fn declare<C>(
        &self,
        client: &mut C,
        cursor: String,
        query: &str,
        from: &Portal<ParsedStatement>,
    ) -> PgWireResult<TransactionStatus>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = ParsedStatement>,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_declare(client)?;
        let types = from.statement.parameter_types.clone();
        let Some(planned) = self.query_parser().parse_sql(client, query, &types).await? else {
            return Err(refused(QueryError::NotAQuery));
        };
        let statement = StoredStatement::new(String::new(), planned, types);
        let mut portal = Portal::new_cursor(cursor.clone(), Arc::new(statement));
        portal.parameter_format = from.parameter_format.clone();
        portal.parameters = from.parameters.clone();
        let (Response::Query(rows), running) = self.run_portal(client, &portal, 0).await? else {
            return Err(refused(QueryError::NotAQuery));
        };
        store_cursor(client, cursor, query, rows, &running).await?;
        client.portal_store().put_portal(Arc::new(portal));
        Ok(client.transaction_status())
    }

    /// The rows of a query, as if it ran in its own portal.
    async fn rows_of<C>(
        &self,
        client: &mut C,
        query: &str,
        binary: bool,
    ) -> PgWireResult<(QueryResponse, Arc<RunningStatement>)>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_size(query).map_err(refused)?;
        let query = rewrite_for_engine(query)?;
        let limits = self.limits_for(client);
        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        let format = if binary { Format::UnifiedBinary } else { Format::UnifiedText };
        let run = async |session: SessionContext| {
            let plan = session.state().create_logical_plan(&query).await.map_err(failed)?;
            check_plan(&plan).map_err(refused)?;
            let frame = session.execute_logical_plan(plan).await.map_err(failed)?;
            encode_dataframe(frame, &format, Some(options)).await.map(Response::Query)
        };
        let (response, running) = self.within(limits, run).await?;
        match running.bound(response) {
            Response::Query(rows) => Ok((rows, running)),
            _ => Err(refused(QueryError::NotAQuery)),
        }
    }
}

fn check_transaction(status: TransactionStatus) -> PgWireResult<()> {
    match status {
        TransactionStatus::Error => Err(with_code("25P02", "the transaction has failed; send ROLLBACK first")),
        TransactionStatus::Idle | TransactionStatus::Transaction => Ok(()),
    }
}

fn check_declare(client: &impl ClientInfo) -> PgWireResult<()> {
    let status = client.transaction_status();
    check_transaction(status)?;
    match status {
        TransactionStatus::Transaction => Ok(()),
        _ => Err(with_code("25P01", "DECLARE CURSOR can only be used in a transaction; send BEGIN first")),
    }
}

/// Stores a cursor's rows until they are fetched, which may be never, so the permit is released.
async fn store_cursor<C>(
    client: &mut C,
    cursor: String,
    query: &str,
    rows: QueryResponse,
    running: &RunningStatement,
) -> PgWireResult<()>
where
    C: ClientInfo + Sink<PgWireBackendMessage> + Unpin,
    C::Error: std::fmt::Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    running.release_permit();
    let prepared = PreparedStatements::of(client);
    prepared.note(Name::Portal(cursor.clone()), query.len())?;
    prepared.put_cursor(cursor, rows);
    send_execution_response(client, Tag::new("DECLARE CURSOR")).await
}

/// The signature, no flags, and no header extension.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

async fn copy_out<C>(client: &mut C, mut rows: QueryResponse, form: &Form) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin,
    C::Error: std::fmt::Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let fields = rows.row_schema();
    let code = if matches!(form, Form::Binary) { 1 } else { 0 };
    let columns = i16::try_from(fields.len()).unwrap_or(i16::MAX);
    let begun = CopyOutResponse::new(code as i8, columns, vec![code; fields.len()]);
    client.feed(PgWireBackendMessage::CopyOutResponse(begun)).await?;
    let copy_data = |bytes: Bytes| PgWireBackendMessage::CopyData(CopyData::new(bytes));
    if let Form::Csv { delimiter, header: true, .. } = form {
        let names: Vec<String> = fields.iter().map(|field| csv_field(field.name(), *delimiter)).collect();
        client.feed(copy_data(Bytes::from(names.join(&delimiter.to_string()) + "\n"))).await?;
    }
    // Clients expect the header and the first row in one message, as PostgreSQL sends them.
    let mut header = if matches!(form, Form::Binary) { BINARY_HEADER } else { b"" };
    let mut count = 0;
    while let Some(row) = rows.data_rows().next().await {
        let mut line = line(row?, form);
        if !header.is_empty() {
            line = [std::mem::take(&mut header), &line].concat().into();
        }
        client.feed(copy_data(line)).await?;
        count += 1;
    }
    if matches!(form, Form::Binary) {
        client.feed(copy_data([header, &[0xff, 0xff]].concat().into())).await?;
    }
    client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
    send_execution_response(client, Tag::new("COPY").with_rows(count)).await
}

/// A row in the copy format. In `row`, each field follows its length, as in binary copies.
fn line(row: DataRow, form: &Form) -> Bytes {
    let DataRow { mut data, field_count, .. } = row;
    if let Form::Binary = form {
        let mut line = BytesMut::with_capacity(2 + data.len());
        line.put_i16(field_count);
        line.extend_from_slice(&data);
        return line.freeze();
    }
    let mut fields: Vec<String> = Vec::new();
    while data.len() >= 4 {
        let length = data.get_i32();
        let field = usize::try_from(length).ok().map(|length| {
            let field = data.split_to(length.min(data.len()));
            String::from_utf8_lossy(&field).into_owned()
        });
        fields.push(match (form, field) {
            (Form::Csv { null, .. } | Form::Text { null, .. }, None) => null.clone(),
            (Form::Csv { delimiter, null, .. }, Some(field)) => {
                // A value that equals the null string is quoted, so that it is not read as null.
                if field == *null { format!("\"{field}\"") } else { csv_field(&field, *delimiter) }
            }
            (Form::Text { delimiter, .. }, Some(field)) => text_field(&field, *delimiter),
            (Form::Binary, _) => String::new(),
        });
    }
    let delimiter = match form {
        Form::Csv { delimiter, .. } | Form::Text { delimiter, .. } => delimiter.to_string(),
        Form::Binary => String::new(),
    };
    Bytes::from(fields.join(&delimiter) + "\n")
}

fn csv_field(field: &str, delimiter: char) -> String {
    match field.contains([delimiter, '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

fn text_field(field: &str, delimiter: char) -> String {
    let mut text = String::with_capacity(field.len());
    for character in field.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            character if character == delimiter => {
                text.push('\\');
                text.push(character);
            }
            character => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fields: &[Option<&str>]) -> DataRow {
        let mut data = BytesMut::new();
        for field in fields {
            data.put_i32(field.map_or(-1, |field| field.len() as i32));
            data.extend_from_slice(field.unwrap_or_default().as_bytes());
        }
        DataRow::new(data, fields.len() as i16)
    }

    #[test]
    fn rows_are_copied_as_postgresql_copies_them() {
        let copied = |sql: &str| match Command::of(sql) {
            Some(Command::Copy { query, form }) => {
                let line = line(row(&[Some("a\tb"), None, Some("c,\"d\""), Some("")]), &form);
                format!("{query}: {}", line.escape_ascii())
            }
            Some(Command::Refused(reason)) => reason,
            _ => "none".to_owned(),
        };
        assert_eq!(copied("COPY (SELECT 1) TO STDOUT"), "SELECT 1: a\\\\tb\\t\\\\N\\tc,\\\"d\\\"\\t\\n");
        let csv = "SELECT * FROM errors: a\\tb,,\\\"c,\\\"\\\"d\\\"\\\"\\\",\\\"\\\"\\n";
        assert_eq!(copied("COPY errors TO STDOUT WITH (FORMAT csv, HEADER)"), csv);
        assert_eq!(copied("COPY errors TO STDOUT CSV HEADER"), csv);
        let binary = "SELECT 1: \\x00\\x04\\x00\\x00\\x00\\x03a\\tb\\xff\\xff\\xff\\xff\\x00\\x00\\x00\\x05c,\\\"d\\\"\\x00\\x00\\x00\\x00";
        assert_eq!(copied("copy (select 1) to stdout (format binary)").replace("select 1", "SELECT 1"), binary);
        assert_eq!(
            copied("COPY errors TO STDOUT (FORCE_QUOTE (a))"),
            "COPY … TO STDOUT with FORCE_QUOTE (a) is not supported"
        );
        assert_eq!(copied("COPY errors FROM STDIN"), "none");
    }
}

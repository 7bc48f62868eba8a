//! The two databases that can hold the metadata, and what differs between their SQL.
//!
//! Statements are written once, with `?` (or `?1`) for parameters, in the SQL that both databases know.

use std::time::Duration;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, Arguments, AssertSqlSafe, Encode, SqlSafeStr, SqlStr, Type};

use crate::metadata::MetadataError;

/// How long a server may take for a round, or to be connected to.
pub(super) const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// A database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A file on a local disk.
    Sqlite,
    /// A server, shared with other processes.
    Postgres,
}

impl Dialect {
    /// A statement. PostgreSQL has `$1` for its parameters.
    pub(super) fn sql(self, statement: &'static str) -> SqlStr {
        match self {
            Dialect::Sqlite => statement.into_sql_str(),
            Dialect::Postgres => AssertSqlSafe(numbered(statement)).into_sql_str(),
        }
    }

    /// Does work with the database. A server must answer within a time; a file always does, sooner or later.
    pub async fn limited<T>(self, work: impl Future<Output = Result<T, MetadataError>>) -> Result<T, MetadataError> {
        match self {
            Dialect::Sqlite => work.await,
            Dialect::Postgres => {
                let timed_out = |_| MetadataError::TimedOut { seconds: ANSWER_WAIT.as_secs() };
                tokio::time::timeout(ANSWER_WAIT, work).await.map_err(timed_out)?
            }
        }
    }

    /// A query.
    pub(super) fn query<'q>(self, statement: &'static str) -> Query<'q, Any, AnyArguments> {
        sqlx::query(self.sql(statement))
    }
}

/// Replaces `?` by `$1`, `$2`, …, and `?2` by `$2`. No statement contains a question mark otherwise.
pub(super) fn numbered(statement: &str) -> String {
    let (mut text, mut next) = (String::with_capacity(statement.len() + 16), 1);
    let mut characters = statement.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '?' {
            text.push(character);
            continue;
        }
        text.push('$');
        if characters.peek().is_none_or(|following| !following.is_ascii_digit()) {
            text.push_str(&next.to_string());
            next += 1;
        }
    }
    text
}

/// Statements without results that belong together. Each call is a round trip to the thread of the connection in
/// SQLite, which runs all of them in one call; PostgreSQL prepares one statement at a time.
pub(super) struct Statements {
    dialect: Dialect,
    calls: Vec<(String, AnyArguments)>,
    failed: Option<sqlx::Error>,
}

impl Statements {
    pub(super) fn new(dialect: Dialect) -> Statements {
        Statements { dialect, calls: Vec::new(), failed: None }
    }

    /// Adds a statement, whose parameters follow.
    pub(super) fn add(&mut self, statement: &'static str) -> &mut Statements {
        match (self.dialect, self.calls.last_mut()) {
            (Dialect::Sqlite, Some((all, _))) => {
                all.push_str("; ");
                all.push_str(statement);
            }
            (Dialect::Sqlite, None) => self.calls.push((statement.to_owned(), AnyArguments::default())),
            (Dialect::Postgres, _) => self.calls.push((numbered(statement), AnyArguments::default())),
        }
        self
    }

    /// The next parameter of the last statement.
    pub(super) fn bind<T>(&mut self, value: T) -> &mut Statements
    where
        T: for<'a> Encode<'a, Any> + Type<Any>,
    {
        if let Some((_, arguments)) = self.calls.last_mut()
            && let Err(error) = arguments.add(value)
        {
            self.failed = Some(sqlx::Error::Encode(error));
        }
        self
    }

    /// Runs the statements in order.
    pub(super) async fn run(&mut self, connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for (statement, arguments) in self.calls.drain(..) {
            sqlx::query_with(AssertSqlSafe(statement), arguments).execute(&mut *connection).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_for_postgres() {
        assert_eq!(numbered("a = ? AND b = ?"), "a = $1 AND b = $2");
        assert_eq!(numbered("a = ?2 AND b = ?1 OR c = ?2"), "a = $2 AND b = $1 OR c = $2");
    }
}

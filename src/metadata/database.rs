//! Connections to the database of the metadata.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Once;
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, AnyPool, ConnectOptions, Connection, Row};
use tokio::time::Instant;
use url::Url;

use crate::metadata::MetadataError;
use crate::metadata::dialect::Dialect;

/// Read connections.
const READERS: u32 = 4;

/// How long a read waits for a connection.
const READER_WAIT: Duration = Duration::from_secs(10);

/// How long a start waits for a server that cannot be reached, and how often it tries.
const START_WAIT: Duration = Duration::from_secs(15);
const START_RETRY: Duration = Duration::from_millis(500);

/// WAL with a sync at each commit. Deleted rows are overwritten with zeros.
const PRAGMAS: &str =
    "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON";

/// A transaction of a connection that the server can no longer reach ends after a while, and with it its locks.
const SESSION: [(&str, &str); 2] = [("search_path", "argus"), ("idle_in_transaction_session_timeout", "30s")];

/// Where the metadata is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// An SQLite file.
    File(PathBuf),
    /// A PostgreSQL server.
    Postgres(Url),
}

impl fmt::Display for Location {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::File(path) => write!(f, "sqlite:{}", path.display()),
            Location::Postgres(url) => f.write_str(&without_password(url.as_str())),
        }
    }
}

/// Not the location of a database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the URL of a database; write sqlite:PATH or postgres://USER:PASSWORD@HOST:PORT/DATABASE")]
pub struct InvalidLocation(String);

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Location, InvalidLocation> {
        let invalid = || InvalidLocation(without_password(text));
        if let Some(path) = text.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(invalid()) } else { Ok(Location::File(path.into())) };
        }
        let url = Url::parse(text).map_err(|_| invalid())?;
        let names_a_database = url.has_host() && url.path().len() > 1;
        match url.scheme() {
            "postgres" | "postgresql" if names_a_database => Ok(Location::Postgres(url)),
            _ => Err(invalid()),
        }
    }
}

/// A URL as an error may show it: without what may be a password, also if it is not a valid URL.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    match rest.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or_else(|| user.to_owned(), |(user, _)| format!("{user}:***"));
            format!("{scheme}://{user}@{host}")
        }
        None => format!("{scheme}://{rest}"),
    }
}

/// Opens connections.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pub(super) dialect: Dialect,
    options: AnyConnectOptions,
    /// For errors: the file, or the server.
    name: String,
}

impl Database {
    pub(super) fn new(location: &Location) -> Result<Database, MetadataError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let (dialect, url, name) = match location {
            Location::File(path) => {
                let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
                (Dialect::Sqlite, options.to_url_lossy(), path.display().to_string())
            }
            Location::Postgres(url) => {
                let mut with_settings = url.clone();
                for (name, value) in SESSION {
                    with_settings.query_pairs_mut().append_pair(&format!("options[{name}]"), value);
                }
                (Dialect::Postgres, with_settings, without_password(url.as_str()))
            }
        };
        Ok(Database { dialect, options: AnyConnectOptions::from_url(&url)?, name })
    }

    pub(super) async fn connect(&self) -> Result<AnyConnection, MetadataError> {
        let unreachable = |source| MetadataError::Unreachable { database: self.name.clone(), source };
        let mut connection = AnyConnection::connect_with(&self.options).await.map_err(unreachable)?;
        if self.dialect == Dialect::Sqlite {
            sqlx::raw_sql(PRAGMAS).execute(&mut connection).await?;
        }
        Ok(connection)
    }

    /// Connects; waits for a server that is starting.
    pub(super) async fn connect_when_started(&self) -> Result<AnyConnection, MetadataError> {
        let until = Instant::now() + START_WAIT;
        loop {
            match self.connect().await {
                Err(MetadataError::Unreachable { source, .. }) if is_starting(&source) && Instant::now() < until => {
                    tracing::info!(database = self.name, error = %source, "waiting for the metadata database");
                    tokio::time::sleep(START_RETRY).await;
                }
                connected => return connected,
            }
        }
    }

    /// A pool of read connections.
    pub(super) async fn readers(&self) -> Result<AnyPool, MetadataError> {
        let dialect = self.dialect;
        let pool = AnyPoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(READER_WAIT)
            // A connection to a file does not break, so it is not tested before each use.
            .test_before_acquire(dialect == Dialect::Postgres)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if dialect == Dialect::Sqlite {
                        sqlx::raw_sql(PRAGMAS).execute(&mut *connection).await?;
                        sqlx::raw_sql("PRAGMA query_only = ON").execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            });
        Ok(pool.connect_with(self.options.clone()).await?)
    }
}

/// Whether a server may answer soon: it does not listen, is starting, or has too many clients (SQLSTATE, appendix A of
/// PostgreSQL's documentation).
fn is_starting(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        error => error
            .as_database_error()
            .and_then(|error| error.code())
            .is_some_and(|code| matches!(&*code, "57P03" | "53300")),
    }
}

/// Tries everything that Argus needs of a database, in a transaction that is rolled back. Returns the version of the
/// database.
pub async fn try_out(location: &Location) -> Result<String, MetadataError> {
    // The first start creates it.
    if let Location::File(path) = location
        && !path.exists()
    {
        return Ok("SQLite: a new file".to_owned());
    }
    let database = Database::new(location)?;
    let mut connection = database.connect_when_started().await?;
    let version = match database.dialect {
        Dialect::Sqlite => "SELECT 'SQLite ' || sqlite_version()",
        Dialect::Postgres => "SELECT split_part(version(), ' (', 1)",
    };
    let version: String = sqlx::query(version).fetch_one(&mut connection).await?.try_get(0)?;
    let mut transaction = connection.begin().await?;
    if database.dialect == Dialect::Postgres {
        sqlx::raw_sql("CREATE SCHEMA IF NOT EXISTS argus").execute(&mut *transaction).await?;
    }
    for statement in [
        "CREATE TABLE argus_check (number BIGINT PRIMARY KEY)",
        "INSERT INTO argus_check VALUES (1)",
        "UPDATE argus_check SET number = 2",
        "DELETE FROM argus_check WHERE number = 2",
    ] {
        sqlx::raw_sql(statement).execute(&mut *transaction).await?;
    }
    transaction.rollback().await?;
    connection.close().await?;
    Ok(format!("{version}: create, insert, update, delete"))
}

/// Rewrites the SQLite file at `path` (`VACUUM`), so that no byte of deleted rows remains in it;
/// `secure_delete` alone does not guarantee this. No process may have the database open.
pub async fn vacuum(path: &Path) -> Result<(), MetadataError> {
    let mut connection = Database::new(&Location::File(path.to_owned()))?.connect().await?;
    sqlx::raw_sql("VACUUM").execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_file_or_a_server() {
        let file = |path: &str| Ok(Location::File(path.into()));
        assert_eq!("sqlite:a/b.db".parse(), file("a/b.db"));
        assert_eq!("sqlite:///a/b.db".parse(), file("/a/b.db"));
        let url = "postgres://u:p@127.0.0.1:5432/argus";
        assert_eq!(url.parse(), Ok(Location::Postgres(Url::parse(url).expect("a URL"))));
        for wrong in ["", "sqlite:", "postgres://", "postgres://host", "mysql://host/db", "argus.db"] {
            let error = wrong.parse::<Location>().expect_err(wrong);
            assert!(error.to_string().contains("postgres://USER"), "{error}");
        }
        for url in ["postgres://u:secret@host", "postgres://u:se/secret#@host/", "postgres://host?password=secret"] {
            let error = url.parse::<Location>().expect_err("no database").to_string();
            assert!(error.contains("host") && !error.contains("secret"), "{error}");
        }
    }
}

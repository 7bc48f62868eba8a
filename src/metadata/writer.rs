//! The write connection, and the term of the process that has it.
//!
//! One process writes. With SQLite, the lock of the data directory ensures this. With
//! PostgreSQL, a process takes a *term*, a number larger than those of all earlier
//! writers, and each round checks in its transaction that the term is still current:
//! a process that was paused while another took over can commit nothing. The
//! connection also holds an advisory lock, which the server releases when the
//! connection ends. So a new process sees at once that the previous one has died,
//! and after a lost connection a process that gets the lock knows that its
//! transaction has ended, one way or the other.

use std::sync::Mutex;
use std::time::Duration;

use sqlx::{AnyConnection, AnyPool, Connection, Row};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::metadata::MetadataError;
use crate::metadata::changes::ChangeCounters;
use crate::metadata::database::Database;
use crate::metadata::dialect::{ANSWER_WAIT, Dialect};
use crate::metadata::round::Round;

/// Identifies the advisory lock of the writer, in the database of the metadata.
const LOCK: (i32, i32) = (0x6172_6775, 1);

/// Identifies the advisory lock of the process that may become the writer next.
const CANDIDATE: (i32, i32) = (LOCK.0, 2);

/// Ends the session of a candidate after a while: then it is the writer, or something is wrong with it.
const CANDIDATE_SESSION: &str = "SET idle_session_timeout = '10s'";

/// How often a writer shows that it runs.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);

/// A writer that has not shown for this long that it runs may be replaced, although its connection is open.
const SILENCE_MAX_SECONDS: f64 = 10.0;

/// How long a start waits for the lock: the server may need a moment to see that the previous process has died.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// How often it tries.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// The only writer of metadata.
#[derive(Debug)]
pub struct MetadataWriter {
    database: Database,
    connection: AnyConnection,
    changes: ChangeCounters,
    /// 0 with SQLite.
    term: i64,
    /// Whether another process has taken over.
    pub(super) replaced: watch::Receiver<bool>,
}

impl MetadataWriter {
    /// Becomes the writer.
    pub(super) async fn new(
        database: Database,
        mut connection: AnyConnection,
        changes: ChangeCounters,
    ) -> Result<MetadataWriter, MetadataError> {
        let term = match database.dialect {
            Dialect::Sqlite => 0,
            Dialect::Postgres => {
                lock(&mut connection, None).await?;
                let holder = format!("process {} of {}", std::process::id(), host());
                let take = "UPDATE writer SET term = term + 1, holder = $1, seen_at = now() RETURNING term";
                sqlx::query(take).bind(holder).fetch_one(&mut connection).await?.try_get(0)?
            }
        };
        Ok(MetadataWriter { database, connection, changes, term, replaced: watch::channel(false).1 })
    }

    /// The number of this writer among all writers of the metadata; 0 if only one process can have them open.
    pub fn term(&self) -> u64 {
        self.term.max(0) as u64
    }

    /// The database.
    pub fn dialect(&self) -> Dialect {
        self.database.dialect
    }

    /// Returns the error of a writer that another process has replaced, once it is.
    pub async fn replaced(&mut self) -> MetadataError {
        // Without a server to ask, no other process can take over.
        if self.replaced.wait_for(|replaced| *replaced).await.is_err() {
            return std::future::pending().await;
        }
        fenced(&mut self.connection).await
    }

    /// Begins a round of changes after `last_epoch`, the last accepted
    /// epoch. Readers see none of its changes before it commits.
    pub async fn begin(&mut self, last_epoch: u64) -> Result<Round<'_>, MetadataError> {
        let (dialect, term) = (self.database.dialect, self.term);
        let mut transaction = self.connection.begin().await?;
        if dialect == Dialect::Postgres {
            // Locks the row until the round ends: no other process can take over meanwhile.
            let seen = "UPDATE writer SET seen_at = now() WHERE term = $1";
            if sqlx::query(seen).bind(term).execute(&mut *transaction).await?.rows_affected() == 0 {
                return Err(fenced(&mut transaction).await);
            }
        }
        Ok(Round::new(transaction, dialect, last_epoch + 1, &self.changes))
    }

    /// Opens a new connection after an error. The old one may have an open transaction: later
    /// changes would become part of it, and would be acknowledged without being durable.
    /// When this returns, the transaction of the old one has ended.
    pub async fn reopen(&mut self) -> Result<(), MetadataError> {
        let mut connection = self.database.connect().await?;
        if self.database.dialect == Dialect::Postgres {
            lock(&mut connection, Some(self.term)).await?;
        }
        self.connection = connection;
        Ok(())
    }

    /// The last accepted epoch, as this connection sees it.
    pub async fn last_epoch(&mut self) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT epoch FROM clock").fetch_one(&mut self.connection).await?;
        Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
    }
}

/// Takes the writer's lock. It is refused while another process has it and shows that it runs. With a `term`, the
/// lock belongs to an earlier connection of this process, unless another process has taken over.
async fn lock(connection: &mut AnyConnection, term: Option<i64>) -> Result<(), MetadataError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        let taken = sqlx::query("SELECT pg_try_advisory_lock($1, $2)").bind(LOCK.0).bind(LOCK.1);
        let is_taken: bool = taken.fetch_one(&mut *connection).await?.try_get(0)?;
        let silent =
            "SELECT term, CAST(extract(epoch FROM now() - seen_at) AS DOUBLE PRECISION) AS seconds FROM writer";
        let row = sqlx::query(silent).fetch_one(&mut *connection).await?;
        let (current, seconds): (i64, f64) = (row.try_get("term")?, row.try_get("seconds")?);
        if term.is_some_and(|term| term != current) {
            return Err(fenced(connection).await);
        }
        if is_taken {
            return Ok(());
        }
        if term.is_some() || seconds > SILENCE_MAX_SECONDS {
            // The holder is paused, or this process has lost its connection and the server does not know it yet.
            let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' \
                 AND classid = CAST($1 AS BIGINT) AND objid = CAST($2 AS BIGINT) \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            sqlx::query(end).bind(i64::from(LOCK.0)).bind(i64::from(LOCK.1)).execute(&mut *connection).await?;
        }
        if Instant::now() >= until {
            return Err(MetadataError::AnotherWriter { holder: holder(connection).await?, seconds });
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

async fn holder(connection: &mut AnyConnection) -> Result<String, sqlx::Error> {
    sqlx::query("SELECT holder FROM writer").fetch_one(connection).await?.try_get(0)
}

/// The error of a process that another one has replaced.
async fn fenced(connection: &mut AnyConnection) -> MetadataError {
    match holder(connection).await {
        Ok(holder) => MetadataError::Fenced { holder },
        Err(error) => error.into(),
    }
}

/// Held by the process that may become the writer next, until it is or has given up: others wait meanwhile.
#[derive(Debug)]
pub struct Candidacy {
    /// Has the lock [`CANDIDATE`] as long as it is open. Never used again.
    _connection: Mutex<AnyConnection>,
}

/// The right to become the writer; `None` if there is one, or another process has it.
pub(super) async fn candidacy(pool: &AnyPool) -> Result<Option<Candidacy>, sqlx::Error> {
    if !is_free(pool).await? {
        return Ok(None);
    }
    let mut connection = pool.acquire().await?;
    let taken = sqlx::query("SELECT pg_try_advisory_lock($1, $2)").bind(CANDIDATE.0).bind(CANDIDATE.1);
    let is_taken: bool = taken.fetch_one(&mut *connection).await?.try_get(0)?;
    if !is_taken {
        return Ok(None);
    }
    // The lock ends with the session: also if this process is paused before it has become the writer.
    let mut connection = connection.detach();
    sqlx::query(CANDIDATE_SESSION).execute(&mut connection).await?;
    // Another candidate may have become the writer meanwhile.
    let is_candidate = is_free(pool).await?;
    Ok(is_candidate.then(|| Candidacy { _connection: Mutex::new(connection) }))
}

/// Whether no process has the writer's lock, or the one that has it is silent.
async fn is_free(pool: &AnyPool) -> Result<bool, sqlx::Error> {
    let free = "SELECT NOT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted \
         AND classid = CAST($1 AS BIGINT) AND objid = CAST($2 AS BIGINT) \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
         OR (SELECT CAST(extract(epoch FROM now() - seen_at) AS DOUBLE PRECISION) FROM writer) > $3";
    let free = sqlx::query(free).bind(i64::from(LOCK.0)).bind(i64::from(LOCK.1)).bind(SILENCE_MAX_SECONDS);
    free.fetch_one(pool).await?.try_get(0)
}

/// Shows every [`HEARTBEAT`] that the writer runs, until the pool is closed or another process has taken over: then
/// `replaced` becomes true.
pub(super) async fn show_that_it_runs(pool: AnyPool, term: i64, replaced: watch::Sender<bool>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let seen = sqlx::query("UPDATE writer SET seen_at = now() WHERE term = $1").bind(term);
        let Ok(seen) = tokio::time::timeout(ANSWER_WAIT, seen.execute(&pool)).await else { continue };
        match seen {
            Ok(done) if done.rows_affected() > 0 => {}
            Ok(_) => {
                replaced.send_replace(true);
                return;
            }
            Err(sqlx::Error::PoolClosed) => return,
            Err(error) => tracing::warn!(%error, "cannot update the time at which this writer was last seen"),
        }
    }
}

/// The name of this machine, for errors of other processes.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "an unknown machine".to_owned() } else { name.trim().to_owned() }
}

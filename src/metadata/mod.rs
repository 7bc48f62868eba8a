//! The metadata of batches and files, and the journal of accepted changes.
//!
//! One SQLite file. One connection writes; a commit returns when its data is
//! synced to disk. The other connections read. The journal contains every accepted
//! change until its epoch is committed to the lake, so that a restart can replay it.
//!
//! - [`changes`]: change counters of batches;
//! - [`reader`]: the queries that read;
//! - [`round`]: changes that commit together, at one epoch;
//! - [`writer`]: the write connection;
//! - [`rows`]: conversion between rows and values.

mod changes;
mod reader;
mod round;
pub(crate) mod rows;
mod writer;

use std::path::Path;
use std::time::Duration;

use argus_dataflow::{Change, LINE_BYTES_MAX};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use crate::domain::batch::{Accepted, Encoding};
use crate::domain::digest::{self, Digest};
use crate::domain::status::{BatchStatus, IllegalTransition};

pub use changes::ChangeCounters;
pub use reader::{BatchFilter, Metadata, StoredFile, Withdrawn};
pub use round::{Committed, Erased, Round, UploadKey};
pub use writer::MetadataWriter;

/// Read connections.
const READERS: u32 = 4;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, described TEXT NOT NULL, vehicle_id TEXT NOT NULL, vin TEXT NOT NULL, firmware TEXT,
    status TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    epoch INTEGER NOT NULL, completed_epoch INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status, id);
CREATE INDEX IF NOT EXISTS batches_by_vin ON batches (vin, id);
CREATE INDEX IF NOT EXISTS batches_by_vehicle ON batches (vehicle_id, id);
CREATE INDEX IF NOT EXISTS batches_by_firmware ON batches (firmware, id);
CREATE TABLE IF NOT EXISTS files (
    batch_id TEXT NOT NULL, name TEXT NOT NULL, file_id TEXT NOT NULL, generation INTEGER NOT NULL,
    version TEXT NOT NULL, bytes INTEGER NOT NULL, lines INTEGER NOT NULL, digest BLOB NOT NULL,
    open_text BLOB NOT NULL, open_bytes INTEGER NOT NULL, open_version TEXT,
    uploaded_at INTEGER NOT NULL, epoch INTEGER NOT NULL,
    -- Encoding of its object in the raw store; NULL if it has none because all of the file was appended.
    encoding TEXT,
    -- Why the version could not be counted.
    failure TEXT,
    PRIMARY KEY (batch_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_digest ON files (digest);
-- Bytes that were appended to a version; NULL if they are in an object of the raw store.
CREATE TABLE IF NOT EXISTS appended (
    batch_id TEXT NOT NULL, version TEXT NOT NULL, start INTEGER NOT NULL, epoch INTEGER NOT NULL, bytes BLOB,
    PRIMARY KEY (version, start)
) STRICT;
CREATE TABLE IF NOT EXISTS journal (
    epoch INTEGER NOT NULL, position INTEGER NOT NULL, change TEXT NOT NULL,
    encoding TEXT, text BLOB, lines_before INTEGER, bytes_before INTEGER,
    PRIMARY KEY (epoch, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, batch_id TEXT NOT NULL, answer TEXT, at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_by_time ON idempotency (at);
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, batch_id TEXT NOT NULL, event TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_batch ON events (batch_id, position);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO clock VALUES (1, 0);
-- Shared by the processes of one deployment: its id, and the key that signs what they store in a shared cache.
CREATE TABLE IF NOT EXISTS deployment (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, secret BLOB NOT NULL) STRICT;
-- When epochs were accepted, with a resolution of one second.
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, at INTEGER NOT NULL) STRICT;
-- The last commit of the lake: its epoch, and the version of each table as a JSON list.
CREATE TABLE IF NOT EXISTS lake (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, versions TEXT NOT NULL) STRICT;
";

/// Why metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum MetadataError {
    #[error("the metadata database could not be read or written")]
    Database(#[from] sqlx::Error),
    #[error("the metadata database contains a value that this version of argus cannot read: {0}; use a newer version")]
    Unreadable(String),
}

/// Why a change was rejected. A rejected change has no effect.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Refused {
    #[error("there is no batch {0}")]
    BatchNotFound(Uuid),
    #[error("batch {batch} is {status}, so its files cannot change; reopen it (POST …/reopen), or create a new batch")]
    NotPending { batch: Uuid, status: BatchStatus },
    #[error("batch {batch} has no file {name:?}")]
    FileNotFound { batch: Uuid, name: String },
    #[error("file {name:?} has {actual} bytes, so nothing was appended; continue at offset {actual}")]
    OffsetDiffers { name: String, actual: u64 },
    #[error(
        "the last line of file {name:?} is longer than {LINE_BYTES_MAX} bytes and has no line feed yet, so nothing was \
         appended; append the rest with its line feed, or upload the whole file"
    )]
    OpenLineTooLong { name: String },
    #[error("the idempotency key was used with another request or another body; use a new key")]
    KeyReused,
    #[error("a request with this idempotency key was answered before")]
    AnsweredBefore(Box<Accepted>),
    #[error(transparent)]
    Transition(#[from] IllegalTransition),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Refused::Metadata(error.into())
    }
}

/// A change in the journal, with the lines to insert before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The change.
    pub change: Change,
    /// The lines that it admits.
    pub lines: Lines,
}

/// Where the lines that a change admits are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lines {
    /// It admits none.
    None,
    /// The whole lines of a file in the raw store.
    Stored(Encoding),
    /// In the journal itself.
    Inline(Text),
}

/// A few lines of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The lines.
    pub text: Vec<u8>,
    /// The number of lines of the file before them.
    pub lines_before: u64,
    /// The number of bytes of the file before them.
    pub bytes_before: u64,
}

impl Metadata {
    /// Opens the database at `path`; creates it if it does not exist.
    pub async fn open(path: &Path) -> Result<(Metadata, MetadataWriter), MetadataError> {
        let options = options(path);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        migrate(&mut connection).await?;
        let deployment = Deployment::new();
        sqlx::query("INSERT OR IGNORE INTO deployment VALUES (1, ?, ?)")
            .bind(deployment.id.to_string())
            .bind(&deployment.secret[..])
            .execute(&mut connection)
            .await?;
        // A connection to a file does not break, so it is not tested before each use.
        let readers = SqlitePoolOptions::new().max_connections(READERS).test_before_acquire(false);
        let readers = readers.connect_with(options.clone().read_only(true)).await?;
        let changes = ChangeCounters::new();
        Ok((Metadata { readers, changes: changes.clone() }, MetadataWriter { options, connection, changes }))
    }

    /// Closes the read connections. Reads that are still running fail.
    pub async fn close(&self) {
        self.readers.close().await;
    }
}

/// Migrates a database of an earlier version.
async fn migrate(connection: &mut SqliteConnection) -> Result<(), MetadataError> {
    let columns: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info('files')").fetch_all(&mut *connection).await?;
    for (column, add) in [
        ("encoding", "ALTER TABLE files ADD COLUMN encoding TEXT"),
        ("failure", "ALTER TABLE files ADD COLUMN failure TEXT"),
    ] {
        if !columns.iter().any(|name| name == column) {
            sqlx::raw_sql(add).execute(&mut *connection).await?;
        }
    }
    // Earlier versions stored the state of SHA-256 in another form, which is shorter.
    let earlier: Vec<(String, Vec<u8>)> = sqlx::query_as("SELECT version, digest FROM files WHERE length(digest) < ?")
        .bind(Digest::default().to_bytes().len() as i64)
        .fetch_all(&mut *connection)
        .await?;
    for (version, digest) in earlier {
        let Some(digest) = digest::from_earlier_version(&digest) else { continue };
        let update = sqlx::query("UPDATE files SET digest = ? WHERE version = ?").bind(digest).bind(version);
        update.execute(&mut *connection).await?;
    }
    // Completion is one durable change; earlier versions stored intermediate statuses.
    sqlx::raw_sql("UPDATE batches SET status = 'completed' WHERE completed_epoch IS NOT NULL AND status <> 'failed'")
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Shared by the processes of one deployment.
#[derive(Clone)]
pub struct Deployment {
    /// Separates this deployment's cache entries from those of others.
    pub id: Uuid,
    /// Signs the entries of a shared cache.
    pub secret: [u8; 32],
}

impl Deployment {
    fn new() -> Deployment {
        // Each random UUID has 122 random bits.
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        secret[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Deployment { id: Uuid::new_v4(), secret }
    }
}

/// Rewrites the database at `path` (`VACUUM`), so that no byte of deleted rows remains in it;
/// `secure_delete` alone does not guarantee this. No process may have the database open.
pub async fn vacuum(path: &Path) -> Result<(), MetadataError> {
    let mut connection = SqliteConnection::connect_with(&options(path)).await?;
    sqlx::raw_sql("VACUUM").execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        // Overwrites deleted rows with zeros.
        .pragma("secure_delete", "ON")
        .busy_timeout(Duration::from_secs(10))
}

//! What is known of batches and files, and the journal of accepted changes.
//!
//! SQLite in one file. One connection writes, in transactions that are on the
//! disk when they return; others read. The journal holds every accepted change
//! until its epoch is in the lake, so that a restart can feed it again.
//!
//! - [`changes`]: which batches changed;
//! - [`reader`]: what is asked of it;
//! - [`round`]: changes that are accepted together;
//! - [`writer`]: the one who writes;
//! - [`rows`]: rows as values.

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

use crate::model::Encoding;
use crate::status::{BatchStatus, IllegalTransition};

pub use changes::Changes;
pub use reader::{BatchFilter, Metadata, StoredFile, Withdrawn};
pub use round::{Accepted, Committed, Erased, Round, UploadKey};
pub use writer::MetadataWriter;

/// Connections that read at once.
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
    -- How its object in the raw store is encoded; NULL where it has none, for all of it was appended.
    encoding TEXT,
    -- Why its version could not be counted.
    failure TEXT,
    PRIMARY KEY (batch_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_by_digest ON files (digest);
-- Bytes that were appended to a version; without bytes, they are in an object of the raw store.
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
-- What the processes of one deployment share: its id, and a secret that seals what they keep elsewhere.
CREATE TABLE IF NOT EXISTS deployment (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL, secret BLOB NOT NULL) STRICT;
-- When epochs were accepted, to the second.
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, at INTEGER NOT NULL) STRICT;
-- What the lake held when it last said so: its epoch, and the version of each table as a JSON list.
CREATE TABLE IF NOT EXISTS lake (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL, versions TEXT NOT NULL) STRICT;
";

/// Why metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum MetadataError {
    #[error("the metadata could not be read or written")]
    Database(#[from] sqlx::Error),
    #[error("the metadata holds something that this version does not know: {0}")]
    Unreadable(String),
}

/// Why a change was not accepted. Nothing of it happened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Refused {
    #[error("there is no batch {0}")]
    BatchNotFound(Uuid),
    #[error("batch {batch} is {status}, so its files cannot change; reopen it (POST …/reopen), or make a new batch")]
    NotPending { batch: Uuid, status: BatchStatus },
    #[error("batch {batch} has no file {name:?}")]
    FileNotFound { batch: Uuid, name: String },
    #[error("file {name:?} has {actual} bytes, so nothing was appended; send what comes behind them")]
    OffsetDiffers { name: String, actual: u64 },
    #[error(
        "the last line of file {name:?} is longer than {LINE_BYTES_MAX} bytes and has no line feed yet, so nothing was \
         appended; append it with its line feed, or upload the file whole"
    )]
    OpenLineTooLong { name: String },
    #[error("the idempotency key was used with another request, or another body")]
    KeyReused,
    #[error("the same was asked and answered before")]
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

/// A change of the journal, with what must be fed before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// What happened.
    pub change: Change,
    /// The lines that it admits.
    pub lines: Lines,
}

/// Where the lines are that a change admits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lines {
    /// It admits none.
    None,
    /// The whole lines of a file in the raw store.
    Stored(Encoding),
    /// In the journal itself.
    Here(Text),
}

/// A few lines of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// The lines.
    pub text: Vec<u8>,
    /// How many lines of the file stand before them.
    pub lines_before: u64,
    /// How many bytes.
    pub bytes_before: u64,
}

impl Metadata {
    /// Opens the database at `path`, made when it is not there.
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
        // A file that was opened stays open, so each read is spared a question whether it still is.
        let readers = SqlitePoolOptions::new().max_connections(READERS).test_before_acquire(false);
        let readers = readers.connect_with(options.clone().read_only(true)).await?;
        let changes = Changes::new();
        Ok((Metadata { readers, changes: changes.clone() }, MetadataWriter { options, connection, changes }))
    }

    /// Lets the database go. Whoever still reads gets an error.
    pub async fn close(&self) {
        self.readers.close().await;
    }
}

/// Brings a database of an earlier version to this one's form.
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
    // Completion is one durable change now; earlier versions passed through further ones.
    sqlx::raw_sql("UPDATE batches SET status = 'completed' WHERE completed_epoch IS NOT NULL AND status <> 'failed'")
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// What the processes of one deployment share.
#[derive(Clone)]
pub struct Deployment {
    /// Tells its answers from those of others.
    pub id: Uuid,
    /// Seals what is kept elsewhere.
    pub secret: [u8; 32],
}

impl Deployment {
    fn new() -> Deployment {
        // A random UUID has 122 random bits, so half of the secret's would do.
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(Uuid::new_v4().as_bytes());
        secret[16..].copy_from_slice(Uuid::new_v4().as_bytes());
        Deployment { id: Uuid::new_v4(), secret }
    }
}

/// Writes the database at `path` anew, which nobody has open: what was deleted
/// leaves no byte in it, as overwriting alone cannot promise.
pub async fn write_anew(path: &Path) -> Result<(), MetadataError> {
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
        // What is deleted is overwritten.
        .pragma("secure_delete", "ON")
        .busy_timeout(Duration::from_secs(10))
}

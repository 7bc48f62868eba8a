//! The metadata of batches and files, and the journal of accepted changes.
//!
//! In an SQLite file, or in a PostgreSQL server. One connection writes; a commit returns
//! when its data is durable. The other connections read. The journal contains every accepted
//! change until its epoch is committed to the lake, so that a restart can replay it.
//!
//! - [`dialect`]: what differs between the databases; [`schema`]: the tables; [`database`]: connections;
//! - [`changes`]: change counters of batches; [`documents`]: small documents; [`catalog`]: the table of SQL;
//! - [`reader`]: the queries that read;
//! - [`round`]: changes that commit together, at one epoch;
//! - [`writer`]: the write connection, and the term of the process that has it;
//! - [`rows`]: conversion between rows and values.

mod catalog;
mod changes;
mod copy;
mod database;
mod dialect;
mod documents;
mod packed;
mod reader;
mod round;
pub(crate) mod rows;
mod schema;
mod writer;

use argus_dataflow::{Change, LINE_BYTES_MAX};
use bytes::Bytes;
use tokio::sync::watch;
use uuid::Uuid;

use crate::domain::batch::{Accepted, Encoding};
use crate::domain::status::{BatchStatus, IllegalTransition};

pub use catalog::CatalogRows;
pub use changes::ChangeCounters;
pub use copy::MetadataCopy;
pub use database::{InvalidLocation, Location, try_out, vacuum, without_password};
pub use dialect::Dialect;
pub use documents::{Document, DocumentKind};
pub use packed::pack;
pub use reader::{AppendedParts, BatchFilter, Metadata, StoredFile, Withdrawn};
pub use round::{Committed, Consumed, Erased, EventAt, RefusedPart, Round, UploadKey};
pub use rows::FileRecord;
pub use writer::{Candidacy, MetadataWriter};

use self::database::Database;

/// Why metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum MetadataError {
    #[error("the metadata database could not be read or written")]
    Database(#[from] sqlx::Error),
    #[error("cannot connect to the metadata database {database}")]
    Unreachable { database: String, source: sqlx::Error },
    #[error(
        "the metadata database has the schema {stored}, and this version of argus knows schemas up to {known}; use a \
         newer version"
    )]
    NewerSchema { stored: i64, known: i64 },
    #[error(
        "another argus writes to the metadata database: {holder}, seen {seconds:.1} s ago; stop it first, or use another \
         database"
    )]
    AnotherWriter { holder: String, seconds: f64 },
    #[error("another argus has taken over the metadata database: {holder}; this one can write nothing more")]
    Fenced { holder: String },
    #[error("the metadata database did not answer within {seconds} s")]
    TimedOut { seconds: u64 },
    #[error("the metadata database contains a value that this version of argus cannot read: {0}; use a newer version")]
    Unreadable(String),
}

impl MetadataError {
    /// Whether the database cannot be reached at the moment.
    pub fn is_temporary(&self) -> bool {
        match self {
            MetadataError::Unreachable { .. } | MetadataError::TimedOut { .. } => true,
            MetadataError::Database(error) => {
                use sqlx::Error::{Io, PoolTimedOut, Protocol, WorkerCrashed};
                // A connection that ends in the middle of its beginning is an error of the protocol.
                matches!(error, Io(_) | PoolTimedOut | Protocol(_) | WorkerCrashed)
                    // Class 57: the server is shutting down or starting; class 08: the connection is lost.
                    || error.as_database_error().and_then(|error| error.code()).is_some_and(|code| {
                        code.starts_with("57P") || code.starts_with("08")
                    })
            }
            _ => false,
        }
    }
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
    #[error(
        "the records of partition {partition} continue at offset {expected:?} and not at {actual:?}, so none was counted; \
         seek to {expected:?}"
    )]
    RecordsDiffer { partition: i32, expected: Option<i64>, actual: Option<i64> },
    #[error("the idempotency key was used with another request or another body; use a new key")]
    KeyReused,
    #[error("the catalogue has {limit} entries, which is its limit; delete some")]
    CatalogFull { limit: i64 },
    #[error("the catalogue has no entry of yours for {code:?} with this platform and firmware")]
    NoCatalogEntry { code: String },
    #[error("there are {limit} documents of the kind {kind}, which is their limit; delete some")]
    TooManyDocuments { kind: &'static str, limit: i64 },
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
    pub text: Bytes,
    /// The lines as they are stored, if they are stored compressed.
    pub packed: Option<Bytes>,
    /// The number of lines of the file before them.
    pub lines_before: u64,
    /// The number of bytes of the file before them.
    pub bytes_before: u64,
}

impl Metadata {
    /// Opens the metadata, and becomes their only writer; creates the database's tables if they do not exist.
    pub async fn open(location: &Location) -> Result<(Metadata, MetadataWriter), MetadataError> {
        let database = Database::new(location)?;
        let dialect = database.dialect;
        let mut connection = database.connect_when_started().await?;
        schema::migrate(dialect, &mut connection).await?;
        let deployment = Deployment::new();
        let insert = dialect.query("INSERT INTO deployment VALUES (1, ?, ?) ON CONFLICT DO NOTHING");
        insert.bind(deployment.id.to_string()).bind(&deployment.secret[..]).execute(&mut connection).await?;
        let readers = database.readers().await?;
        let changes = ChangeCounters::new();
        let mut writer = MetadataWriter::new(database, connection, changes.clone()).await?;
        if dialect == Dialect::Postgres {
            let (replaced_in, replaced) = watch::channel(false);
            writer.replaced = replaced;
            tokio::spawn(writer::show_that_it_runs(readers.clone(), writer.term() as i64, replaced_in));
        }
        Ok((Metadata { dialect, readers, changes }, writer))
    }

    /// Opens the metadata for reading, while another process is their writer.
    pub async fn open_read_only(location: &Location) -> Result<Metadata, MetadataError> {
        let database = Database::new(location)?;
        let dialect = database.dialect;
        drop(database.connect_when_started().await?);
        Ok(Metadata { dialect, readers: database.readers().await?, changes: ChangeCounters::new() })
    }

    /// The right to become the writer; `None` if there is one, or another process is about to become it.
    pub async fn candidacy(&self) -> Result<Option<Candidacy>, MetadataError> {
        match self.dialect {
            Dialect::Sqlite => Ok(None),
            Dialect::Postgres => self.dialect.limited(async { Ok(writer::candidacy(&self.readers).await?) }).await,
        }
    }

    /// Closes the read connections. Reads that are still running fail.
    pub async fn close(&self) {
        self.readers.close().await;
    }
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

//! What is asked of the lake beside commits: to put compacted files in the
//! place of others, to close the past, to shorten its log.
//!
//! The lake does these between its commits, one at a time, for a table has one
//! committer. New files are written before, beside the lake's own work.

use std::collections::HashSet;
use std::sync::Weak;
use std::time::Duration;

use arrow::array::RecordBatch;
use deltalake_core::DeltaTableError;
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::sync::{mpsc, oneshot};

use crate::lake::{LakeError, failed};
use crate::schema::Table;
use crate::table::{LakeTable, NewFile};

/// Requests that may wait; at the limit, whoever asks waits.
const WAITING_MAX: usize = 4;

/// A new file is closed when it has so many bytes (32 MiB).
pub const FILE_BYTES: usize = 32 << 20;

/// Asks the lake. Clones ask the same one.
#[derive(Clone)]
pub struct Upkeep {
    requests: mpsc::Sender<Request>,
    tables: [LakeTable; 5],
}

/// Why something that was asked of the lake did not happen.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum UpkeepError {
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error("the lake has stopped")]
    Stopped,
}

/// Something to do between two commits.
pub(crate) struct Request {
    pub(crate) what: What,
    pub(crate) reply: oneshot::Sender<Result<Weak<()>, LakeError>>,
}

pub(crate) enum What {
    /// Commit what is closed.
    Commit,
    ClosePast {
        horizon: u64,
    },
    Replace {
        table: Table,
        removed: HashSet<Path>,
        added: Vec<NewFile>,
    },
    ShortenLogs {
        age: Duration,
    },
}

impl Upkeep {
    pub(crate) fn new(tables: [LakeTable; 5]) -> (Upkeep, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(WAITING_MAX);
        (Upkeep { requests, tables }, receiver)
    }

    /// Returns when everything that was closed before is committed.
    pub async fn commit(&self) -> Result<(), UpkeepError> {
        self.ask(What::Commit).await.map(drop)
    }

    /// Says that epochs before `horizon` cannot be told apart any more.
    pub async fn close_past(&self, horizon: u64) -> Result<(), UpkeepError> {
        self.ask(What::ClosePast { horizon }).await.map(drop)
    }

    /// Puts `added` in the place of `removed`, for every reader at once. The
    /// removed files may be deleted when what is returned is held by nobody.
    pub async fn replace(
        &self,
        table: Table,
        removed: HashSet<Path>,
        added: Vec<NewFile>,
    ) -> Result<Weak<()>, UpkeepError> {
        self.ask(What::Replace { table, removed, added }).await
    }

    /// Shortens the tables' logs by what is older than `age`.
    pub async fn shorten_logs(&self, age: Duration) -> Result<(), UpkeepError> {
        self.ask(What::ShortenLogs { age }).await.map(drop)
    }

    /// A writer of files that [`Upkeep::replace`] may add to the table.
    pub fn writer(&self, table: Table) -> Result<FileWriter, LakeError> {
        let opened = self.tables[table as usize].clone();
        let writer = opened.writer().map_err(|source| failed(table, source))?;
        Ok(FileWriter { table, opened, writer, files: Vec::new() })
    }

    /// Where a new file of a table is.
    pub fn path_of(&self, table: Table, file: &NewFile) -> Path {
        self.tables[table as usize].data_file_of(file).path
    }

    /// Files in the folders of the tables that no table names: those that are
    /// being written, and those that a crash left.
    pub async fn unnamed_files(&self, store: &dyn ObjectStore) -> Result<Vec<ObjectMeta>, LakeError> {
        let mut unnamed = Vec::new();
        for table in Table::ALL {
            let files = self.tables[table as usize].clone().unnamed_files(store).await;
            unnamed.extend(files.map_err(|source| failed(table, source))?);
        }
        Ok(unnamed)
    }

    async fn ask(&self, what: What) -> Result<Weak<()>, UpkeepError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { what, reply }).await.map_err(|_| UpkeepError::Stopped)?;
        Ok(answer.await.map_err(|_| UpkeepError::Stopped)??)
    }
}

/// Writes rows into new files of a table. In memory are the row group that is being written and
/// the parts of the file that are on their way to the store.
pub struct FileWriter {
    table: Table,
    opened: LakeTable,
    writer: RecordBatchWriter,
    files: Vec<NewFile>,
}

impl FileWriter {
    /// Writes rows, which come in the table's order.
    pub async fn write(&mut self, rows: RecordBatch) -> Result<(), LakeError> {
        let table = self.table;
        self.writer.write(rows).await.map_err(|source| failed(table, source))?;
        if self.writer.buffer_len() >= FILE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// The files, durable; none after an error.
    pub async fn finish(mut self, store: &dyn ObjectStore) -> Result<Vec<NewFile>, LakeError> {
        match self.flush().await {
            Ok(()) => Ok(self.files),
            Err(error) => {
                self.discard(store).await;
                Err(error)
            }
        }
    }

    /// Deletes what was written.
    pub async fn discard(mut self, store: &dyn ObjectStore) {
        self.writer.reset();
        for file in &self.files {
            let path = self.opened.data_file_of(file).path;
            if let Err(error) = store.delete(&path).await {
                // No table names it; the first maintenance after the next start deletes it.
                tracing::warn!(%path, error = &error as &dyn std::error::Error, "cannot delete a file without use");
            }
        }
    }

    async fn flush(&mut self) -> Result<(), LakeError> {
        self.files.extend(self.writer.flush().await.map_err(|source| failed(self.table, source))?);
        Ok(())
    }
}

impl What {
    /// Does it on the tables.
    pub(crate) async fn run(self, tables: &mut [LakeTable; 5]) -> Result<(), LakeError> {
        let done = |table: Table, result: Result<(), DeltaTableError>| result.map_err(|source| failed(table, source));
        match self {
            What::Commit => Ok(()),
            What::ClosePast { horizon } => done(Table::Files, tables[Table::Files as usize].close_past(horizon).await),
            What::Replace { table, removed, added } => {
                done(table, tables[table as usize].replace(&removed, added).await)
            }
            What::ShortenLogs { age } => {
                for table in Table::ALL {
                    done(table, tables[table as usize].shorten_log(age).await)?;
                }
                Ok(())
            }
        }
    }
}

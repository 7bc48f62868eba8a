//! Operations on the lake besides commits: replacing files with compacted ones,
//! advancing `since`, shortening the Delta logs.
//!
//! Each table has one committer, so the lake runs these between its commits, one
//! at a time. The new files are written before, in parallel to the lake's work.

use std::collections::HashSet;
use std::sync::Weak;
use std::time::Duration;

use arrow::array::RecordBatch;
use deltalake_core::DeltaTableError;
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::sync::{mpsc, oneshot};

use crate::error::{LakeError, failed};
use crate::schema::Table;
use crate::table::{LakeTable, NewFile};

/// Queued requests; at the limit, callers wait.
const REQUESTS_MAX: usize = 4;

/// A new file is closed when it reaches this size (32 MiB).
pub const FILE_BYTES: usize = 32 << 20;

/// Sends requests to the lake. Clones use the same lake.
#[derive(Clone)]
pub struct LakeMaintenance {
    requests: mpsc::Sender<Request>,
    tables: [LakeTable; 5],
}

/// Why a request to the lake failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain each variant")]
pub enum LakeMaintenanceError {
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error("the lake has stopped")]
    Stopped,
}

/// An operation to run between two commits.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) reply: oneshot::Sender<Result<Weak<()>, LakeError>>,
}

pub(crate) enum Operation {
    /// Commit the closed epochs.
    Commit,
    AdvanceSince {
        since: u64,
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

impl LakeMaintenance {
    pub(crate) fn new(tables: [LakeTable; 5]) -> (LakeMaintenance, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (LakeMaintenance { requests, tables }, receiver)
    }

    /// Returns when all epochs closed before the call are committed.
    pub async fn commit(&self) -> Result<(), LakeMaintenanceError> {
        self.send(Operation::Commit).await.map(drop)
    }

    /// Advances `since`: epochs before it can no longer be queried separately.
    pub async fn advance_since(&self, since: u64) -> Result<(), LakeMaintenanceError> {
        self.send(Operation::AdvanceSince { since }).await.map(drop)
    }

    /// Replaces the files `removed` with `added`, for all readers atomically. The
    /// removed files may be deleted when the returned reference can no longer be upgraded.
    pub async fn replace(
        &self,
        table: Table,
        removed: HashSet<Path>,
        added: Vec<NewFile>,
    ) -> Result<Weak<()>, LakeMaintenanceError> {
        self.send(Operation::Replace { table, removed, added }).await
    }

    /// Writes checkpoints and deletes Delta log entries older than `age`.
    pub async fn shorten_logs(&self, age: Duration) -> Result<(), LakeMaintenanceError> {
        self.send(Operation::ShortenLogs { age }).await.map(drop)
    }

    /// A writer of new files for [`LakeMaintenance::replace`].
    pub fn writer(&self, table: Table) -> Result<FileWriter, LakeError> {
        let opened = self.tables[table as usize].clone();
        let writer = opened.writer().map_err(|source| failed(table, source))?;
        Ok(FileWriter { table, opened, writer, files: Vec::new() })
    }

    /// The path of a new file of a table.
    pub fn path_of(&self, table: Table, file: &NewFile) -> Path {
        self.tables[table as usize].data_file_of(file).path
    }

    /// Files in the tables' folders that no table refers to: files being written,
    /// and files left by a crash.
    pub async fn unreferenced_files(&self, store: &dyn ObjectStore) -> Result<Vec<ObjectMeta>, LakeError> {
        let mut unnamed = Vec::new();
        for table in Table::ALL {
            let files = self.tables[table as usize].clone().unreferenced_files(store).await;
            unnamed.extend(files.map_err(|source| failed(table, source))?);
        }
        Ok(unnamed)
    }

    async fn send(&self, operation: Operation) -> Result<Weak<()>, LakeMaintenanceError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { operation, reply }).await.map_err(|_| LakeMaintenanceError::Stopped)?;
        Ok(answer.await.map_err(|_| LakeMaintenanceError::Stopped)??)
    }
}

/// Writes rows into new files of a table. It buffers the current row group and the parts of the
/// file that are being uploaded.
pub struct FileWriter {
    table: Table,
    opened: LakeTable,
    writer: RecordBatchWriter,
    files: Vec<NewFile>,
}

impl FileWriter {
    /// Writes rows, which must be in the table's sort order.
    pub async fn write(&mut self, rows: RecordBatch) -> Result<(), LakeError> {
        let table = self.table;
        self.writer.write(rows).await.map_err(|source| failed(table, source))?;
        if self.writer.buffer_len() >= FILE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Makes the files durable and returns them; after an error all are deleted.
    pub async fn finish(mut self, store: &dyn ObjectStore) -> Result<Vec<NewFile>, LakeError> {
        match self.flush().await {
            Ok(()) => Ok(self.files),
            Err(error) => {
                self.discard(store).await;
                Err(error)
            }
        }
    }

    /// Deletes the written files.
    pub async fn discard(mut self, store: &dyn ObjectStore) {
        self.writer.reset();
        for file in &self.files {
            let path = self.opened.data_file_of(file).path;
            if let Err(error) = store.delete(&path).await {
                // No table refers to it; the first maintenance run after the next start deletes it.
                tracing::warn!(%path, error = &error as &dyn std::error::Error, "cannot delete an unused file");
            }
        }
    }

    async fn flush(&mut self) -> Result<(), LakeError> {
        self.files.extend(self.writer.flush().await.map_err(|source| failed(self.table, source))?);
        Ok(())
    }
}

impl Operation {
    /// Runs the operation on the tables.
    pub(crate) async fn run(self, tables: &mut [LakeTable; 5]) -> Result<(), LakeError> {
        let done = |table: Table, result: Result<(), DeltaTableError>| result.map_err(|source| failed(table, source));
        match self {
            Operation::Commit => Ok(()),
            Operation::AdvanceSince { since } => {
                done(Table::Files, tables[Table::Files as usize].advance_since(since).await)
            }
            Operation::Replace { table, removed, added } => {
                done(table, tables[table as usize].replace(&removed, added).await)
            }
            Operation::ShortenLogs { age } => {
                for table in Table::ALL {
                    done(table, tables[table as usize].shorten_log(age).await)?;
                }
                Ok(())
            }
        }
    }
}

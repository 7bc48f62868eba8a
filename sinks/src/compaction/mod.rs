//! Compaction: merges files of a table into fewer, removes deleted rows, and
//! consolidates differences of old epochs.
//!
//! ```text
//!  file ──► chunks ──┐
//!  file ──► chunks ──┼─► merge ──► consolidator ──► writer ──► new files
//!  file ──► chunks ──┘               ▲
//!  files, batches ──► deleted ids ───┘
//! ```
//!
//! The files are sorted, so nothing is sorted or joined again. Memory is
//! bounded for any input:
//!
//! - one chunk of 2,048 rows of each input with its sort keys, at most [`FAN_IN`] inputs;
//! - the old rows of one batch, of one batch and code, or of one vehicle and code, up to 4 MiB;
//! - the row group that is being written, up to 8 MiB, and output that is being uploaded to the
//!   store, up to 50 MiB;
//! - the ids of deleted data, 16 bytes each, [`FOUND_MAX`] of each kind.
//!
//! With lines of 1 KiB this is about 150 MiB at most, with shorter lines much less.
//! More than [`FAN_IN`] files are merged in groups. Each group replaces its own
//! files, so an unreadable file does not affect other groups.
//!
//! - [`read`]: the rows of one file; [`merge`]: the rows of several files, in order;
//! - [`deleted_rows`]: finds deleted data; [`consolidator`]: removes it and sums old differences.

pub mod consolidator;
pub mod deleted_rows;
pub mod merge;
pub mod read;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::error::ArrowError;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::errors::ParquetError;

use crate::compaction::consolidator::Consolidator;
use crate::compaction::merge::Merge;
use crate::error::LakeError;
use crate::maintenance::{FileWriter, LakeMaintenance};
use crate::schema::Table;
use crate::snapshot::DataFile;
use crate::table::NewFile;

pub use crate::compaction::deleted_rows::{DeletedRows, FOUND_MAX};

/// The number of files merged at once.
pub const FAN_IN: usize = 16;

/// Why files could not be compacted.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain each variant")]
pub enum CompactionError {
    #[error("cannot read Parquet file {path}")]
    Read { path: Path, source: Box<ParquetError> },
    #[error("cannot merge rows")]
    Rows(#[from] ArrowError),
    #[error("cannot write compacted files")]
    Write(#[from] LakeError),
}

impl CompactionError {
    pub(crate) fn read(path: &Path, source: ParquetError) -> CompactionError {
        CompactionError::Read { path: path.clone(), source: Box::new(source) }
    }

    /// The file that could not be read, if that is the error.
    pub fn path(&self) -> Option<&Path> {
        match self {
            CompactionError::Read { path, .. } => Some(path),
            CompactionError::Rows(_) | CompactionError::Write(_) => None,
        }
    }
}

/// Compacts files of a table into new files, which are not part of the table yet.
/// After an error the new files are deleted.
pub async fn compact(
    store: &Arc<dyn ObjectStore>,
    maintenance: &LakeMaintenance,
    table: Table,
    files: &[DataFile],
    gone: &DeletedRows,
    since: u64,
) -> Result<Vec<NewFile>, CompactionError> {
    let mut writer = maintenance.writer(table)?;
    match write(store, &mut writer, table, files, gone, since).await {
        Ok(()) => Ok(writer.finish(&**store).await?),
        Err(error) => {
            writer.discard(&**store).await;
            Err(error)
        }
    }
}

async fn write(
    store: &Arc<dyn ObjectStore>,
    writer: &mut FileWriter,
    table: Table,
    files: &[DataFile],
    gone: &DeletedRows,
    since: u64,
) -> Result<(), CompactionError> {
    let mut merge = Merge::open(store, table, files).await?;
    let mut consolidator = Consolidator::new(table, since, gone);
    while let Some(rows) = merge.next().await? {
        let rows = consolidator.push(rows)?;
        if rows.num_rows() > 0 {
            writer.write(rows).await?;
        }
    }
    let rows = consolidator.finish()?;
    if rows.num_rows() > 0 {
        writer.write(rows).await?;
    }
    Ok(())
}

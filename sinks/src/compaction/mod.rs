//! Some files of a table become fewer: what is gone leaves no row, old
//! differences become one.
//!
//! ```text
//!  file ──► chunks ──┐
//!  file ──► chunks ──┼─► merge ──► fold ──► writer ──► new files
//!  file ──► chunks ──┘               ▲
//!  files, batches ──► what is gone ──┘
//! ```
//!
//! The files are sorted, so nothing is sorted or joined again. Memory is
//! bounded whatever the files hold:
//!
//! - a chunk of 2,048 rows of each input, [`FAN_IN`] inputs at most, and its keys;
//! - the old rows of one batch, or of one batch and code, or of one vehicle and code, up to 4 MiB;
//! - the row group that is being written, up to 8 MiB, and what of the output is on its way to the
//!   store, 50 MiB at most;
//! - the ids of what is gone, 16 bytes each, [`FOUND_MAX`] of each kind.
//!
//! With lines of 1 KiB that is some 150 MiB at most, and much less with others.
//! More files than [`FAN_IN`] are merged in groups, and each group is put in the
//! place of its files by itself, so one that cannot be read stops no other.
//!
//! - [`read`]: the rows of one file; [`merge`]: those of several, in order;
//! - [`gone`]: what leaves no row; [`fold`]: what is left becomes less.

pub mod fold;
pub mod gone;
pub mod merge;
pub mod read;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::error::ArrowError;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::errors::ParquetError;

use crate::compaction::fold::Fold;
use crate::compaction::merge::Merge;
use crate::lake::LakeError;
use crate::schema::Table;
use crate::snapshot::DataFile;
use crate::table::NewFile;
use crate::upkeep::{FileWriter, Upkeep};

pub use crate::compaction::gone::{FOUND_MAX, Gone};

/// Files that are merged at once.
pub const FAN_IN: usize = 16;

/// Why files could not be compacted.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum CompactionError {
    #[error("cannot read {path}")]
    Read { path: Path, source: Box<ParquetError> },
    #[error("cannot merge rows")]
    Rows(#[from] ArrowError),
    #[error("cannot write")]
    Write(#[from] LakeError),
}

impl CompactionError {
    pub(crate) fn read(path: &Path, source: ParquetError) -> CompactionError {
        CompactionError::Read { path: path.clone(), source: Box::new(source) }
    }

    /// The file that could not be read, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            CompactionError::Read { path, .. } => Some(path),
            CompactionError::Rows(_) | CompactionError::Write(_) => None,
        }
    }
}

/// What some files of a table become: new files, which are not part of it yet.
/// After an error there are none.
pub async fn compact(
    store: &Arc<dyn ObjectStore>,
    upkeep: &Upkeep,
    table: Table,
    files: &[DataFile],
    gone: &Gone,
    horizon: u64,
) -> Result<Vec<NewFile>, CompactionError> {
    let mut writer = upkeep.writer(table)?;
    match write(store, &mut writer, table, files, gone, horizon).await {
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
    gone: &Gone,
    horizon: u64,
) -> Result<(), CompactionError> {
    let mut merge = Merge::open(store, table, files).await?;
    let mut fold = Fold::new(table, horizon, gone);
    while let Some(rows) = merge.next().await? {
        let rows = fold.push(rows)?;
        if rows.num_rows() > 0 {
            writer.write(rows).await?;
        }
    }
    let rows = fold.finish()?;
    if rows.num_rows() > 0 {
        writer.write(rows).await?;
    }
    Ok(())
}

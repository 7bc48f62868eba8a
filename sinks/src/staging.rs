//! Occurrences wait for their version to be admitted.
//!
//! Those of a small file wait in memory; those of a large one are written to
//! files of the table that no commit names yet, so that memory does not grow
//! with the upload. What all versions have in memory is limited too: at the
//! limit, the largest is written out. A version that is never admitted leaves
//! nothing: its rows are dropped, and its files are deleted.

use std::collections::HashMap;

use argus_dataflow::{ScannedBlock, VersionId};
use arrow::array::RecordBatch;
use deltalake_core::DeltaTableError;
use deltalake_core::kernel::Add;
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};

use crate::encode;
use crate::snapshot::DataFile;
use crate::table::LakeTable;

/// A version with more rows in memory than this many bytes starts a file (4 MiB).
const SPILL_BYTES: usize = 4 << 20;

/// All versions may have this many bytes of rows in memory (32 MiB).
const STAGED_BYTES_MAX: usize = 32 << 20;

/// The occurrences of versions that are not admitted yet.
pub struct Staging {
    errors: LakeTable,
    versions: HashMap<VersionId, Staged>,
    /// Of all versions.
    bytes: usize,
}

#[derive(Default)]
struct Staged {
    rows: Vec<RecordBatch>,
    bytes: usize,
    /// Of a large version, while its file is open.
    writer: Option<Box<RecordBatchWriter>>,
    files: Vec<Add>,
}

/// All occurrences of a version.
#[derive(Default)]
pub struct Taken {
    /// Those in memory.
    pub rows: Vec<RecordBatch>,
    /// Files with the others.
    pub files: Vec<Add>,
}

impl Staging {
    /// Nothing staged; spilled files go into the folder of `errors`.
    pub fn new(errors: LakeTable) -> Staging {
        Staging { errors, versions: HashMap::new(), bytes: 0 }
    }

    /// Takes the occurrences of a block.
    pub async fn add(&mut self, block: &ScannedBlock) -> Result<(), DeltaTableError> {
        let staged = self.versions.entry(block.origin.version).or_default();
        let rows = encode::errors(block)?;
        let bytes = rows.get_array_memory_size();
        staged.bytes += bytes;
        staged.rows.push(rows);
        self.bytes += bytes;
        if staged.bytes >= SPILL_BYTES {
            self.bytes -= staged.spill(&self.errors).await?;
        }
        while self.bytes > STAGED_BYTES_MAX
            && let Some(largest) = self.versions.values_mut().max_by_key(|staged| staged.bytes)
        {
            self.bytes -= largest.spill(&self.errors).await?;
            // One of many: an open file each would take more memory than the rows did.
            largest.close().await?;
        }
        Ok(())
    }

    /// Hands over the occurrences of a version that was admitted.
    pub async fn take(&mut self, version: VersionId) -> Result<Taken, DeltaTableError> {
        let Some(mut staged) = self.versions.remove(&version) else { return Ok(Taken::default()) };
        self.bytes -= staged.bytes;
        staged.close().await?;
        Ok(Taken { rows: staged.rows, files: staged.files })
    }

    /// The table that spilled files are of.
    pub fn errors(&self) -> &LakeTable {
        &self.errors
    }

    /// The place of a spilled file.
    pub fn data_file_of(&self, add: &Add) -> DataFile {
        self.errors.data_file_of(add)
    }

    /// Drops the occurrences of a version that will never be admitted.
    pub async fn abandon(&mut self, version: VersionId) {
        let Some(staged) = self.versions.remove(&version) else { return };
        self.bytes -= staged.bytes;
        if let Some(mut writer) = staged.writer {
            writer.reset();
        }
        self.errors.delete_unnamed(&staged.files).await;
    }
}

impl Staged {
    /// Writes the rows out; says how many bytes of memory that frees.
    async fn spill(&mut self, errors: &LakeTable) -> Result<usize, DeltaTableError> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Box::new(errors.writer()?)),
        };
        for rows in self.rows.drain(..) {
            writer.write(rows).await?;
        }
        Ok(std::mem::take(&mut self.bytes))
    }

    /// Closes the open file.
    async fn close(&mut self) -> Result<(), DeltaTableError> {
        if let Some(mut writer) = self.writer.take() {
            self.files.extend(writer.flush().await?);
        }
        Ok(())
    }
}

//! Buffers occurrences until their version is admitted.
//!
//! Occurrences of a small file stay in memory. Occurrences of a large file are
//! written to uncommitted files in the folder of `errors`, so memory does not
//! grow with the upload. The memory of all versions together is limited: at the
//! limit, the largest version is spilled. A version that is never admitted leaves
//! nothing: its rows are dropped and its files deleted.

use std::collections::HashMap;

use argus_dataflow::{ScannedBlock, VersionId};
use arrow::array::RecordBatch;
use deltalake_core::DeltaTableError;
use deltalake_core::kernel::Add;
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};

use crate::convert::encode;
use crate::snapshot::DataFile;
use crate::table::LakeTable;

/// A version with this many bytes of rows in memory is spilled (4 MiB).
const SPILL_BYTES: usize = 4 << 20;

/// The most bytes of rows in memory for all versions together (32 MiB).
const STAGED_BYTES_MAX: usize = 32 << 20;

/// The occurrences of versions that are not admitted yet.
pub struct Staging {
    errors: LakeTable,
    versions: HashMap<VersionId, Staged>,
    /// Bytes in memory of all versions.
    bytes: usize,
}

#[derive(Default)]
struct Staged {
    rows: Vec<RecordBatch>,
    bytes: usize,
    /// The open file of a large version.
    writer: Option<Box<RecordBatchWriter>>,
    files: Vec<Add>,
}

/// All occurrences of a version.
#[derive(Default)]
pub struct Taken {
    /// Occurrences in memory.
    pub rows: Vec<RecordBatch>,
    /// Files with the other occurrences.
    pub files: Vec<Add>,
}

impl Staging {
    /// Empty; spilled files are written to the folder of `errors`.
    pub fn new(errors: LakeTable) -> Staging {
        Staging { errors, versions: HashMap::new(), bytes: 0 }
    }

    /// Adds the occurrences of a block.
    pub async fn add(&mut self, block: &ScannedBlock) -> Result<(), DeltaTableError> {
        self.add_rows(block.origin.version, encode::errors(block)?).await
    }

    /// Adds occurrences of a version.
    pub async fn add_rows(&mut self, version: VersionId, rows: RecordBatch) -> Result<(), DeltaTableError> {
        let staged = self.versions.entry(version).or_default();
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
            // With many versions, open files would take more memory than the rows.
            largest.close().await?;
        }
        Ok(())
    }

    /// Removes and returns the occurrences of an admitted version.
    pub async fn take(&mut self, version: VersionId) -> Result<Taken, DeltaTableError> {
        let Some(mut staged) = self.versions.remove(&version) else { return Ok(Taken::default()) };
        self.bytes -= staged.bytes;
        staged.close().await?;
        Ok(Taken { rows: staged.rows, files: staged.files })
    }

    /// The table of spilled files.
    pub fn errors(&self) -> &LakeTable {
        &self.errors
    }

    /// The path, size and keys of a spilled file.
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
    /// Writes the rows to the file; returns how many bytes of memory were freed.
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

//! Sightings wait for their generation to be admitted.
//!
//! Those of a small file wait in memory; those of a large one are written to
//! files of the table that no commit names yet, so that memory does not grow
//! with the upload.

use std::collections::HashMap;

use argus_dataflow::{ScannedBlock, VersionId};
use arrow::array::RecordBatch;
use deltalake_core::DeltaTableError;
use deltalake_core::kernel::Add;
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};

use crate::encode;
use crate::snapshot::DataFile;
use crate::table::LakeTable;

/// A generation with more rows in memory than this many bytes starts a file (4 MiB).
const SPILL_BYTES: usize = 4 << 20;

/// The sightings of generations that are not admitted yet.
pub struct Staging {
    errors: LakeTable,
    versions: HashMap<VersionId, Staged>,
}

#[derive(Default)]
struct Staged {
    rows: Vec<RecordBatch>,
    bytes: usize,
    writer: Option<Box<RecordBatchWriter>>,
}

/// All sightings of a generation.
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
        Staging { errors, versions: HashMap::new() }
    }

    /// Keeps the sightings of a block.
    pub async fn add(&mut self, block: &ScannedBlock) -> Result<(), DeltaTableError> {
        let staged = self.versions.entry(block.origin.version).or_default();
        let rows = encode::errors(block)?;
        staged.bytes += rows.get_array_memory_size();
        staged.rows.push(rows);
        if staged.bytes < SPILL_BYTES {
            return Ok(());
        }
        let writer = match &mut staged.writer {
            Some(writer) => writer,
            none => none.insert(Box::new(self.errors.writer()?)),
        };
        for rows in staged.rows.drain(..) {
            writer.write(rows).await?;
        }
        staged.bytes = 0;
        Ok(())
    }

    /// Hands over the sightings of a generation that was admitted.
    pub async fn take(&mut self, version: VersionId) -> Result<Taken, DeltaTableError> {
        let Some(staged) = self.versions.remove(&version) else { return Ok(Taken::default()) };
        let files = match staged.writer {
            Some(mut writer) => writer.flush().await?,
            None => Vec::new(),
        };
        Ok(Taken { rows: staged.rows, files })
    }

    /// The place of a spilled file.
    pub fn data_file_of(&self, add: &Add) -> DataFile {
        self.errors.data_file_of(add)
    }

    /// Drops the sightings of a generation that will never be admitted.
    pub fn abandon(&mut self, version: VersionId) {
        if let Some(Staged { writer: Some(mut writer), .. }) = self.versions.remove(&version) {
            writer.reset();
        }
    }
}

//! What a reader sees: the lake at some version and the live tail after it,
//! all of it at one epoch, with nothing twice and nothing missing.

use std::sync::Arc;

use arrow::array::RecordBatch;
use object_store::path::Path;

use crate::schema::Table;

/// A Parquet file with rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is, from the root of the store.
    pub path: Path,
    /// Its size in bytes.
    pub bytes: u64,
}

/// The rows of one table: files and what is in memory only.
#[derive(Debug, Clone, Default)]
pub struct TableSnapshot {
    /// Files that the Delta table has.
    pub committed: Arc<[DataFile]>,
    /// Files that wait for their commit.
    pub spilled: Vec<DataFile>,
    /// Rows of epochs that are not committed yet.
    pub batches: Vec<RecordBatch>,
}

/// All tables at one epoch. Rows of a later epoch may be among the files and
/// are left out by their `epoch`.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The last epoch that readers see.
    pub epoch: u64,
    tables: [Arc<TableSnapshot>; 4],
}

impl Snapshot {
    /// The tables, given in the order of [`Table::ALL`], at `epoch`.
    pub fn new(epoch: u64, tables: [TableSnapshot; 4]) -> Snapshot {
        Snapshot { epoch, tables: tables.map(Arc::new) }
    }

    /// One table's rows.
    pub fn table(&self, table: Table) -> &Arc<TableSnapshot> {
        &self.tables[table as usize]
    }
}

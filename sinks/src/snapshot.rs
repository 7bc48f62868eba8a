//! What a reader sees: the lake at some version and the live tail after it,
//! all of it at one epoch, with nothing twice and nothing missing.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::RecordBatch;
use object_store::path::Path;

use crate::changes::Changes;
use crate::fleet::FleetView;
use crate::recent::RecentView;
use crate::schema::Table;

/// A Parquet file with rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is, from the root of the store.
    pub path: Path,
    /// Its size in bytes.
    pub bytes: u64,
    /// The least and the greatest key of its rows, where they are known: the
    /// first column that the table is sorted by.
    pub keys: Option<RangeInclusive<Arc<str>>>,
}

impl DataFile {
    /// Whether rows of a key may be in it.
    pub fn may_hold(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| **keys.start() <= *key && *key <= **keys.end())
    }
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
    /// The oldest epoch that the differences still tell apart.
    pub horizon: u64,
    /// Whether it is of an epoch before the last: what was deleted since is not to be seen.
    pub is_past: bool,
    /// What the fleet comes to; none in a snapshot of the past or of part of the lake.
    pub fleet: Option<FleetView>,
    /// Batches of late; none in a snapshot of the past or of part of the lake.
    pub recent: RecentView,
    /// When batches changed last; of no use in a snapshot of the past.
    pub changes: Changes,
    tables: [Arc<TableSnapshot>; 5],
    _lease: Lease,
}

/// Held by every snapshot that may name files which compaction has replaced:
/// while one is, they stay.
pub type Lease = Arc<()>;

/// Why the past cannot be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum PastError {
    #[error("epoch {epoch} is past what is kept; the oldest epoch that can be asked for is {horizon}")]
    Gone { epoch: u64, horizon: u64 },
    #[error("epoch {epoch} is not there yet; the last one is {last}")]
    NotYet { epoch: u64, last: u64 },
}

impl Snapshot {
    /// The tables, given in the order of [`Table::ALL`], at `epoch`.
    pub fn new(epoch: u64, tables: [TableSnapshot; 5]) -> Snapshot {
        Snapshot { epoch, tables: tables.map(Arc::new), ..Snapshot::default() }
    }

    /// The same, telling epochs apart from `horizon` on, and holding `lease`.
    pub fn since(self, horizon: u64, lease: Lease) -> Snapshot {
        Snapshot { horizon, _lease: lease, ..self }
    }

    /// The same, with what the fleet and the batches of late come to at this epoch, and when batches changed.
    pub fn with_views(self, fleet: FleetView, recent: RecentView, changes: Changes) -> Snapshot {
        Snapshot { fleet: Some(fleet), recent, changes, ..self }
    }

    /// The same tables as they were at an epoch. The rows of files that were deleted
    /// since may still be there; whoever reads them leaves those out.
    pub fn as_of(&self, epoch: u64) -> Result<Snapshot, PastError> {
        if epoch < self.horizon {
            return Err(PastError::Gone { epoch, horizon: self.horizon });
        }
        if epoch > self.epoch {
            return Err(PastError::NotYet { epoch, last: self.epoch });
        }
        if epoch == self.epoch {
            return Ok(self.clone());
        }
        Ok(Snapshot { epoch, is_past: true, fleet: None, recent: RecentView::default(), ..self.clone() })
    }

    /// One table's rows.
    pub fn table(&self, table: Table) -> &Arc<TableSnapshot> {
        &self.tables[table as usize]
    }
}

//! A consistent view of all tables at one epoch: the committed Delta tables plus
//! the uncommitted rows, without duplicates or gaps.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::RecordBatch;
use object_store::path::Path;

use crate::schema::Table;
use crate::views::fleet_view::FleetView;
use crate::views::last_changes::LastChanges;
use crate::views::recent::RecentView;

/// A Parquet file with rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Its path from the root of the store.
    pub path: Path,
    /// Its size in bytes.
    pub bytes: u64,
    /// The least and the greatest key of its rows, if known. The key is the
    /// first column that the table is sorted by.
    pub keys: Option<RangeInclusive<Arc<str>>>,
}

impl DataFile {
    /// Whether the file may contain rows with a key.
    pub fn may_hold(&self, key: &str) -> bool {
        self.keys.as_ref().is_none_or(|keys| **keys.start() <= *key && *key <= **keys.end())
    }
}

/// The rows of one table, in files and in memory.
#[derive(Debug, Clone, Default)]
pub struct TableSnapshot {
    /// Files of the Delta table.
    pub committed: Arc<[DataFile]>,
    /// Uncommitted files.
    pub spilled: Vec<DataFile>,
    /// Rows of uncommitted epochs.
    pub batches: Vec<RecordBatch>,
}

/// All tables at one epoch. The files may contain rows of later epochs; readers
/// filter by `epoch`.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The last epoch that readers see.
    pub epoch: u64,
    /// The oldest epoch that can be queried.
    pub since: u64,
    /// Whether the epoch is before the last one. Data deleted after the epoch must stay hidden.
    pub is_past: bool,
    /// The totals of the fleet; none in a snapshot of the past or of part of the lake.
    pub fleet: Option<FleetView>,
    /// Recently changed batches; none in a snapshot of the past or of part of the lake.
    pub recent: RecentView,
    /// When batches changed last; not meaningful in a snapshot of the past.
    pub changes: LastChanges,
    tables: [Arc<TableSnapshot>; 5],
    lease: Lease,
}

/// Held by every snapshot that may refer to files which compaction has replaced.
/// The files are not deleted while a snapshot holds the lease.
pub type Lease = Arc<()>;

/// Why an epoch cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain each variant")]
pub enum PastError {
    #[error("epoch {epoch} is no longer retained; the oldest epoch that can be queried is {since}")]
    NotRetained { epoch: u64, since: u64 },
    #[error("epoch {epoch} is not published yet; the last published epoch is {last}; retry later")]
    NotPublished { epoch: u64, last: u64 },
}

impl Snapshot {
    /// A snapshot of the tables, in the order of [`Table::ALL`], at `epoch`.
    pub fn new(epoch: u64, tables: [TableSnapshot; 5]) -> Snapshot {
        Snapshot { epoch, tables: tables.map(Arc::new), ..Snapshot::default() }
    }

    /// The same with `since`, holding `lease`.
    pub fn since(self, since: u64, lease: Lease) -> Snapshot {
        Snapshot { since, lease, ..self }
    }

    /// The same with the views in memory at this epoch.
    pub fn with_views(self, fleet: FleetView, recent: RecentView, changes: LastChanges) -> Snapshot {
        Snapshot { fleet: Some(fleet), recent, changes, ..self }
    }

    /// The same tables at an earlier epoch. Rows of files that were deleted later
    /// may still be present; readers must filter them out.
    pub fn as_of(&self, epoch: u64) -> Result<Snapshot, PastError> {
        if epoch < self.since {
            return Err(PastError::NotRetained { epoch, since: self.since });
        }
        if epoch > self.epoch {
            return Err(PastError::NotPublished { epoch, last: self.epoch });
        }
        if epoch == self.epoch {
            return Ok(self.clone());
        }
        Ok(Snapshot { epoch, is_past: true, fleet: None, recent: RecentView::default(), ..self.clone() })
    }

    /// Held as long as its files may be read.
    pub fn lease(&self) -> Lease {
        Arc::clone(&self.lease)
    }

    /// One table's rows.
    pub fn table(&self, table: Table) -> &Arc<TableSnapshot> {
        &self.tables[table as usize]
    }
}

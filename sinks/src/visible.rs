//! What readers see of the lake: the files of the tables, the rows that no file has yet, and the views in memory.
//!
//! The writer of the lake ([`crate::lake`]) and its replicas ([`crate::replica`]) publish snapshots in the same way; they
//! differ in where the rows come from, and in who commits them.

use std::sync::Arc;

use argus_dataflow::{ClosedEpoch, Row};
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use deltalake_core::kernel::Add;
use tokio::sync::watch;

use crate::group::CommitGroup;
use crate::schema::Table;
use crate::snapshot::{DataFile, Lease, Snapshot, TableSnapshot};
use crate::views::fleet_view::FleetView;
use crate::views::last_changes::LastChanges;
use crate::views::recent::Recent;

/// The occurrences of the files that an epoch admits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Occurrences {
    /// Rows in memory.
    pub(crate) rows: Vec<RecordBatch>,
    /// Files that are written, and not committed. A replica knows no `add` action: it commits nothing.
    pub(crate) files: Vec<(DataFile, Option<Add>)>,
}

/// The state behind the published snapshots.
pub(crate) struct Visible {
    committed_files: [Arc<[DataFile]>; 5],
    open: CommitGroup,
    frozen: Option<Arc<CommitGroup>>,
    epoch: u64,
    since: u64,
    lease: Lease,
    fleet: FleetView,
    recent: Recent,
    changes: LastChanges,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Visible {
    /// Publishes the committed files at `epoch`. Batches that have not changed since then count as changed at
    /// `changes_since`.
    pub(crate) fn new(committed_files: [Arc<[DataFile]>; 5], epoch: u64, since: u64, changes_since: u64) -> Visible {
        let visible = Visible {
            committed_files,
            open: CommitGroup::default(),
            frozen: None,
            epoch,
            since,
            lease: Lease::default(),
            fleet: FleetView::default(),
            recent: Recent::default(),
            changes: LastChanges::since(changes_since),
            snapshots: watch::Sender::new(Arc::new(Snapshot::default())),
        };
        visible.publish();
        visible
    }

    /// The published snapshots.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// The last published epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The rows that will be committed next.
    pub(crate) fn open(&self) -> &CommitGroup {
        &self.open
    }

    /// The rows that are being committed.
    pub(crate) fn frozen(&self) -> Option<&Arc<CommitGroup>> {
        self.frozen.as_ref()
    }

    /// Held by all snapshots that may refer to files which are replaced.
    pub(crate) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Applies the totals of the fleet at the published epoch, which are in the tables.
    pub(crate) fn restore(&mut self, restored: &ClosedEpoch) {
        self.apply_fleet(restored);
        self.publish();
    }

    /// Adds a closed epoch, and publishes it. `has` tells which tables contain it already.
    pub(crate) fn close(
        &mut self,
        closed: &ClosedEpoch,
        occurrences: Occurrences,
        has: impl Fn(Table) -> bool,
    ) -> Result<(), ArrowError> {
        self.open.append(closed, &has)?;
        if !has(Table::Errors) {
            for rows in occurrences.rows {
                self.open.push(Table::Errors, rows)?;
            }
            for (file, add) in occurrences.files {
                self.open.push_spilled(file, add);
            }
        }
        self.apply_fleet(closed);
        self.recent.apply(closed);
        self.changes.apply(closed);
        self.epoch = closed.epoch;
        self.publish();
        Ok(())
    }

    fn apply_fleet(&mut self, closed: &ClosedEpoch) {
        let changes = closed.rows.iter().filter_map(|(row, count)| match row {
            Row::Fleet(row) => Some((row, *count)),
            _ => None,
        });
        self.fleet.apply(closed.epoch, changes);
    }

    /// Freezes the open group, unless one is still frozen: its rows are committed together. Returns the frozen group;
    /// `None` if there is nothing to commit.
    pub(crate) fn freeze(&mut self) -> Option<Arc<CommitGroup>> {
        if self.frozen.is_none() && !self.open.is_empty() {
            self.frozen = Some(Arc::new(std::mem::take(&mut self.open)));
        }
        self.frozen.clone()
    }

    /// Publishes other files of the tables, which contain the epochs up to `epoch`. `replaced`: some of the files before
    /// were replaced, so that later snapshots need not keep them. Returns the lease of the snapshots before.
    pub(crate) fn commit(&mut self, files: [Arc<[DataFile]>; 5], epoch: u64, since: u64, replaced: bool) -> Lease {
        self.committed_files = files;
        self.since = since;
        if self.frozen.as_ref().is_some_and(|frozen| frozen.last_epoch <= epoch) {
            self.frozen = None;
        }
        // Only a replacement needs another lease: only its caller waits for the end of the old one.
        let lease = if replaced { std::mem::take(&mut self.lease) } else { Arc::clone(&self.lease) };
        self.publish();
        lease
    }

    fn publish(&self) {
        let tables = Table::ALL.map(|table| {
            let mut snapshot = TableSnapshot {
                committed: Arc::clone(&self.committed_files[table as usize]),
                ..TableSnapshot::default()
            };
            for group in self.frozen.as_deref().into_iter().chain([&self.open]) {
                snapshot.batches.extend_from_slice(group.batches(table));
                if table == Table::Errors {
                    snapshot.spilled.extend(group.spilled().map(|(file, _)| file.clone()));
                }
            }
            snapshot
        });
        let snapshot = Snapshot::new(self.epoch, tables).since(self.since, Arc::clone(&self.lease));
        let snapshot = snapshot.with_views(self.fleet.clone(), self.recent.view(), self.changes.clone());
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

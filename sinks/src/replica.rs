//! A copy of the lake in another process, which reads the same tables and follows the steps of their writer.

use std::sync::Arc;

use argus_dataflow::ClosedEpoch;
use object_store::ObjectStore;
use tokio::sync::watch;
use url::Url;

use crate::error::{LakeError, failed};
use crate::feed::{Base, Closed, Step};
use crate::schema::Table;
use crate::snapshot::{DataFile, Snapshot};
use crate::table::LakeTable;
use crate::visible::{Occurrences, Visible};

/// A replica of a lake. It writes nothing.
pub struct Replica {
    tables: [LakeTable; 5],
    since: u64,
    visible: Visible,
}

impl Replica {
    /// Opens the tables at the versions of `base`. Fails if they are not there.
    pub async fn open(store: Arc<dyn ObjectStore>, root: &Url, base: Base) -> Result<Replica, LakeError> {
        let mut tables = Vec::new();
        for (table, version) in Table::ALL.into_iter().zip(base.lake.versions) {
            let opened = LakeTable::open_at(Arc::clone(&store), root, table, version).await;
            tables.push(opened.map_err(|source| failed(table, source))?);
        }
        let tables: [LakeTable; 5] = tables.try_into().unwrap_or_else(|_| unreachable!("one table per name"));
        let visible = Visible::new(files_of(&tables)?, base.lake.epoch, base.since, base.lake.epoch);
        Ok(Replica { tables, since: base.since, visible })
    }

    /// The current snapshot; changes with every step.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.visible.subscribe()
    }

    /// Applies the totals of the fleet at the base, which the dataflow makes of the tables.
    pub fn restore(&mut self, restored: &ClosedEpoch) {
        self.visible.restore(restored);
    }

    /// Applies the next step, and publishes a snapshot.
    pub async fn apply(&mut self, step: Step) -> Result<(), LakeError> {
        match step {
            Step::Closed(Closed { epoch, occurrences: rows, files, present }) => {
                let files = files.into_iter().map(|file| (file, None)).collect();
                let closed = self.visible.close(&epoch, Occurrences { rows, files }, |table| present[table as usize]);
                closed.map_err(|source| LakeError::Rows { epoch: epoch.epoch, source: Box::new(source.into()) })
            }
            Step::Frozen => {
                self.visible.freeze();
                Ok(())
            }
            Step::Committed { base, replaced } => {
                for (table, version) in self.tables.iter_mut().zip(base.lake.versions) {
                    if table.version() < version {
                        let of = table.table();
                        table.load(version).await.map_err(|source| failed(of, source))?;
                    }
                }
                // Steps from before the base of this replica come too.
                self.since = self.since.max(base.since);
                self.visible.commit(files_of(&self.tables)?, base.lake.epoch, self.since, replaced);
                Ok(())
            }
        }
    }
}

fn files_of(tables: &[LakeTable; 5]) -> Result<[Arc<[DataFile]>; 5], LakeError> {
    let mut files: [Arc<[DataFile]>; 5] = Default::default();
    for opened in tables {
        let table = opened.table();
        files[table as usize] = opened.files().map_err(|source| failed(table, source))?;
    }
    Ok(files)
}

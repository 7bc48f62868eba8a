//! Delays appends to a version until the epochs that admitted its earlier lines are closed.
//!
//! When the lake closes an epoch that admits lines of a version, it takes all
//! occurrences of the version that have arrived. If lines of a later epoch were already
//! scanned, their occurrences would be committed with the earlier epoch, and a crash
//! between the two epochs would duplicate or lose them.

use std::collections::HashMap;
use std::sync::Arc;

use argus_dataflow::{Change, VersionId};
use argus_sinks::Snapshot;
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

/// For each version: the last epoch that admitted lines of it, if that epoch is not closed yet.
#[derive(Debug, Default)]
pub struct AppendGate {
    epochs: HashMap<VersionId, u64>,
}

impl AppendGate {
    /// Waits until lines may be appended to a version. Fails when the lake has stopped.
    pub async fn settled(
        &mut self,
        version: VersionId,
        snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), RecvError> {
        let Some(&epoch) = self.epochs.get(&version) else { return Ok(()) };
        let closed = snapshots.wait_for(|snapshot| snapshot.epoch >= epoch).await?.epoch;
        self.epochs.retain(|_, epoch| *epoch > closed);
        Ok(())
    }

    /// Records the versions that an epoch admits. `closed` is the last epoch that the lake has closed.
    pub fn admitted(&mut self, epoch: u64, changes: &[Change], closed: u64) {
        self.epochs.retain(|_, epoch| *epoch > closed);
        for change in changes {
            if let Change::Admit(file) = change {
                self.epochs.insert(file.version, epoch);
            }
        }
    }
}

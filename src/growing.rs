//! Versions of files that may grow before the lake has what they were.
//!
//! The lake takes the sightings of a version when it closes an epoch that
//! admits lines of it, all that have arrived. Were the lines of a later epoch
//! scanned by then, theirs would be committed with the earlier epoch, and a
//! crash between the two would have them twice, or not at all. So lines are
//! added to a version only when the epochs are closed that did so before.

use std::collections::HashMap;
use std::sync::Arc;

use argus_dataflow::{Change, VersionId};
use argus_sinks::Snapshot;
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

/// The last epoch that admitted lines of each version, where that is not closed yet.
#[derive(Debug, Default)]
pub struct Growing {
    epochs: HashMap<VersionId, u64>,
}

impl Growing {
    /// Waits until lines may be added to a version. Fails when the lake has stopped.
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

    /// Notes what an epoch admits. `closed` is the last epoch that the lake has closed.
    pub fn admitted(&mut self, epoch: u64, changes: &[Change], closed: u64) {
        self.epochs.retain(|_, epoch| *epoch > closed);
        for change in changes {
            if let Change::Admit(file) = change {
                self.epochs.insert(file.version, epoch);
            }
        }
    }
}

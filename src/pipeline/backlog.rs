//! Limits the changes that are accepted and not closed yet.
//!
//! The counts of a version are in memory from its admission until the lake has
//! its epoch, and the lake takes no epoch while it has enough to commit. So the
//! total weight of open epochs is limited. At the limit, rounds wait, and with
//! them the uploads. The replay after a restart has the same limit.

use std::collections::VecDeque;
use std::sync::Arc;

use argus_dataflow::Change;
use argus_sinks::Snapshot;
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

/// The maximum total weight of open epochs (64 MiB). An epoch that exceeds it alone delays the next one until it is
/// closed.
const BYTES_MAX: u64 = 64 << 20;

/// The maximum number of open epochs.
const EPOCHS_MAX: usize = 1024;

/// The maximum weight of the counts of one version (8 MiB): the number of distinct codes of a version is limited.
const VERSION_BYTES_MAX: u64 = 8 << 20;

/// The weight of any change.
const CHANGE_BYTES: u64 = 1 << 10;

/// The approximate weight of a count.
const COUNT_BYTES: u64 = 256;

/// The open epochs and their weights.
#[derive(Debug, Default)]
pub struct Backlog {
    epochs: VecDeque<(u64, u64)>,
    bytes: u64,
}

/// The weight of the counts of a text with this many bytes. A count takes more memory than its line, but few lines
/// have a code that no earlier line has.
pub fn weight_of_text(bytes: u64) -> u64 {
    CHANGE_BYTES + bytes.saturating_mul(2).min(VERSION_BYTES_MAX)
}

fn weight(change: &Change) -> u64 {
    match change {
        Change::Admit(file) => weight_of_text(file.bytes),
        Change::LoadBatch(loaded) => {
            let ids = size_of_val(&*loaded.others) as u64;
            CHANGE_BYTES + COUNT_BYTES * (loaded.counts.len() + loaded.rest.len()) as u64 + ids
        }
        Change::RestoreCells(cells) => COUNT_BYTES * cells.len() as u64,
        Change::Batch(_) | Change::Withdraw(_) | Change::Abandon(_) => CHANGE_BYTES,
    }
}

impl Backlog {
    /// Whether requests of this total weight fit into one round.
    pub fn fits_one_round(bytes: u64) -> bool {
        bytes <= BYTES_MAX / 2
    }

    /// Adds the changes of an epoch.
    pub fn add(&mut self, epoch: u64, changes: &[Change]) {
        let bytes = changes.iter().map(weight).sum();
        self.bytes += bytes;
        self.epochs.push_back((epoch, bytes));
    }

    /// Waits until there is room for another epoch. Fails when the lake has stopped.
    pub async fn wait_for_room(&mut self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> Result<(), RecvError> {
        self.close(snapshots.borrow().epoch);
        while self.bytes > BYTES_MAX || self.epochs.len() >= EPOCHS_MAX {
            let Some(&(first, _)) = self.epochs.front() else { break };
            let closed = snapshots.wait_for(|snapshot| snapshot.epoch >= first).await?.epoch;
            self.close(closed);
        }
        Ok(())
    }

    fn close(&mut self, closed: u64) {
        while let Some(&(epoch, bytes)) = self.epochs.front()
            && epoch <= closed
        {
            self.epochs.pop_front();
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use argus_dataflow::VersionId;

    use super::*;

    fn snapshot(epoch: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot::new(epoch, Default::default()))
    }

    #[tokio::test]
    async fn rounds_wait_at_the_limit_until_an_epoch_is_closed() {
        let (publish, mut snapshots) = watch::channel(snapshot(0));
        let mut backlog = Backlog::default();
        for epoch in 1..=EPOCHS_MAX as u64 {
            backlog.wait_for_room(&mut snapshots).await.expect("the lake runs");
            backlog.add(epoch, &[Change::Abandon(VersionId::new())]);
        }
        let waits = tokio::time::timeout(std::time::Duration::ZERO, backlog.wait_for_room(&mut snapshots));
        assert!(waits.await.is_err(), "the limit of open epochs is reached");
        publish.send_replace(snapshot(1));
        backlog.wait_for_room(&mut snapshots).await.expect("one is closed");
        drop(publish);
        backlog.add(9999, &[Change::Abandon(VersionId::new())]);
        assert!(backlog.wait_for_room(&mut snapshots).await.is_err(), "the lake has stopped");
    }
}

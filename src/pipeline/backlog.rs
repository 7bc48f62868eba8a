//! How much is accepted and not closed yet.
//!
//! What a version adds up to is in memory from its admission until the lake
//! has its epoch, and the lake takes no epoch while it has enough to commit. So
//! the weight of the epochs that are not closed is limited: at the limit rounds
//! wait, and with them those who upload. The start feeds the journal again
//! under the same limit.

use std::collections::VecDeque;
use std::sync::Arc;

use argus_dataflow::Change;
use argus_sinks::Snapshot;
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;

/// Epochs that are not closed may weigh this much together, and one that is too heavy alone is alone (64 MiB).
const BYTES_MAX: u64 = 64 << 20;

/// Epochs that may be open at once.
const EPOCHS_MAX: usize = 1024;

/// What the counts of one version weigh at the most: the different codes of a version are limited (8 MiB).
const VERSION_BYTES_MAX: u64 = 8 << 20;

/// What any change weighs.
const CHANGE_BYTES: u64 = 1 << 10;

/// What a count weighs, roughly.
const COUNT_BYTES: u64 = 256;

/// The epochs that are not closed, with their weights.
#[derive(Debug, Default)]
pub struct Backlog {
    epochs: VecDeque<(u64, u64)>,
    bytes: u64,
}

/// What a text of so many bytes weighs when it is counted: a line with a code takes more room as a count than as text,
/// but few lines have a code that no line before had.
pub fn weight_of_text(bytes: u64) -> u64 {
    CHANGE_BYTES + bytes.saturating_mul(2).min(VERSION_BYTES_MAX)
}

fn weight(change: &Change) -> u64 {
    match change {
        Change::Admit(file) => weight_of_text(file.bytes),
        Change::Recall(recall) => {
            let ids = size_of_val(&*recall.others) as u64;
            CHANGE_BYTES + COUNT_BYTES * (recall.counts.len() + recall.rest.len()) as u64 + ids
        }
        Change::Load(cells) => COUNT_BYTES * cells.len() as u64,
        Change::Batch(_) | Change::Withdraw(_) | Change::Abandon(_) => CHANGE_BYTES,
    }
}

impl Backlog {
    /// Whether requests of this weight belong in one round.
    pub fn fits_one_round(bytes: u64) -> bool {
        bytes <= BYTES_MAX / 2
    }

    /// Notes what is at an epoch.
    pub fn add(&mut self, epoch: u64, changes: &[Change]) {
        let bytes = changes.iter().map(weight).sum();
        self.bytes += bytes;
        self.epochs.push_back((epoch, bytes));
    }

    /// Waits until there is room for another epoch. Fails when the lake has stopped.
    pub async fn room(&mut self, snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> Result<(), RecvError> {
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
    async fn rounds_wait_while_too_much_is_open_and_go_on_when_it_is_closed() {
        let (publish, mut snapshots) = watch::channel(snapshot(0));
        let mut backlog = Backlog::default();
        for epoch in 1..=EPOCHS_MAX as u64 {
            backlog.room(&mut snapshots).await.expect("the lake runs");
            backlog.add(epoch, &[Change::Abandon(VersionId::new())]);
        }
        let waits = tokio::time::timeout(std::time::Duration::ZERO, backlog.room(&mut snapshots));
        assert!(waits.await.is_err(), "as many epochs as may be are open");
        publish.send_replace(snapshot(1));
        backlog.room(&mut snapshots).await.expect("one is closed");
        drop(publish);
        backlog.add(9999, &[Change::Abandon(VersionId::new())]);
        assert!(backlog.room(&mut snapshots).await.is_err(), "nobody closes any more");
    }
}

//! When batches changed last, at the epoch of a snapshot, in bounded memory.
//!
//! Batches share slots by their ids' random bits, so what is said of a batch
//! is never too early and now and then, when another of its slot changed, too
//! late: an answer that is kept under it is made anew once too often and never
//! once too seldom.

use argus_dataflow::{ClosedEpoch, Row};
use imbl::HashMap;
use uuid::Uuid;

/// When batches changed last. A copy shares what did not change.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    slots: HashMap<u16, u64>,
}

impl Changes {
    /// The last epoch in which the batch, or one of its slot, changed; 0 when none did since the start.
    pub fn last(&self, batch_id: Uuid) -> u64 {
        self.slots.get(&slot(batch_id)).copied().unwrap_or(0)
    }

    /// Takes the rows of an epoch.
    pub(crate) fn apply(&mut self, closed: &ClosedEpoch) {
        for (row, _) in &closed.rows {
            let batch_id = match row {
                Row::Batch(row) => row.batch_id,
                Row::File(row) => row.batch_id,
                Row::Count(row) => row.batch_id,
                _ => continue,
            };
            self.slots.insert(slot(batch_id), closed.epoch);
        }
    }
}

/// The last bits of a UUIDv7 are random.
fn slot(batch_id: Uuid) -> u16 {
    batch_id.as_u128() as u16
}

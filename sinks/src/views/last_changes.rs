//! The epoch of the last change of each batch, in bounded memory.
//!
//! Batches share slots, selected by random bits of their id. The reported epoch is
//! never too early. It can be too late when another batch of the slot changed: a
//! response cached under it may be recomputed unnecessarily, but is never stale.

use argus_dataflow::{ClosedEpoch, Row};
use imbl::HashMap;
use uuid::Uuid;

/// The epochs of last changes. Copies share unchanged entries.
#[derive(Debug, Clone, Default)]
pub struct LastChanges {
    slots: HashMap<u16, u64>,
    /// The epoch with which the views begin: what changed before is not known.
    floor: u64,
}

impl LastChanges {
    /// Nothing has changed since this epoch.
    pub(crate) fn since(floor: u64) -> LastChanges {
        LastChanges { slots: HashMap::new(), floor }
    }

    /// The last epoch in which the batch, or another batch of its slot, changed; if none changed since the start, the epoch of
    /// the start.
    pub fn last(&self, batch_id: Uuid) -> u64 {
        self.slots.get(&slot(batch_id)).copied().unwrap_or(self.floor)
    }

    /// The last epoch in which the batch, or another batch of its slot, is known to have changed; 0 if none.
    pub fn last_known(&self, batch_id: Uuid) -> u64 {
        self.slots.get(&slot(batch_id)).copied().unwrap_or(0)
    }

    /// Applies the rows of an epoch.
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

//! Counters that show whether a batch has changed since it was read, in bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// The number of counters. The random bits of a batch's id select its counter.
const SLOTS: usize = 1 << 16;

/// Counts the changes of batches. Read the count before the batch: if the count is the same
/// later, the batch has not changed. Batches that share a counter cause false positives.
/// Clones share the counters.
#[derive(Debug, Clone)]
pub struct ChangeCounters {
    slots: Arc<[AtomicU64]>,
}

impl ChangeCounters {
    pub(super) fn new() -> ChangeCounters {
        ChangeCounters { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The changes so far of the batch and of all batches that share its counter.
    pub fn count(&self, batch_id: Uuid) -> u64 {
        self.slot(batch_id).load(Ordering::Acquire)
    }

    /// Counts a change of a batch, after readers can see it.
    pub fn changed(&self, batch_id: Uuid) {
        self.slot(batch_id).fetch_add(1, Ordering::Release);
    }

    /// Counts a change of every batch: any of them may have changed.
    pub fn all_changed(&self) {
        for slot in &*self.slots {
            slot.fetch_add(1, Ordering::Release);
        }
    }

    fn slot(&self, batch_id: Uuid) -> &AtomicU64 {
        &self.slots[batch_id.as_u128() as usize % SLOTS]
    }
}

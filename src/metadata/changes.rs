//! Which batches changed since something was read of them, in bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// Batches share so many counters by their ids' random bits.
const SLOTS: usize = 1 << 16;

/// Counts the changes of batches. Whoever reads the count before what it is
/// about, and finds it the same later, knows that nothing changed; another
/// batch of the same counter may say so too often. Clones count together.
#[derive(Debug, Clone)]
pub struct Changes {
    slots: Arc<[AtomicU64]>,
}

impl Changes {
    pub(super) fn new() -> Changes {
        Changes { slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Changes so far of a batch, or of others of its counter.
    pub fn count(&self, batch_id: Uuid) -> u64 {
        self.slot(batch_id).load(Ordering::Acquire)
    }

    /// A batch has changed: what is read from now on shows it.
    pub(super) fn changed(&self, batch_id: Uuid) {
        self.slot(batch_id).fetch_add(1, Ordering::Release);
    }

    fn slot(&self, batch_id: Uuid) -> &AtomicU64 {
        &self.slots[batch_id.as_u128() as usize % SLOTS]
    }
}

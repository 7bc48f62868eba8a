//! Connections that have not sent their first message yet, or that cancel a query.
//!
//! Their number is limited, because each may wait long before its first message. When
//! the limit is reached, a new connection evicts the oldest: a real client has sent
//! its first message long before, and silent sockets lock nobody out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The slots of arriving connections.
pub(super) struct Arriving {
    slots_max: usize,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    /// The number of the next slot.
    next: u64,
    /// Oldest first; dropping a sender evicts the connection.
    taken: VecDeque<(u64, oneshot::Sender<Infallible>)>,
}

/// A connection's slot; dropping it frees it.
pub(super) struct Slot {
    number: u64,
    evicted: oneshot::Receiver<Infallible>,
    arriving: Arc<Arriving>,
}

impl Arriving {
    /// At most `slots_max` connections.
    pub(super) fn new(slots_max: usize) -> Arc<Arriving> {
        Arc::new(Arriving { slots_max, slots: Mutex::default() })
    }

    /// A slot for a new connection; evicts the oldest connection if none is free.
    pub(super) fn take_slot(self: &Arc<Self>) -> Slot {
        let (sender, evicted) = oneshot::channel();
        let mut slots = self.lock();
        while slots.taken.len() >= self.slots_max && slots.taken.pop_front().is_some() {}
        let number = slots.next;
        slots.next += 1;
        slots.taken.push_back((number, sender));
        drop(slots);
        Slot { number, evicted, arriving: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // No code under the lock can panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Waits until a newer connection takes the slot.
    pub(super) async fn evicted(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.arriving.lock();
        if let Ok(index) = slots.taken.binary_search_by_key(&self.number, |(number, _)| *number) {
            slots.taken.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_new_connection_evicts_the_oldest_when_no_slot_is_free() {
        let arriving = Arriving::new(2);
        let mut slots: Vec<Slot> = (0..3).map(|_| arriving.take_slot()).collect();
        let evicted = |slot: &mut Slot| slot.evicted().now_or_never().is_some();
        assert_eq!(slots.iter_mut().map(evicted).collect::<Vec<_>>(), [true, false, false]);
        // A closed connection frees its slot; an evicted one has none.
        slots.remove(1);
        slots.remove(0);
        slots.push(arriving.take_slot());
        assert_eq!(slots.iter_mut().map(evicted).collect::<Vec<_>>(), [false, false]);
        slots.push(arriving.take_slot());
        assert_eq!(slots.iter_mut().map(evicted).collect::<Vec<_>>(), [true, false, false]);
    }
}

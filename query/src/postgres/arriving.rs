//! Connections that have not said yet what they want, or want to end a client's query.
//!
//! They are few, for each may take its time over its first message. When one
//! more comes than there may be, the oldest goes: a client that means it has
//! sent its first message long before, and silent sockets shut nobody out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The places of arriving connections.
pub(super) struct Arriving {
    places_max: usize,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    /// The number of the next one.
    next: u64,
    /// Oldest first; dropping a sender takes the place away.
    taken: VecDeque<(u64, oneshot::Sender<Infallible>)>,
}

/// A connection's place, given up when it is dropped.
pub(super) struct Place {
    number: u64,
    taken_away: oneshot::Receiver<Infallible>,
    arriving: Arc<Arriving>,
}

impl Arriving {
    /// Room for so many.
    pub(super) fn new(places_max: usize) -> Arc<Arriving> {
        Arc::new(Arriving { places_max, places: Mutex::default() })
    }

    /// A place for one more connection, which is the oldest one's when there is no other.
    pub(super) fn take_place(self: &Arc<Self>) -> Place {
        let (sender, taken_away) = oneshot::channel();
        let mut places = self.lock();
        while places.taken.len() >= self.places_max && places.taken.pop_front().is_some() {}
        let number = places.next;
        places.next += 1;
        places.taken.push_back((number, sender));
        drop(places);
        Place { number, taken_away, arriving: Arc::clone(self) }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        // Nothing that could panic is done under the lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Waits until a newer connection has the place.
    pub(super) async fn taken_away(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.taken_away).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.arriving.lock();
        if let Ok(index) = places.taken.binary_search_by_key(&self.number, |(number, _)| *number) {
            places.taken.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_place_is_the_next_ones_when_there_is_no_other() {
        let arriving = Arriving::new(2);
        let mut places: Vec<Place> = (0..3).map(|_| arriving.take_place()).collect();
        let taken = |place: &mut Place| place.taken_away().now_or_never().is_some();
        assert_eq!(places.iter_mut().map(taken).collect::<Vec<_>>(), [true, false, false]);
        // Who leaves makes room, who had no place any more does not.
        places.remove(1);
        places.remove(0);
        places.push(arriving.take_place());
        assert_eq!(places.iter_mut().map(taken).collect::<Vec<_>>(), [false, false]);
        places.push(arriving.take_place());
        assert_eq!(places.iter_mut().map(taken).collect::<Vec<_>>(), [true, false, false]);
    }
}

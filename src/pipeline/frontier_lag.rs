//! How long the oldest epoch that is accepted and not closed yet has waited for the frontier.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The open epochs, and when each was accepted. Clones share them. The pipeline limits their number.
#[derive(Debug, Clone, Default)]
pub struct FrontierLag(Arc<Mutex<VecDeque<(u64, Instant)>>>);

impl FrontierLag {
    /// Notes that an epoch is accepted; `closed` is the last closed epoch.
    pub(super) fn accepted(&self, epoch: u64, closed: u64) {
        self.accepted_at(epoch, closed, Instant::now());
    }

    fn accepted_at(&self, epoch: u64, closed: u64, now: Instant) {
        self.update(closed, |open| open.push_back((epoch, now)));
    }

    /// The time since the oldest open epoch was accepted; zero if all are closed.
    pub fn since(&self, closed: u64) -> Duration {
        self.update(closed, |open| open.front().map_or(Duration::ZERO, |(_, accepted)| accepted.elapsed()))
    }

    fn update<T>(&self, closed: u64, use_open: impl FnOnce(&mut VecDeque<(u64, Instant)>) -> T) -> T {
        // Nothing panics while holding the lock.
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while open.pop_front_if(|(epoch, _)| *epoch <= closed).is_some() {}
        use_open(&mut open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_the_age_of_the_oldest_open_epoch() {
        let lag = FrontierLag::default();
        assert_eq!(lag.since(0), Duration::ZERO);
        let (first, second) = (Duration::from_secs(100), Duration::from_secs(10));
        lag.accepted_at(1, 0, Instant::now() - first);
        lag.accepted_at(2, 0, Instant::now() - second);
        assert!(lag.since(0) >= first);
        assert!((second..first).contains(&lag.since(1)));
        assert_eq!(lag.since(2), Duration::ZERO);
    }
}

//! How many requests a token may make.
//!
//! The generic cell rate algorithm: a token has a time at which it would have used up what it may do; each request moves
//! it on, and one that would move it too far ahead is refused.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// So long a token may have made no requests, and make all of this time at once.
const BURST: Duration = Duration::from_secs(2);

/// The rate of each token. Clones share it.
#[derive(Debug, Clone)]
pub struct Rates {
    /// The time of one request.
    each: Duration,
    /// By token; only of tokens that exist, so it is small.
    used_until: Arc<Mutex<HashMap<Uuid, Instant>>>,
}

impl Rates {
    /// So many requests of each token in a second, and twice as many after a pause.
    pub fn new(per_second: NonZeroU32) -> Rates {
        Rates { each: Duration::from_secs(1) / per_second.get(), used_until: Arc::default() }
    }

    /// Whether a token may make a request now; else how long it has to wait.
    pub fn take(&self, token: Uuid, now: Instant) -> Result<(), Duration> {
        let mut used_until = self.used_until.lock().unwrap_or_else(PoisonError::into_inner);
        let until = used_until.entry(token).or_insert(now);
        let next = (*until).max(now) + self.each;
        match next.checked_duration_since(now + BURST) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *until = next;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_its_rate_and_what_it_did_not_use_for_a_while() {
        let rates = Rates::new(NonZeroU32::new(10).expect("not 0"));
        let (token, start) = (Uuid::from_u128(1), Instant::now());
        let allowed = |at: Duration| (0..1000).take_while(|_| rates.take(token, start + at).is_ok()).count();
        assert_eq!(allowed(Duration::ZERO), 20);
        assert_eq!(allowed(Duration::from_millis(500)), 5);
        assert_eq!(allowed(Duration::from_secs(60)), 20);
        let wait = rates.take(token, start + Duration::from_secs(60)).expect_err("used up");
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert!(rates.take(Uuid::from_u128(2), start).is_ok(), "each token has its own");
    }
}

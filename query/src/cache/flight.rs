//! The tier in memory: answers by their keys, and one computation at a time for each.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use metrics::{Counter, counter};
use moka::sync::Cache;

use crate::background::AbortOnDrop;
use crate::cache::redis::was_remote;

/// How an answer was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It was there.
    Hit,
    /// Somebody who asked before was waiting for it.
    Shared,
    /// It was not there, and was made for this request.
    Miss,
    /// It was not there, and Redis had it.
    Remote,
    /// Such are not kept.
    Bypass,
}

/// The computation broke off without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the computation of an answer broke off")]
pub struct Lost;

/// Answers `V` by keys `K`. Errors `E` reach all who wait and are not kept.
/// Clones share everything.
pub struct Flights<K, V, E> {
    inner: Arc<Inner<K, V, E>>,
}

/// An answer, and whether Redis had it.
type Landed<V, E> = (Result<V, E>, bool);

/// An answer that is being computed; when nobody waits for it any more, it ends.
type Flight<V, E> = Shared<BoxFuture<'static, Landed<V, E>>>;

/// A flight that others may join, with its number.
struct Open<V, E> {
    number: u64,
    flight: WeakShared<BoxFuture<'static, Landed<V, E>>>,
}

struct Inner<K, V, E> {
    kept: Cache<K, V>,
    open: Mutex<HashMap<K, Open<V, E>>>,
    number: AtomicU64,
    hits: Counter,
    shared: Counter,
    misses: Counter,
}

impl<K, V, E> Clone for Flights<K, V, E> {
    fn clone(&self) -> Self {
        Flights { inner: Arc::clone(&self.inner) }
    }
}

impl<K, V, E> fmt::Debug for Flights<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K, V, E> Flights<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + From<Lost> + Send + Sync + 'static,
{
    /// Keeps answers of up to `bytes_max` together, as `bytes_of` measures them.
    /// Those asked for least go first.
    pub fn new(bytes_max: u64, bytes_of: impl Fn(&K, &V) -> usize + Send + Sync + 'static) -> Self {
        let weight = move |key: &K, value: &V| u32::try_from(bytes_of(key, value)).unwrap_or(u32::MAX);
        let outcome = |outcome| counter!("argus_cache_requests_total", "tier" => "memory", "outcome" => outcome);
        let inner = Inner {
            kept: Cache::builder().max_capacity(bytes_max).weigher(weight).build(),
            open: Mutex::default(),
            number: AtomicU64::new(0),
            hits: outcome("hit"),
            shared: outcome("shared"),
            misses: outcome("miss"),
        };
        Flights { inner: Arc::new(inner) }
    }

    /// The answer under `key` where it is kept, which takes no waiting.
    pub fn kept(&self, key: &K) -> Option<V> {
        let kept = self.inner.kept.get(key)?;
        self.inner.hits.increment(1);
        Some(kept)
    }

    /// The answer under `key`: the one that is kept, or the one that is being
    /// computed, or else `compute`'s, which goes on as long as anybody waits for it.
    pub async fn get<F>(&self, key: K, compute: impl FnOnce() -> F) -> (Result<V, E>, Found)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let inner = &self.inner;
        if let Some(kept) = self.kept(&key) {
            return (Ok(kept), Found::Hit);
        }
        let (flight, found) = {
            let mut open = inner.open();
            if let Some(flight) = open.get(&key).and_then(|open| open.flight.upgrade()) {
                inner.shared.increment(1);
                (flight, Found::Shared)
            } else if let Some(kept) = self.kept(&key) {
                // It landed between the two looks.
                return (Ok(kept), Found::Hit);
            } else {
                inner.misses.increment(1);
                let number = inner.number.fetch_add(1, Ordering::Relaxed);
                let flight = self.start(key.clone(), number, compute());
                if let Some(flight) = flight.downgrade() {
                    open.insert(key, Open { number, flight });
                }
                (flight, Found::Miss)
            }
        };
        match (flight.await, found) {
            ((answer, true), Found::Miss) => (answer, Found::Remote),
            ((answer, _), found) => (answer, found),
        }
    }

    /// Starts a computation that does not depend on the one who asked first.
    fn start(&self, key: K, number: u64, compute: impl Future<Output = Result<V, E>> + Send + 'static) -> Flight<V, E> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            // Made in here: a task that is dropped before it began must not ask for the lock, which its maker holds.
            let landing = Landing { inner, key, number };
            let (answer, was_remote) = was_remote(compute).await;
            if let Ok(answer) = &answer {
                landing.inner.kept.insert(landing.key.clone(), answer.clone());
            }
            drop(landing);
            (answer, was_remote)
        });
        let wanted = AbortOnDrop(task.abort_handle());
        let answer = async move {
            let _wanted = wanted;
            task.await.unwrap_or_else(|_| (Err(Lost.into()), false))
        };
        answer.boxed().shared()
    }
}

impl<K, V, E> Inner<K, V, E> {
    fn open(&self) -> MutexGuard<'_, HashMap<K, Open<V, E>>> {
        // Nothing that could panic is done under the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the flight when it is dropped, also by a panic.
struct Landing<K: Hash + Eq, V, E> {
    inner: Arc<Inner<K, V, E>>,
    key: K,
    number: u64,
}

impl<K: Hash + Eq, V, E> Drop for Landing<K, V, E> {
    fn drop(&mut self) {
        let mut open = self.inner.open();
        // After one that everybody left, another may have begun.
        if open.get(&self.key).is_some_and(|open| open.number == self.number) {
            open.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Failed(&'static str);

    impl From<Lost> for Failed {
        fn from(_: Lost) -> Failed {
            Failed("lost")
        }
    }

    fn flights() -> Flights<u32, u32, Failed> {
        Flights::new(1 << 10, |_, _| 1)
    }

    #[tokio::test]
    async fn all_who_ask_at_once_share_one_computation_and_the_first_may_leave() {
        let flights = flights();
        let (computed, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = |flights: Flights<u32, u32, Failed>| {
            let (computed, go) = (Arc::clone(&computed), Arc::clone(&go));
            async move {
                let compute = || async move {
                    computed.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    Ok(7)
                };
                flights.get(1, compute).await
            }
        };
        let first = tokio::spawn(ask(flights.clone()));
        while computed.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..100).map(|_| tokio::spawn(ask(flights.clone()))).collect();
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        go.notify_one();
        for other in others {
            assert_eq!(other.await.expect("it ends").0, Ok(7));
        }
        assert_eq!(ask(flights).await, (Ok(7), Found::Hit));
        assert_eq!(computed.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_computation_that_everybody_left_ends() {
        let flights = flights();
        let (begun, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let compute = {
            let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
            || async move {
                let _ended = scope(ended);
                begun.notify_one();
                std::future::pending().await
            }
        };
        let asked = tokio::spawn({
            let flights = flights.clone();
            async move { flights.get(1, compute).await }
        });
        begun.notified().await;
        asked.abort();
        ended.notified().await;
        assert_eq!(flights.get(1, || async { Ok(2) }).await, (Ok(2), Found::Miss));
    }

    /// Tells when it is dropped.
    fn scope(ended: Arc<Notify>) -> impl Drop {
        struct Scope(Arc<Notify>);
        impl Drop for Scope {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        Scope(ended)
    }

    #[tokio::test]
    async fn errors_and_panics_reach_who_waits_and_are_not_kept() {
        let flights = flights();
        let fails = || async { Err(Failed("no")) };
        assert_eq!(flights.get(1, fails).await, (Err(Failed("no")), Found::Miss));
        let breaks = || async { panic!("broken off on purpose") };
        assert_eq!(flights.get(1, breaks).await, (Err(Failed("lost")), Found::Miss));
        assert_eq!(flights.get(1, || async { Ok(1) }).await, (Ok(1), Found::Miss));
    }
}

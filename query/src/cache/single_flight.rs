//! The tier in memory: answers by their keys, and at most one computation at a time for each key.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use metrics::{Counter, counter};
use moka::sync::Cache;

use crate::cache::redis::was_remote;
use crate::engine::background::AbortOnDrop;

/// How an answer was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// From memory.
    Hit,
    /// From the computation of an earlier request.
    Shared,
    /// Computed for this request.
    Miss,
    /// From Redis.
    Remote,
    /// Answers of this kind are not cached.
    Bypass,
}

/// The computation was aborted before it had an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the computation of an answer was aborted")]
pub struct ComputationAborted;

/// Answers `V` by keys `K`. Errors `E` are returned to all waiting requests and are not cached.
/// Clones share everything.
pub struct SingleFlight<K, V, E> {
    inner: Arc<Inner<K, V, E>>,
}

/// An answer, and whether Redis had it.
type Outcome<V, E> = (Result<V, E>, bool);

/// A running computation; it is aborted when no request waits for it any more.
type Computation<V, E> = Shared<BoxFuture<'static, Outcome<V, E>>>;

/// A computation that other requests can join, and its number.
struct Open<V, E> {
    number: u64,
    computation: WeakShared<BoxFuture<'static, Outcome<V, E>>>,
}

struct Inner<K, V, E> {
    cached: Cache<K, V>,
    open: Mutex<HashMap<K, Open<V, E>>>,
    number: AtomicU64,
    hits: Counter,
    shared: Counter,
    misses: Counter,
}

impl<K, V, E> Clone for SingleFlight<K, V, E> {
    fn clone(&self) -> Self {
        SingleFlight { inner: Arc::clone(&self.inner) }
    }
}

impl<K, V, E> fmt::Debug for SingleFlight<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SingleFlight").finish_non_exhaustive()
    }
}

impl<K, V, E> SingleFlight<K, V, E>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + From<ComputationAborted> + Send + Sync + 'static,
{
    /// Caches answers of up to `bytes_max` in total, as `bytes_of` measures them.
    /// The least used are evicted first.
    pub fn new(bytes_max: u64, bytes_of: impl Fn(&K, &V) -> usize + Send + Sync + 'static) -> Self {
        let weight = move |key: &K, value: &V| u32::try_from(bytes_of(key, value)).unwrap_or(u32::MAX);
        let outcome = |outcome| counter!("argus_cache_requests_total", "tier" => "memory", "outcome" => outcome);
        let inner = Inner {
            cached: Cache::builder().max_capacity(bytes_max).weigher(weight).build(),
            open: Mutex::default(),
            number: AtomicU64::new(0),
            hits: outcome("hit"),
            shared: outcome("shared"),
            misses: outcome("miss"),
        };
        SingleFlight { inner: Arc::new(inner) }
    }

    /// The answer under `key` if it is cached; does not wait.
    pub fn cached(&self, key: &K) -> Option<V> {
        let cached = self.inner.cached.get(key)?;
        self.inner.hits.increment(1);
        Some(cached)
    }

    /// The answer under `key`: from the cache, from a running computation, or else from
    /// `compute`, which runs as long as any request waits for it.
    pub async fn get<F>(&self, key: K, compute: impl FnOnce() -> F) -> (Result<V, E>, Found)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let inner = &self.inner;
        if let Some(cached) = self.cached(&key) {
            return (Ok(cached), Found::Hit);
        }
        let (computation, found) = {
            let mut open = inner.open();
            if let Some(computation) = open.get(&key).and_then(|open| open.computation.upgrade()) {
                inner.shared.increment(1);
                (computation, Found::Shared)
            } else if let Some(cached) = self.cached(&key) {
                // It was stored between the two look-ups.
                return (Ok(cached), Found::Hit);
            } else {
                inner.misses.increment(1);
                let number = inner.number.fetch_add(1, Ordering::Relaxed);
                let computation = self.start(key.clone(), number, compute());
                if let Some(computation) = computation.downgrade() {
                    open.insert(key, Open { number, computation });
                }
                (computation, Found::Miss)
            }
        };
        match (computation.await, found) {
            ((answer, true), Found::Miss) => (answer, Found::Remote),
            ((answer, _), found) => (answer, found),
        }
    }

    /// Starts a computation that does not depend on the request that began it.
    fn start(
        &self,
        key: K,
        number: u64,
        compute: impl Future<Output = Result<V, E>> + Send + 'static,
    ) -> Computation<V, E> {
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            // Created in the task: a task dropped before it starts must not take the lock, which its creator holds.
            let entry = RemoveWhenDone { inner, key, number };
            let (answer, was_remote) = was_remote(compute).await;
            if let Ok(answer) = &answer {
                entry.inner.cached.insert(entry.key.clone(), answer.clone());
            }
            drop(entry);
            (answer, was_remote)
        });
        let abort_on_drop = AbortOnDrop(task.abort_handle());
        let answer = async move {
            let _abort_on_drop = abort_on_drop;
            task.await.unwrap_or_else(|_| (Err(ComputationAborted.into()), false))
        };
        answer.boxed().shared()
    }
}

impl<K, V, E> Inner<K, V, E> {
    fn open(&self) -> MutexGuard<'_, HashMap<K, Open<V, E>>> {
        // No code under the lock can panic.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the computation from the open ones when it is dropped, also by a panic.
struct RemoveWhenDone<K: Hash + Eq, V, E> {
    inner: Arc<Inner<K, V, E>>,
    key: K,
    number: u64,
}

impl<K: Hash + Eq, V, E> Drop for RemoveWhenDone<K, V, E> {
    fn drop(&mut self) {
        let mut open = self.inner.open();
        // After an abandoned computation, another may have started.
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

    impl From<ComputationAborted> for Failed {
        fn from(_: ComputationAborted) -> Failed {
            Failed("aborted")
        }
    }

    fn cache() -> SingleFlight<u32, u32, Failed> {
        SingleFlight::new(1 << 10, |_, _| 1)
    }

    #[tokio::test]
    async fn concurrent_requests_share_one_computation_and_the_first_may_be_cancelled() {
        let cache = cache();
        let (computed, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let request = |cache: SingleFlight<u32, u32, Failed>| {
            let (computed, go) = (Arc::clone(&computed), Arc::clone(&go));
            async move {
                let compute = || async move {
                    computed.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    Ok(7)
                };
                cache.get(1, compute).await
            }
        };
        let first = tokio::spawn(request(cache.clone()));
        while computed.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..100).map(|_| tokio::spawn(request(cache.clone()))).collect();
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.is_err_and(|error| error.is_cancelled()));
        go.notify_one();
        for other in others {
            assert_eq!(other.await.expect("it ends").0, Ok(7));
        }
        assert_eq!(request(cache).await, (Ok(7), Found::Hit));
        assert_eq!(computed.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_abandoned_computation_is_aborted() {
        let cache = cache();
        let (begun, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let compute = {
            let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
            || async move {
                let _ended = scope(ended);
                begun.notify_one();
                std::future::pending().await
            }
        };
        let request = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get(1, compute).await }
        });
        begun.notified().await;
        request.abort();
        ended.notified().await;
        assert_eq!(cache.get(1, || async { Ok(2) }).await, (Ok(2), Found::Miss));
    }

    /// Notifies when it is dropped.
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
    async fn errors_and_panics_reach_all_waiting_requests_and_are_not_cached() {
        let cache = cache();
        let fails = || async { Err(Failed("no")) };
        assert_eq!(cache.get(1, fails).await, (Err(Failed("no")), Found::Miss));
        let breaks = || async { panic!("aborted on purpose") };
        assert_eq!(cache.get(1, breaks).await, (Err(Failed("aborted")), Found::Miss));
        assert_eq!(cache.get(1, || async { Ok(1) }).await, (Ok(1), Found::Miss));
    }
}

//! Answers that take long to compute, for pages over a large fleet.
//!
//! Every upload changes the whole fleet's figures, and some of them are computed from
//! all lines. If that takes long, the last answer is shown again while a new one is
//! computed, and the page says which epoch it shows. An answer that can be computed
//! quickly is never old.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde_json::Value;
use tokio::time::timeout;

use super::layout::PageError;

/// An answer that takes longer to compute is shown again; a request waits this long for a new one.
const SLOW: Duration = Duration::from_millis(10);

/// An older answer is not shown.
const AGE_MAX: Duration = Duration::from_secs(60);

/// At least this many times as long as its computation took, an answer is not computed anew.
const REST: u32 = 3;

/// Answers that are remembered.
const ANSWERS_MAX: u64 = 256;

/// The last slow answers. Clones share them.
#[derive(Clone)]
pub struct RecentAnswers(Cache<String, Arc<SlowAnswer>>);

struct SlowAnswer {
    value: Arc<Value>,
    at: Instant,
    took: Duration,
    is_renewed: AtomicBool,
}

/// An answer, and whether there may be a newer one.
#[derive(Debug, Clone)]
pub struct Answered {
    /// The answer of the API.
    pub value: Arc<Value>,
    /// Whether it was computed for an earlier request.
    pub is_old: bool,
}

impl RecentAnswers {
    /// No answers.
    pub fn new() -> RecentAnswers {
        RecentAnswers(Cache::new(ANSWERS_MAX))
    }

    /// The answer under a key: an old one if computing takes long, else a new one.
    pub async fn get<F>(&self, key: String, compute: impl FnOnce() -> F) -> Result<Answered, PageError>
    where
        F: Future<Output = Result<Value, PageError>> + Send + 'static,
    {
        let Some(slow) = self.0.get(&key).filter(|slow| slow.at.elapsed() < AGE_MAX) else {
            return Ok(Answered { value: self.compute(key, compute()).await?, is_old: false });
        };
        if slow.at.elapsed() > slow.took * REST && !slow.is_renewed.swap(true, Ordering::Relaxed) {
            let (recent, computed, old) = (self.clone(), compute(), Arc::clone(&slow));
            // It goes on if the request does not wait for it.
            let renewed = tokio::spawn(async move {
                let value = recent.compute(key, computed).await;
                // After a failure, the next request tries again.
                old.is_renewed.store(value.is_ok(), Ordering::Relaxed);
                value
            });
            if let Ok(Ok(Ok(value))) = timeout(SLOW, renewed).await {
                return Ok(Answered { value, is_old: false });
            }
        }
        Ok(Answered { value: Arc::clone(&slow.value), is_old: true })
    }

    async fn compute(
        &self,
        key: String,
        computed: impl Future<Output = Result<Value, PageError>>,
    ) -> Result<Arc<Value>, PageError> {
        let begun = Instant::now();
        let value = Arc::new(computed.await?);
        let took = begun.elapsed();
        let before = self.0.get(&key);
        // At the same epoch, the API has the answer in its cache: that says nothing about the next epoch.
        let took_before = before.filter(|before| before.value["epoch"] == value["epoch"]).map(|before| before.took);
        let took = took_before.map_or(took, |before| before.max(took));
        if took > SLOW {
            let is_renewed = AtomicBool::new(false);
            self.0
                .insert(key, Arc::new(SlowAnswer { value: Arc::clone(&value), at: Instant::now(), took, is_renewed }));
        } else {
            self.0.invalidate(&key);
        }
        Ok(value)
    }
}

impl Answered {
    /// The epoch, for an answer that may be old.
    pub fn old_epoch(&self) -> Option<u64> {
        self.value["epoch"].as_u64().filter(|_| self.is_old)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::time::sleep;

    use super::*;

    /// The answer at an epoch, which takes this long to compute.
    async fn answer(epoch: u64, takes: Duration) -> Result<Value, PageError> {
        sleep(takes).await;
        Ok(json!({"epoch": epoch}))
    }

    async fn epoch(recent: &RecentAnswers, now: u64, takes: Duration) -> (u64, bool) {
        let answered = recent.get("key".to_owned(), || answer(now, takes)).await.expect("an answer");
        (answered.value["epoch"].as_u64().expect("a number"), answered.is_old)
    }

    #[tokio::test]
    async fn a_quick_answer_is_never_old() {
        let recent = RecentAnswers::new();
        for now in 1..5 {
            assert_eq!(epoch(&recent, now, Duration::ZERO).await, (now, false));
        }
    }

    #[tokio::test]
    async fn a_slow_answer_is_shown_again_until_there_is_a_new_one() {
        let (recent, slow) = (RecentAnswers::new(), SLOW * 2);
        assert_eq!(epoch(&recent, 1, slow).await, (1, false));
        assert_eq!(epoch(&recent, 2, slow).await, (1, true));
        let mut shown = 1;
        while shown == 1 {
            shown = epoch(&recent, 3, slow).await.0;
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(shown, 3);
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let recent = RecentAnswers::new();
        let failed = recent.get("key".to_owned(), || async { Err(PageError::not_found()) }).await;
        assert!(failed.is_err());
        assert_eq!(epoch(&recent, 2, SLOW * 2).await, (2, false));
    }
}

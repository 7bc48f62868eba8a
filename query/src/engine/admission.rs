//! Admission control: limits on running requests, on waiting requests, and on the time that they wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::QueryError;

/// Permits to run requests. Clones share them.
#[derive(Debug, Clone)]
pub struct Admission {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    wait: Duration,
}

/// A permit; dropping it releases it.
pub type Permit = OwnedSemaphorePermit;

impl Admission {
    /// At most `running_max` permits at once; at most `waiting_max` requests wait for one, each for at most `wait`.
    pub fn new(running_max: usize, waiting_max: usize, wait: Duration) -> Admission {
        Admission { running: Arc::new(Semaphore::new(running_max)), waiting: Arc::default(), waiting_max, wait }
    }

    /// The number of requests that wait for a permit.
    pub fn queue_length(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits for a permit; `Busy` when too many requests wait already, or after the waiting time.
    pub async fn take(&self) -> Result<Permit, QueryError> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::begin(&self.waiting, self.waiting_max)?;
        match tokio::time::timeout(self.wait, Arc::clone(&self.running).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(QueryError::Busy),
        }
    }
}

/// One of the waiting requests.
struct Waiting<'w>(&'w AtomicUsize);

impl Waiting<'_> {
    fn begin(waiting: &AtomicUsize, max: usize) -> Result<Waiting<'_>, QueryError> {
        let slot = Waiting(waiting);
        match waiting.fetch_add(1, Ordering::Relaxed) < max {
            true => Ok(slot),
            false => Err(QueryError::Busy),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Whose turn it is: so many at once, so many who wait, and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::query_error::QueryError;

/// Turns to ask. Clones share them.
#[derive(Debug, Clone)]
pub struct Turns {
    running: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    wait: Duration,
}

/// A turn; it ends when it is dropped.
pub type Turn = OwnedSemaphorePermit;

impl Turns {
    /// So many at once; of those who wait, so many, for so long.
    pub fn new(running_max: usize, waiting_max: usize, wait: Duration) -> Turns {
        Turns { running: Arc::new(Semaphore::new(running_max)), waiting: Arc::default(), waiting_max, wait }
    }

    /// Waits for a turn; busy when too many wait already, or it takes too long.
    pub async fn take(&self) -> Result<Turn, QueryError> {
        if let Ok(turn) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(turn);
        }
        let _waiting = Waiting::begin(&self.waiting, self.waiting_max)?;
        match tokio::time::timeout(self.wait, Arc::clone(&self.running).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            _ => Err(QueryError::Busy),
        }
    }
}

/// A place among those who wait.
struct Waiting<'w>(&'w AtomicUsize);

impl Waiting<'_> {
    fn begin(waiting: &AtomicUsize, max: usize) -> Result<Waiting<'_>, QueryError> {
        let place = Waiting(waiting);
        match waiting.fetch_add(1, Ordering::Relaxed) < max {
            true => Ok(place),
            false => Err(QueryError::Busy),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

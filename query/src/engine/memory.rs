//! The memory limit of one query, within the pool that all queries share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

use crate::sql::joins::no_room;

/// One query's share of the common memory pool.
#[derive(Debug)]
pub struct QueryPool {
    all: Arc<dyn MemoryPool>,
    used: AtomicUsize,
    bytes_max: usize,
}

impl QueryPool {
    /// At most `bytes_max` of `all`.
    pub fn new(all: Arc<dyn MemoryPool>, bytes_max: usize) -> QueryPool {
        QueryPool { all, used: AtomicUsize::new(0), bytes_max }
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "query({} of {} bytes)", self.used.load(Ordering::Relaxed), self.bytes_max)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.all.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.all.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.used.fetch_add(additional, Ordering::Relaxed);
        self.all.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.used.fetch_sub(shrink, Ordering::Relaxed);
        self.all.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let used = self.used.fetch_add(additional, Ordering::Relaxed) + additional;
        let grown = match used > self.bytes_max {
            true => Err(DataFusionError::ResourcesExhausted(format!("the query exceeds {} bytes", self.bytes_max))),
            false => self.all.try_grow(reservation, additional),
        };
        grown.map_err(|error| {
            self.used.fetch_sub(additional, Ordering::Relaxed);
            no_room(reservation.consumer().name(), error)
        })
    }

    fn reserved(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes_max)
    }
}

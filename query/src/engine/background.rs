//! The threads that users' queries run on.
//!
//! A query can occupy a CPU for as long as it runs, and reports must not wait for
//! it. So queries have threads of their own, with a low priority and with stacks
//! that are large enough for deep expressions.

use std::fmt;
use std::sync::Arc;

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

/// The stack of each thread (16 MiB).
const STACK_BYTES: usize = 16 << 20;

/// From 0, the lowest, to 99.
const PRIORITY: u8 = 20;

/// Threads for queries. Clones share them; dropping the last clone stops them.
#[derive(Clone)]
pub struct Background {
    runtime: Arc<Threads>,
}

/// Stops without waiting, because a runtime must not block on another.
struct Threads(Option<Runtime>);

impl Background {
    /// Starts `threads` threads, but at least one.
    pub fn start(threads: usize) -> std::io::Result<Background> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("argus-query")
            .thread_stack_size(STACK_BYTES)
            .on_thread_start(lower_priority)
            .enable_all()
            .build()?;
        Ok(Background { runtime: Arc::new(Threads(Some(runtime))) })
    }

    /// For spawning tasks on these threads.
    pub fn handle(&self) -> Handle {
        match &self.runtime.0 {
            Some(runtime) => runtime.handle().clone(),
            None => unreachable!("only drop takes the runtime"),
        }
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Aborts a spawned task when it is dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn lower_priority() {
    let priority = ThreadPriorityValue::try_from(PRIORITY).map(ThreadPriority::Crossplatform);
    // Where the system does not allow it, queries run with the normal priority.
    let _ = priority.map(set_current_thread_priority);
}

//! The threads that users' queries run on.
//!
//! Planning and running a query takes a processor for as long as it takes, and
//! reports must not wait for it: queries have threads of their own, which the
//! system runs when nobody else wants to, with stacks that deep expressions
//! fit in.

use std::fmt;
use std::sync::Arc;

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

/// The stack of each thread (16 MiB).
const STACK_BYTES: usize = 16 << 20;

/// From 0, the least, to 99.
const PRIORITY: u8 = 20;

/// Threads for queries. Clones share them; the last to go stops them.
#[derive(Clone)]
pub struct Background {
    runtime: Arc<Threads>,
}

/// Stops without waiting, for a runtime must not be waited for inside another.
struct Threads(Option<Runtime>);

impl Background {
    /// Starts so many threads.
    pub fn start(threads: usize) -> std::io::Result<Background> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("argus-query")
            .thread_stack_size(STACK_BYTES)
            .on_thread_start(step_back)
            .enable_all()
            .build()?;
        Ok(Background { runtime: Arc::new(Threads(Some(runtime))) })
    }

    /// Where to spawn what shall run there.
    pub fn handle(&self) -> Handle {
        match &self.runtime.0 {
            Some(runtime) => runtime.handle().clone(),
            None => unreachable!("it is there until it is dropped"),
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

/// Ends something that was spawned when nobody wants it any more.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn step_back() {
    let priority = ThreadPriorityValue::try_from(PRIORITY).map(ThreadPriority::Crossplatform);
    // Where the system does not allow it, queries compete like anything else.
    let _ = priority.map(set_current_thread_priority);
}

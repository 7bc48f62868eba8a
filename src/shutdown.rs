//! The stop state of the server; every long operation watches it.

use tokio::sync::watch;

/// Whether requests may continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// The server is not stopping.
    No,
    /// Event streams and queries end; other requests may finish.
    Soon,
    /// All requests are aborted.
    Now,
}

/// Waits until the server stops, or the sender of `stopping` is dropped.
pub async fn stopped(stopping: &mut watch::Receiver<Stopping>) {
    drop(stopping.wait_for(|stopping| *stopping != Stopping::No).await);
}

//! The stop state of the server; every long operation watches it.

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

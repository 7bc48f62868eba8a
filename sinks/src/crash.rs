//! Named crash points, at which a test can abort the process as by `kill -9`.
//!
//! `ARGUS_CRASH_AT=NAME:COUNT` aborts the process when it reaches the point for
//! the COUNT-th time. Builds without debug assertions have no crash points.

/// The crash points, in the order in which an upload reaches them.
pub const POINTS: [&str; 9] = [
    "raw written",
    "metadata written",
    "fed",
    "closed",
    "delta staged",
    "delta committed",
    "acknowledged",
    "compacting",
    "vacuuming",
];

/// Marks that the process reaches the point of this name.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let wanted = std::env::var("ARGUS_CRASH_AT").ok()?;
        let (name, count) = wanted.split_once(':')?;
        Some((name.to_owned(), AtomicI64::new(count.parse().ok()?)))
    });
    debug_assert!(POINTS.contains(&name), "{name}");
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// Marks that the process reaches the point of this name.
#[cfg(not(debug_assertions))]
pub fn point(_name: &str) {}

//! The free space on the disk of the data directory.
//!
//! Uploads are rejected before the disk is full, so that accepted data can still be
//! committed, compacted and deleted, and reads go on.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Uploads are rejected when less than this is free (256 MiB), or less than a tenth of a small disk.
const RESERVE_BYTES: u64 = 256 << 20;
const RESERVE_PART: u64 = 10;

/// How long a measurement is valid.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// Measures the free space of a disk. Clones share the measurement.
#[derive(Debug, Clone)]
pub struct DiskSpace {
    folder: PathBuf,
    last: Arc<Mutex<Option<(Instant, Space)>>>,
}

/// The free space of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Available to this process.
    pub free: u64,
    /// What must stay free.
    pub reserve: u64,
}

impl Space {
    fn new(free: u64, total: u64) -> Space {
        Space { free, reserve: RESERVE_BYTES.min(total / RESERVE_PART) }
    }

    /// Whether uploads are rejected.
    pub fn is_full(self) -> bool {
        self.free < self.reserve
    }
}

impl DiskSpace {
    /// The disk that contains a folder.
    pub fn of(folder: &Path) -> DiskSpace {
        DiskSpace { folder: folder.to_owned(), last: Arc::default() }
    }

    /// The free space, at most 100 ms old; `None` if the system does not report it.
    pub fn space(&self) -> Option<Space> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, space)) = *last
            && at.elapsed() < MEASURE_EVERY
        {
            return Some(space);
        }
        let stats = rustix::fs::statvfs(&self.folder).ok()?;
        let space = Space::new(stats.f_bavail * stats.f_frsize, stats.f_blocks * stats.f_frsize);
        *last = Some((Instant::now(), space));
        Some(space)
    }

    /// Whether uploads are rejected.
    pub fn is_full(&self) -> bool {
        self.space().is_some_and(Space::is_full)
    }
}

/// Whether an error, or one of its causes, is a full disk.
pub fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                return true;
            }
            // `source` of an `io::Error` skips the error that it wraps.
            if io.get_ref().is_some_and(|inner| is_disk_full(inner)) {
                return true;
            }
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_counts_as_full_at_its_reserve() {
        let gib = 1 << 30;
        assert!(Space::new(200 << 20, 100 * gib).is_full() && !Space::new(300 << 20, 100 * gib).is_full());
        assert!(Space::new(4 << 20, 50 << 20).is_full() && !Space::new(6 << 20, 50 << 20).is_full());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let space = DiskSpace::of(folder.path()).space().expect("the system reports it");
        assert!(space.free > 0 && space.reserve > 0);
    }

    #[test]
    fn a_full_disk_is_found_among_the_causes_of_an_error() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        assert!(is_disk_full(&full()));
        assert!(is_disk_full(&io::Error::other(full())));
        let stored = object_store::Error::Generic { store: "a", source: Box::new(full()) };
        assert!(is_disk_full(&io::Error::other(stored)));
        assert!(!is_disk_full(&io::Error::other("another")));
    }
}

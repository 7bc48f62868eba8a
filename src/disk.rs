//! The space on the disk of the data directory.
//!
//! Uploads are refused before the disk is full, so that what was accepted can
//! still be committed, compacted and deleted, and reads go on.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Uploads are refused when less than this is free (256 MiB), or less than a tenth of a small disk.
const RESERVE_BYTES: u64 = 256 << 20;
const RESERVE_PART: u64 = 10;

/// How long a measurement is good for.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// Knows how much of the disk is free. Clones share what was measured.
#[derive(Debug, Clone)]
pub struct DiskSpace {
    folder: PathBuf,
    last: Arc<Mutex<Option<(Instant, Space)>>>,
}

/// What of a disk is free, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free for us.
    pub free: u64,
    /// What must stay free.
    pub reserve: u64,
}

impl Space {
    fn new(free: u64, total: u64) -> Space {
        Space { free, reserve: RESERVE_BYTES.min(total / RESERVE_PART) }
    }

    /// Whether nothing more may be uploaded.
    pub fn is_full(self) -> bool {
        self.free < self.reserve
    }
}

impl DiskSpace {
    /// The disk that a folder is on.
    pub fn of(folder: &Path) -> DiskSpace {
        DiskSpace { folder: folder.to_owned(), last: Arc::default() }
    }

    /// What is free now, or was a moment ago; `None` where the system does not say.
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

    /// Whether nothing more may be uploaded.
    pub fn is_full(&self) -> bool {
        self.space().is_some_and(Space::is_full)
    }
}

/// Whether an error, or what caused it, is that a disk has no room.
pub fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                return true;
            }
            // An error within an error of this kind is not its source, but what it is made of.
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
    fn a_disk_is_full_before_nothing_is_free() {
        let gib = 1 << 30;
        assert!(Space::new(200 << 20, 100 * gib).is_full() && !Space::new(300 << 20, 100 * gib).is_full());
        assert!(Space::new(4 << 20, 50 << 20).is_full() && !Space::new(6 << 20, 50 << 20).is_full());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let space = DiskSpace::of(folder.path()).space().expect("the system says");
        assert!(space.free > 0 && space.reserve > 0);
    }

    #[test]
    fn a_full_disk_is_known_through_other_errors() {
        let full = || io::Error::from(ErrorKind::StorageFull);
        assert!(is_disk_full(&full()));
        assert!(is_disk_full(&io::Error::other(full())));
        let stored = object_store::Error::Generic { store: "a", source: Box::new(full()) };
        assert!(is_disk_full(&io::Error::other(stored)));
        assert!(!is_disk_full(&io::Error::other("another")));
    }
}

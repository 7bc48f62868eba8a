//! The output of the dataflow.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::OwnedSemaphorePermit;

use crate::counts::changes::ClosedEpoch;
use crate::counts::partial::PartialCounts;
use crate::counts::rows::{Origin, VersionId};
use crate::scan::Occurrence;

/// An output of the dataflow. All occurrences of a version come before the epoch that admits it.
#[derive(Debug)]
pub enum Output {
    /// The occurrences of a block; its version may still be admitted or abandoned.
    Scanned(ScannedBlock),
    /// Counts of some blocks of a version, by a dataflow that only scans ([`crate::Config::scans_only`]). All of them come
    /// before the end of their epoch.
    Counted(VersionId, PartialCounts),
    /// An epoch is complete.
    Closed(ClosedEpoch),
}

/// The occurrences of one block. The block counts as in flight until this is
/// dropped, so a slow reader of occurrences slows down `insert`.
#[derive(Debug)]
pub struct ScannedBlock {
    /// The file and version of the block.
    pub origin: Arc<Origin>,
    /// Ordered by line, then by priority of the rules.
    pub occurrences: Vec<Occurrence>,
    pub(crate) _in_flight: Arc<InFlight>,
}

/// The bytes of a block that is in flight: until its occurrences have been read.
#[derive(Debug)]
pub(crate) struct InFlight {
    _permit: OwnedSemaphorePermit,
    queued_bytes: Arc<AtomicUsize>,
    bytes: usize,
}

impl InFlight {
    /// `bytes` in flight, which also count in `queued_bytes` of a worker.
    pub(crate) fn new(permit: OwnedSemaphorePermit, queued_bytes: Arc<AtomicUsize>, bytes: usize) -> InFlight {
        InFlight { _permit: permit, queued_bytes, bytes }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

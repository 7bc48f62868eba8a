//! Metrics and notifications for each closed epoch, once readers see it.

use argus_dataflow::{ClosedEpoch, Row};
use metrics::{counter, gauge};

use crate::pipeline::failures::Failures;
use crate::pipeline::followers::Followers;

/// Counts the data of closed epochs, and wakes the followers.
pub(super) struct Progress {
    pub(super) followers: Followers,
    pub(super) failures: Failures,
}

impl Progress {
    /// Counts the data that an epoch added, and wakes the followers of its batches.
    pub(super) fn closed(&self, closed: &ClosedEpoch) {
        for (row, _) in &closed.rows {
            if let Row::File(file) = row
                && file.live >= 0
            {
                counter!("argus_lines_total").increment(file.lines);
                counter!("argus_bytes_total").increment(file.bytes);
                counter!("argus_occurrences_total").increment(file.occurrences);
                self.failures.note(file);
            }
        }
        gauge!("argus_closed_epoch").set(closed.epoch as f64);
        self.followers.wake(closed.batches());
    }
}

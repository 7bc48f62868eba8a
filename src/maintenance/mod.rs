//! Maintenance of a data directory: compaction, retention, erasure, and deletion of
//! orphans. `argus maintain` does all of it once; a server does it on a schedule,
//! while it serves requests.
//!
//! 1. Closed epochs are committed, so that everything accepted is in the tables' files.
//! 2. `since`, the compaction frontier, advances to the end of the retention. Only then
//!    are earlier epochs consolidated.
//! 3. Files that contain deleted rows are rewritten without them, and small files are
//!    merged ([`compaction`]). Readers see the change atomically.
//! 4. Replaced files are deleted when no reader can reference them any more ([`leftovers`]).
//!
//! A step that fails is reported; the other steps still run.

mod compaction;
pub mod erasure;
mod leftovers;
pub mod orphans;
pub mod recount;
pub mod rescan;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use argus_sinks::{LakeMaintenance, LakeState, Snapshot};
use chrono::{DateTime, Utc};
use metrics::{counter, histogram};
use object_store::{ObjectStore, PutMode};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::data_dir;
use crate::ingest::raw_store::RawStore;
use crate::ingest::resumable::ResumableUploads;
use crate::maintenance::erasure::Erasure;
use crate::maintenance::orphans::Orphans;
use crate::metadata::{AppendedParts, Metadata};
use crate::pipeline::WeakPipeline;
use crate::shutdown::Stopping;

pub use crate::maintenance::leftovers::Leftovers;

/// Appended bytes move from the metadata to the raw store in objects of about this size (4 MiB).
pub const PART_OBJECT_BYTES: u64 = 4 << 20;
/// While a server runs, other readers may still use old log entries; younger ones are not deleted.
const LOG_AGE: Duration = Duration::from_secs(3600);
/// How long idempotency keys are stored.
const KEY_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// How much one run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// What is worth its cost while the server is working.
    Scheduled,
    /// Everything, when no other process uses the data directory.
    Full,
}

/// The result of a run.
#[derive(Debug, Default)]
pub struct Done {
    /// Table files that were rewritten.
    pub files_replaced: usize,
    /// Files that were deleted: replaced files and orphans.
    pub files_deleted: usize,
    /// Table files that were not compacted, because they could not be read or their replacement could not be written.
    pub files_skipped: usize,
    /// The steps that failed, each with its reason.
    pub failures: Vec<String>,
}

/// Runs the maintenance of a data directory.
pub struct Maintainer {
    /// The data directory.
    pub(crate) data: PathBuf,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) maintenance: LakeMaintenance,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) committed: watch::Receiver<LakeState>,
    pub(crate) metadata: Metadata,
    pub(crate) pipeline: WeakPipeline,
    pub(crate) raw: RawStore,
    pub(crate) resumable: ResumableUploads,
    /// How far back queries can read (`as_of`).
    pub(crate) retention: Duration,
    /// The interval of scheduled runs; zero disables them.
    pub(crate) every: Duration,
    pub(crate) erasure: Erasure,
    pub(crate) orphans: Orphans,
    pub(crate) leftovers: Leftovers,
}

impl Done {
    /// Adds a run to the metrics.
    fn count(&self) {
        let outcome = if self.failures.is_empty() { "ok" } else { "failed" };
        counter!("argus_maintenance_runs_total", "outcome" => outcome).increment(1);
        let files =
            [("replaced", self.files_replaced), ("deleted", self.files_deleted), ("skipped", self.files_skipped)];
        for (action, files) in files {
            counter!("argus_maintenance_files_total", "action" => action).increment(files as u64);
        }
    }

    /// Returns the result of a step; logs and records a failure.
    pub fn note<T, E: Into<anyhow::Error>>(&mut self, failure: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.into();
                tracing::error!(error = format!("{error:#}"), "{failure}; the next run retries");
                self.failures.push(format!("{failure}: {error:#}"));
                None
            }
        }
    }
}

impl Maintainer {
    /// Runs at the configured interval until the server stops.
    pub async fn schedule(mut self, mut stopping: watch::Receiver<Stopping>) {
        tokio::select! {
            () = self.delete_orphans() => {}
            _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
        }
        if self.every.is_zero() {
            return;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            }
            let began = Instant::now();
            let done = tokio::select! {
                done = self.run(Thoroughness::Scheduled) => done,
                // The next start deletes partly written files.
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            };
            tracing::debug!(?done, "maintenance run finished");
            done.count();
            histogram!("argus_maintenance_duration_seconds").record(began.elapsed().as_secs_f64());
        }
    }

    /// Deletes orphans after everything accepted before the start is committed to the lake and needs no replay.
    async fn delete_orphans(&mut self) {
        let mut done = Done::default();
        if done.note("could not commit the lake", self.maintenance.commit().await).is_some()
            && !data_dir::is_held(&self.data)
        {
            let deleted = self.orphans.delete_when_due().await;
            done.note("could not delete orphaned files", deleted);
        }
    }

    /// Runs all steps once.
    pub async fn run(&mut self, thoroughness: Thoroughness) -> Done {
        let mut done = Done::default();
        let removed = data_dir::remove_interrupted_backups(&self.data);
        done.note("could not delete the folder of an interrupted backup", removed);
        let is_committed = done.note("could not commit the lake", self.maintenance.commit().await).is_some();
        let committed = self.committed.borrow().epoch;
        let left =
            done.note("could not erase deleted versions from the raw store", self.erasure.erase().await).unwrap_or(0);
        if left > 0 {
            done.note::<(), _>("deleted versions remain in the raw store", Err(anyhow!("{left} versions")));
        }
        // Only now does nothing that was accepted before the start need a replay.
        // A backup may need what would be deleted.
        let is_held = data_dir::is_held(&self.data);
        if is_committed && !is_held {
            let deleted = self.orphans.delete_when_due().await;
            done.files_deleted += done.note("could not delete orphaned files", deleted).unwrap_or(0);
            let deleted = self.delete_uncertain().await;
            done.files_deleted += done.note("could not delete the files of a failed commit", deleted).unwrap_or(0);
        }
        let now = Utc::now();
        let since = self.metadata.epoch_before(before(now, self.retention)).await;
        // Without it, no epochs are consolidated.
        let since = done.note("could not read the end of the retention", since).unwrap_or(0);
        let compacted = self.compact(thoroughness, since, committed, &mut done).await;
        done.note("could not compact the lake", compacted);
        let log_age = if thoroughness == Thoroughness::Full { Duration::ZERO } else { LOG_AGE };
        // Compaction may have taken long.
        if !data_dir::is_held(&self.data) {
            done.note("could not shorten the tables' logs", self.maintenance.shorten_logs(log_age).await);
        }
        done.note("could not move appended bytes to the raw store", self.gather_parts(committed).await);
        done.note("could not delete expired uploads", self.resumable.delete_expired().await);
        while self.pipeline.forget_before(before(now, KEY_RETENTION), before(now, self.retention)).await {}
        if data_dir::is_held(&self.data) {
            return done;
        }
        let deleted = self.delete_replaced().await;
        done.files_deleted += done.note("could not delete replaced files", deleted).unwrap_or(0);
        done
    }

    /// Moves appended bytes from the metadata to the raw store.
    async fn gather_parts(&self, committed: u64) -> Result<()> {
        let mut first_failure = Ok(());
        for (batch_id, version) in self.metadata.versions_with_parts(PART_OBJECT_BYTES).await? {
            let parts = self.metadata.parts(version, committed, PART_OBJECT_BYTES).await?;
            let Some(AppendedParts { start, mut last_start, mut compressed }) = parts else { continue };
            let moved = async {
                let put = self.raw.put_part(batch_id, version, start, compressed.clone(), PutMode::Create).await;
                if let Err(object_store::Error::AlreadyExists { .. }) = put {
                    // A crash left it, or another process that has taken over has just written it: then the metadata
                    // does not have the bytes any more.
                    match self.metadata.parts(version, committed, PART_OBJECT_BYTES).await? {
                        Some(again) if again.start == start => {
                            (last_start, compressed) = (again.last_start, again.compressed)
                        }
                        _ => return Ok(()),
                    }
                    let overwrite = PutMode::Overwrite;
                    self.raw.put_part(batch_id, version, start, compressed, overwrite).await?;
                } else {
                    put?;
                }
                if !self.pipeline.parts_are_stored(version, start, last_start).await {
                    // The file was deleted or replaced meanwhile.
                    self.raw.delete_part(batch_id, version, start).await?;
                }
                anyhow::Ok(())
            };
            // A failure does not stop the others.
            first_failure = first_failure.and(moved.await);
        }
        first_failure
    }
}

/// The time `age` before `now`, in microseconds since 1970.
fn before(now: DateTime<Utc>, age: Duration) -> i64 {
    now.timestamp_micros().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
}

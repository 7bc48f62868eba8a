//! Maintenance of a data directory: compaction, retention, erasure, and what a
//! crash left. `argus maintain` does all of it at once; a server does it on a
//! schedule, beside its work.
//!
//! 1. What is closed is committed, so that everything accepted is among the tables' files.
//! 2. The past before the retention is closed, and only then folded.
//! 3. Files with rows of something gone are written anew without them; many
//!    small files become few ([`compaction`]). Readers change over at one instant.
//! 4. Replaced files are deleted when no reader can name them any more ([`leftovers`]).
//!
//! A step that fails is reported and stops no other one.

mod compaction;
mod leftovers;

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use argus_sinks::{LakeState, Snapshot, Upkeep};
use chrono::{DateTime, Utc};
use object_store::ObjectStore;
use tokio::sync::watch;

use crate::cli::MaintainArgs;
use crate::erasure::Erasure;
use crate::metadata::{self, Metadata};
use crate::orphans::Orphans;
use crate::pipeline::WeakPipeline;
use crate::raw::RawStore;
use crate::service::{Service, ServiceConfig, Stopping, metadata_path};

pub use crate::maintain::leftovers::Leftovers;

/// Appended bytes move from the metadata to the raw store in objects of about this size (4 MiB).
pub const PART_OBJECT_BYTES: u64 = 4 << 20;
/// Beside a server, other readers may still be reading the log that they began with.
const LOG_AGE: Duration = Duration::from_secs(3600);
/// How long idempotency keys are known.
const KEYS_KNOWN: Duration = Duration::from_secs(7 * 24 * 3600);

/// How much is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// What is worth it beside other work.
    Scheduled,
    /// Everything, when nobody else is there.
    Full,
}

/// What was done, and what could not be done.
#[derive(Debug, Default)]
pub struct Done {
    /// Files of tables that were written anew.
    pub files_replaced: usize,
    /// Files that were deleted: replaced ones, and what a crash left.
    pub files_deleted: usize,
    /// Files of tables that stay as they are because they could not be read, or what they become not be written.
    pub files_skipped: usize,
    /// What failed, each with its reason.
    pub failures: Vec<String>,
}

/// Keeps a data directory in order.
pub struct Maintainer {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) upkeep: Upkeep,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) committed: watch::Receiver<LakeState>,
    pub(crate) metadata: Metadata,
    pub(crate) pipeline: WeakPipeline,
    pub(crate) raw: RawStore,
    /// For how long the past can be asked for.
    pub(crate) retention: Duration,
    /// How often a server does it; zero means never.
    pub(crate) every: Duration,
    pub(crate) erasure: Erasure,
    pub(crate) orphans: Orphans,
    pub(crate) leftovers: Leftovers,
}

/// Runs `argus maintain`.
pub fn run(args: &MaintainArgs) -> Result<ExitCode> {
    if !args.data.join("lake").is_dir() {
        bail!("{} is no data directory", args.data.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut config = ServiceConfig::new(args.data.clone(), args.counting.rules()?, args.counting.workers());
        config.retention = args.retention.retention.into();
        let Service { mut maintainer, metadata, pipeline, work, .. } = Service::open(config).await?;
        let mut done = maintainer.run(Thoroughness::Full).await;
        // It takes requests as long as somebody may ask.
        drop(pipeline);
        work.finish().await?;
        metadata.close().await;
        done.note("the metadata cannot be written anew", metadata::write_anew(&metadata_path(&args.data)).await);
        anyhow::Ok(done)
    })?;
    let Done { files_replaced, files_deleted, files_skipped, failures } = done;
    writeln!(stdout(), "{files_replaced} files of tables written anew, {files_deleted} files deleted")?;
    if !failures.is_empty() {
        bail!("maintenance is incomplete, {files_skipped} files skipped:\n  {}", failures.join("\n  "));
    }
    Ok(ExitCode::SUCCESS)
}

impl Done {
    /// What a step gave; a failure is logged and noted, and the next step goes on.
    fn note<T, E: Into<anyhow::Error>>(&mut self, failure: &str, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(given) => Some(given),
            Err(error) => {
                let error = error.into();
                tracing::error!(error = format!("{error:#}"), "{failure}; it will be tried again");
                self.failures.push(format!("{failure}: {error:#}"));
                None
            }
        }
    }
}

impl Maintainer {
    /// Does it every so often, until the server stops.
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
            let done = tokio::select! {
                done = self.run(Thoroughness::Scheduled) => done,
                // What is half written is found and deleted after the next start.
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            };
            tracing::debug!(?done, "maintenance");
        }
    }

    /// Deletes what a crash left, when everything accepted before it is in the lake and nothing is fed again any more.
    async fn delete_orphans(&mut self) {
        let mut done = Done::default();
        if done.note("the lake cannot be committed", self.upkeep.commit().await).is_some() {
            let deleted = self.orphans.delete_when_due().await;
            done.note("what a crash left cannot be deleted", deleted);
        }
    }

    /// Does what is to be done now, as far as it can be done.
    pub async fn run(&mut self, thoroughness: Thoroughness) -> Done {
        let mut done = Done::default();
        let is_committed = done.note("the lake cannot be committed", self.upkeep.commit().await).is_some();
        let committed = self.committed.borrow().epoch;
        let left = done.note("what was deleted cannot be erased", self.erasure.erase().await).unwrap_or(0);
        if left > 0 {
            done.note::<(), _>("deleted bytes stay in the raw store", Err(anyhow!("{left} versions")));
        }
        // Only now is nothing fed again that was accepted before the start.
        if is_committed {
            let deleted = self.orphans.delete_when_due().await;
            done.files_deleted += done.note("what a crash left cannot be deleted", deleted).unwrap_or(0);
            let deleted = self.delete_uncertain().await;
            done.files_deleted += done.note("what a failed commit left cannot be deleted", deleted).unwrap_or(0);
        }
        let now = Utc::now();
        let since = self.metadata.epoch_before(before(now, self.retention)).await;
        // Without it, what was told apart stays so.
        let since = done.note("the end of the retention cannot be read", since).unwrap_or(0);
        let compacted = self.compact(thoroughness, since, committed, &mut done).await;
        done.note("the lake cannot be compacted", compacted);
        let log_age = if thoroughness == Thoroughness::Full { Duration::ZERO } else { LOG_AGE };
        done.note("the tables' logs cannot be shortened", self.upkeep.shorten_logs(log_age).await);
        done.note("what was appended cannot be moved to the raw store", self.gather_parts(committed).await);
        while self.pipeline.forget_before(before(now, KEYS_KNOWN), before(now, self.retention)).await {}
        let deleted = self.delete_replaced().await;
        done.files_deleted += done.note("replaced files cannot be deleted", deleted).unwrap_or(0);
        done
    }

    /// Moves appended bytes from the metadata to the raw store.
    async fn gather_parts(&self, committed: u64) -> Result<()> {
        let mut first_failure = Ok(());
        for (batch_id, version) in self.metadata.versions_with_parts(PART_OBJECT_BYTES).await? {
            let Some(parts) = self.metadata.parts(version, committed, PART_OBJECT_BYTES).await? else { continue };
            let moved = async {
                self.raw.put_part(batch_id, version, parts.start, &parts.bytes).await?;
                if !self.pipeline.parts_are_stored(version, parts.start, parts.last_start).await {
                    // The file went away meanwhile.
                    self.raw.delete_part(batch_id, version, parts.start).await?;
                }
                anyhow::Ok(())
            };
            // One that cannot be moved keeps no other.
            first_failure = first_failure.and(moved.await);
        }
        first_failure
    }
}

/// A time so long ago, in microseconds since 1970.
fn before(now: DateTime<Utc>, age: Duration) -> i64 {
    now.timestamp_micros().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
}

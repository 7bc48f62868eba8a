//! Upkeep of a data directory: compaction, retention, erasure, and what a
//! crash left. `argus maintain` does all of it at once; a server does it on a
//! schedule, beside its work.
//!
//! 1. What is closed is committed, so that everything accepted is among the tables' files.
//! 2. The past before the retention is closed, and only then folded.
//! 3. Files with rows of something gone are written anew without them; many
//!    small files become few. Readers change over at one instant.
//! 4. Replaced files are deleted when no reader can name them any more.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_query::{Engine, Gone};
use argus_sinks::{DataFile, NewFile, Snapshot, Table, Upkeep};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::sync::watch;

use crate::cli::MaintainArgs;
use crate::metadata::{self, Metadata};
use crate::pipeline::WeakPipeline;
use crate::raw::RawStore;
use crate::service::{Service, ServiceConfig, Stopping, metadata_path};

/// A file smaller than this is merged with others of its size (32 MiB).
const SMALL_FILE_BYTES: u64 = 32 << 20;
/// A server merges when so many files are of like size.
const LIKE_FILES: usize = 8;
/// Files are of like size when the same power of this is below them, from [`LEAST_CLASS_BYTES`] on.
const CLASS_FACTOR: u64 = 8;
/// Files up to this (64 KiB) are of one class.
const LEAST_CLASS_BYTES: u64 = 64 << 10;
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

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Files of tables that were written anew.
    pub files_replaced: usize,
    /// Files that were deleted: replaced ones, and what a crash left.
    pub files_deleted: usize,
}

/// Keeps a data directory in order.
pub struct Maintainer {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) engine: Engine,
    pub(crate) upkeep: Upkeep,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) committed: watch::Receiver<u64>,
    pub(crate) metadata: Metadata,
    pub(crate) pipeline: WeakPipeline,
    pub(crate) raw: RawStore,
    /// For how long the past can be asked for.
    pub(crate) retention: Duration,
    /// How often a server does it; zero means never.
    pub(crate) every: Duration,
    pub(crate) started: DateTime<Utc>,
    pub(crate) leftovers: Leftovers,
}

/// Files to delete.
#[derive(Default)]
pub struct Leftovers {
    /// Whether what a crash left has been looked for.
    looked: bool,
    /// Replaced files, oldest first, with what the readers hold who may still name them.
    replaced: VecDeque<(Weak<()>, HashSet<Path>)>,
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
        let done = maintainer.run(Thoroughness::Full).await;
        // It takes requests as long as somebody may ask.
        drop(pipeline);
        work.finish().await?;
        metadata.close().await;
        metadata::write_anew(&metadata_path(&args.data)).await?;
        done
    })?;
    let Done { files_replaced, files_deleted } = done;
    writeln!(stdout(), "{files_replaced} files of tables written anew, {files_deleted} files deleted")?;
    Ok(ExitCode::SUCCESS)
}

impl Maintainer {
    /// Does it every so often, until the server stops.
    pub async fn schedule(mut self, mut stopping: watch::Receiver<Stopping>) {
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
            match done {
                Ok(done) => tracing::debug!(?done, "upkeep"),
                Err(error) => tracing::error!(error = format!("{error:#}"), "upkeep failed; it will be tried again"),
            }
        }
    }

    /// Does what is to be done now.
    pub async fn run(&mut self, thoroughness: Thoroughness) -> Result<Done> {
        let mut done = Done::default();
        self.upkeep.commit().await?;
        // Readers may see more by now than is committed.
        let committed = *self.committed.borrow();
        let snapshot = Arc::clone(&self.snapshots.borrow());
        self.pipeline.forget_committed(committed).await;
        // Only now is nothing fed again that was accepted before the start: bytes that no file has are of no use.
        if !self.leftovers.looked {
            done.files_deleted += self.delete_leftovers().await.context("cannot delete what a crash left")?;
            self.leftovers.looked = true;
        }
        let now = Utc::now();
        let horizon = self.metadata.epoch_before(before(now, self.retention)).await?;
        let horizon = horizon.clamp(snapshot.horizon, committed.max(snapshot.horizon));
        let gone = Gone::find(&self.engine, &snapshot, horizon).await?;
        let mut closed = snapshot.horizon >= horizon;
        for table in Table::ALL {
            let chosen = self.choose(&snapshot, table, &gone, thoroughness).await?;
            if chosen.is_empty() {
                continue;
            }
            if !closed {
                self.upkeep.close_past(horizon).await?;
                closed = true;
            }
            let added = self.write_anew(&snapshot, table, &chosen, &gone, horizon).await?;
            argus_sinks::crash::point("compacting");
            let removed: HashSet<Path> = chosen.into_iter().map(|file| file.path).collect();
            done.files_replaced += removed.len();
            let lease = self.upkeep.replace(table, removed.clone(), added).await?;
            self.leftovers.replaced.push_back((lease, removed));
        }
        self.upkeep.shorten_logs(if thoroughness == Thoroughness::Full { Duration::ZERO } else { LOG_AGE }).await?;
        self.gather_parts(committed).await?;
        self.pipeline.forget_before(before(now, KEYS_KNOWN), before(now, self.retention)).await;
        drop(snapshot);
        done.files_deleted += self.delete_replaced().await?;
        Ok(done)
    }

    /// The files to write anew: those with rows of something gone, and small ones when there are many.
    async fn choose(
        &self,
        snapshot: &Arc<Snapshot>,
        table: Table,
        gone: &Gone,
        thoroughness: Thoroughness,
    ) -> Result<Vec<DataFile>> {
        let mut classes: BTreeMap<u32, Vec<DataFile>> = BTreeMap::new();
        let mut chosen = Vec::new();
        for file in snapshot.table(table).committed.iter() {
            if !gone.is_nothing() && gone.is_in(&self.engine, snapshot, table, file).await? {
                chosen.push(file.clone());
            } else if file.bytes < SMALL_FILE_BYTES {
                let class = match thoroughness {
                    Thoroughness::Full => 0,
                    Thoroughness::Scheduled => size_class(file.bytes),
                };
                classes.entry(class).or_default().push(file.clone());
            }
        }
        let enough = match thoroughness {
            Thoroughness::Full => 2,
            Thoroughness::Scheduled => LIKE_FILES,
        };
        chosen.extend(classes.into_values().filter(|files| files.len() >= enough).flatten());
        Ok(chosen)
    }

    async fn write_anew(
        &self,
        snapshot: &Arc<Snapshot>,
        table: Table,
        files: &[DataFile],
        gone: &Gone,
        horizon: u64,
    ) -> Result<Vec<NewFile>> {
        let mut rows = gone.compacted(&self.engine, snapshot, table, files, horizon).await?;
        let mut writer = self.upkeep.writer(table)?;
        while let Some(batch) = rows.try_next().await? {
            writer.write(batch).await?;
        }
        Ok(writer.finish().await?)
    }

    /// Moves appended bytes from the metadata to the raw store.
    async fn gather_parts(&self, committed: u64) -> Result<()> {
        for (batch_id, version) in self.metadata.versions_with_parts(PART_OBJECT_BYTES).await? {
            let Some(parts) = self.metadata.parts(version, committed, PART_OBJECT_BYTES).await? else { continue };
            self.raw.put_part(batch_id, version, parts.start, &parts.bytes).await?;
            if !self.pipeline.parts_are_stored(version, parts.start, parts.last_start).await {
                // The file went away meanwhile.
                self.raw.delete_part(batch_id, version, parts.start).await?;
            }
        }
        Ok(())
    }

    /// Deletes the replaced files that nobody can name any more.
    async fn delete_replaced(&mut self) -> Result<usize> {
        let mut deleted = 0;
        while let Some((lease, _)) = self.leftovers.replaced.front()
            && lease.strong_count() == 0
        {
            argus_sinks::crash::point("vacuuming");
            let Some((_, files)) = self.leftovers.replaced.pop_front() else { break };
            deleted += files.len();
            self.delete(files).await?;
        }
        Ok(deleted)
    }

    /// Deletes what was written before the start and is named by nothing.
    async fn delete_leftovers(&self) -> Result<usize> {
        let files = self.upkeep.unnamed_files(&*self.store).await?.into_iter();
        let mut unnamed: HashSet<Path> =
            files.filter(|file| file.last_modified < self.started).map(|file| file.location).collect();
        let mut objects = self.raw.list();
        let mut batch = None;
        let mut known = HashSet::new();
        while let Some(object) = objects.try_next().await? {
            let Some((batch_id, version)) = RawStore::named(&object.location) else { continue };
            if batch != Some(batch_id) {
                known = self.metadata.versions(batch_id).await?;
                batch = Some(batch_id);
            }
            if !known.contains(&version) && object.last_modified < self.started {
                unnamed.insert(object.location);
            }
        }
        let deleted = unnamed.len();
        self.delete(unnamed).await?;
        Ok(deleted)
    }

    async fn delete(&self, files: HashSet<Path>) -> Result<()> {
        let paths = futures::stream::iter(files.into_iter().map(Ok)).boxed();
        let deleted = self.store.delete_stream(paths).filter(|deleted| {
            let kept = !matches!(deleted, Err(object_store::Error::NotFound { .. }));
            std::future::ready(kept)
        });
        deleted.try_for_each(|_| std::future::ready(Ok(()))).await?;
        Ok(())
    }
}

/// A time so long ago, in microseconds since 1970.
fn before(now: DateTime<Utc>, age: Duration) -> i64 {
    now.timestamp_micros().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX))
}

fn size_class(bytes: u64) -> u32 {
    (bytes / LEAST_CLASS_BYTES).max(1).ilog(CLASS_FACTOR)
}

//! `argus recount`: counts stored files again, with the current rules, into a new lake.
//!
//! The metadata list every batch and file, and the raw store contains every byte, so a
//! lake that is lost or was made with other rules can be rebuilt. Each file is counted
//! at the epoch of its receipt. All epochs up to the last one are consolidated: queries
//! with an earlier `as_of` are not possible.
//!
//! ```text
//!  metadata ──► batches and files by epoch ──► dataflow ──► lake.new ──► lake
//!  raw store ──► text ─────────────────────────────┘
//! ```

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use argus_dataflow::{
    BlockReader, Change, CodeLimits, Config, Dataflow, FileRow, LINE_BYTES_MAX, Origin, RuleSet, VersionId,
};
use argus_sinks::{Lake, LakeConfig};
use tokio::runtime::Handle;
use url::Url;
use uuid::Uuid;

use crate::data_dir::metadata_path;
use crate::domain::batch::Batch;
use crate::ingest::origin;
use crate::ingest::raw_store::RawStore;
use crate::ingest::stored_file;
use crate::metadata::rows::batch_row;
use crate::metadata::{Erased, Location, Metadata, StoredFile};
use crate::pipeline::backlog::Backlog;
use crate::storage::Storage;

/// Batches per page when reading the metadata.
const BATCHES_AT_ONCE: u32 = 1000;

/// The result of a recount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recounted {
    /// Batches counted.
    pub batches: u64,
    /// Files counted, including failed ones.
    pub files: u64,
    /// Files that could not be counted.
    pub failed: u64,
}

/// The folders of the new lake while it is built, and of the old lake while it is replaced.
const NEW: &str = "lake.new";
const OLD: &str = "lake.old";

/// Counts all stored files of a data directory, which must be locked, and replaces its lake.
pub async fn recount(data: &Path, rules: RuleSet, workers: usize) -> Result<Recounted> {
    let location = Location::File(metadata_path(data));
    let (metadata, mut writer) = Metadata::open(&location).await.context("cannot open the metadata")?;
    let last = metadata.last_epoch().await?;
    remove(&data.join(NEW))?;
    let storage = Storage::directory(data)?;
    let raw = RawStore::new(&storage);
    let root = Url::from_directory_path(data.join(NEW))
        .map_err(|()| anyhow::anyhow!("{} cannot be converted to a URL; use another data directory", data.display()))?;
    std::fs::create_dir_all(data.join(NEW)).context("cannot create the new lake")?;
    let lake =
        Lake::open(storage.store, &root, LakeConfig::default(), None).await.context("cannot create the new lake")?;
    let (dataflow, outputs) = Dataflow::start(Config {
        workers,
        rules,
        first_epoch: 1,
        in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
        occurrences: true,
        limits: CodeLimits::default(),
        scans_only: false,
    })
    .map_err(anyhow::Error::msg)?;
    let (snapshots, committed) = (lake.snapshots(), lake.committed());
    let (maintenance, lake) = (lake.maintenance(), tokio::spawn(lake.run(outputs, |_| {})));
    let counter = Counter { metadata: metadata.clone(), raw, dataflow: dataflow.clone() };
    let mut done = Recounted::default();
    let mut backlog = Backlog::default();
    let mut snapshots = snapshots;
    let plan = counter.plan(last).await?;
    for epoch in 1..=last {
        backlog.wait_for_room(&mut snapshots).await.context("the new lake has stopped")?;
        let changes = match plan.get(&epoch) {
            Some(batches) => counter.changes(epoch, batches, &mut done).await?,
            None => Vec::new(),
        };
        backlog.add(epoch, &changes);
        dataflow.advance(epoch, changes)?;
    }
    snapshots.wait_for(|snapshot| snapshot.epoch >= last).await.context("the new lake has stopped")?;
    if last > 0 {
        maintenance.commit().await?;
        maintenance.advance_since(last).await?;
    }
    dataflow.stop();
    drop(maintenance);
    lake.await??;
    let state = *committed.borrow();
    // Withdrawals stay in the journal until their bytes are erased.
    let pending = metadata.withdrawn(state.epoch).await?.iter().map(|withdrawn| withdrawn.position).collect();
    // From here on the old lake is not needed. After a crash between the two renames, the start reports a missing lake.
    remove(&data.join(OLD))?;
    if data.join("lake").exists() {
        std::fs::rename(data.join("lake"), data.join(OLD)).context("cannot rename the old lake")?;
    }
    std::fs::rename(data.join(NEW), data.join("lake")).context("cannot rename the new lake")?;
    std::fs::File::open(data)?.sync_all()?;
    let mut round = writer.begin(last).await?;
    round.lake_committed(&Erased { lake: state, versions: Vec::new(), pending }).await?;
    round.commit().await?;
    metadata.close().await;
    remove(&data.join(OLD))?;
    Ok(done)
}

/// Removes the folders of an interrupted recount. Call it only after the lake was opened successfully.
pub fn remove_leftovers(data: &Path) -> Result<()> {
    remove(&data.join(NEW))?;
    remove(&data.join(OLD))
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Counts stored files.
struct Counter {
    metadata: Metadata,
    raw: RawStore,
    dataflow: Dataflow,
}

/// The steps of one epoch, each with its batch.
type EpochPlan = Vec<(Uuid, Step)>;

/// A change of a batch at an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// It is created.
    Create,
    /// A file of it is counted.
    CountFile(String),
    /// It is completed.
    Complete,
}

impl Counter {
    /// The steps by epoch. A batch is created before its first file.
    async fn plan(&self, last: u64) -> Result<BTreeMap<u64, EpochPlan>> {
        let mut plan: BTreeMap<u64, EpochPlan> = BTreeMap::new();
        let mut after = Uuid::nil();
        loop {
            let batches = self.metadata.batches_after(after, BATCHES_AT_ONCE).await?;
            let Some(end) = batches.last() else { return Ok(plan) };
            after = end.id;
            for batch in batches {
                let files = self.metadata.file_epochs(batch.id).await?;
                let at = |epoch: u64| epoch.clamp(1, last.max(1));
                let begin = files.iter().map(|(_, epoch)| *epoch).chain([batch.epoch]).min().unwrap_or(batch.epoch);
                plan.entry(at(begin)).or_default().push((batch.id, Step::Create));
                // A file that was counted again has a later epoch than its batch's completion.
                let last_file = files.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0);
                for (name, epoch) in files {
                    plan.entry(at(epoch)).or_default().push((batch.id, Step::CountFile(name)));
                }
                if let Some(completed) = batch.completed_epoch {
                    plan.entry(at(completed.max(last_file))).or_default().push((batch.id, Step::Complete));
                }
            }
        }
    }

    /// Inserts the files of an epoch, and returns its changes.
    async fn changes(&self, epoch: u64, steps: &EpochPlan, done: &mut Recounted) -> Result<Vec<Change>> {
        let mut known: HashMap<Uuid, (Batch, Vec<StoredFile>)> = HashMap::new();
        let mut changes = Vec::new();
        for (batch_id, step) in steps {
            if !known.contains_key(batch_id) {
                let batch = self.metadata.batch(*batch_id).await?.context("the metadata changed during the recount")?;
                known.insert(*batch_id, (batch, self.metadata.stored_files(*batch_id).await?));
            }
            let Some((batch, files)) = known.get(batch_id) else { continue };
            match step {
                Step::Create => {
                    done.batches += 1;
                    changes.push(Change::Batch(batch_row(batch, 1, 0)));
                }
                Step::Complete => changes.push(Change::Batch(batch_row(batch, 0, 1))),
                Step::CountFile(name) => {
                    for file in files.iter().filter(|file| file.record.name == *name && file.record.epoch == epoch) {
                        let rows = self.count(file).await?;
                        done.files += 1;
                        done.failed += u64::from(rows.iter().any(|row| row.failure.is_some()));
                        changes.extend(rows.into_iter().map(Change::Admit));
                    }
                }
            }
        }
        Ok(changes)
    }

    /// Inserts a file. Returns the row that admits its whole lines, and the row of its open line if that is counted.
    async fn count(&self, file: &StoredFile) -> Result<Vec<FileRow>> {
        let bytes = stored_file::open(&self.metadata, &self.raw, file.clone()).await?;
        let (dataflow, record, runtime) = (self.dataflow.clone(), file.record.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let whole = FileRow { last_line: record.whole_lines, ..record.row(record.version, 1) };
            let from = |version: VersionId| Arc::new(Origin { version, ..origin(&whole) });
            let (of_whole, of_open) = (from(record.version), record.open_version.map(from));
            let mut rows = vec![whole];
            let counted = (|| -> std::io::Result<Vec<FileRow>> {
                let (binary, text) = bytes?.into_text()?;
                let mut blocks = BlockReader::new(text, argus_dataflow::BLOCK_BYTES_DEFAULT);
                let (mut open, mut open_bytes) = (None, 0);
                while let Some(block) = blocks.next_block()? {
                    let origin = match (blocks.ends_in_open_line(), &of_open) {
                        (false, _) => &of_whole,
                        (true, Some(of_open)) => {
                            open_bytes = blocks.bytes() - block.offset;
                            open = record.open_version;
                            of_open
                        }
                        // The open line is not counted before it is continued or the batch is completed.
                        (true, None) => {
                            open_bytes = blocks.bytes() - block.offset;
                            continue;
                        }
                    };
                    runtime.block_on(dataflow.insert(origin, block)).map_err(std::io::Error::other)?;
                }
                let long_open = u64::from(open_bytes > LINE_BYTES_MAX as u64);
                let open_lines = u64::from(open_bytes > 0);
                let whole = FileRow {
                    bytes: blocks.bytes() - open_bytes,
                    lines: blocks.lines() - open_lines,
                    long_lines: blocks.long_lines() - long_open,
                    last_line: blocks.lines() - open_lines,
                    binary,
                    ..rows[0].clone()
                };
                let last = open.map(|version| FileRow {
                    open_line: true,
                    bytes: open_bytes,
                    lines: 1,
                    long_lines: long_open,
                    last_line: blocks.lines(),
                    ..record.row(version, 1)
                });
                Ok(std::iter::once(whole).chain(last).collect())
            })();
            match counted {
                Ok(counted) => rows = counted,
                Err(error) => {
                    tracing::error!(file.name = record.name, %error, "could not count a stored file");
                    rows[0].failure = Some(format!("its bytes in the raw store could not be read: {error}"));
                }
            }
            Ok(rows)
        })
        .await?
    }
}

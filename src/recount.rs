//! `argus recount`: counts stored files again, under the rules of today, into a new lake.
//!
//! The metadata name every batch and file, and the raw store holds every byte,
//! so a lake that is lost or that other rules made can be built anew. Each file
//! counts at the epoch of its receipt again. What was before the last epoch is
//! not told apart any more: the past cannot be asked for.
//!
//! ```text
//!  metadata ──► batches and files by epoch ──► dataflow ──► lake.new ──► lake
//!  raw store ──► text ─────────────────────────────┘
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use argus_dataflow::text;
use argus_dataflow::{
    BlockReader, Change, CodeLimits, Config, Dataflow, FileRow, LINE_BYTES_MAX, Origin, RuleSet, VersionId,
};
use argus_sinks::durable::DurableFileSystem;
use argus_sinks::{Lake, LakeConfig};
use object_store::ObjectStore;
use tokio::runtime::Handle;
use url::Url;
use uuid::Uuid;

use crate::cli::RecountArgs;
use crate::ingest::origin;
use crate::metadata::rows::batch_row;
use crate::metadata::{Erased, Metadata, StoredFile};
use crate::model::Batch;
use crate::pipeline::backlog::Backlog;
use crate::raw::RawStore;
use crate::service::{lock, metadata_path};
use crate::stored::{self, Pieces};

/// Batches that are read from the metadata at once.
const BATCHES_AT_ONCE: u32 = 1000;

/// Runs `argus recount`.
pub fn run(args: &RecountArgs) -> Result<ExitCode> {
    if !metadata_path(&args.data).is_file() {
        bail!("{} is no data directory: it has no argus.db", args.data.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let data = std::path::absolute(&args.data)?;
    let _lock = lock(&data)?;
    let done = runtime.block_on(recount(&data, args.counting.rules()?, args.counting.workers()))?;
    let Done { batches, files, failed } = done;
    writeln!(stdout(), "{batches} batches and {files} files counted again, {failed} of them could not be")?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Done {
    batches: u64,
    files: u64,
    failed: u64,
}

/// Where a new lake is made, beside the one that it takes the place of.
const NEW: &str = "lake.new";
const OLD: &str = "lake.old";

async fn recount(data: &Path, rules: RuleSet, workers: usize) -> Result<Done> {
    let (metadata, mut writer) = Metadata::open(&metadata_path(data)).await.context("cannot open the metadata")?;
    let last = metadata.last_epoch().await?;
    remove(&data.join(NEW))?;
    let store: Arc<dyn ObjectStore> = Arc::new(DurableFileSystem::new());
    let raw = RawStore::new(Arc::clone(&store), object_store::path::Path::from_absolute_path(data.join("raw"))?);
    let root = Url::from_directory_path(data.join(NEW))
        .map_err(|()| anyhow::anyhow!("{} is no place for a lake", data.display()))?;
    std::fs::create_dir_all(data.join(NEW)).context("cannot make the new lake")?;
    let lake = Lake::open(store, &root, LakeConfig::default(), None).await.context("cannot make the new lake")?;
    let (dataflow, outputs) = Dataflow::start(Config {
        workers,
        rules,
        first_epoch: 1,
        in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
        sightings: true,
        limits: CodeLimits::default(),
    })
    .map_err(anyhow::Error::msg)?;
    let (snapshots, committed) = (lake.snapshots(), lake.committed());
    let (upkeep, lake) = (lake.upkeep(), tokio::spawn(lake.run(outputs, |_| {})));
    let counter = Counter { metadata: metadata.clone(), raw, dataflow: dataflow.clone() };
    let mut done = Done::default();
    let mut backlog = Backlog::default();
    let mut snapshots = snapshots;
    let plan = counter.plan(last).await?;
    for epoch in 1..=last {
        backlog.room(&mut snapshots).await.context("the new lake has stopped")?;
        let changes = match plan.get(&epoch) {
            Some(batches) => counter.changes(epoch, batches, &mut done).await?,
            None => Vec::new(),
        };
        backlog.add(epoch, &changes);
        dataflow.advance(epoch, changes)?;
    }
    snapshots.wait_for(|snapshot| snapshot.epoch >= last).await.context("the new lake has stopped")?;
    if last > 0 {
        upkeep.commit().await?;
        upkeep.close_past(last).await?;
    }
    dataflow.stop();
    drop(upkeep);
    lake.await??;
    let state = *committed.borrow();
    // From here on the old lake is not needed. Should this end between the two, the start finds no lake and says so.
    remove(&data.join(OLD))?;
    if data.join("lake").exists() {
        std::fs::rename(data.join("lake"), data.join(OLD)).context("cannot move the old lake away")?;
    }
    std::fs::rename(data.join(NEW), data.join("lake")).context("cannot put the new lake in place")?;
    std::fs::File::open(data)?.sync_all()?;
    // What was withdrawn keeps its entries until its bytes are gone.
    let pending = metadata.withdrawn(state.epoch).await?.iter().map(|withdrawn| withdrawn.place).collect();
    let mut round = writer.begin(last).await?;
    round.lake_committed(&Erased { lake: state, versions: Vec::new(), pending }).await?;
    round.commit().await?;
    metadata.close().await;
    remove(&data.join(OLD))?;
    Ok(done)
}

/// Removes what a recount that was interrupted left. Only while a lake is there that can be opened.
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

/// What happens to batches at one epoch.
type AtEpoch = Vec<(Uuid, Happens)>;

/// What happens to a batch at an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Happens {
    /// It is made.
    Begins,
    /// A file of it counts.
    File(String),
    /// It is completed.
    Ends,
}

impl Counter {
    /// What happens to which batches at which epoch: a batch is made before its first file.
    async fn plan(&self, last: u64) -> Result<BTreeMap<u64, AtEpoch>> {
        let mut plan: BTreeMap<u64, AtEpoch> = BTreeMap::new();
        let mut after = Uuid::nil();
        loop {
            let batches = self.metadata.batches_after(after, BATCHES_AT_ONCE).await?;
            let Some(end) = batches.last() else { return Ok(plan) };
            after = end.id;
            for batch in batches {
                let files = self.metadata.file_epochs(batch.id).await?;
                let at = |epoch: u64| epoch.clamp(1, last.max(1));
                let begin = files.iter().map(|(_, epoch)| *epoch).chain([batch.epoch]).min().unwrap_or(batch.epoch);
                plan.entry(at(begin)).or_default().push((batch.id, Happens::Begins));
                for (name, epoch) in files {
                    plan.entry(at(epoch)).or_default().push((batch.id, Happens::File(name)));
                }
                if let Some(completed) = batch.completed_epoch {
                    plan.entry(at(completed)).or_default().push((batch.id, Happens::Ends));
                }
            }
        }
    }

    /// Feeds the files of an epoch; says what happens at it.
    async fn changes(&self, epoch: u64, happens: &AtEpoch, done: &mut Done) -> Result<Vec<Change>> {
        let mut known: HashMap<Uuid, (Batch, Vec<StoredFile>)> = HashMap::new();
        let mut changes = Vec::new();
        for (batch_id, what) in happens {
            if !known.contains_key(batch_id) {
                let batch = self.metadata.batch(*batch_id).await?.context("a batch has left the metadata")?;
                known.insert(*batch_id, (batch, self.metadata.stored_files(*batch_id).await?));
            }
            let Some((batch, files)) = known.get(batch_id) else { continue };
            match what {
                Happens::Begins => {
                    done.batches += 1;
                    changes.push(Change::Batch(batch_row(batch, 1, 0)));
                }
                Happens::Ends => changes.push(Change::Batch(batch_row(batch, 0, 1))),
                Happens::File(name) => {
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

    /// Feeds a file; the rows that admit its whole lines, and its last line where that counts by itself.
    async fn count(&self, file: &StoredFile) -> Result<Vec<FileRow>> {
        let text = self.text(file.clone()).await?;
        let (dataflow, record, runtime) = (self.dataflow.clone(), file.record.clone(), Handle::current());
        tokio::task::spawn_blocking(move || {
            let whole = FileRow { last_line: record.whole_lines, ..record.row(record.version, 1) };
            let from = |version: VersionId| Arc::new(Origin { version, ..origin(&whole) });
            let (of_whole, of_open) = (from(record.version), record.open_version.map(from));
            let mut rows = vec![whole];
            let fed = (|| -> std::io::Result<Vec<FileRow>> {
                let (binary, text) = text?;
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
                        // It waits for what is appended behind it.
                        (true, None) => {
                            open_bytes = blocks.bytes() - block.offset;
                            continue;
                        }
                    };
                    runtime.block_on(dataflow.feed(origin, block)).map_err(std::io::Error::other)?;
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
            match fed {
                Ok(fed) => rows = fed,
                Err(error) => {
                    tracing::error!(file.name = record.name, %error, "a stored file could not be counted");
                    rows[0].failure = Some(format!("its bytes in the raw store could not be read: {error}"));
                }
            }
            Ok(rows)
        })
        .await?
    }

    /// The text of a stored file, and whether it is hardly one.
    async fn text(&self, file: StoredFile) -> Result<std::io::Result<(bool, Box<dyn Read + Send>)>> {
        let pieces = stored::open(&self.metadata, &self.raw, file).await?;
        Ok(tokio::task::spawn_blocking(move || -> std::io::Result<(bool, Box<dyn Read + Send>)> {
            let Pieces { object, appended } = pieces?;
            let (binary, mut text): (bool, Box<dyn Read + Send>) = match object {
                Some(object) => {
                    let opened = text::text(object)?;
                    (opened.is_binary, Box::new(opened))
                }
                None => (false, Box::new(std::io::empty())),
            };
            for part in appended {
                text = Box::new(text.chain(part));
            }
            Ok((binary, text))
        })
        .await?)
    }
}

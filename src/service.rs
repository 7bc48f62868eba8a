//! The service behind the HTTP layer: its parts, opened, recovered and tied together.
//!
//! ```text
//!  Ingest ──► Dataflow ──► Lake ──► snapshots ──► Engine
//!     │          ▲           │
//!     ▼          │           └─ gathered, committed ─► Pipeline
//!  RawStore   Pipeline ──► Metadata
//! ```

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_dataflow::{BLOCK_BYTES_DEFAULT, ClosedEpoch, CodeLimits, Config, Dataflow, Row, RuleSet};
use argus_query::cache::{Redis, SealKey};
use argus_query::{CatalogRow, Engine, EngineConfig};
use argus_sinks::durable::DurableFileSystem;
use argus_sinks::{Lake, LakeConfig, Snapshot};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use object_store::ObjectStore;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use url::Url;

use crate::disk::DiskSpace;
use crate::erasure::Erasure;
use crate::failures::Failures;
use crate::followers::Followers;
use crate::http::answer::Answers;
use crate::ingest::{Claims, Ingest};
use crate::maintain::{Leftovers, Maintainer};
use crate::metadata::{Deployment, Metadata};
use crate::orphans::Orphans;
use crate::pipeline::{Downstream, Pipeline};
use crate::raw::RawStore;
use crate::reports::Reports;
use crate::rescan::Rescan;
use crate::{recount, recovery};

/// For how long the past can be asked for when nobody says: 7 days.
const RETENTION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a server keeps its data directory in order when nobody says: every 10 minutes.
const MAINTAIN_EVERY_DEFAULT: Duration = Duration::from_secs(600);

/// The longest body of one file: 16 GiB.
const FILE_BYTES_MAX: u64 = 16 << 30;

/// What the service is started with.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The data directory, made when it is not there.
    pub data: PathBuf,
    /// What is counted.
    pub rules: RuleSet,
    /// Timely worker threads.
    pub workers: usize,
    /// Bytes in a block.
    pub block_bytes: usize,
    /// How the lake commits.
    pub lake: LakeConfig,
    /// For how long the past can be asked for.
    pub retention: Duration,
    /// How often a server keeps its data directory in order.
    pub maintain_every: Duration,
    /// Where answers are kept between processes, when they are.
    pub redis: Option<String>,
}

impl ServiceConfig {
    /// The defaults for a data directory.
    pub fn new(data: PathBuf, rules: RuleSet, workers: usize) -> ServiceConfig {
        let (block_bytes, lake) = (BLOCK_BYTES_DEFAULT, LakeConfig::default());
        let (retention, maintain_every) = (RETENTION_DEFAULT, MAINTAIN_EVERY_DEFAULT);
        ServiceConfig { data, rules, workers, block_bytes, lake, retention, maintain_every, redis: None }
    }
}

/// The service, open. Handlers get the parts that they use.
pub struct Service {
    /// Takes uploads in.
    pub ingest: Ingest,
    /// Accepts changes.
    pub pipeline: Pipeline,
    /// Knows batches and files.
    pub metadata: Metadata,
    /// Answers questions.
    pub engine: Engine,
    /// Keeps reports.
    pub reports: Reports,
    /// Keeps other answers.
    pub answers: Answers,
    /// Keeps either between processes.
    pub redis: Option<Redis>,
    /// What readers see.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Who follows what happens to batches.
    pub followers: Followers,
    /// Files that could not be counted.
    pub failures: Failures,
    /// What of the disk is free.
    pub disk: DiskSpace,
    /// Tells requests that would go on for long that the server stops.
    pub stopping: watch::Receiver<Stopping>,
    /// The way into the dataflow, for its figures.
    pub dataflow: Dataflow,
    /// Keeps the data directory in order.
    pub maintainer: Maintainer,
    /// Counts the files of batches again.
    pub rescan: Rescan,
    /// What runs behind it.
    pub work: Work,
}

/// Whether requests may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// They may.
    No,
    /// Those that only wait end; those that bring something may finish.
    Soon,
    /// All end.
    Now,
}

/// What runs behind the service, and ends with it.
pub struct Work {
    sequencer: JoinHandle<Result<()>>,
    lake: JoinHandle<Result<()>>,
    others: Vec<JoinHandle<()>>,
    claims: Claims,
    reclaimer: JoinHandle<()>,
    stop: watch::Sender<Stopping>,
    close_pipeline: oneshot::Sender<()>,
    dataflow: Dataflow,
    /// One process at a time opens a data directory.
    _lock: File,
}

/// Where the lake of a data directory is.
pub fn lake_url(data: &Path) -> Result<Url> {
    let folder = std::path::absolute(data.join("lake"))?;
    // Object stores and table formats disagree on what it means in a path.
    if folder.to_string_lossy().contains('%') {
        bail!("the path of a data directory must not contain '%': {}", data.display());
    }
    Url::from_directory_path(&folder).map_err(|()| anyhow::anyhow!("{} is no place for a lake", folder.display()))
}

/// Where the metadata of a data directory are.
pub fn metadata_path(data: &Path) -> PathBuf {
    data.join("argus.db")
}

impl Service {
    /// Opens the data directory and feeds again what the lake lacks. Returns
    /// when readers see everything that was accepted before.
    pub async fn open(config: ServiceConfig) -> Result<Service> {
        let data = std::path::absolute(&config.data)?;
        let root = lake_url(&data)?;
        make_folders(&data).with_context(|| format!("cannot make the data directory {}", data.display()))?;
        let lock = lock(&data)?;
        let files = DurableFileSystem::new();
        let store: Arc<dyn ObjectStore> = Arc::new(files.clone());
        let (metadata, writer) = Metadata::open(&metadata_path(&data)).await.context("cannot open the metadata")?;
        let lake = Lake::open(Arc::clone(&store), &root, config.lake.clone(), metadata.lake().await?);
        let lake = lake.await.context("cannot open the lake")?;
        recount::remove_leftovers(&data)?;
        let fingerprint = Arc::clone(config.rules.fingerprint());
        let engine_config = EngineConfig {
            query_threads: config.workers,
            catalog: CatalogRow::of_rules(&config.rules),
            ..EngineConfig::default()
        };
        let engine = Engine::new(Arc::clone(&store), &root, &engine_config)?;
        let redis = match &config.redis {
            Some(url) => {
                let Deployment { id, secret } = metadata.deployment().await?;
                // Other rules, or another version, answer the same question otherwise.
                let name = format!("{id}:{}:{}", env!("CARGO_PKG_VERSION"), config.rules.fingerprint());
                Some(Redis::connect(url, &name, SealKey(secret))?)
            }
            None => None,
        };
        let raw_folder = object_store::path::Path::from_absolute_path(data.join("raw"))?;
        let raw = RawStore::new(Arc::clone(&store), raw_folder);

        describe_figures();
        for figure in ["argus_lines_total", "argus_bytes_total", "argus_occurrences_total"] {
            counter!(figure).increment(0);
        }
        for kind in ["report", "fleet", "sql", "chart"] {
            counter!("argus_computed_total", "kind" => kind).increment(0);
        }
        let committed = lake.committed_epoch();
        let (dataflow, outputs) = Dataflow::start(Config {
            workers: config.workers,
            rules: config.rules,
            // The last epoch that is in the lake comes again, with the cells that it left.
            first_epoch: committed.max(1),
            in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
            sightings: true,
            limits: CodeLimits::default(),
        })
        .map_err(anyhow::Error::msg)
        .context("cannot start the dataflow")?;
        let snapshots = lake.snapshots();
        let upkeep = lake.upkeep();
        // Before anything is written here: what no table names now was left by another process.
        let unnamed = upkeep.unnamed_files(&*store).await.context("cannot list the lake's files")?;
        let unnamed = unnamed.into_iter().map(|file| file.location).collect();
        let lake_committed = lake.committed();
        let followers = Followers::default();
        let (failures, mut noted) = Failures::new();
        let closing = Closing { followers: followers.clone(), failures: failures.clone() };
        let (closed_in, mut closed) = watch::channel(0);
        let restored = Arc::clone(&snapshots.borrow());
        let mut lake = tokio::spawn(async move {
            let published = |epoch: &ClosedEpoch| {
                closing.follow(epoch);
                closed_in.send_replace(epoch.epoch);
            };
            lake.run(outputs, published).await.context("the lake has stopped")
        });

        let (claims, reclaimer) = Claims::new();
        let disk = DiskSpace::of(&data);
        let ingest = Ingest::new(
            dataflow.clone(),
            raw.clone(),
            claims.clone(),
            disk.clone(),
            config.block_bytes,
            FILE_BYTES_MAX,
        );
        let mut held = match committed {
            0 => imbl::HashSet::new(),
            _ => recovery::restore(&metadata, &engine, &restored, &dataflow).await?,
        };
        drop(restored);
        let accepted =
            recovery::feed_again(&metadata, &ingest, &dataflow, committed, &mut held, snapshots.clone()).await?;
        tokio::select! {
            seen = closed.wait_for(|closed| *closed >= accepted) => drop(seen?),
            ended = &mut lake => {
                ended??;
                bail!("the lake has stopped");
            }
        }
        if accepted > committed {
            tracing::info!(from = committed + 1, to = accepted, "epochs were fed again");
        }

        gauge!("argus_epoch").set(accepted as f64);
        let downstream = Downstream {
            dataflow: dataflow.clone(),
            ingest: ingest.clone(),
            engine: engine.clone(),
            metadata: metadata.clone(),
            snapshots: snapshots.clone(),
            followers: followers.clone(),
        };
        let (pipeline, sequencer) = Pipeline::new(writer, accepted, held, downstream);
        let erasure = Erasure::new(metadata.clone(), raw.clone(), pipeline.downgrade(), lake_committed.clone());
        let reclaimer = reclaimer.start(pipeline.downgrade(), raw.clone());
        let failed = pipeline.downgrade();
        tokio::spawn(async move {
            while let Some((version, failure)) = noted.recv().await {
                failed.file_failed(version, failure).await;
            }
        });
        let orphans = Orphans {
            store: files,
            data: data.clone(),
            raw: raw.clone(),
            claims: claims.clone(),
            metadata: metadata.clone(),
            unnamed,
            looked: None,
        };
        let rescan = Rescan::new(ingest.clone(), pipeline.clone(), metadata.clone(), raw.clone());
        tokio::spawn(warn_of_other_rules(engine.clone(), Arc::clone(&snapshots.borrow()), Arc::clone(&fingerprint)));
        let maintainer = Maintainer {
            store,
            upkeep,
            snapshots: snapshots.clone(),
            committed: lake_committed.clone(),
            metadata: metadata.clone(),
            pipeline: pipeline.downgrade(),
            raw,
            retention: config.retention,
            every: config.maintain_every,
            erasure: erasure.clone(),
            orphans,
            leftovers: Leftovers::default(),
        };
        let (close_pipeline, closing) = oneshot::channel();
        // On a thread of its own: a round goes to the metadata's thread and back several times, and a thread that waits
        // for nothing else wakes sooner than the runtime does.
        let runtime = Handle::current();
        let sequencer = tokio::task::spawn_blocking(move || {
            runtime.block_on(sequencer.run(closing)).context("the pipeline has stopped")
        });
        let others = vec![erasure.follow()];
        let (stop, stopping) = watch::channel(Stopping::No);
        let dataflow_of_work = dataflow.clone();
        let work = Work {
            sequencer,
            lake,
            others,
            claims,
            reclaimer,
            stop,
            close_pipeline,
            dataflow: dataflow_of_work,
            _lock: lock,
        };
        let answers = Answers::new(redis.clone());
        let reports = Reports::new(metadata.clone(), engine.clone(), snapshots.clone(), redis.clone());
        Ok(Service {
            ingest,
            pipeline,
            metadata,
            engine,
            reports,
            answers,
            redis,
            snapshots,
            followers,
            failures,
            disk,
            stopping,
            dataflow,
            maintainer,
            rescan,
            work,
        })
    }
}

impl Work {
    /// Runs something beside it that ends when the server stops.
    pub fn accompany(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.others.push(tokio::spawn(work));
    }

    /// Tells requests whether they may go on.
    pub fn tell(&self, stopping: Stopping) {
        self.stop.send_replace(stopping);
    }

    /// Ends when the work fails, and not before.
    pub async fn failed(&mut self) -> anyhow::Error {
        let ended = tokio::select! {
            ended = &mut self.sequencer => ended,
            ended = &mut self.lake => ended,
        };
        match ended {
            Ok(Ok(())) => anyhow::anyhow!("the service has stopped by itself"),
            Ok(Err(error)) => error,
            Err(error) => error.into(),
        }
    }

    /// Takes no more changes and returns when everything accepted is in the
    /// lake. Requests that are still open fail.
    pub async fn finish(self) -> Result<()> {
        drop(self.close_pipeline);
        self.sequencer.await??;
        self.dataflow.stop();
        self.lake.await??;
        for other in self.others {
            other.await?;
        }
        self.claims.close();
        self.reclaimer.await?;
        Ok(())
    }
}

/// Makes the data directory and its folders, durably.
fn make_folders(data: &Path) -> std::io::Result<()> {
    for folder in [data.join("raw"), data.join("lake")] {
        std::fs::create_dir_all(folder)?;
    }
    for folder in data.ancestors().take(2) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Locks a data directory: one process at a time opens it.
pub fn lock(data: &Path) -> Result<File> {
    let lock = File::create(data.join("argus.lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another argus has {} open", data.display()),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the data directory"),
    }
}

/// What follows when an epoch is closed and readers see it.
struct Closing {
    followers: Followers,
    failures: Failures,
}

impl Closing {
    /// Counts what an epoch brought, and wakes those who follow its batches.
    fn follow(&self, closed: &ClosedEpoch) {
        let mut batches = HashSet::new();
        for (row, _) in &closed.rows {
            match row {
                Row::File(file) => {
                    batches.insert(file.batch_id);
                    if file.live >= 0 {
                        counter!("argus_lines_total").increment(file.lines);
                        counter!("argus_bytes_total").increment(file.bytes);
                        counter!("argus_occurrences_total").increment(file.sightings);
                        self.failures.note(file);
                    }
                }
                Row::Batch(batch) => drop(batches.insert(batch.batch_id)),
                _ => {}
            }
        }
        self.followers.wake(batches);
    }
}

/// Says that some files were counted by other rules than those of today, for that makes differences between firmwares that
/// are none.
async fn warn_of_other_rules(engine: Engine, snapshot: Arc<Snapshot>, rules: Arc<str>) {
    match argus_query::files_of_other_rules(&engine, &snapshot, &rules).await {
        Ok((0, _)) => {}
        Ok((files, batches)) => tracing::warn!(
            files,
            batches,
            %rules,
            "files were counted by other rules than those of today: run argus recount, or POST /api/v1/batches/ID/recount"
        ),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "it is not known which rules files were counted by"
        ),
    }
}

/// What the figures of `/metrics` are.
fn describe_figures() {
    describe_counter!("argus_lines_total", "Lines counted.");
    describe_counter!("argus_bytes_total", "Bytes of text counted, after decompression.");
    describe_counter!("argus_occurrences_total", "Occurrences of error codes counted.");
    describe_counter!("argus_computed_total", "Answers computed rather than found or shared, by kind.");
    describe_counter!("argus_cache_requests_total", "Requests to the caches, by tier and outcome.");
    describe_gauge!("argus_epoch", "The last epoch that was accepted.");
    describe_gauge!("argus_committed_epoch", "The last epoch that is in the lake.");
    describe_gauge!(
        "argus_in_flight_bytes",
        "Bytes of text between their arrival and the reader of their occurrences."
    );
}

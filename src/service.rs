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
use argus_dataflow::{BLOCK_BYTES_DEFAULT, ClosedEpoch, Config, Dataflow, Row, RuleSet};
use argus_query::cache::{Redis, SealKey};
use argus_query::{CatalogRow, Engine, EngineConfig, Report};
use argus_sinks::durable::DurableFileSystem;
use argus_sinks::{Lake, LakeConfig, Snapshot};
use chrono::Utc;
use metrics::{counter, gauge};
use object_store::ObjectStore;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use url::Url;
use uuid::Uuid;

use crate::events::EventLog;
use crate::http::answer::Answers;
use crate::ingest::Ingest;
use crate::maintain::{Leftovers, Maintainer};
use crate::metadata::{Deployment, Metadata};
use crate::pipeline::{Downstream, Gathered, Pipeline, WeakPipeline};
use crate::raw::RawStore;
use crate::recovery;
use crate::reports::Reports;

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
    /// Says when something happened to batches.
    pub events: EventLog,
    /// Tells requests that would go on for long that the server stops.
    pub stopping: watch::Receiver<Stopping>,
    /// The way into the dataflow, for its figures.
    pub dataflow: Dataflow,
    /// Keeps the data directory in order.
    pub maintainer: Maintainer,
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
    followers: Vec<JoinHandle<()>>,
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
        let started = Utc::now();
        let data = std::path::absolute(&config.data)?;
        let root = lake_url(&data)?;
        make_folders(&data).with_context(|| format!("cannot make the data directory {}", data.display()))?;
        let lock = lock(&data)?;
        let store: Arc<dyn ObjectStore> = Arc::new(DurableFileSystem::new());
        let lake = Lake::open(Arc::clone(&store), &root, config.lake.clone()).await.context("cannot open the lake")?;
        let (metadata, writer) = Metadata::open(&metadata_path(&data)).await.context("cannot open the metadata")?;
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
                let name = format!("{id}:{}:{:x}", env!("CARGO_PKG_VERSION"), config.rules.fingerprint());
                Some(Redis::connect(url, &name, SealKey(secret))?)
            }
            None => None,
        };
        let raw_folder = object_store::path::Path::from_absolute_path(data.join("raw"))?;
        let raw = RawStore::new(Arc::clone(&store), raw_folder);

        for figure in ["argus_lines_total", "argus_bytes_total", "argus_sightings_total"] {
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
        })
        .map_err(anyhow::Error::msg)
        .context("cannot start the dataflow")?;
        let snapshots = lake.snapshots();
        let upkeep = lake.upkeep();
        let lake_committed = lake.committed();
        let (published_in, published_out) = mpsc::unbounded_channel();
        let (closed_in, mut closed) = watch::channel(0);
        let restored = Arc::clone(&snapshots.borrow());
        let mut lake = tokio::spawn(async move {
            let published = |epoch: &ClosedEpoch| {
                published(epoch, &published_in);
                closed_in.send_replace(epoch.epoch);
            };
            lake.run(outputs, published).await.context("the lake has stopped")
        });

        let ingest = Ingest::new(dataflow.clone(), raw.clone(), config.block_bytes, FILE_BYTES_MAX);
        let mut warm = match committed {
            0 => HashSet::new(),
            _ => recovery::restore(&metadata, &engine, &restored, &dataflow).await?,
        };
        drop(restored);
        let accepted =
            recovery::feed_again(&metadata, &ingest, &dataflow, committed, &mut warm, snapshots.clone()).await?;
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
        let (event_writer, events) = EventLog::new();
        let downstream = Downstream {
            dataflow: dataflow.clone(),
            ingest: ingest.clone(),
            raw: raw.clone(),
            engine: engine.clone(),
            metadata: metadata.clone(),
            snapshots: snapshots.clone(),
            events: event_writer,
        };
        let (pipeline, sequencer) = Pipeline::new(writer, accepted, warm, downstream);
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
            started,
            leftovers: Leftovers::default(),
        };
        let (close_pipeline, closing) = oneshot::channel();
        // On a thread of its own: a round goes to the metadata's thread and back several times, and a thread that waits
        // for nothing else wakes sooner than the runtime does.
        let runtime = Handle::current();
        let sequencer = tokio::task::spawn_blocking(move || {
            runtime.block_on(sequencer.run(closing)).context("the pipeline has stopped")
        });
        let follower =
            Follower { pipeline: pipeline.downgrade(), engine: engine.clone(), snapshots: snapshots.clone() };
        for batch in metadata.unfinished().await? {
            pipeline.scattered(batch.id).await?;
            follower.gathered(batch.id).await;
        }
        let followers = vec![tokio::spawn(follower.follow(published_out)), follow_committed(&pipeline, lake_committed)];
        let (stop, stopping) = watch::channel(Stopping::No);
        let work = Work { sequencer, lake, followers, stop, close_pipeline, dataflow: dataflow.clone(), _lock: lock };
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
            events,
            stopping,
            dataflow,
            maintainer,
            work,
        })
    }
}

impl Work {
    /// Runs something beside it that ends when the server stops.
    pub fn accompany(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.followers.push(tokio::spawn(work));
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
        for follower in self.followers {
            follower.await?;
        }
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

fn lock(data: &Path) -> Result<File> {
    let lock = File::create(data.join("argus.lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another argus has {} open", data.display()),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the data directory"),
    }
}

/// What an epoch brought, for the pipeline to know.
enum Published {
    Parsed { batch_id: Uuid, file: String, generation: u32 },
    Gathered { batch_id: Uuid },
}

/// Counts what an epoch brought and passes it on. On the way down nobody
/// listens any more; the next start takes completed batches on.
fn published(closed: &ClosedEpoch, follower: &mpsc::UnboundedSender<Published>) {
    for (row, _) in &closed.rows {
        let published = match row {
            Row::File(file) if file.live >= 0 => {
                counter!("argus_lines_total").increment(file.lines);
                counter!("argus_bytes_total").increment(file.bytes);
                counter!("argus_sightings_total").increment(file.sightings);
                if file.live == 0 || file.open_line {
                    continue;
                }
                Published::Parsed { batch_id: file.batch_id, file: file.name.clone(), generation: file.generation }
            }
            Row::Batch(batch) if batch.completed > 0 => Published::Gathered { batch_id: batch.batch_id },
            _ => continue,
        };
        let _ = follower.send(published);
    }
}

/// Tells the pipeline what readers see by now.
struct Follower {
    pipeline: WeakPipeline,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Follower {
    async fn follow(self, mut published: mpsc::UnboundedReceiver<Published>) {
        while let Some(published) = published.recv().await {
            match published {
                Published::Parsed { batch_id, file, generation } => {
                    self.pipeline.parsed(batch_id, file, generation).await;
                }
                Published::Gathered { batch_id } => self.gathered(batch_id).await,
            }
        }
    }

    async fn gathered(&self, batch_id: Uuid) {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let totals = match Report::totals(&self.engine, &snapshot, batch_id).await {
            Ok((total_lines, error_codes)) => Gathered { total_lines, error_codes },
            Err(error) => {
                // The batch goes on; only its event says nothing of these two.
                tracing::error!(batch.id = %batch_id, %error, "what a batch came to could not be read");
                Gathered::default()
            }
        };
        self.pipeline.gathered(batch_id, totals).await;
    }
}

fn follow_committed(pipeline: &Pipeline, mut committed: watch::Receiver<u64>) -> JoinHandle<()> {
    let pipeline = pipeline.downgrade();
    tokio::spawn(async move {
        loop {
            let epoch = *committed.borrow_and_update();
            gauge!("argus_committed_epoch").set(epoch as f64);
            pipeline.committed(epoch).await;
            if committed.changed().await.is_err() {
                return;
            }
        }
    })
}

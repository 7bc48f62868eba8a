//! Opens the parts of the service, in this order:
//!
//! 1. lock the data directory, and open its stores;
//! 2. start the dataflow and the lake;
//! 3. replay from the journal what the lake lacks;
//! 4. start the pipeline, which accepts requests.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_dataflow::{ClosedEpoch, CodeLimits, Config, Dataflow, RuleSet};
use argus_query::cache::{Redis, SigningKey};
use argus_query::{CatalogRow, Engine, EngineConfig};
use argus_sinks::{Lake, LakeConfig, LakeMaintenance, LakeState, Snapshot};
use chrono::{TimeDelta, Utc};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

#[cfg(feature = "kafka")]
use super::KafkaConfig;
use super::metrics::describe;
use super::progress::Progress;
use super::work::Work;
use super::{Role, Service, ServiceConfig};
use crate::access::Access;
use crate::answers::diagnosis::Diagnoses;
use crate::answers::event_details::EventDetails;
use crate::answers::reports::Reports;
use crate::answers::texts::Texts;
use crate::assistant::{self, Assistant};
use crate::cluster::ClusterKeys;
use crate::cluster::intake::Intake;
use crate::cluster::leader::{Leader, Leading};
use crate::data_dir;
use crate::inbox::Inbox;
use crate::ingest::disk::DiskSpace;
use crate::ingest::raw_store::RawStore;
use crate::ingest::resumable::ResumableUploads;
use crate::ingest::{Claims, Ingest};
#[cfg(feature = "kafka")]
use crate::kafka::{events::Publisher, lines::LinesConsumer};
use crate::maintenance::erasure::Erasure;
use crate::maintenance::orphans::Orphans;
use crate::maintenance::rescan::Rescan;
use crate::maintenance::{Leftovers, Maintainer, recount};
use crate::metadata::{CatalogRows, Deployment, Location, Metadata, MetadataWriter};
use crate::pipeline::announcements::Announcements;
use crate::pipeline::failures::{Failures, NotedFailures};
use crate::pipeline::followers::Followers;
use crate::pipeline::frontier_lag::FrontierLag;
use crate::pipeline::{Downstream, Pipeline, Sequencer, discard, recovery};
use crate::shutdown::Stopping;
use crate::storage::{Directory, Storage};

/// What replicas of an earlier leader read may be needed for this long: the longest query.
const QUERY_MAX: Duration = Duration::from_secs(600);

/// A multipart upload that began this long ago belongs to no process of a cluster any more: a day.
const ABANDONED_AFTER: TimeDelta = TimeDelta::days(1);

/// The size limit of one file: 16 GiB.
pub(super) const FILE_BYTES_MAX: u64 = 16 << 30;

/// The open stores.
struct Stores {
    storage: Storage,
    metadata: Metadata,
    writer: MetadataWriter,
    lake: Lake,
    raw: RawStore,
    resumable: ResumableUploads,
}

impl Stores {
    async fn open(data: &Path, config: &ServiceConfig) -> Result<Stores> {
        let storage = match &config.storage {
            Some(storage) => storage.clone(),
            None => Storage::directory(data)?,
        };
        if let Some(directory) = &storage.directory {
            directory.create().with_context(|| format!("cannot create the folders in {}", directory.path.display()))?;
        }
        let location = config.metadata.clone().unwrap_or_else(|| Location::File(data_dir::metadata_path(data)));
        let metadata = Metadata::open(&location).await;
        let (metadata, writer) = metadata.context("cannot open the metadata")?;
        let store = Arc::clone(&storage.store);
        let has_replicas = config.cluster.is_some();
        let lake_config = LakeConfig { term: writer.term(), has_replicas, ..config.lake.clone() };
        let lake = Lake::open(store, &storage.lake, lake_config, metadata.lake().await?);
        let lake = lake.await.context("cannot open the lake")?;
        recount::remove_leftovers(data)?;
        let resumable = ResumableUploads::open(data).context("cannot open the folder of resumable uploads")?;
        let raw = RawStore::new(&storage);
        Ok(Stores { storage, metadata, writer, lake, raw, resumable })
    }
}

/// The engine over the lake of a storage.
pub(super) fn engine(config: &ServiceConfig, storage: &Storage, metadata: &Metadata) -> Result<Engine> {
    let engine_config = EngineConfig {
        query_threads: config.workers,
        catalog: Arc::new(CatalogRows::new(metadata.clone(), CatalogRow::of_rules(&config.rules))),
        is_remote: storage.directory.is_none(),
        ..EngineConfig::default()
    };
    Ok(Engine::new(Arc::clone(&storage.store), &storage.lake, &engine_config)?)
}

/// The cache that is shared between processes, if there is one.
pub(super) async fn cache(config: &ServiceConfig, metadata: &Metadata) -> Result<Option<Redis>> {
    let Some(url) = &config.redis else { return Ok(None) };
    let Deployment { id, secret } = metadata.deployment().await?;
    // Other rules or another version may give another answer to the same request.
    let name = format!("{id}:{}:{}", env!("CARGO_PKG_VERSION"), config.rules.fingerprint());
    Ok(Some(Redis::connect(url, &name, SigningKey(secret))?))
}

/// What answers reads.
pub(super) struct Readers {
    pub(super) texts: Texts,
    pub(super) reports: Reports,
    pub(super) diagnoses: Diagnoses,
    pub(super) event_details: EventDetails,
}

pub(super) fn readers(
    metadata: &Metadata,
    engine: &Engine,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    redis: &Option<Redis>,
    raw: &RawStore,
) -> Readers {
    let texts = Texts::new(metadata.clone(), raw.clone());
    let reports = Reports::new(metadata.clone(), engine.clone(), snapshots.clone(), redis.clone());
    let diagnoses = Diagnoses::new(reports.clone(), metadata.clone(), engine.clone(), snapshots.clone());
    let event_details = EventDetails::new(engine.clone(), diagnoses.clone());
    Readers { texts, reports, diagnoses, event_details }
}

/// The running dataflow and lake.
struct Running {
    dataflow: Dataflow,
    lake: JoinHandle<Result<()>>,
    maintenance: LakeMaintenance,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    committed: watch::Receiver<LakeState>,
    /// The last epoch that is closed and that followers were notified of.
    closed: watch::Receiver<u64>,
    followers: Followers,
    failures: Failures,
    noted_failures: NotedFailures,
}

impl Running {
    fn start(lake: Lake, workers: usize, rules: RuleSet) -> Result<Running> {
        let (dataflow, outputs) = Dataflow::start(Config {
            workers,
            rules,
            // The fleet's cells are restored from the lake at its last epoch.
            first_epoch: lake.committed_epoch().max(1),
            in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
            occurrences: true,
            limits: CodeLimits::default(),
            scans_only: false,
        })
        .map_err(anyhow::Error::msg)
        .context("cannot start the dataflow")?;
        let (snapshots, maintenance, committed) = (lake.snapshots(), lake.maintenance(), lake.committed());
        let followers = Followers::default();
        let (failures, noted_failures) = Failures::new();
        let progress = Progress { followers: followers.clone(), failures: failures.clone() };
        let (closed_in, closed) = watch::channel(0);
        let lake = tokio::spawn(async move {
            let published = |epoch: &ClosedEpoch| {
                progress.closed(epoch);
                closed_in.send_replace(epoch.epoch);
            };
            lake.run(outputs, published).await.context("the lake has stopped")
        });
        Ok(Running { dataflow, lake, maintenance, snapshots, committed, closed, followers, failures, noted_failures })
    }

    /// Replays what the lake lacks, until readers see everything accepted before. Returns the last accepted epoch and
    /// the batches that are loaded in the dataflow.
    async fn recover(
        &mut self,
        metadata: &Metadata,
        engine: &Engine,
        ingest: &Ingest,
    ) -> Result<(u64, recovery::Held)> {
        let committed = self.committed.borrow().epoch;
        let restored = Arc::clone(&self.snapshots.borrow());
        let mut held = match committed {
            0 => recovery::Held::new(),
            _ => recovery::restore(metadata, engine, &restored, &self.dataflow).await?,
        };
        drop(restored);
        let snapshots = self.snapshots.clone();
        let accepted = recovery::replay(metadata, ingest, &self.dataflow, committed, &mut held, snapshots).await?;
        tokio::select! {
            seen = self.closed.wait_for(|closed| *closed >= accepted) => drop(seen?),
            ended = &mut self.lake => {
                ended??;
                bail!("the lake has stopped");
            }
        }
        if accepted > committed {
            tracing::info!(from = committed + 1, to = accepted, "replayed accepted epochs");
        }
        Ok((accepted, held))
    }
}

impl Service {
    /// Opens the data directory and replays what the lake lacks. Returns when
    /// readers see everything accepted before.
    pub async fn open(config: ServiceConfig) -> Result<Service> {
        let data = std::path::absolute(&config.data)?;
        data_dir::create(&data, &[]).with_context(|| format!("cannot create the data directory {}", data.display()))?;
        let locks = lock(&data, &config)?;
        data_dir::remove_interrupted_backups(&data).context("cannot delete the folder of an interrupted backup")?;
        if config.cluster.is_some() {
            config.shared()?;
        }
        let hello = config.cluster.as_ref().map(|cluster| config.hello(cluster));
        let stores = Stores::open(&data, &config).await?;
        let engine = engine(&config, &stores.storage, &stores.metadata)?;
        let redis = cache(&config, &stores.metadata).await?;
        let Stores { storage, metadata, writer, lake, raw, resumable } = stores;
        let term = writer.term();
        describe();

        let fingerprint = Arc::clone(config.rules.fingerprint());
        let rules = config.rules.clone();
        let announcements = config.cluster.as_ref().map(|_| Announcements::default());
        let (feed, occurrences) = (lake.feed(), lake.occurrences());
        let mut running = Running::start(lake, config.workers, config.rules)?;
        // List these before this process writes: files that no table refers to now were left by another process.
        let unnamed =
            running.maintenance.unreferenced_files(&*storage.store).await.context("cannot list the lake's files")?;
        let unnamed = unnamed.into_iter().map(|file| file.location).collect();
        let unfinished = match &storage.unfinished {
            Some(uploads) => {
                let mut listed = uploads.list().await.context("cannot list the unfinished uploads of the bucket")?;
                if config.cluster.is_some() {
                    // Others may be of processes that follow.
                    let before = Utc::now() - ABANDONED_AFTER;
                    listed.retain(|upload| upload.began_before(before));
                }
                listed
            }
            None => Vec::new(),
        };
        let (claims, reclaimer) = Claims::new();
        let disk = DiskSpace::of(storage.directory.as_ref().map_or(&data, |directory| &directory.path));
        let (block_bytes, dataflow) = (config.block_bytes, running.dataflow.clone());
        let ingest =
            Ingest::new(dataflow.clone(), raw.clone(), claims.clone(), disk.clone(), block_bytes, FILE_BYTES_MAX);
        let (accepted, held) = running.recover(&metadata, &engine, &ingest).await?;
        let Running { lake, maintenance, snapshots, committed, followers, failures, noted_failures, .. } = running;

        metrics::gauge!("argus_epoch").set(accepted as f64);
        let frontier_lag = FrontierLag::default();
        let downstream = Downstream {
            dataflow: dataflow.clone(),
            ingest: ingest.clone(),
            engine: engine.clone(),
            metadata: metadata.clone(),
            snapshots: snapshots.clone(),
            followers: followers.clone(),
            frontier_lag: frontier_lag.clone(),
            announcements: announcements.clone(),
        };
        let (pipeline, sequencer) = Pipeline::new(writer, accepted, held, downstream);
        let reclaimer = discard::start(reclaimer, pipeline.downgrade(), raw.clone());
        report_failed_files(&pipeline, noted_failures);
        tokio::spawn(warn_of_other_rules(engine.clone(), Arc::clone(&snapshots.borrow()), fingerprint));
        let erasure =
            Erasure::new(metadata.clone(), raw.clone(), pipeline.downgrade(), committed.clone(), data.clone());
        let maintainer = Maintainer {
            data: data.clone(),
            maintenance,
            snapshots: snapshots.clone(),
            committed,
            metadata: metadata.clone(),
            pipeline: pipeline.downgrade(),
            raw: raw.clone(),
            resumable: resumable.clone(),
            retention: config.retention,
            every: config.maintain_every,
            erasure: erasure.clone(),
            orphans: Orphans {
                store: Arc::clone(&storage.store),
                directory: storage.directory,
                raw: raw.clone(),
                claims: claims.clone(),
                metadata: metadata.clone(),
                term,
                unnamed,
                unnamed_from: Instant::now() + if config.cluster.is_some() { QUERY_MAX } else { Duration::ZERO },
                uploads: storage.unfinished,
                unfinished,
                looked: None,
            },
            leftovers: Leftovers::default(),
            store: storage.store,
        };
        let (close_pipeline, closing) = oneshot::channel();
        let (stop, stopping) = watch::channel(Stopping::No);
        let role = match (hello, feed, announcements) {
            (Some(hello), Some(feed), Some(announcements)) => {
                let (dataflow, claims, pipeline) = (dataflow.clone(), claims.clone(), pipeline.clone());
                let intake = Intake { dataflow, occurrences, claims, pipeline, raw: raw.clone() };
                let leading = Leading { own: hello, term, feed, snapshots: snapshots.clone(), announcements, intake };
                let keys = ClusterKeys::of(&metadata.deployment().await?);
                Role::Leader { keys, leader: Leader::new(leading, stopping.clone()) }
            }
            _ => Role::Alone,
        };
        let mut work = Work {
            sequencer: Some(run_on_its_own_thread(sequencer, closing)),
            lake,
            others: vec![erasure.follow()],
            claims,
            reclaimer,
            stop,
            close: close_pipeline,
            dataflow: dataflow.clone(),
            _locks: locks,
        };
        let Readers { texts, reports, diagnoses, event_details } =
            readers(&metadata, &engine, &snapshots, &redis, &raw);
        let assistant = match config.assistant {
            None => None,
            Some(assistant) => {
                let parts = assistant::Parts {
                    diagnoses: diagnoses.clone(),
                    texts: texts.clone(),
                    metadata: metadata.clone(),
                    pipeline: pipeline.clone(),
                    followers: followers.clone(),
                    snapshots: snapshots.clone(),
                };
                let (assistant, asked) = Assistant::new(assistant, rules, parts).await?;
                work.spawn(assistant.clone().run(asked, stopping.clone()));
                Some(assistant)
            }
        };
        if let Some(location) = &config.inbox {
            let inbox = Inbox::open(location, ingest.clone(), pipeline.clone(), metadata.clone()).await?;
            work.spawn(inbox.run(stopping.clone()));
        }
        #[cfg(not(feature = "kafka"))]
        if config.kafka.is_some() {
            bail!("this argus was built without --kafka; build it with the cargo feature kafka");
        }
        #[cfg(feature = "kafka")]
        if let Some(kafka) = &config.kafka {
            start_kafka(kafka, &mut work, &metadata, &event_details, &snapshots, &pipeline, &stopping).await?;
        }
        Ok(Service {
            texts,
            reports,
            access: Access::open(&metadata, pipeline.clone()).await?,
            diagnoses,
            assistant,
            event_details,
            rescan: Rescan::new(ingest.clone(), pipeline.clone(), metadata.clone(), raw),
            ingest,
            resumable,
            pipeline,
            metadata,
            engine,
            redis,
            snapshots,
            followers,
            frontier_lag,
            failures,
            disk,
            stopping,
            dataflow,
            maintainer: Some(maintainer),
            role,
            work,
        })
    }
}

/// Starts to publish events, and to consume lines.
#[cfg(feature = "kafka")]
async fn start_kafka(
    config: &KafkaConfig,
    work: &mut Work,
    metadata: &Metadata,
    details: &EventDetails,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    pipeline: &Pipeline,
    stopping: &watch::Receiver<Stopping>,
) -> Result<()> {
    let (metadata, details, snapshots) = (metadata.clone(), details.clone(), snapshots.clone());
    let KafkaConfig { brokers, lines_topic } = config;
    let publisher = Publisher::connect(brokers, metadata.clone(), details, snapshots, pipeline.downgrade()).await?;
    work.spawn(publisher.run(stopping.clone()));
    if let Some(topic) = lines_topic {
        let lines = LinesConsumer::connect(brokers, topic, metadata, pipeline.clone()).await?;
        work.spawn(lines.run(stopping.clone()));
    }
    Ok(())
}

/// Locks the data directory, and the directory of the store and the file of the metadata if they are elsewhere. The
/// processes of a cluster share the store: there, the term of the metadata decides who writes.
fn lock(data: &Path, config: &ServiceConfig) -> Result<Vec<File>> {
    let mut locks = vec![data_dir::lock(data)?];
    if let Some(Location::File(path)) = &config.metadata {
        locks.push(data_dir::lock_file(&path.with_added_extension("lock"), path)?);
    }
    if let Some(Directory { path, .. }) = config.storage.as_ref().and_then(|storage| storage.directory.as_ref())
        && path != data
    {
        data_dir::create(path, &[]).with_context(|| format!("cannot create the directory {}", path.display()))?;
        if config.cluster.is_none() {
            locks.push(data_dir::lock(path)?);
        }
    }
    Ok(locks)
}

/// A round waits for the metadata's thread several times, and a dedicated thread wakes up sooner than a task of the
/// runtime.
fn run_on_its_own_thread(sequencer: Sequencer, closing: oneshot::Receiver<()>) -> JoinHandle<Result<()>> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(sequencer.run(closing)).context("the pipeline has stopped"))
}

/// Passes the files that could not be counted to the pipeline, which records them.
fn report_failed_files(pipeline: &Pipeline, mut noted: NotedFailures) {
    let pipeline = pipeline.downgrade();
    tokio::spawn(async move {
        while let Some((version, failure)) = noted.recv().await {
            pipeline.file_failed(version, failure).await;
        }
    });
}

/// Warns when files were counted with other rules than the current ones. Differences between firmwares may then come
/// from differences between rules.
async fn warn_of_other_rules(engine: Engine, snapshot: Arc<Snapshot>, rules: Arc<str>) {
    match argus_query::files_of_other_rules(&engine, &snapshot, &rules).await {
        Ok((0, _)) => {}
        Ok((files, batches)) => tracing::warn!(
            files,
            batches,
            %rules,
            "files were counted with other rules than the current ones; run argus recount, or \
             POST /api/v1/batches/ID/recount"
        ),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot check which rules the files were counted with"
        ),
    }
}

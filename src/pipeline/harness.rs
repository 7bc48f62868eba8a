//! For tests: the pipeline and all below it, over an object store in memory, without the rest of the service. The
//! sequencer starts when a test says so: what it is sent before is one round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{BLOCK_BYTES_DEFAULT, CodeLimits, Config, Dataflow, RuleSet};
use argus_query::{Engine, EngineConfig, Limits};
use argus_sinks::{Lake, LakeConfig, LakeError, LakeMaintenance, LakeState, Snapshot};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use imbl::HashSet;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use url::Url;
use uuid::Uuid;

use super::recovery::{self, RecoveryError};
use super::{Downstream, Pipeline, PipelineError, Sequencer};
use crate::data_dir;
use crate::domain::batch::{Accepted, Encoding, NewBatch, Part};
use crate::domain::clock::now;
use crate::ingest::disk::DiskSpace;
use crate::ingest::raw_store::RawStore;
use crate::ingest::{BodyPart, Claims, Ingest, Reclaimer};
use crate::metadata::{Location, Metadata, MetadataWriter, pack};
use crate::pipeline::followers::Followers;
use crate::pipeline::frontier_lag::FrontierLag;
use crate::storage::Storage;

/// Longer bodies are refused.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a test waits for happens within this time, or never.
const WAIT: Duration = Duration::from_secs(60);

/// What outlives a crash.
pub(crate) struct Disk {
    pub(crate) data: TempDir,
    pub(crate) store: Arc<InMemory>,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk { data: tempfile::tempdir().expect("a temporary folder"), store: Arc::new(InMemory::new()) }
    }

    pub(crate) fn storage(&self) -> Storage {
        Storage {
            store: Arc::clone(&self.store) as Arc<dyn ObjectStore>,
            lake: Url::parse("memory:///harness/lake/").expect("a URL"),
            raw: Path::from("harness/raw"),
            part_bytes: 1 << 10,
            directory: None,
            unfinished: None,
        }
    }

    /// Runs a statement on the metadata, behind the back of the process that has them open.
    pub(crate) async fn run(&self, sql: &'static str) {
        let path = data_dir::metadata_path(self.data.path());
        let mut connection = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.expect("connects");
        sqlx::query(sql).execute(&mut connection).await.expect("runs");
        connection.close().await.expect("closes");
    }
}

/// Everything below the service, whose lake commits on request only.
pub(crate) struct Parts {
    pub(crate) metadata: Metadata,
    pub(crate) engine: Engine,
    pub(crate) ingest: Ingest,
    pub(crate) raw: RawStore,
    pub(crate) claims: Claims,
    pub(crate) pipeline: Pipeline,
    pub(crate) maintenance: LakeMaintenance,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) committed: watch::Receiver<LakeState>,
    /// The batches that were loaded when it was opened, and the last epoch that was accepted before.
    pub(crate) held: HashSet<Uuid>,
    pub(crate) accepted: u64,
    pub(crate) reclaimer: Reclaimer,
    sequencer: Option<Sequencer>,
    closing: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<Result<(), PipelineError>>>,
    dataflow: Dataflow,
    lake: JoinHandle<Result<(), LakeError>>,
}

impl Parts {
    /// Opens what is on a disk, and replays what its lake lacks.
    pub(crate) async fn open(disk: &Disk) -> Result<Parts, RecoveryError> {
        let storage = disk.storage();
        let location = Location::File(data_dir::metadata_path(disk.data.path()));
        let (metadata, writer): (Metadata, MetadataWriter) = Metadata::open(&location).await?;
        let config = LakeConfig { commit_interval: Duration::from_secs(3600), ..LakeConfig::default() };
        let lake = Lake::open(Arc::clone(&storage.store), &storage.lake, config, None).await.expect("a lake");
        let engine = Engine::new(Arc::clone(&storage.store), &storage.lake, &EngineConfig::default());
        let engine = engine.expect("an engine");
        let (dataflow, outputs) = Dataflow::start(Config {
            workers: 1,
            rules: RuleSet::built_in().expect("the built-in rules"),
            first_epoch: lake.committed_epoch().max(1),
            in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
            occurrences: true,
            limits: CodeLimits::default(),
            scans_only: false,
        })
        .expect("starts");
        let (snapshots, committed, maintenance) = (lake.snapshots(), lake.committed(), lake.maintenance());
        let lake = tokio::spawn(lake.run(outputs, |_| {}));
        let raw = RawStore::new(&storage);
        let (claims, reclaimer) = Claims::new();
        let disk_space = DiskSpace::of(disk.data.path());
        let ingest =
            Ingest::new(dataflow.clone(), raw.clone(), claims.clone(), disk_space, BLOCK_BYTES_DEFAULT, FILE_BYTES_MAX);
        let since = committed.borrow().epoch;
        let mut held = HashSet::new();
        if since > 0 {
            let snapshot = Arc::clone(&snapshots.borrow());
            held = recovery::restore(&metadata, &engine, &snapshot, &dataflow).await?;
        }
        let replayed = recovery::replay(&metadata, &ingest, &dataflow, since, &mut held, snapshots.clone());
        let accepted = replayed.await?;
        let downstream = Downstream {
            dataflow: dataflow.clone(),
            ingest: ingest.clone(),
            engine: engine.clone(),
            metadata: metadata.clone(),
            snapshots: snapshots.clone(),
            followers: Followers::default(),
            frontier_lag: FrontierLag::default(),
            announcements: None,
        };
        let (pipeline, sequencer) = Pipeline::new(writer, accepted, held.clone(), downstream);
        let (sequencer, closing, running) = (Some(sequencer), None, None);
        Ok(Parts {
            metadata,
            engine,
            ingest,
            raw,
            claims,
            pipeline,
            maintenance,
            snapshots,
            committed,
            held,
            accepted,
            reclaimer,
            sequencer,
            closing,
            running,
            dataflow,
            lake,
        })
    }

    /// Opens what is on a disk, and starts the sequencer.
    pub(crate) async fn start(disk: &Disk) -> Parts {
        let mut parts = Parts::open(disk).await.expect("opens");
        parts.run();
        parts
    }

    /// Starts the sequencer.
    pub(crate) fn run(&mut self) {
        let sequencer = self.sequencer.take().expect("it runs once");
        let (closing, closed) = oneshot::channel();
        self.closing = Some(closing);
        self.running = Some(tokio::spawn(sequencer.run(closed)));
    }

    /// Tells the sequencer to end, and returns how it ended.
    pub(crate) async fn close(&mut self) -> Result<(), PipelineError> {
        drop(self.closing.take());
        self.running.take().expect("it runs").await.expect("does not panic")
    }

    /// Ends all of it as a crash would: the lake commits nothing more.
    pub(crate) async fn crash(mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
            let _ = running.await;
        }
        self.lake.abort();
        let _ = self.lake.await;
        self.dataflow.stop();
        self.metadata.close().await;
    }

    /// Commits everything that was accepted to the lake.
    pub(crate) async fn commit(&self) {
        self.seen(self.metadata.last_epoch().await.expect("reads")).await;
        self.maintenance.commit().await.expect("commits");
    }

    /// The snapshot of an epoch, when it is closed.
    pub(crate) async fn seen(&self, epoch: u64) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        let seen = tokio::time::timeout(WAIT, snapshots.wait_for(|snapshot| snapshot.epoch >= epoch)).await;
        let seen = seen.unwrap_or_else(|_| panic!("waited in vain for epoch {epoch}"));
        Arc::clone(&seen.expect("the lake runs"))
    }

    /// The number that a query answers at an epoch.
    pub(crate) async fn number(&self, epoch: u64, sql: &str) -> i64 {
        let snapshot = self.seen(epoch).await;
        let limits = Limits { rows: 1, time: Duration::from_secs(60) };
        let mut rows = self.engine.ask(&snapshot, sql, limits).await.expect("a query");
        let batch = rows.next().await.expect("a row").expect("reads");
        batch.column(0).as_primitive::<Int64Type>().value(0)
    }

    pub(crate) async fn create(&self, vin: &str) -> Uuid {
        self.pipeline.create_batch(described(vin), None).await.expect("creates").id
    }

    /// Uploads a file, and returns its receipt.
    pub(crate) async fn upload(&self, batch_id: Uuid, name: &str, text: &str) -> Result<Accepted, PipelineError> {
        let (body, stored) = self.ingest.begin(batch_id, name.to_owned(), Encoding::Identity, now());
        body.send(BodyPart::Bytes(Bytes::copy_from_slice(text.as_bytes()))).await.expect("is read");
        body.send(BodyPart::End).await.expect("is read");
        let (upload, claim) = stored.await.expect("stores");
        self.pipeline.accept_file(upload, claim, None).await
    }
}

pub(crate) fn described(vin: &str) -> NewBatch {
    NewBatch {
        vehicle_id: vin.to_lowercase(),
        vin: vin.to_owned(),
        platform: None,
        firmware: None,
        expected_files: None,
        labels: BTreeMap::new(),
    }
}

/// A part to append.
pub(crate) fn part(batch_id: Uuid, name: &str, text: &'static str) -> Part {
    let bytes = Bytes::from_static(text.as_bytes());
    Part { batch_id, name: name.to_owned(), packed: pack(&bytes), bytes, uploaded_at: now() }
}

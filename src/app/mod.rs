//! The service behind the HTTP layer: opens, recovers and connects its parts.
//!
//! ```text
//!  Ingest ──► Dataflow ──► Lake ──► snapshots ──► Engine
//!     │          ▲           │
//!     ▼          │           └─ closed and committed epochs ─► Pipeline
//!  RawStore   Pipeline ──► Metadata
//! ```
//!
//! - `assemble`: opens the parts in order; `follower`: those of a process that follows another one;
//! - `progress`: metrics and notifications for each closed epoch;
//! - [`work`]: the background tasks, and how they stop;
//! - `metrics`: the metrics that `/metrics` describes; [`process`]: those of the process;
//! - `simulation`: random histories over stores in memory that fail and crash.

mod assemble;
mod follower;
mod metrics;
pub mod process;
mod progress;
#[cfg(test)]
mod simulation;
pub mod work;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use argus_dataflow::{BLOCK_BYTES_DEFAULT, Dataflow, RuleSet};
use argus_query::Engine;
use argus_query::cache::Redis;
use argus_sinks::{LakeConfig, Snapshot};
use tokio::sync::watch;
use uuid::Uuid;

use crate::access::Access;
use crate::answers::diagnosis::Diagnoses;
use crate::answers::event_details::EventDetails;
use crate::answers::reports::Reports;
use crate::answers::texts::Texts;
use crate::app::work::Work;
use crate::assistant::{Assistant, AssistantConfig};
use crate::cluster::follower::State;
use crate::cluster::frame::{Hello, PROTOCOL};
use crate::cluster::leader::Leader;
use crate::cluster::scans::Scans;
use crate::cluster::{ClusterConfig, ClusterKeys};
use crate::ingest::Ingest;
use crate::ingest::disk::DiskSpace;
use crate::ingest::resumable::ResumableUploads;
use crate::maintenance::Maintainer;
use crate::maintenance::rescan::Rescan;
use crate::metadata::{Candidacy, Location, Metadata};
use crate::pipeline::Pipeline;
use crate::pipeline::failures::Failures;
use crate::pipeline::followers::Followers;
use crate::pipeline::frontier_lag::FrontierLag;
use crate::shutdown::Stopping;
use crate::storage::Storage;

/// The default of `--retention`: 7 days.
const RETENTION_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The default of `--audit-keep`: a year.
const AUDIT_KEEP_DEFAULT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The default of `--requests-per-token`.
const REQUESTS_PER_TOKEN_DEFAULT: NonZeroU32 = NonZeroU32::MIN.saturating_add(999);

/// The default of `--maintain-every`: 10 minutes.
const MAINTAIN_EVERY_DEFAULT: Duration = Duration::from_secs(600);

/// Where events are published, and lines are consumed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaConfig {
    /// HOST:PORT of some brokers, separated by commas.
    pub brokers: String,
    /// The topic to consume lines from.
    pub lines_topic: Option<String>,
}

/// The configuration of the service.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// The data directory, created when it is missing.
    pub data: PathBuf,
    /// The rules to count with.
    pub rules: RuleSet,
    /// Timely worker threads.
    pub workers: usize,
    /// Bytes in a block.
    pub block_bytes: usize,
    /// How the lake commits.
    pub lake: LakeConfig,
    /// How long past epochs can be queried.
    pub retention: Duration,
    /// The interval of maintenance; zero means never.
    pub maintain_every: Duration,
    /// Where the metadata is; `None` means in the data directory.
    pub metadata: Option<Location>,
    /// Where the raw files and the lake are; `None` means in the data directory.
    pub storage: Option<Storage>,
    /// The Kafka brokers, if any.
    pub kafka: Option<KafkaConfig>,
    /// The Redis server that shares cached answers between processes, if any.
    pub redis: Option<String>,
    /// The language model that explains findings, if any.
    pub assistant: Option<AssistantConfig>,
    /// The folder or bucket whose objects become batches, if any.
    pub inbox: Option<String>,
    /// How long records of the audit log are kept; `None` means for ever.
    pub audit_keep: Option<Duration>,
    /// Requests of each token in a second.
    pub requests_per_token: NonZeroU32,
    /// The processes of the cluster, if there are several.
    pub cluster: Option<ClusterConfig>,
    /// The right to become the leader, if this process has it.
    pub candidacy: Option<Arc<Candidacy>>,
    /// Tells this process from others with the same number.
    pub instance: Uuid,
}

impl ServiceConfig {
    /// The defaults for a data directory.
    pub fn new(data: PathBuf, rules: RuleSet, workers: usize) -> ServiceConfig {
        let (block_bytes, lake) = (BLOCK_BYTES_DEFAULT, LakeConfig::default());
        let (retention, maintain_every) = (RETENTION_DEFAULT, MAINTAIN_EVERY_DEFAULT);
        let (metadata, storage, kafka, redis, assistant, inbox) = (None, None, None, None, None, None);
        ServiceConfig {
            data,
            rules,
            workers,
            block_bytes,
            lake,
            retention,
            maintain_every,
            metadata,
            storage,
            kafka,
            redis,
            assistant,
            inbox,
            audit_keep: Some(AUDIT_KEEP_DEFAULT),
            requests_per_token: REQUESTS_PER_TOKEN_DEFAULT,
            cluster: None,
            candidacy: None,
            instance: Uuid::new_v4(),
        }
    }

    /// What the processes of a cluster share: the metadata and the store.
    pub fn shared(&self) -> Result<(&Location, &Storage)> {
        match (&self.metadata, &self.storage) {
            (Some(location @ Location::Postgres(_)), Some(storage)) => Ok((location, storage)),
            _ => bail!(
                "several processes share their metadata and their store: give all of them the same \
                 --metadata postgres://… and the same --store"
            ),
        }
    }

    /// What this process says of itself to the others.
    pub fn hello(&self, cluster: &ClusterConfig) -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rules: self.rules.fingerprint().to_string(),
            hosts: cluster.hosts.clone(),
            process: cluster.process,
            instance: self.instance,
        }
    }
}

/// The open service. Handlers get only the parts that they use.
pub struct Service {
    /// Receives uploads.
    pub ingest: Ingest,
    /// Uploads that continue after a broken connection.
    pub resumable: ResumableUploads,
    /// Accepts changes.
    pub pipeline: Pipeline,
    /// Stores batches and files.
    pub metadata: Metadata,
    /// Runs queries.
    pub engine: Engine,
    /// Reads the texts of files.
    pub texts: Texts,
    /// Computes and caches reports.
    pub reports: Reports,
    /// Who may do what.
    pub access: Access,
    /// Computes diagnoses.
    pub diagnoses: Diagnoses,
    /// Explains diagnoses, if a language model is configured.
    pub assistant: Option<Assistant>,
    /// Fills in events.
    pub event_details: EventDetails,
    /// The cache that is shared between processes.
    pub redis: Option<Redis>,
    /// The snapshots that readers see.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The followers of the events of batches.
    pub followers: Followers,
    /// How long epochs wait for the frontier, for the metrics.
    pub frontier_lag: FrontierLag,
    /// Files that could not be counted.
    pub failures: Failures,
    /// The free space of the disk.
    pub disk: DiskSpace,
    /// Whether the server is stopping.
    pub stopping: watch::Receiver<Stopping>,
    /// The dataflow, for its metrics.
    pub dataflow: Dataflow,
    /// Maintains the data directory; `None` in a process that follows.
    pub maintainer: Option<Maintainer>,
    /// Counts the files of batches again.
    pub rescan: Rescan,
    /// What this process is in its cluster.
    pub role: Role,
    /// The background tasks.
    pub work: Work,
}

/// What a process is in its cluster.
pub enum Role {
    /// There is no other process.
    Alone,
    /// It is the writer; others follow it.
    Leader {
        /// The keys of the cluster.
        keys: ClusterKeys,
        /// Those who follow.
        leader: Leader,
    },
    /// It follows the writer.
    Follower {
        /// The keys of the cluster.
        keys: ClusterKeys,
        /// Whom it follows, and how far it is.
        state: watch::Receiver<State>,
        /// The scans of the uploads that arrive here.
        scans: Scans,
        /// What it says of itself.
        own: Hello,
    },
}

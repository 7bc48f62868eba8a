//! Opens the service of a process that follows the leader of its cluster: it reads the same metadata, store and lake, and
//! writes none of them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_dataflow::{CodeLimits, Config, Dataflow};
use argus_sinks::Snapshot;
use tokio::sync::{oneshot, watch};

use super::assemble::{FILE_BYTES_MAX, cache, engine, readers};
use super::metrics::describe;
use super::work::Work;
use super::{Role, Service, ServiceConfig};
use crate::access::Access;
use crate::cluster::ClusterKeys;
use crate::cluster::follower::{Follower, State};
use crate::cluster::scans::Scans;
use crate::data_dir;
use crate::domain::batch::Versions;
use crate::ingest::disk::DiskSpace;
use crate::ingest::raw_store::RawStore;
use crate::ingest::resumable::ResumableUploads;
use crate::ingest::{Claims, Ingest, Reclaimer};
use crate::maintenance::rescan::Rescan;
use crate::metadata::Metadata;
use crate::pipeline::Pipeline;
use crate::pipeline::failures::Failures;
use crate::pipeline::followers::Followers;
use crate::pipeline::frontier_lag::FrontierLag;
use crate::shutdown::Stopping;

/// How long a start waits for a leader, which may have much to replay.
const LEADER_WAIT: Duration = Duration::from_secs(600);

impl Service {
    /// Opens the service of a process that follows. Returns when readers see what readers of the leader see. Fails with
    /// [`MayLead`](crate::cluster::follower::MayLead) if there is no leader.
    pub async fn follow(config: ServiceConfig) -> Result<Service> {
        let cluster = config.cluster.clone().context("a process follows in a cluster only")?;
        let data = std::path::absolute(&config.data)?;
        data_dir::create(&data, &[]).with_context(|| format!("cannot create the data directory {}", data.display()))?;
        let lock = data_dir::lock(&data)?;
        let (location, storage) = config.shared()?;
        let metadata = Metadata::open_read_only(location).await.context("cannot open the metadata")?;
        let keys = ClusterKeys::of(&metadata.deployment().await?);
        let engine = engine(&config, storage, &metadata)?;
        let redis = cache(&config, &metadata).await?;
        describe();

        // The pipeline of a follower takes nothing: requests that change something are passed on to the leader. Only the
        // lines of uploads are scanned here.
        let pipeline = Pipeline::closed();
        let (dataflow, outputs) = Dataflow::start(Config {
            workers: config.workers,
            rules: config.rules.clone(),
            first_epoch: 1,
            in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
            occurrences: true,
            limits: CodeLimits::default(),
            scans_only: true,
        })
        .map_err(anyhow::Error::msg)
        .context("cannot start the dataflow")?;
        let (scans, collecting) = Scans::start(dataflow.clone(), outputs, data.clone());
        let raw = RawStore::new(storage);
        let (claims, reclaimer) = Claims::new();
        let disk = DiskSpace::of(storage.directory.as_ref().map_or(&data, |directory| &directory.path));
        let block_bytes = config.block_bytes;
        let ingest =
            Ingest::new(dataflow.clone(), raw.clone(), claims.clone(), disk.clone(), block_bytes, FILE_BYTES_MAX);
        let access = Access::open(&metadata, pipeline.clone()).await?;

        let snapshots_in = watch::Sender::new(Arc::new(Snapshot::default()));
        let (snapshots, followers) = (snapshots_in.subscribe(), Followers::default());
        let (state_in, state) = watch::channel(State::default());
        let own = config.hello(&cluster);
        let follower = Follower {
            hello: own.clone(),
            config: cluster,
            keys: keys.clone(),
            metadata: metadata.clone(),
            engine: engine.clone(),
            store: Arc::clone(&storage.store),
            lake: storage.lake.clone(),
            rules: config.rules.clone(),
            snapshots: snapshots_in,
            followers: followers.clone(),
            access: access.clone(),
            state: state_in,
            released: Arc::default(),
        };
        let (close_follower, closing) = oneshot::channel();
        let (started_in, started) = oneshot::channel();
        let following = tokio::spawn(follower.run(started_in, closing));
        match tokio::time::timeout(LEADER_WAIT, started).await {
            Err(_) => bail!("no process of the cluster leads after {} s; see --hosts", LEADER_WAIT.as_secs()),
            Ok(Ok(())) => {}
            // It has ended.
            Ok(Err(_)) => {
                following.await??;
                bail!("the follower has stopped");
            }
        }
        let (stop, stopping) = watch::channel(Stopping::No);
        let work = Work {
            sequencer: None,
            lake: following,
            others: vec![collecting],
            claims,
            reclaimer: tokio::spawn(discard(reclaimer, scans.clone(), raw.clone())),
            stop,
            close: close_follower,
            dataflow: dataflow.clone(),
            _locks: vec![lock],
        };
        let readers = readers(&metadata, &engine, &snapshots, &redis, &raw);
        Ok(Service {
            texts: readers.texts,
            reports: readers.reports,
            access,
            diagnoses: readers.diagnoses,
            assistant: None,
            event_details: readers.event_details,
            rescan: Rescan::new(ingest.clone(), pipeline.clone(), metadata.clone(), raw),
            ingest,
            resumable: ResumableUploads::open(&data).context("cannot open the folder of resumable uploads")?,
            pipeline,
            metadata,
            engine,
            redis,
            snapshots,
            followers,
            frontier_lag: FrontierLag::default(),
            failures: Failures::new().0,
            disk,
            stopping,
            dataflow,
            maintainer: None,
            role: Role::Follower { keys, state, scans, own },
            work,
        })
    }
}

/// Discards uploads that were interrupted, until the claims are closed.
async fn discard(mut dropped: Reclaimer, scans: Scans, raw: RawStore) {
    while let Some((batch_id, versions)) = dropped.next().await {
        let Versions { whole_lines, open_line } = versions;
        scans.abandon([whole_lines, open_line]).await;
        if let Err(error) = raw.delete(batch_id, whole_lines).await {
            tracing::warn!(%error, "could not delete a discarded upload; maintenance will delete it");
        }
        dropped.discarded(versions);
    }
}

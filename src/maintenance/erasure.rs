//! Erases replaced and deleted versions from the raw store, after the lake has committed their withdrawal.
//!
//! The journal entry of a withdrawal stays until the bytes are deleted: a deletion that
//! fails is retried after the next commit, and after a restart.

use std::path::PathBuf;
use std::sync::Arc;

use argus_sinks::LakeState;
use metrics::gauge;
use object_store::Result as Stored;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::data_dir;
use crate::ingest::raw_store::RawStore;
use crate::metadata::{Erased, Metadata, MetadataError, Withdrawn};
use crate::pipeline::WeakPipeline;

/// Erases withdrawn versions. Clones share a lock, so that only one erases at a time.
#[derive(Clone)]
pub struct Erasure {
    metadata: Metadata,
    raw: RawStore,
    pipeline: WeakPipeline,
    committed: watch::Receiver<LakeState>,
    /// The data directory.
    data: PathBuf,
    lock: Arc<Mutex<()>>,
}

impl Erasure {
    /// Erases the versions that are withdrawn in `metadata` up to the `committed` epoch.
    pub fn new(
        metadata: Metadata,
        raw: RawStore,
        pipeline: WeakPipeline,
        committed: watch::Receiver<LakeState>,
        data: PathBuf,
    ) -> Erasure {
        Erasure { metadata, raw, pipeline, committed, data, lock: Arc::default() }
    }

    /// Erases after each commit, until the lake stops.
    pub fn follow(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let epoch = self.committed.borrow_and_update().epoch;
                gauge!("argus_committed_epoch").set(epoch as f64);
                if let Err(error) = self.erase().await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "could not erase deleted versions; the next commit retries"
                    );
                }
                if self.committed.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    /// Erases what was withdrawn up to the last commit. Returns the number of versions that could not be erased.
    pub async fn erase(&self) -> Result<usize, MetadataError> {
        let _guard = self.lock.lock().await;
        let lake = *self.committed.borrow();
        let (mut versions, mut pending) = (Vec::new(), Vec::new());
        let withdrawn = self.metadata.withdrawn(lake.epoch).await?;
        if data_dir::is_held(&self.data) {
            // A backup may need them. The next commit after it erases them.
            pending.extend(withdrawn.into_iter().map(|withdrawn| withdrawn.position));
            let left = pending.len();
            self.pipeline.lake_committed(Erased { lake, versions, pending }).await;
            return Ok(left);
        }
        for withdrawn in withdrawn {
            match self.delete(&withdrawn).await {
                Ok(()) => versions.push(withdrawn.version),
                Err(error) => {
                    let Withdrawn { batch_id, version, .. } = withdrawn;
                    tracing::warn!(batch.id = %batch_id, ?version, %error, "could not erase a version; will retry");
                    pending.push(withdrawn.position);
                }
            }
        }
        let left = pending.len();
        self.pipeline.lake_committed(Erased { lake, versions, pending }).await;
        Ok(left)
    }

    async fn delete(&self, withdrawn: &Withdrawn) -> Stored<()> {
        let Withdrawn { batch_id, version, parts, .. } = withdrawn;
        self.raw.delete(*batch_id, *version).await?;
        for &start in parts {
            self.raw.delete_part(*batch_id, *version, start).await?;
        }
        Ok(())
    }
}

//! The bytes of what was replaced or deleted leave the raw store, once the lake holds the epoch of that.
//!
//! The journal remembers each until its bytes have gone: what cannot be deleted
//! now is tried again with the next commit, and after a restart.

use std::sync::Arc;

use argus_sinks::LakeState;
use metrics::gauge;
use object_store::Result as Stored;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::metadata::{Erased, Metadata, MetadataError, Withdrawn};
use crate::pipeline::WeakPipeline;
use crate::raw::RawStore;

/// Erases what was taken back. Clones share the turn, so that no two erase the same.
#[derive(Clone)]
pub struct Erasure {
    metadata: Metadata,
    raw: RawStore,
    pipeline: WeakPipeline,
    committed: watch::Receiver<LakeState>,
    turn: Arc<Mutex<()>>,
}

impl Erasure {
    /// Erases what `metadata` say was taken back by what is `committed`.
    pub fn new(
        metadata: Metadata,
        raw: RawStore,
        pipeline: WeakPipeline,
        committed: watch::Receiver<LakeState>,
    ) -> Erasure {
        Erasure { metadata, raw, pipeline, committed, turn: Arc::default() }
    }

    /// Erases after each commit, until there are no more.
    pub fn follow(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            loop {
                let epoch = self.committed.borrow_and_update().epoch;
                gauge!("argus_committed_epoch").set(epoch as f64);
                if let Err(error) = self.erase().await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "what was deleted will be erased later");
                }
                if self.committed.changed().await.is_err() {
                    return;
                }
            }
        })
    }

    /// Erases what was taken back up to the last commit; says how much of it could not be erased.
    pub async fn erase(&self) -> Result<usize, MetadataError> {
        let _turn = self.turn.lock().await;
        let lake = *self.committed.borrow();
        let (mut versions, mut pending) = (Vec::new(), Vec::new());
        for withdrawn in self.metadata.withdrawn(lake.epoch).await? {
            match self.delete(&withdrawn).await {
                Ok(()) => versions.push(withdrawn.version),
                Err(error) => {
                    let Withdrawn { batch_id, version, .. } = withdrawn;
                    tracing::warn!(batch.id = %batch_id, ?version, %error, "deleted bytes stay and will be erased later");
                    pending.push(withdrawn.place);
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

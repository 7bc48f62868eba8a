//! Discards uploads that were not accepted.

use tokio::task::JoinHandle;

use crate::domain::batch::Versions;
use crate::ingest::Reclaimer;
use crate::ingest::raw_store::RawStore;
use crate::pipeline::WeakPipeline;

/// Discards uploads until the claims are closed.
pub fn start(mut dropped: Reclaimer, pipeline: WeakPipeline, raw: RawStore) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some((batch_id, versions)) = dropped.next().await {
            let Versions { whole_lines, open_line } = versions;
            pipeline.abandon(whole_lines).await;
            pipeline.abandon(open_line).await;
            if let Err(error) = raw.delete(batch_id, whole_lines).await {
                tracing::warn!(%error, "could not delete a discarded upload; maintenance will delete it");
            }
            dropped.discarded(versions);
        }
    })
}

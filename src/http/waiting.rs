//! Waiting for an epoch: a request with `min_epoch` waits until readers see that epoch.

use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use axum::http::StatusCode;
use tokio::sync::watch;
use uuid::Uuid;

use crate::http::problem::Problem;
use crate::metadata::Metadata;

/// The default of `timeout_ms`.
pub const WAIT_MS_DEFAULT: u64 = 5_000;
const WAIT_MS_MAX: u64 = 60_000;

/// Waits until readers see `min_epoch`; returns the snapshot.
pub async fn snapshot_at_least(
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    min_epoch: Option<u64>,
    timeout_ms: u64,
) -> Result<Arc<Snapshot>, Problem> {
    let mut snapshots = snapshots.clone();
    let min_epoch = min_epoch.unwrap_or(0);
    let wait = Duration::from_millis(timeout_ms.min(WAIT_MS_MAX));
    match tokio::time::timeout(wait, snapshots.wait_for(|snapshot| snapshot.epoch >= min_epoch)).await {
        Ok(Ok(snapshot)) => Ok(Arc::clone(&snapshot)),
        Ok(Err(_)) => Err(Problem::busy("the server is stopping; retry later")),
        Err(_) => {
            let detail =
                format!("timed out: epoch {min_epoch} is not visible after {} ms; retry later", wait.as_millis());
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "epoch-not-visible", detail))
        }
    }
}

/// Waits until readers see a change that is durable already: sending it again would make it twice.
pub async fn visible(
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    epoch: u64,
    timeout_ms: u64,
) -> Result<Arc<Snapshot>, Problem> {
    snapshot_at_least(snapshots, Some(epoch), timeout_ms).await.map_err(|problem| {
        problem.with_detail(format!(
            "the change is durable at epoch {epoch}, but readers do not see it yet; do not send it again, read with min_epoch={epoch}"
        ))
    })
}

/// Rejects an epoch in the future: nothing was accepted at it yet, so waiting for it would time out.
pub async fn check_as_of(metadata: &Metadata, as_of: Option<u64>) -> Result<(), Problem> {
    let Some(epoch) = as_of else { return Ok(()) };
    match metadata.last_epoch().await? {
        last if epoch > last => Err(Problem::invalid(format!("as_of {epoch} is after the last epoch, {last}"))),
        _ => Ok(()),
    }
}

/// Waits until readers see `min_epoch`, unless the batch does not exist.
pub async fn batch_at_least(
    metadata: &Metadata,
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    id: Uuid,
    min_epoch: Option<u64>,
    timeout_ms: u64,
) -> Result<(), Problem> {
    if min_epoch > Some(snapshots.borrow().epoch) {
        metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        snapshot_at_least(snapshots, min_epoch, timeout_ms).await?;
    }
    Ok(())
}

//! After a restart, what was accepted and is not in the lake is fed again, at
//! the epochs that were promised; what is in the lake is not.

use std::collections::HashSet;
use std::sync::Arc;

use argus_dataflow::{Change, Dataflow};
use argus_query::{Engine, QueryError, cells};
use argus_sinks::Snapshot;
use futures::TryStreamExt;
use tokio::sync::watch;
use uuid::Uuid;

use crate::growing::Growing;
use crate::ingest::{Ingest, IngestError, origin};
use crate::metadata::{JournalEntry, Lines, Metadata, MetadataError};

/// Why the accepted changes could not be fed again.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum RecoveryError {
    #[error("the lake holds epoch {committed}, and the metadata know of {accepted} only: they are not of one service")]
    MetadataBehindLake { committed: u64, accepted: u64 },
    #[error("file {file:?} of epoch {epoch} could not be read again")]
    Raw { epoch: u64, file: String, source: IngestError },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("what the fleet came to could not be read")]
    Cells(#[from] QueryError),
    #[error("the dataflow has stopped")]
    Stopped,
}

/// Tells the dataflow where it goes on, at the snapshot's epoch: the fleet's
/// cells, and the open batches whose cells the journal is about. Those may have
/// been warm before the restart, and what was recalled beside them counts on it.
/// Says which batches are warm now.
pub async fn restore(
    metadata: &Metadata,
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    dataflow: &Dataflow,
) -> Result<HashSet<Uuid>, RecoveryError> {
    let cells = cells::cells(engine, snapshot).await?;
    let mut changes: Vec<Change> = cells.map_ok(Change::Load).try_collect().await?;
    let mut touched = HashSet::new();
    for epoch in snapshot.epoch + 1..=metadata.last_epoch().await? {
        touched.extend(metadata.journal(epoch).await?.iter().filter_map(|entry| entry.change.batch_id()));
    }
    let mut warm = HashSet::new();
    for batch_id in cells::open_batches_beside(engine, snapshot, &touched).await? {
        if let Some(recall) = cells::recall(engine, snapshot, batch_id, |id| warm.contains(id)).await? {
            changes.push(Change::Recall(Box::new(recall)));
            warm.insert(batch_id);
        }
    }
    dataflow.advance(snapshot.epoch, changes).map_err(|_| RecoveryError::Stopped)?;
    Ok(warm)
}

/// Whether the dataflow holds what a batch has: from its making or its recall on until nothing happens to it any more.
pub fn follow_warmth(warm: &mut HashSet<Uuid>, change: &Change) {
    match change {
        Change::Batch(batch) if batch.live > 0 => drop(warm.insert(batch.batch_id)),
        Change::Recall(recall) => drop(warm.insert(recall.batch.batch_id)),
        Change::Batch(batch) if batch.live < 0 || batch.completed > 0 => drop(warm.remove(&batch.batch_id)),
        _ => {}
    }
}

/// Feeds the epochs after `committed`, when some batches are `warm`. Says the last one, which
/// readers must see before they see anything; `warm` are then those that are warm at its end.
pub async fn feed_again(
    metadata: &Metadata,
    ingest: &Ingest,
    dataflow: &Dataflow,
    committed: u64,
    warm: &mut HashSet<Uuid>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<u64, RecoveryError> {
    let accepted = metadata.last_epoch().await?;
    if accepted < committed {
        return Err(RecoveryError::MetadataBehindLake { committed, accepted });
    }
    let mut growing = Growing::default();
    for epoch in committed + 1..=accepted {
        let mut changes = Vec::new();
        for entry in metadata.journal(epoch).await? {
            if let Change::Admit(file) = &entry.change {
                growing.settled(file.version, &mut snapshots).await.map_err(|_| RecoveryError::Stopped)?;
            }
            feed_entry(ingest, epoch, &entry).await?;
            follow_warmth(warm, &entry.change);
            changes.push(entry.change);
        }
        growing.admitted(epoch, &changes, snapshots.borrow().epoch);
        dataflow.advance(epoch, changes).map_err(|_| RecoveryError::Stopped)?;
    }
    Ok(accepted)
}

async fn feed_entry(ingest: &Ingest, epoch: u64, entry: &JournalEntry) -> Result<(), RecoveryError> {
    let Change::Admit(file) = &entry.change else { return Ok(()) };
    let encoding = match &entry.lines {
        Lines::None => return Ok(()),
        Lines::Here(text) => {
            return ingest.feed_text(origin(file), text).await.map_err(|_| RecoveryError::Stopped);
        }
        Lines::Stored(encoding) => *encoding,
    };
    let (ingest, origin) = (ingest.clone(), origin(file));
    let fed = tokio::task::spawn_blocking(move || ingest.feed_again(&Arc::new(origin), encoding)).await;
    let raw = |source| RecoveryError::Raw { epoch, file: file.name.clone(), source };
    fed.map_err(|_| RecoveryError::Stopped)?.map_err(raw)
}

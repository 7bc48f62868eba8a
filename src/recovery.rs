//! After a restart, what was accepted and is not in the lake is fed again, at
//! the epochs that were promised; what is in the lake is not.

use std::collections::HashSet as StdHashSet;
use std::io::ErrorKind;
use std::sync::Arc;

use argus_dataflow::{Change, Dataflow, Vehicle};
use argus_query::cells::{self, BatchOfVehicle};
use argus_query::{Engine, QueryError};
use argus_sinks::Snapshot;
use futures::TryStreamExt;
use imbl::HashSet;
use tokio::sync::watch;
use uuid::Uuid;

use crate::growing::Growing;
use crate::ingest::{Ingest, IngestError, origin};
use crate::metadata::{JournalEntry, Lines, Metadata, MetadataError};
use crate::pipeline::backlog::Backlog;

/// Why the accepted changes could not be fed again.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum RecoveryError {
    #[error("the lake holds epoch {committed}, and the metadata know of {accepted} only: they are not of one service")]
    MetadataBehindLake { committed: u64, accepted: u64 },
    #[error(
        "the lake holds epoch {committed}, and epoch {epoch} is neither in it nor in the journal: the lake is missing or \
         older than it was. Put the folder `lake` back, or rebuild it from the stored files with `argus recount`"
    )]
    Gap { committed: u64, epoch: u64 },
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
/// cells, and the batches that may have been held before the restart and whose
/// cells the journal is about: what it says of them, and of batches that were
/// loaded beside them, counts on it. Those are the batches that it names, and
/// the open ones of their vehicles. Says which batches are held now.
pub async fn restore(
    metadata: &Metadata,
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    dataflow: &Dataflow,
) -> Result<HashSet<Uuid>, RecoveryError> {
    let cells = cells::cells(engine, snapshot).await?;
    let mut changes: Vec<Change> = cells.map_ok(Change::Load).try_collect().await?;
    let mut touched = StdHashSet::new();
    for epoch in snapshot.epoch + 1..=metadata.last_epoch().await? {
        touched.extend(metadata.journal(epoch).await?.iter().filter_map(|entry| entry.change.batch_id()));
    }
    let mut held = HashSet::new();
    let beside = cells::batches_beside(engine, snapshot, &touched).await?;
    for BatchOfVehicle { batch, .. } in beside.iter().filter(|one| one.is_open || touched.contains(&one.batch.batch_id))
    {
        let vehicle = Vehicle::of(batch);
        let is_other = |id: &Uuid| *id != batch.batch_id && !held.contains(id);
        let same = beside.iter().filter(|other| Vehicle::of(&other.batch) == vehicle);
        let others = same.map(|other| (other.batch.batch_id, other.batch.created_at));
        let others: Vec<(Uuid, i64)> = others.filter(|(id, _)| is_other(id)).collect();
        let recall = cells::recall(engine, snapshot, batch.clone(), &others).await?;
        changes.push(Change::Recall(Box::new(recall)));
        held.insert(batch.batch_id);
    }
    dataflow.advance(snapshot.epoch, changes).map_err(|_| RecoveryError::Stopped)?;
    Ok(held)
}

/// Whether the dataflow holds what a batch has: from its making or its loading on until nothing happens to it any more,
/// or another is loaded that takes it for one that is not held.
pub fn follow_held(held: &mut HashSet<Uuid>, change: &Change) {
    match change {
        Change::Batch(batch) if batch.live > 0 => drop(held.insert(batch.batch_id)),
        Change::Recall(recall) if held.contains(&recall.batch.batch_id) => {}
        Change::Recall(recall) => {
            for other in &recall.others {
                held.remove(other);
            }
            held.insert(recall.batch.batch_id);
        }
        Change::Batch(batch) if batch.live < 0 || batch.completed > 0 => drop(held.remove(&batch.batch_id)),
        _ => {}
    }
}

/// Feeds the epochs after `committed`, when some batches are `held`. Says the last one, which
/// readers must see before they see anything; `held` are then those that are held at its end.
/// No more is open at once than while the server runs.
pub async fn feed_again(
    metadata: &Metadata,
    ingest: &Ingest,
    dataflow: &Dataflow,
    committed: u64,
    held: &mut HashSet<Uuid>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<u64, RecoveryError> {
    let accepted = metadata.last_epoch().await?;
    if accepted < committed {
        return Err(RecoveryError::MetadataBehindLake { committed, accepted });
    }
    let (mut growing, mut backlog) = (Growing::default(), Backlog::default());
    for epoch in committed + 1..=accepted {
        backlog.room(&mut snapshots).await.map_err(|_| RecoveryError::Stopped)?;
        let mut changes = Vec::new();
        let entries = metadata.journal(epoch).await?;
        // An epoch that brings nothing is not used.
        if entries.is_empty() {
            return Err(RecoveryError::Gap { committed, epoch });
        }
        for mut entry in entries {
            if let Change::Admit(file) = &entry.change {
                growing.settled(file.version, &mut snapshots).await.map_err(|_| RecoveryError::Stopped)?;
            }
            feed_entry(ingest, epoch, &mut entry).await?;
            follow_held(held, &entry.change);
            changes.push(entry.change);
        }
        growing.admitted(epoch, &changes, snapshots.borrow().epoch);
        backlog.add(epoch, &changes);
        dataflow.advance(epoch, changes).map_err(|_| RecoveryError::Stopped)?;
    }
    Ok(accepted)
}

/// Feeds the lines that an entry admits. A file whose bytes are gone or damaged is admitted as one that failed, for
/// everything else can be served.
async fn feed_entry(ingest: &Ingest, epoch: u64, entry: &mut JournalEntry) -> Result<(), RecoveryError> {
    let Change::Admit(file) = &mut entry.change else { return Ok(()) };
    let encoding = match &entry.lines {
        Lines::None => return Ok(()),
        Lines::Here(text) => {
            return ingest.feed_text(origin(file), text).await.map_err(|_| RecoveryError::Stopped);
        }
        Lines::Stored(encoding) => *encoding,
    };
    let (ingest, origin) = (ingest.clone(), origin(file));
    let fed = tokio::task::spawn_blocking(move || ingest.feed_again(&Arc::new(origin), encoding)).await;
    match fed.map_err(|_| RecoveryError::Stopped)? {
        Ok(()) => {}
        Err(IngestError::Store(error)) if error.kind() == ErrorKind::NotFound => {
            file.failure = Some("its bytes are missing in the raw store".to_owned());
        }
        Err(IngestError::Corrupt(error)) => {
            file.failure = Some(format!("its bytes in the raw store are damaged: {error}"));
        }
        Err(source) => return Err(RecoveryError::Raw { epoch, file: file.name.clone(), source }),
    }
    Ok(())
}

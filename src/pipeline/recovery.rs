//! After a restart, replays the accepted epochs that the lake has not committed,
//! at their original epoch numbers.

use std::collections::HashSet as StdHashSet;
use std::io::ErrorKind;
use std::sync::Arc;

use argus_dataflow::{Change, Dataflow, Vehicle};
use argus_query::reads::cells;
use argus_query::{Engine, QueryError};
use argus_sinks::Snapshot;
use futures::TryStreamExt;
use imbl::HashSet;
use tokio::sync::watch;
use uuid::Uuid;

use crate::ingest::{Ingest, IngestError, origin};
use crate::metadata::{JournalEntry, Lines, Metadata, MetadataError};
use crate::pipeline::append_gate::AppendGate;
use crate::pipeline::backlog::Backlog;

/// The batches that are loaded in the dataflow.
pub type Held = HashSet<Uuid>;

/// Why the accepted changes could not be replayed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum RecoveryError {
    #[error(
        "the lake is at epoch {committed}, but the metadata database ends at epoch {accepted}: they do not belong \
         together; restore both from the same backup"
    )]
    MetadataBehindLake { committed: u64, accepted: u64 },
    #[error(
        "the lake is at epoch {committed}, and epoch {epoch} is not in the journal: the lake is missing or outdated; \
         restore the folder `lake`, or rebuild it from the stored files with `argus recount`"
    )]
    Gap { committed: u64, epoch: u64 },
    #[error("file {file:?} of epoch {epoch} could not be replayed")]
    Raw { epoch: u64, file: String, source: IngestError },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("the fleet cells could not be read from the lake")]
    Cells(#[from] QueryError),
    #[error("the dataflow has stopped")]
    Stopped,
}

/// Restores the state of the dataflow at the snapshot's epoch: the fleet cells,
/// and the batches that may have been loaded before the restart and that the entries of the
/// journal depend on: the open batches of the vehicles that it is about. Returns the loaded batches.
pub async fn restore(
    metadata: &Metadata,
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    dataflow: &Dataflow,
) -> Result<Held, RecoveryError> {
    let cells = cells::cells(engine, snapshot).await?;
    let mut changes: Vec<Change> = cells.map_ok(Change::RestoreCells).try_collect().await?;
    let (mut batches, mut vins) = (StdHashSet::new(), StdHashSet::new());
    for epoch in snapshot.epoch + 1..=metadata.last_epoch().await? {
        for JournalEntry { change, .. } in metadata.journal(epoch).await? {
            batches.extend(change.batch_id());
            // The lake does not know a batch that the journal creates, but may know others of its vehicle.
            vins.extend(change.vin().map(str::to_owned));
        }
    }
    let mut held = Held::new();
    let related = cells::batches_of_same_vehicles(engine, snapshot, &vins, &batches).await?;
    for open in related.iter().filter(|batch| batch.is_open) {
        let batch = &open.batch;
        let vehicle = Vehicle::of(batch);
        let is_other = |id: &Uuid| *id != batch.batch_id && !held.contains(id);
        let same = related.iter().filter(|other| Vehicle::of(&other.batch) == vehicle);
        let others = same.map(|other| (other.batch.batch_id, other.batch.created_at));
        let others: Vec<(Uuid, i64)> = others.filter(|(id, _)| is_other(id)).collect();
        let loaded = cells::load_batch(engine, snapshot, open.clone(), &others).await?;
        changes.push(Change::LoadBatch(Box::new(loaded)));
        held.insert(batch.batch_id);
    }
    dataflow.advance(snapshot.epoch, changes).map_err(|_| RecoveryError::Stopped)?;
    Ok(held)
}

/// Updates the loaded batches. An open batch is loaded from its creation or its load on, until it is completed or deleted,
/// or until another batch is loaded that lists it among its unloaded `others`. One that is not open is loaded for its
/// epoch only.
pub fn follow_held(held: &mut Held, change: &Change) {
    match change {
        Change::Batch(batch) if batch.live < 0 || batch.completed > 0 => drop(held.remove(&batch.batch_id)),
        Change::Batch(batch) if batch.live > 0 || batch.completed < 0 => drop(held.insert(batch.batch_id)),
        Change::LoadBatch(loaded) if loaded.is_open && held.contains(&loaded.batch.batch_id) => {}
        Change::LoadBatch(loaded) => {
            for other in &loaded.others {
                held.remove(other);
            }
            if loaded.is_open {
                held.insert(loaded.batch.batch_id);
            } else {
                held.remove(&loaded.batch.batch_id);
            }
        }
        _ => {}
    }
}

/// Replays the epochs after `committed`, and updates `held`, the loaded batches. Returns the last
/// epoch: no request may be served before readers see it. The backlog has the same limit as in
/// normal operation.
pub async fn replay(
    metadata: &Metadata,
    ingest: &Ingest,
    dataflow: &Dataflow,
    committed: u64,
    held: &mut Held,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Result<u64, RecoveryError> {
    let accepted = metadata.last_epoch().await?;
    if accepted < committed {
        return Err(RecoveryError::MetadataBehindLake { committed, accepted });
    }
    let (mut append_gate, mut backlog) = (AppendGate::default(), Backlog::default());
    for epoch in committed + 1..=accepted {
        backlog.wait_for_room(&mut snapshots).await.map_err(|_| RecoveryError::Stopped)?;
        let mut changes = Vec::new();
        let entries = metadata.journal(epoch).await?;
        // Epochs without changes are not used.
        if entries.is_empty() {
            return Err(RecoveryError::Gap { committed, epoch });
        }
        for mut entry in entries {
            if let Change::Admit(file) = &entry.change {
                append_gate.settled(file.version, &mut snapshots).await.map_err(|_| RecoveryError::Stopped)?;
            }
            replay_entry(ingest, epoch, &mut entry).await?;
            follow_held(held, &entry.change);
            changes.push(entry.change);
        }
        append_gate.admitted(epoch, &changes, snapshots.borrow().epoch);
        backlog.add(epoch, &changes);
        dataflow.advance(epoch, changes).map_err(|_| RecoveryError::Stopped)?;
    }
    Ok(accepted)
}

/// Inserts the lines that an entry admits. A file whose bytes are missing or damaged is admitted as failed, so that
/// everything else can be served.
async fn replay_entry(ingest: &Ingest, epoch: u64, entry: &mut JournalEntry) -> Result<(), RecoveryError> {
    let Change::Admit(file) = &mut entry.change else { return Ok(()) };
    let encoding = match &entry.lines {
        Lines::None => return Ok(()),
        Lines::Inline(text) => {
            return ingest.insert_text(origin(file), text).await.map_err(|_| RecoveryError::Stopped);
        }
        Lines::Stored(encoding) => *encoding,
    };
    let (ingest, origin) = (ingest.clone(), origin(file));
    let inserted = tokio::task::spawn_blocking(move || ingest.replay(&Arc::new(origin), encoding)).await;
    match inserted.map_err(|_| RecoveryError::Stopped)? {
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

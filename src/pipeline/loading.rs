//! Loads unloaded batches into the dataflow before they change.
//!
//! Requests that change an unloaded batch are parked while it is loaded, each batch
//! separately; all other requests go on. The result of a load is valid if no batch of
//! the same vehicle was loaded or unloaded since the load began. Otherwise the batch is
//! loaded again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Change, LoadedBatch};
use argus_query::reads::cells::{self, BatchOfVehicle};
use argus_query::{Engine, QueryError};
use argus_sinks::Snapshot;
use imbl::HashSet;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::PipelineError;
use super::request::{IsPossible, Request};
use crate::domain::status::BatchStatus;
use crate::metadata::rows::batch_row;
use crate::metadata::{Metadata, MetadataError};

/// Batches that are loaded at once.
const LOADS_MAX: usize = 8;

/// The maximum number of parked requests; more are rejected.
const PARKED_MAX: usize = 1024;

/// How long a batch may take to load.
const LOAD_WAIT: Duration = Duration::from_secs(20);

/// For how long a load is repeated because other batches of the vehicle were loaded or unloaded meanwhile: batches of
/// one vehicle enter the dataflow one after the other.
const PARKED_WAIT: Duration = Duration::from_secs(30);

/// Why a batch could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error("the metadata could not be read")]
    Metadata(#[from] MetadataError),
    #[error("the tables could not be read")]
    Query(#[from] QueryError),
    #[error("the lake has stopped")]
    Stopped,
    #[error("the load timed out after {} s", LOAD_WAIT.as_secs())]
    TimedOut,
}

/// The result of a load.
pub(super) struct LoadResult {
    pub(super) batch_id: Uuid,
    result: Result<Option<LoadedBatch>, LoadError>,
}

struct Parked {
    requests: Vec<Request>,
    until: Instant,
    /// `last_change` of [`Loading`] when the load began.
    change_at_start: u64,
}

/// What to do with the parked requests of a batch when its load has ended.
pub(super) enum Ready {
    /// Load the batch, then apply them.
    With(Box<LoadedBatch>, Vec<Request>),
    /// Apply the first without the batch, and check the others again.
    Without(Vec<Request>),
    /// Nothing: they still wait, or were rejected.
    Nothing,
}

/// The batches that are being loaded.
pub(super) struct Loading {
    loader: Loader,
    parked: HashMap<Uuid, Parked>,
    parked_count: usize,
    /// For each vehicle, the last change that loaded or unloaded one of its batches. Cleared when nothing is being
    /// loaded.
    vehicles_changed: HashMap<String, u64>,
    /// The number of these changes.
    last_change: u64,
    pub(super) done: mpsc::UnboundedReceiver<LoadResult>,
}

/// Loads batches. Clones share the permits.
#[derive(Clone)]
struct Loader {
    engine: Engine,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    permits: Arc<Semaphore>,
    done: mpsc::UnboundedSender<LoadResult>,
}

impl Loading {
    pub(super) fn new(engine: Engine, metadata: Metadata, snapshots: watch::Receiver<Arc<Snapshot>>) -> Loading {
        let (done, receiver) = mpsc::unbounded_channel();
        let loader = Loader { engine, metadata, snapshots, permits: Arc::new(Semaphore::new(LOADS_MAX)), done };
        let (parked, vehicles_changed) = (HashMap::new(), HashMap::new());
        Loading { loader, parked, parked_count: 0, vehicles_changed, last_change: 0, done: receiver }
    }

    /// Whether nothing is being loaded.
    pub(super) fn is_idle(&self) -> bool {
        self.parked.is_empty()
    }

    /// Parks a request until its batch is loaded, from a snapshot of `min_epoch` or later. `held` are the loaded
    /// batches.
    pub(super) fn park(
        &mut self,
        request: Request,
        (batch_id, is_possible): (Uuid, IsPossible),
        held: &HashSet<Uuid>,
        min_epoch: u64,
    ) {
        if self.parked_count >= PARKED_MAX {
            return request.refuse(PipelineError::Busy);
        }
        self.parked_count += 1;
        if let Some(parked) = self.parked.get_mut(&batch_id) {
            return parked.requests.push(request);
        }
        self.parked.insert(
            batch_id,
            Parked { requests: vec![request], until: Instant::now() + PARKED_WAIT, change_at_start: self.last_change },
        );
        self.loader.start(batch_id, is_possible, held.clone(), min_epoch);
    }

    /// Records the changes of a round.
    pub(super) fn follow(&mut self, changes: &[Change]) {
        if self.is_idle() {
            return self.vehicles_changed.clear();
        }
        for change in changes {
            let batch = match change {
                Change::Batch(batch) => batch,
                Change::LoadBatch(loaded) => &loaded.batch,
                _ => continue,
            };
            self.vehicle_changed(&batch.vin);
        }
    }

    /// Records that a batch of a vehicle was loaded or unloaded.
    pub(super) fn vehicle_changed(&mut self, vin: &str) {
        self.last_change += 1;
        self.vehicles_changed.insert(vin.to_owned(), self.last_change);
    }

    /// Decides what to do with the parked requests of a batch whose load has ended. `vehicles` already have a loaded
    /// batch in this round.
    pub(super) fn take(
        &mut self,
        loaded: LoadResult,
        vehicles: &[String],
        held: &HashSet<Uuid>,
        min_epoch: u64,
    ) -> Ready {
        let LoadResult { batch_id, result } = loaded;
        let Some(mut parked) = self.parked.remove(&batch_id) else { return Ready::Nothing };
        let loaded = match result {
            Ok(Some(loaded)) => loaded,
            Ok(None) => {
                self.parked_count -= parked.requests.len();
                return Ready::Without(parked.requests);
            }
            Err(error) => {
                tracing::error!(batch.id = %batch_id, error = &error as &dyn std::error::Error, "could not load a batch");
                self.parked_count -= parked.requests.len();
                parked.requests.into_iter().for_each(|request| request.refuse(PipelineError::Busy));
                return Ready::Nothing;
            }
        };
        let vin = &loaded.batch.vin;
        let is_current = self.vehicles_changed.get(vin).is_none_or(|&changed| changed <= parked.change_at_start);
        if is_current && !vehicles.contains(vin) {
            self.parked_count -= parked.requests.len();
            return Ready::With(Box::new(loaded), parked.requests);
        }
        parked.change_at_start = self.last_change;
        let first = parked.requests.first().and_then(Request::changes);
        match first {
            Some((_, is_possible)) if Instant::now() < parked.until => {
                self.parked.insert(batch_id, parked);
                // If a batch of the vehicle joins this round, the next load must see the epoch of the round.
                let min_epoch = if is_current { min_epoch + 1 } else { min_epoch };
                self.loader.start(batch_id, is_possible, held.clone(), min_epoch);
            }
            _ => {
                self.parked_count -= parked.requests.len();
                parked.requests.into_iter().for_each(|request| request.refuse(PipelineError::Busy));
            }
        }
        Ready::Nothing
    }
}

impl Loader {
    fn start(&self, batch_id: Uuid, is_possible: IsPossible, held: HashSet<Uuid>, min_epoch: u64) {
        let loader = self.clone();
        tokio::spawn(async move {
            let load = tokio::time::timeout(LOAD_WAIT, loader.load(batch_id, is_possible, &held, min_epoch));
            let result = load.await.unwrap_or(Err(LoadError::TimedOut));
            // A pipeline that has ended has rejected all requests.
            let _ = loader.done.send(LoadResult { batch_id, result });
        });
    }

    /// Reads a batch from the tables; `None` if its status does not allow the request.
    async fn load(
        &self,
        batch_id: Uuid,
        is_possible: IsPossible,
        held: &HashSet<Uuid>,
        min_epoch: u64,
    ) -> Result<Option<LoadedBatch>, LoadError> {
        let _permit = self.permits.acquire().await.map_err(|_| LoadError::Stopped)?;
        // The snapshot must contain everything that was accepted before.
        let mut snapshots = self.snapshots.clone();
        let seen = snapshots.wait_for(|snapshot| snapshot.epoch >= min_epoch).await;
        let snapshot = Arc::clone(&*seen.map_err(|_| LoadError::Stopped)?);
        let batch = match self.metadata.batch(batch_id).await? {
            Some(batch) if is_possible(batch.status) => batch,
            _ => return Ok(None),
        };
        let mut others = self.metadata.others_of_vehicle(&batch).await?;
        others.retain(|(other, _)| !held.contains(other));
        let is_open = batch.status == BatchStatus::Pending;
        let batch = BatchOfVehicle { batch: batch_row(&batch, 0, 0), is_open };
        Ok(Some(cells::load_batch(&self.engine, &snapshot, batch, &others).await?))
    }
}

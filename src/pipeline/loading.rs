//! Loading batches that the dataflow does not hold, before something happens to them.
//!
//! Requests that change such a batch are parked while it is loaded, each batch
//! by itself; all other requests go on. What was loaded is of use as long as no
//! batch of the same vehicle began or ended to be held since the load began,
//! when it was noted which are held: else it is loaded anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Change, Recall};
use argus_query::{Engine, QueryError, cells};
use argus_sinks::Snapshot;
use imbl::HashSet;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::PipelineError;
use super::request::{IsPossible, Request};
use crate::metadata::rows::batch_row;
use crate::metadata::{Metadata, MetadataError};

/// Batches that are loaded at once.
const LOADS_MAX: usize = 8;

/// Requests that may be parked; at the limit, one more is refused.
const PARKED_MAX: usize = 1024;

/// How long a batch may take to load.
const LOAD_WAIT: Duration = Duration::from_secs(20);

/// For how long a batch is loaded anew because its vehicle's batches changed meanwhile: of many batches of one vehicle,
/// one joins the dataflow after the other.
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
    #[error("it took longer than {} s", LOAD_WAIT.as_secs())]
    TimedOut,
}

/// A batch that was loaded.
pub(super) struct Loaded {
    pub(super) batch_id: Uuid,
    result: Result<Option<Recall>, LoadError>,
}

struct Parked {
    requests: Vec<Request>,
    until: Instant,
    /// The change of vehicles after which it was noted which batches are held.
    began: u64,
}

/// What requests become when their batch is loaded.
pub(super) enum Ready {
    /// They follow the batch into the dataflow.
    With(Box<Recall>, Vec<Request>),
    /// The first can be answered without the batch; the others are asked anew.
    Without(Vec<Request>),
    /// They wait on.
    NotYet,
}

/// The batches that are being loaded.
pub(super) struct Loading {
    loader: Loader,
    parked: HashMap<Uuid, Parked>,
    parked_count: usize,
    /// The last change of each vehicle of which a batch began or ended to be held, since something is being loaded.
    vehicles_changed: HashMap<String, u64>,
    /// The last of those changes, counted.
    last_change: u64,
    pub(super) done: mpsc::UnboundedReceiver<Loaded>,
}

/// Loads batches. Clones share the permits.
#[derive(Clone)]
struct Loader {
    engine: Engine,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    permits: Arc<Semaphore>,
    done: mpsc::UnboundedSender<Loaded>,
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

    /// Parks a request until its batch, which is not among those `held`, is loaded at an epoch from `least` on.
    pub(super) fn park(
        &mut self,
        request: Request,
        (batch_id, is_possible): (Uuid, IsPossible),
        held: &HashSet<Uuid>,
        least: u64,
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
            Parked { requests: vec![request], until: Instant::now() + PARKED_WAIT, began: self.last_change },
        );
        self.loader.start(batch_id, is_possible, held.clone(), least);
    }

    /// Notes what a round changed.
    pub(super) fn follow(&mut self, changes: &[Change]) {
        if self.is_idle() {
            return self.vehicles_changed.clear();
        }
        for change in changes {
            let batch = match change {
                Change::Batch(batch) => batch,
                Change::Recall(recall) => &recall.batch,
                _ => continue,
            };
            self.vehicle_changed(&batch.vin);
        }
    }

    /// Notes that a batch of a vehicle began or ended to be held.
    pub(super) fn vehicle_changed(&mut self, vin: &str) {
        self.last_change += 1;
        self.vehicles_changed.insert(vin.to_owned(), self.last_change);
    }

    /// What becomes of the requests for a batch that was loaded; `vehicles` are those of which a batch was taken for the
    /// same round already.
    pub(super) fn take(&mut self, loaded: Loaded, vehicles: &[String], held: &HashSet<Uuid>, least: u64) -> Ready {
        let Loaded { batch_id, result } = loaded;
        let Some(mut parked) = self.parked.remove(&batch_id) else { return Ready::NotYet };
        let recall = match result {
            Ok(Some(recall)) => recall,
            Ok(None) => {
                self.parked_count -= parked.requests.len();
                return Ready::Without(parked.requests);
            }
            Err(error) => {
                tracing::error!(batch.id = %batch_id, error = &error as &dyn std::error::Error, "a batch was not loaded");
                self.parked_count -= parked.requests.len();
                parked.requests.into_iter().for_each(|request| request.refuse(PipelineError::Busy));
                return Ready::NotYet;
            }
        };
        let vin = &recall.batch.vin;
        let is_current = self.vehicles_changed.get(vin).is_none_or(|&changed| changed <= parked.began);
        if is_current && !vehicles.contains(vin) {
            self.parked_count -= parked.requests.len();
            return Ready::With(Box::new(recall), parked.requests);
        }
        parked.began = self.last_change;
        let first = parked.requests.first().and_then(Request::changes);
        match first {
            Some((_, is_possible)) if Instant::now() < parked.until => {
                self.parked.insert(batch_id, parked);
                // A batch that was taken for this round will have changed its vehicle when the next is closed.
                let least = if is_current { least + 1 } else { least };
                self.loader.start(batch_id, is_possible, held.clone(), least);
            }
            _ => {
                self.parked_count -= parked.requests.len();
                parked.requests.into_iter().for_each(|request| request.refuse(PipelineError::Busy));
            }
        }
        Ready::NotYet
    }
}

impl Loader {
    fn start(&self, batch_id: Uuid, is_possible: IsPossible, held: HashSet<Uuid>, least: u64) {
        let loader = self.clone();
        tokio::spawn(async move {
            let load = tokio::time::timeout(LOAD_WAIT, loader.load(batch_id, is_possible, &held, least));
            let result = load.await.unwrap_or(Err(LoadError::TimedOut));
            // A pipeline that has ended has refused all requests.
            let _ = loader.done.send(Loaded { batch_id, result });
        });
    }

    /// What the tables hold of a batch; `None` where nothing can happen to it.
    async fn load(
        &self,
        batch_id: Uuid,
        is_possible: IsPossible,
        held: &HashSet<Uuid>,
        least: u64,
    ) -> Result<Option<Recall>, LoadError> {
        let _permit = self.permits.acquire().await.map_err(|_| LoadError::Stopped)?;
        // What was accepted before must be among what is read.
        let mut snapshots = self.snapshots.clone();
        let seen = snapshots.wait_for(|snapshot| snapshot.epoch >= least).await;
        let snapshot = Arc::clone(&*seen.map_err(|_| LoadError::Stopped)?);
        let batch = match self.metadata.batch(batch_id).await? {
            Some(batch) if is_possible(batch.status) => batch,
            _ => return Ok(None),
        };
        let mut others = self.metadata.others_of_vehicle(&batch).await?;
        others.retain(|(other, _)| !held.contains(other));
        Ok(Some(cells::recall(&self.engine, &snapshot, batch_row(&batch, 0, 0), &others).await?))
    }
}

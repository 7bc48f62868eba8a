//! The sequencer groups requests into rounds, commits them, and passes their changes to the dataflow.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Dataflow, LoadedBatch};
use argus_query::Engine;
use argus_sinks::{Snapshot, crash};
use imbl::HashSet;
use metrics::{gauge, histogram};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::PipelineError;
use super::apply::{Answer, apply};
use super::backlog::{Backlog, weight_of_text};
use super::loading::{LoadResult, Loading, Ready};
use super::request::Request;
use crate::domain::batch::StoredUpload;
use crate::ingest::{Claim, Ingest, origin};
use crate::metadata::{Committed, Metadata, MetadataError, MetadataWriter};
use crate::pipeline::announcements::{self, Announcements};
use crate::pipeline::append_gate::AppendGate;
use crate::pipeline::followers::Followers;
use crate::pipeline::frontier_lag::FrontierLag;
use crate::pipeline::recovery::follow_held;

/// The maximum number of requests in one round.
const ROUND_MAX: usize = 256;

/// How long the pipeline waits after a round that could not be made durable.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// For how long the pipeline tries to reopen the metadata database before it gives up: a server may be restarted
/// meanwhile.
const REOPEN_WAIT: Duration = Duration::from_secs(120);

/// Groups requests into rounds, commits them, and passes their changes to the dataflow.
pub struct Sequencer {
    requests: mpsc::Receiver<Request>,
    /// Requests that earlier rounds deferred; they come before new ones.
    later: Vec<Request>,
    writer: MetadataWriter,
    /// The epoch of the last round that changed something.
    last_epoch: u64,
    /// The batches that are loaded in the dataflow; others are loaded before they change.
    held: HashSet<Uuid>,
    loading: Loading,
    /// Delays appends.
    append_gate: AppendGate,
    backlog: Backlog,
    downstream: Downstream,
}

/// What the pipeline writes to and reads from.
pub struct Downstream {
    /// Receives the changes.
    pub dataflow: Dataflow,
    /// Inserts appended lines.
    pub ingest: Ingest,
    /// Reads the state of unloaded batches.
    pub engine: Engine,
    /// Reads the status of batches.
    pub metadata: Metadata,
    /// Shows the epochs that the dataflow has closed.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Are woken when their batch changes.
    pub followers: Followers,
    /// Notes when epochs were accepted.
    pub frontier_lag: FrontierLag,
    /// Tells other processes what has changed, if there are others.
    pub announcements: Option<Announcements>,
}

/// The content of a round.
#[derive(Default)]
struct Gathered {
    loaded_batches: Vec<LoadedBatch>,
    requests: Vec<Request>,
}

impl Sequencer {
    /// A sequencer that continues after `last_epoch`. `held` are the batches that are loaded in the dataflow.
    pub(super) fn new(
        requests: mpsc::Receiver<Request>,
        writer: MetadataWriter,
        last_epoch: u64,
        held: HashSet<Uuid>,
        downstream: Downstream,
    ) -> Sequencer {
        let Downstream { engine, metadata, snapshots, .. } = &downstream;
        let loading = Loading::new(engine.clone(), metadata.clone(), snapshots.clone());
        let (later, append_gate, backlog) = (Vec::new(), AppendGate::default(), Backlog::default());
        Sequencer { requests, later, writer, last_epoch, held, loading, append_gate, backlog, downstream }
    }

    /// Runs until `closing` is signalled, and then until no requests are pending.
    /// After an error the process must end: what was acknowledged is durable, and
    /// a restart replays it.
    pub async fn run(mut self, mut closing: oneshot::Receiver<()>) -> Result<(), PipelineError> {
        let mut open = true;
        loop {
            let mut arrived = std::mem::take(&mut self.later);
            let mut loaded = Vec::new();
            while let Ok(one) = self.loading.done.try_recv() {
                loaded.push(one);
            }
            while arrived.len() < ROUND_MAX
                && let Ok(request) = self.requests.try_recv()
            {
                arrived.push(request);
            }
            if arrived.is_empty() && loaded.is_empty() {
                tokio::select! {
                    biased;
                    Some(one) = self.loading.done.recv(), if !self.loading.is_idle() => loaded.push(one),
                    count = self.requests.recv_many(&mut arrived, ROUND_MAX) => if count == 0 {
                        if self.loading.is_idle() {
                            return Ok(());
                        }
                        loaded.extend(self.loading.done.recv().await);
                    },
                    replaced = self.writer.replaced() => {
                        return Err(PipelineError::Indeterminate(Arc::new(replaced)));
                    }
                    // A dropped sender is a signal too.
                    _ = &mut closing, if open => {
                        open = false;
                        self.requests.close();
                    }
                }
            }
            let gathered = self.gather(loaded, arrived);
            if !gathered.loaded_batches.is_empty() || !gathered.requests.is_empty() {
                self.round(gathered).await?;
            }
        }
    }

    /// Selects what to do now. Requests for unloaded batches are parked while these are loaded. Requests that exceed
    /// the weight of one round, or follow the completion of their batch, wait for the next round.
    fn gather(&mut self, loaded: Vec<LoadResult>, arrived: Vec<Request>) -> Gathered {
        let mut gathered = Gathered::default();
        let mut vehicles = Vec::new();
        let mut waiting = Vec::new();
        for one in loaded {
            match self.loading.take(one, &vehicles, &self.held, self.last_epoch) {
                Ready::With(loaded, requests) => {
                    vehicles.push(loaded.batch.vin.clone());
                    self.held.insert(loaded.batch.batch_id);
                    gathered.loaded_batches.push(*loaded);
                    waiting.extend(requests);
                }
                Ready::Without(mut requests) => {
                    let rest = requests.split_off(1.min(requests.len()));
                    gathered.requests.extend(requests);
                    waiting.extend(rest);
                }
                Ready::Nothing => {}
            }
        }
        // The dataflow takes loaded batches in this order.
        gathered.loaded_batches.sort_by_key(|loaded| loaded.batch.batch_id);
        let mut completed = HashSet::new();
        let mut bytes = 0;
        for request in waiting.into_iter().chain(arrived) {
            bytes += match &request {
                Request::AcceptFile { upload, .. } => weight_of_text(upload.bytes),
                Request::Append { part, .. } => weight_of_text(part.bytes.len() as u64),
                Request::Consume { parts, .. } => {
                    parts.iter().map(|part| weight_of_text(part.bytes.len() as u64)).sum()
                }
                _ => 0,
            };
            let is_first = gathered.requests.is_empty();
            let changes = request.changes();
            let waits = changes.is_some_and(|(batch_id, _)| completed.contains(&batch_id))
                || matches!(&request, Request::Consume { parts, .. } if parts.iter().any(|part| completed.contains(&part.batch_id)));
            if waits || !self.later.is_empty() || !(is_first || Backlog::fits_one_round(bytes)) {
                // Requests stay in order: a deferred one defers all after it.
                self.later.push(request);
                continue;
            }
            if let Request::Consume { parts, .. } = &request {
                let missing: BTreeSet<Uuid> =
                    parts.iter().map(|part| part.batch_id).filter(|batch_id| !self.held.contains(batch_id)).collect();
                if !missing.is_empty() {
                    request.refuse(PipelineError::NotLoaded(missing.into_iter().collect()));
                    continue;
                }
            }
            match changes {
                Some((batch_id, possible)) if !self.held.contains(&batch_id) => {
                    self.loading.park(request, (batch_id, possible), &self.held, self.last_epoch);
                    continue;
                }
                _ => {}
            }
            // A completed batch is unloaded when the round ends; what follows needs it loaded again.
            if let Request::Complete { batch_id, .. }
            | Request::RecountFile { upload: StoredUpload { batch_id, .. }, .. } = &request
            {
                completed.insert(*batch_id);
            }
            gathered.requests.push(request);
        }
        gathered
    }

    #[tracing::instrument(skip_all, fields(requests = gathered.requests.len()))]
    async fn round(&mut self, gathered: Gathered) -> Result<(), PipelineError> {
        self.backlog.wait_for_room(&mut self.downstream.snapshots).await.map_err(|_| PipelineError::Stopping)?;
        let began = Instant::now();
        let Gathered { loaded_batches, requests } = gathered;
        let internal: Vec<Request> = requests.iter().filter_map(Request::copy_if_internal).collect();
        let changes_tokens = requests.iter().any(Request::changes_tokens);
        let loaded_vehicles: Vec<(Uuid, String)> =
            loaded_batches.iter().map(|loaded| (loaded.batch.batch_id, loaded.batch.vin.clone())).collect();
        let (mut answers, mut claims) = (Vec::new(), Vec::new());
        let dialect = self.writer.dialect();
        let written = async {
            let mut round = self.writer.begin(self.last_epoch).await?;
            loaded_batches.into_iter().for_each(|loaded| round.load_batch(loaded));
            for request in requests {
                answers.extend(apply(&mut round, request, &mut claims).await?);
            }
            let epoch = round.epoch();
            Ok::<_, MetadataError>((epoch, round.commit().await?))
        };
        let (epoch, committed) = match dialect.limited(written).await {
            Ok(written) => written,
            Err(error) => {
                for (batch_id, vin) in &loaded_vehicles {
                    self.held.remove(batch_id);
                    self.loading.vehicle_changed(vin);
                }
                return self.not_durable(error, answers, claims, internal).await;
            }
        };
        // From here on a restart needs the bytes.
        claims.into_iter().for_each(Claim::accepted);
        crash::point("metadata written");
        let Committed { changes, lines, changed } = committed;
        if let Some(announcements) = &self.downstream.announcements {
            if !changed.is_empty() {
                announcements.announce(announcements::Change::Batches(changed.iter().copied().collect()));
            }
            if changes_tokens {
                announcements.announce(announcements::Change::Tokens);
            }
        }
        if !changes.is_empty() {
            for (file, text) in &lines {
                let settled = self.append_gate.settled(file.version, &mut self.downstream.snapshots).await;
                settled.map_err(|_| PipelineError::Stopping)?;
                let inserted = self.downstream.ingest.insert_text(origin(file), text).await;
                inserted.map_err(|_| PipelineError::Stopping)?;
            }
            changes.iter().for_each(|change| follow_held(&mut self.held, change));
            self.loading.follow(&changes);
            self.append_gate.admitted(epoch, &changes, self.downstream.snapshots.borrow().epoch);
            self.backlog.add(epoch, &changes);
            self.downstream.frontier_lag.accepted(epoch, self.downstream.snapshots.borrow().epoch);
            self.downstream.dataflow.advance(epoch, changes).map_err(|_| PipelineError::Stopping)?;
            crash::point("fed");
            self.last_epoch = epoch;
            gauge!("argus_epoch").set(epoch as f64);
        }
        self.downstream.followers.wake(changed);
        answers.into_iter().for_each(|answer| answer(Ok(())));
        histogram!("argus_round_duration_seconds").record(began.elapsed().as_secs_f64());
        crash::point("acknowledged");
        Ok(())
    }

    /// Answers the requests of a round whose commit failed. The commit may have happened. Unless the metadata show that
    /// it did not, this returns an error: the process must end, and a restart replays the round if it was committed.
    async fn not_durable(
        &mut self,
        error: MetadataError,
        answers: Vec<Answer>,
        claims: Vec<Claim>,
        internal: Vec<Request>,
    ) -> Result<(), PipelineError> {
        tracing::error!(error = &error as &dyn std::error::Error, "could not commit a round of changes");
        let error = Arc::new(error);
        let may_have_happened = !matches!(self.reopen().await, Ok(last) if last == self.last_epoch);
        let refusal = || match may_have_happened {
            true => PipelineError::Indeterminate(Arc::clone(&error)),
            false => PipelineError::NotDurable(Arc::clone(&error)),
        };
        answers.into_iter().for_each(|answer: Answer| answer(Err(refusal())));
        if may_have_happened {
            claims.into_iter().for_each(Claim::accepted);
            return Err(refusal());
        }
        drop(claims);
        // Clients send their requests again; internal ones are retried here.
        let later = std::mem::take(&mut self.later);
        self.later = internal.into_iter().chain(later).collect();
        tokio::time::sleep(RETRY_WAIT).await;
        Ok(())
    }

    /// Reopens the metadata database after an error. Returns its last epoch.
    async fn reopen(&mut self) -> Result<u64, MetadataError> {
        let until = Instant::now() + REOPEN_WAIT;
        loop {
            let dialect = self.writer.dialect();
            let reopen = async {
                self.writer.reopen().await?;
                self.writer.last_epoch().await
            };
            let reopened = dialect.limited(reopen).await;
            match reopened {
                Err(MetadataError::Fenced { .. }) => return reopened,
                Err(_) if Instant::now() < until => tokio::time::sleep(RETRY_WAIT).await,
                reopened => return reopened,
            }
        }
    }
}

//! The pipeline's end that does the work: it gathers requests into rounds and feeds what they change.

use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Dataflow, Recall};
use argus_query::Engine;
use argus_sinks::{Snapshot, crash};
use imbl::HashSet;
use metrics::gauge;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::PipelineError;
use super::apply::{Answer, apply};
use super::backlog::{Backlog, weight_of_text};
use super::loading::{Loaded, Loading, Ready};
use super::request::Request;
use crate::followers::Followers;
use crate::growing::Growing;
use crate::ingest::{Claim, Ingest, origin};
use crate::metadata::{Committed, Metadata, MetadataError, MetadataWriter};
use crate::recovery::follow_held;

/// Requests that form one round at the most.
const ROUND_MAX: usize = 256;

/// How long the pipeline waits after a round that could not be made durable.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How often the pipeline tries to open the metadata again before it gives up.
const REOPEN_TRIES: u32 = 20;

/// The pipeline's end that does the work.
pub struct Sequencer {
    requests: mpsc::Receiver<Request>,
    /// What earlier rounds left to do, before anything that arrives.
    later: Vec<Request>,
    writer: MetadataWriter,
    /// The epoch of the last round that changed something.
    last_epoch: u64,
    /// The batches that the dataflow holds; others are loaded before something happens to them.
    held: HashSet<Uuid>,
    loading: Loading,
    /// The files that must not grow yet.
    growing: Growing,
    backlog: Backlog,
    downstream: Downstream,
}

/// What the pipeline feeds, and what it asks.
pub struct Downstream {
    /// Is fed.
    pub dataflow: Dataflow,
    /// Feeds appended lines.
    pub ingest: Ingest,
    /// Looks up what unloaded batches have.
    pub engine: Engine,
    /// Knows how batches stand.
    pub metadata: Metadata,
    /// Shows the epochs that the dataflow has closed.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Are woken by what happens to their batch.
    pub followers: Followers,
}

/// What a round is made of.
#[derive(Default)]
struct Gathered {
    recalls: Vec<Recall>,
    requests: Vec<Request>,
}

impl Sequencer {
    /// The end that works off `requests`, and goes on after `last_epoch` when the dataflow holds the batches that
    /// are `held`.
    pub(super) fn new(
        requests: mpsc::Receiver<Request>,
        writer: MetadataWriter,
        last_epoch: u64,
        held: HashSet<Uuid>,
        downstream: Downstream,
    ) -> Sequencer {
        let Downstream { engine, metadata, snapshots, .. } = &downstream;
        let loading = Loading::new(engine.clone(), metadata.clone(), snapshots.clone());
        let (later, growing, backlog) = (Vec::new(), Growing::default(), Backlog::default());
        Sequencer { requests, later, writer, last_epoch, held, loading, growing, backlog, downstream }
    }

    /// Works until `closing` is told, and then until nothing waits any more.
    /// After an error the process must end: what was answered is durable, and
    /// a restart feeds it again.
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
                    // Whoever would tell and is gone has told.
                    _ = &mut closing, if open => {
                        open = false;
                        self.requests.close();
                    }
                }
            }
            let gathered = self.gather(loaded, arrived);
            if !gathered.recalls.is_empty() || !gathered.requests.is_empty() {
                self.round(gathered).await?;
            }
        }
    }

    /// What can be done now. Requests for batches that the dataflow does not hold are parked while those are loaded;
    /// what is too much for one round, and what happens to a batch behind its completion, waits for the next.
    fn gather(&mut self, loaded: Vec<Loaded>, arrived: Vec<Request>) -> Gathered {
        let mut gathered = Gathered::default();
        let mut vehicles = Vec::new();
        let mut waiting = Vec::new();
        for one in loaded {
            match self.loading.take(one, &vehicles, &self.held, self.last_epoch) {
                Ready::With(recall, requests) => {
                    vehicles.push(recall.batch.vin.clone());
                    self.held.insert(recall.batch.batch_id);
                    gathered.recalls.push(*recall);
                    waiting.extend(requests);
                }
                Ready::Without(mut requests) => {
                    let rest = requests.split_off(1.min(requests.len()));
                    gathered.requests.extend(requests);
                    waiting.extend(rest);
                }
                Ready::NotYet => {}
            }
        }
        // The dataflow takes recalled batches in this order.
        gathered.recalls.sort_by_key(|recall| recall.batch.batch_id);
        let mut completed = HashSet::new();
        let mut bytes = 0;
        for request in waiting.into_iter().chain(arrived) {
            bytes += match &request {
                Request::AcceptFile { upload, .. } => weight_of_text(upload.bytes),
                Request::Append { part, .. } => weight_of_text(part.bytes.len() as u64),
                _ => 0,
            };
            let is_first = gathered.requests.is_empty();
            let changes = request.changes();
            let waits = changes.is_some_and(|(batch_id, _)| completed.contains(&batch_id));
            if waits || !self.later.is_empty() || !(is_first || Backlog::fits_one_round(bytes)) {
                // In order: what waits holds up all behind it.
                self.later.push(request);
                continue;
            }
            match changes {
                Some((batch_id, possible)) if !self.held.contains(&batch_id) => {
                    self.loading.park(request, (batch_id, possible), &self.held, self.last_epoch);
                    continue;
                }
                _ => {}
            }
            if let Request::Complete { batch_id, .. } = &request {
                completed.insert(*batch_id);
            }
            gathered.requests.push(request);
        }
        gathered
    }

    async fn round(&mut self, gathered: Gathered) -> Result<(), PipelineError> {
        self.backlog.room(&mut self.downstream.snapshots).await.map_err(|_| PipelineError::Stopping)?;
        let Gathered { recalls, requests } = gathered;
        let own: Vec<Request> = requests.iter().filter_map(Request::own).collect();
        let recalled: Vec<(Uuid, String)> =
            recalls.iter().map(|recall| (recall.batch.batch_id, recall.batch.vin.clone())).collect();
        let (mut answers, mut claims) = (Vec::new(), Vec::new());
        let written = async {
            let mut round = self.writer.begin(self.last_epoch).await?;
            recalls.into_iter().for_each(|recall| round.recall(recall));
            for request in requests {
                answers.extend(apply(&mut round, request, &mut claims).await?);
            }
            let epoch = round.epoch();
            Ok::<_, MetadataError>((epoch, round.commit().await?))
        };
        let (epoch, committed) = match written.await {
            Ok(written) => written,
            Err(error) => {
                for (batch_id, vin) in &recalled {
                    self.held.remove(batch_id);
                    self.loading.vehicle_changed(vin);
                }
                return self.not_durable(error, answers, claims, own).await;
            }
        };
        // Whatever happens from here on, a restart needs the bytes.
        claims.into_iter().for_each(Claim::accepted);
        crash::point("metadata written");
        let Committed { changes, lines, told } = committed;
        if !changes.is_empty() {
            for (file, text) in &lines {
                let settled = self.growing.settled(file.version, &mut self.downstream.snapshots).await;
                settled.map_err(|_| PipelineError::Stopping)?;
                let fed = self.downstream.ingest.feed_text(origin(file), text).await;
                fed.map_err(|_| PipelineError::Stopping)?;
            }
            changes.iter().for_each(|change| follow_held(&mut self.held, change));
            self.loading.follow(&changes);
            self.growing.admitted(epoch, &changes, self.downstream.snapshots.borrow().epoch);
            self.backlog.add(epoch, &changes);
            self.downstream.dataflow.advance(epoch, changes).map_err(|_| PipelineError::Stopping)?;
            crash::point("fed");
            self.last_epoch = epoch;
            gauge!("argus_epoch").set(epoch as f64);
        }
        self.downstream.followers.wake(told);
        answers.into_iter().for_each(|answer| answer(Ok(())));
        crash::point("acknowledged");
        Ok(())
    }

    /// Answers a round that could not be written. A commit that failed may have happened: where the metadata do not say
    /// that it did not, only a restart tells, which feeds whatever did.
    async fn not_durable(
        &mut self,
        error: MetadataError,
        answers: Vec<Answer>,
        claims: Vec<Claim>,
        own: Vec<Request>,
    ) -> Result<(), PipelineError> {
        tracing::error!(error = &error as &dyn std::error::Error, "a round of changes is not durable");
        let error = Arc::new(error);
        let happened = !matches!(self.reopen().await, Ok(last) if last == self.last_epoch);
        let refusal = || match happened {
            true => PipelineError::Indeterminate(Arc::clone(&error)),
            false => PipelineError::NotDurable(Arc::clone(&error)),
        };
        answers.into_iter().for_each(|answer: Answer| answer(Err(refusal())));
        if happened {
            claims.into_iter().for_each(Claim::accepted);
            return Err(refusal());
        }
        drop(claims);
        // Clients ask again; what we ask of ourselves stays.
        let later = std::mem::take(&mut self.later);
        self.later = own.into_iter().chain(later).collect();
        tokio::time::sleep(RETRY_WAIT).await;
        Ok(())
    }

    /// Begins anew with the metadata after an error; says the last epoch that they hold.
    async fn reopen(&mut self) -> Result<u64, MetadataError> {
        let mut tries = REOPEN_TRIES;
        loop {
            let reopened = match self.writer.reopen().await {
                Ok(()) => self.writer.last_epoch().await,
                Err(error) => Err(error),
            };
            tries -= 1;
            match reopened {
                Err(_) if tries > 0 => tokio::time::sleep(RETRY_WAIT).await,
                reopened => return reopened,
            }
        }
    }
}

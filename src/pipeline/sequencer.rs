//! The pipeline's end that does the work: it gathers requests into rounds and feeds what they change.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Dataflow, Recall};
use argus_query::{Engine, cells};
use argus_sinks::{Snapshot, crash};
use metrics::gauge;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::PipelineError;
use super::apply::{Answer, apply};
use super::request::{IsPossible, Request};
use crate::events::EventLogWriter;
use crate::growing::Growing;
use crate::ingest::{Ingest, origin};
use crate::metadata::{Committed, Metadata, MetadataError, MetadataWriter};
use crate::raw::RawStore;
use crate::recovery::follow_warmth;

/// Requests that form one round at the most.
const ROUND_MAX: usize = 256;

/// How long the pipeline waits after a round that could not be made durable.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How often the pipeline tries to open the metadata again before it gives up.
const REOPEN_TRIES: u32 = 20;

/// Epochs that may be sealed and not closed; at the limit, rounds wait.
const OPEN_EPOCHS_MAX: u64 = 1024;

/// The pipeline's end that does the work.
pub struct Sequencer {
    requests: mpsc::Receiver<Request>,
    /// What earlier rounds left to do, before anything that arrives.
    follow_ups: Vec<Request>,
    writer: MetadataWriter,
    /// The epoch of the last round that changed something.
    last_epoch: u64,
    /// The batches that the dataflow holds; others are recalled before something happens to them.
    warm: HashSet<Uuid>,
    /// The files that must not grow yet.
    growing: Growing,
    downstream: Downstream,
}

/// What the pipeline feeds, and what it asks.
pub struct Downstream {
    /// Is fed.
    pub dataflow: Dataflow,
    /// Feeds appended lines.
    pub ingest: Ingest,
    /// Holds the bytes that are deleted with what was taken back.
    pub raw: RawStore,
    /// Knows what batches had that are recalled.
    pub engine: Engine,
    /// Knows how batches stand.
    pub metadata: Metadata,
    /// Shows the epochs that the dataflow has closed.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Is told what happened.
    pub events: EventLogWriter,
}

impl Sequencer {
    /// The end that works off `requests`, and goes on after `last_epoch` when the dataflow holds the batches that
    /// are `warm`.
    pub(super) fn new(
        requests: mpsc::Receiver<Request>,
        writer: MetadataWriter,
        last_epoch: u64,
        warm: HashSet<Uuid>,
        downstream: Downstream,
    ) -> Sequencer {
        let (follow_ups, growing) = (Vec::new(), Growing::default());
        Sequencer { requests, follow_ups, writer, last_epoch, warm, growing, downstream }
    }

    /// Works until `closing` is told, and then until nothing waits any more.
    /// After an error the process must end: what was answered is durable, and
    /// a restart feeds it again.
    pub async fn run(mut self, mut closing: oneshot::Receiver<()>) -> Result<(), PipelineError> {
        let mut open = true;
        loop {
            let mut round = std::mem::take(&mut self.follow_ups);
            while round.len() < ROUND_MAX
                && let Ok(request) = self.requests.try_recv()
            {
                round.push(request);
            }
            if round.is_empty() {
                tokio::select! {
                    biased;
                    count = self.requests.recv_many(&mut round, ROUND_MAX) => if count == 0 {
                        return Ok(());
                    },
                    // Whoever would tell and is gone has told.
                    _ = &mut closing, if open => {
                        open = false;
                        self.requests.close();
                    }
                }
            }
            if round.is_empty() {
                continue;
            }
            self.round(round).await?;
        }
    }

    async fn round(&mut self, requests: Vec<Request>) -> Result<(), PipelineError> {
        let (requests, later) = until_completions(requests);
        let own: Vec<Request> = requests.iter().filter_map(Request::own).collect();
        let recalls = match self.recalls(&requests).await {
            Ok(recalls) => recalls,
            Err(error) => {
                // Whoever asked is told to ask again.
                tracing::error!(error = &*error as &dyn std::error::Error, "what a batch had could not be read");
                self.follow_ups = own.into_iter().chain(later).collect();
                tokio::time::sleep(RETRY_WAIT).await;
                return Ok(());
            }
        };
        let mut answers = Vec::new();
        let mut follow_ups = Vec::new();
        let mut committed = None;
        let mut forgotten = Vec::new();
        let written = async {
            let mut round = self.writer.begin(self.last_epoch).await?;
            recalls.into_iter().for_each(|recall| round.recall(recall));
            for request in requests {
                let outcome = apply(&mut round, request).await?;
                answers.extend(outcome.answer);
                follow_ups.extend(outcome.follow_up);
                committed = committed.max(outcome.committed);
                forgotten.extend(outcome.forgotten);
            }
            let epoch = round.epoch();
            Ok::<_, MetadataError>((epoch, round.commit().await?))
        };
        let (epoch, Committed { changes, lines, has_events }) = match written.await {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a round of changes is not durable");
                let error = Arc::new(error);
                let not_durable = || PipelineError::NotDurable(Arc::clone(&error));
                answers.into_iter().for_each(|answer: Answer| answer(Err(not_durable())));
                // A commit that failed may have happened. Where the metadata do not say that it
                // did not, only a restart tells, which feeds whatever did.
                return match self.reopen().await {
                    Ok(last) if last == self.last_epoch => {
                        // Clients ask again; what we ask of ourselves we keep.
                        self.follow_ups = own.into_iter().chain(later).collect();
                        tokio::time::sleep(RETRY_WAIT).await;
                        Ok(())
                    }
                    _ => Err(not_durable()),
                };
            }
        };
        crash::point("metadata written");
        if !changes.is_empty() {
            let near_enough = |snapshot: &Arc<Snapshot>| snapshot.epoch + OPEN_EPOCHS_MAX >= epoch;
            self.downstream.snapshots.wait_for(near_enough).await.map_err(|_| PipelineError::Stopping)?;
            for (file, text) in &lines {
                let settled = self.growing.settled(file.version, &mut self.downstream.snapshots).await;
                settled.map_err(|_| PipelineError::Stopping)?;
                let fed = self.downstream.ingest.feed_text(origin(file), text).await;
                fed.map_err(|_| PipelineError::Stopping)?;
            }
            changes.iter().for_each(|change| follow_warmth(&mut self.warm, change));
            self.growing.admitted(epoch, &changes, self.downstream.snapshots.borrow().epoch);
            self.downstream.dataflow.advance(epoch, changes).map_err(|_| PipelineError::Stopping)?;
            crash::point("fed");
            self.last_epoch = epoch;
            gauge!("argus_epoch").set(epoch as f64);
        }
        if has_events {
            self.downstream.events.written();
        }
        self.follow_ups = follow_ups.into_iter().chain(later).collect();
        answers.into_iter().for_each(|answer| answer(Ok(())));
        crash::point("acknowledged");
        if let Some(epoch) = committed {
            self.forget(epoch).await;
        }
        for reply in forgotten {
            // Whoever waited may have gone away.
            let _ = reply.send(());
        }
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

    /// What batches had that something happens to now and that the dataflow does not hold.
    async fn recalls(&mut self, requests: &[Request]) -> Result<Vec<Recall>, Box<dyn std::error::Error + Send + Sync>> {
        let mut recalls = Vec::new();
        let mut recalled = HashSet::new();
        let mut changes: Vec<(Uuid, IsPossible)> = requests.iter().filter_map(Request::changes).collect();
        // The dataflow takes them in this order, each read beside those before it.
        changes.sort_by_key(|(batch_id, _)| *batch_id);
        for (batch_id, is_possible) in changes {
            if self.warm.contains(&batch_id) || recalled.contains(&batch_id) {
                continue;
            }
            match self.downstream.metadata.batch(batch_id).await? {
                Some(batch) if is_possible(batch.status) => {}
                _ => continue,
            }
            // What was accepted before must be among what is read.
            let seen = |snapshot: &Arc<Snapshot>| snapshot.epoch >= self.last_epoch;
            let snapshot = Arc::clone(&*self.downstream.snapshots.wait_for(seen).await?);
            let warm = |id: &Uuid| self.warm.contains(id) || recalled.contains(id);
            if let Some(recall) = cells::recall(&self.downstream.engine, &snapshot, batch_id, warm).await? {
                recalled.insert(batch_id);
                recalls.push(recall);
            }
        }
        Ok(recalls)
    }

    /// Lets go of what a restart would not need any more. What cannot be let
    /// go now is let go with a later commit.
    async fn forget(&mut self, epoch: u64) {
        let forgotten = async {
            for (batch_id, version) in self.writer.withdrawn(epoch).await? {
                let mut gone = self.downstream.raw.delete(batch_id, version).await;
                for start in self.writer.appended_objects(version).await? {
                    gone = gone.and(self.downstream.raw.delete_part(batch_id, version, start).await);
                }
                match gone {
                    Ok(()) => self.writer.forget_appended(version).await?,
                    Err(error) => tracing::warn!(%error, "bytes of a replaced file stay in the raw store"),
                }
            }
            self.writer.forget_journal(epoch).await
        };
        if let Err(error) = forgotten.await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the journal keeps epochs that the lake holds");
        }
    }
}

/// The requests of one round, and those that must wait for the next: a batch
/// is at rest from its completion on, and comes back between two rounds only.
fn until_completions(requests: Vec<Request>) -> (Vec<Request>, Vec<Request>) {
    let mut completed = HashSet::new();
    requests.into_iter().partition(|request| {
        let id = request.changes().map(|(id, _)| id);
        let now = id.is_none_or(|id| !completed.contains(&id));
        if let Request::Complete { batch_id, .. } = request {
            completed.insert(*batch_id);
        }
        now
    })
}

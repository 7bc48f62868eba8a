//! The one place where changes are accepted: request → epoch → journal →
//! dataflow → answer.
//!
//! Requests that arrive together form a round: one transaction, one sync of
//! the disk, one epoch. An answer goes out when the round is durable. Only
//! then is the epoch fed and sealed, so whatever the dataflow knows can be fed
//! again after a crash.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Dataflow, Recall, VersionId};
use argus_query::{Engine, cells};
use argus_sinks::{Snapshot, crash};
use chrono::Utc;
use metrics::gauge;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::events::{EventKind, EventLogWriter};
use crate::growing::Growing;
use crate::ingest::{Ingest, origin};
use crate::metadata::{Accepted, Committed, Metadata, MetadataError, MetadataWriter, Refused, Round, UploadKey};
use crate::model::{Batch, NewBatch, Part, StoredUpload};
use crate::raw::RawStore;
use crate::recovery::follow_warmth;
use crate::status::{BatchEvent, BatchStatus};

/// Requests that form one round at the most.
const ROUND_MAX: usize = 256;

/// Requests that may wait; at the limit, whoever asks waits.
const WAITING_MAX: usize = 1024;

/// How long the pipeline waits after a round that could not be made durable.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// How often the pipeline tries to open the metadata again before it gives up.
const REOPEN_TRIES: u32 = 20;

/// Epochs that may be sealed and not closed; at the limit, rounds wait.
const OPEN_EPOCHS_MAX: u64 = 1024;

/// Now, in microseconds since 1970.
pub fn now() -> i64 {
    Utc::now().timestamp_micros()
}

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum PipelineError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the change could not be made durable; it may be sent again")]
    NotDurable(#[source] Arc<MetadataError>),
    #[error("the change was not taken; it may be sent again")]
    Stopping,
}

enum Request {
    CreateBatch {
        described: NewBatch,
        key: Option<String>,
        reply: Reply<Batch>,
    },
    AcceptFile {
        upload: StoredUpload,
        key: Option<UploadKey>,
        reply: Reply<Accepted>,
    },
    Append {
        part: Part,
        offset: Option<u64>,
        key: Option<UploadKey>,
        reply: Reply<Accepted>,
    },
    Complete {
        batch_id: Uuid,
        reply: Reply<Batch>,
    },
    Reopen {
        batch_id: Uuid,
        reply: Reply<Batch>,
    },
    DeleteFile {
        batch_id: Uuid,
        name: String,
        reply: Reply<u64>,
    },
    DeleteBatch {
        batch_id: Uuid,
        reply: Reply<u64>,
    },
    /// Blocks were fed for a generation that nobody will accept.
    Abandon {
        version: VersionId,
    },
    /// The blocks of a completed batch are fed and its epoch is sealed.
    Scattered {
        batch_id: Uuid,
    },
    /// A closed epoch has the counts of a generation of a file.
    Parsed {
        batch_id: Uuid,
        file: String,
        generation: u32,
    },
    /// The frontier has passed the epoch of a completed batch.
    Gathered {
        batch_id: Uuid,
        totals: Gathered,
    },
    /// The lake holds everything up to an epoch.
    Committed {
        epoch: u64,
        forgotten: Option<oneshot::Sender<()>>,
    },
    /// The raw store holds what was appended to a version between two offsets; says whether it is still wanted.
    PartsAreStored {
        version: VersionId,
        start: u64,
        last_start: u64,
        reply: Reply<bool>,
    },
    /// Nobody needs keys and times of epochs from before these times.
    ForgetBefore {
        keys: i64,
        epochs: i64,
    },
}

/// In which statuses of a batch something can happen to it.
type IsPossible = fn(BatchStatus) -> bool;

impl Request {
    /// The batch whose counts it changes, and in which statuses of it that is possible.
    fn changes(&self) -> Option<(Uuid, IsPossible)> {
        match self {
            Request::AcceptFile { upload: StoredUpload { batch_id, .. }, .. }
            | Request::Append { part: Part { batch_id, .. }, .. }
            | Request::DeleteFile { batch_id, .. }
            | Request::Complete { batch_id, .. } => Some((*batch_id, |status| status == BatchStatus::Pending)),
            Request::Reopen { batch_id, .. } => Some((*batch_id, BatchStatus::is_at_rest)),
            Request::DeleteBatch { batch_id, .. } => Some((*batch_id, |_| true)),
            _ => None,
        }
    }

    /// The same request, when it is one that nobody outside waits for.
    fn own(&self) -> Option<Request> {
        match self {
            Request::CreateBatch { .. }
            | Request::AcceptFile { .. }
            | Request::Append { .. }
            | Request::Complete { .. }
            | Request::Reopen { .. }
            | Request::DeleteFile { .. }
            | Request::DeleteBatch { .. }
            | Request::PartsAreStored { .. } => None,
            Request::Abandon { version } => Some(Request::Abandon { version: *version }),
            Request::Scattered { batch_id } => Some(Request::Scattered { batch_id: *batch_id }),
            Request::Parsed { batch_id, file, generation } => {
                Some(Request::Parsed { batch_id: *batch_id, file: file.clone(), generation: *generation })
            }
            Request::Gathered { batch_id, totals } => Some(Request::Gathered { batch_id: *batch_id, totals: *totals }),
            Request::Committed { epoch, .. } => Some(Request::Committed { epoch: *epoch, forgotten: None }),
            Request::ForgetBefore { keys, epochs } => Some(Request::ForgetBefore { keys: *keys, epochs: *epochs }),
        }
    }
}

/// What a batch came to when it was gathered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Lines of its files.
    pub total_lines: u64,
    /// Different codes in them.
    pub error_codes: u64,
}

type Reply<T> = oneshot::Sender<Result<T, PipelineError>>;

/// Asks the pipeline. Clones ask the same one; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct Pipeline {
    requests: mpsc::Sender<Request>,
}

/// Tells the pipeline what happened downstream, while it works.
#[derive(Clone, Debug)]
pub struct WeakPipeline {
    requests: mpsc::WeakSender<Request>,
}

impl WeakPipeline {
    /// The frontier has passed the epoch at which the batch was completed.
    pub async fn gathered(&self, batch_id: Uuid, totals: Gathered) {
        self.tell(Request::Gathered { batch_id, totals }).await;
    }

    /// A closed epoch has the counts of a generation of a file.
    pub async fn parsed(&self, batch_id: Uuid, file: String, generation: u32) {
        self.tell(Request::Parsed { batch_id, file, generation }).await;
    }

    /// The lake holds everything up to `epoch`.
    pub async fn committed(&self, epoch: u64) {
        self.tell(Request::Committed { epoch, forgotten: None }).await;
    }

    /// The lake holds everything up to `epoch`; returns when the bytes of what was taken back by then are gone.
    pub async fn forget_committed(&self, epoch: u64) {
        let (forgotten, done) = oneshot::channel();
        self.tell(Request::Committed { epoch, forgotten: Some(forgotten) }).await;
        // A round that failed is done again, without telling.
        let _ = done.await;
    }

    /// The raw store holds what was appended to a version from `start` to the part at `last_start`.
    /// Says whether it is still wanted.
    pub async fn parts_are_stored(&self, version: VersionId, start: u64, last_start: u64) -> bool {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::PartsAreStored { version, start, last_start, reply }).await;
        // Without an answer it may be wanted.
        !matches!(answer.await, Ok(Ok(false)))
    }

    /// Forgets idempotency keys and times of epochs from before these times (microseconds since 1970).
    pub async fn forget_before(&self, keys: i64, epochs: i64) {
        self.tell(Request::ForgetBefore { keys, epochs }).await;
    }

    async fn tell(&self, request: Request) {
        if let Some(requests) = self.requests.upgrade() {
            // A pipeline that has ended learns of it on the next start.
            let _ = requests.send(request).await;
        }
    }
}

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

impl Pipeline {
    /// A pipeline that goes on after `last_epoch`, when the dataflow holds the batches that are `warm`,
    /// and its working end.
    pub fn new(
        writer: MetadataWriter,
        last_epoch: u64,
        warm: HashSet<Uuid>,
        downstream: Downstream,
    ) -> (Pipeline, Sequencer) {
        let (sender, requests) = mpsc::channel(WAITING_MAX);
        let sequencer = Sequencer {
            requests,
            follow_ups: Vec::new(),
            writer,
            last_epoch,
            warm,
            growing: Growing::default(),
            downstream,
        };
        (Pipeline { requests: sender }, sequencer)
    }

    /// Makes a batch; a key that was used before answers the batch made then.
    pub async fn create_batch(&self, described: NewBatch, key: Option<String>) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::CreateBatch { described, key, reply }).await
    }

    /// Accepts an upload whose bytes are durable and whose blocks are fed.
    pub async fn accept_file(&self, upload: StoredUpload, key: Option<UploadKey>) -> Result<Accepted, PipelineError> {
        self.ask(|reply| Request::AcceptFile { upload, key, reply }).await
    }

    /// Appends to a file, at `offset` where that is said.
    pub async fn append(
        &self,
        part: Part,
        offset: Option<u64>,
        key: Option<UploadKey>,
    ) -> Result<Accepted, PipelineError> {
        self.ask(|reply| Request::Append { part, offset, key, reply }).await
    }

    /// Opens a completed batch again.
    pub async fn reopen(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::Reopen { batch_id, reply }).await
    }

    /// Takes a file out of a pending batch; says the epoch from which no reader sees it.
    pub async fn delete_file(&self, batch_id: Uuid, name: String) -> Result<u64, PipelineError> {
        self.ask(|reply| Request::DeleteFile { batch_id, name, reply }).await
    }

    /// Takes a batch with all its files out; says the epoch from which no reader sees it.
    pub async fn delete_batch(&self, batch_id: Uuid) -> Result<u64, PipelineError> {
        self.ask(|reply| Request::DeleteBatch { batch_id, reply }).await
    }

    /// Has the dataflow forget the blocks of a generation that was not accepted.
    pub async fn abandon(&self, version: VersionId) -> Result<(), PipelineError> {
        self.tell(Request::Abandon { version }).await
    }

    /// Completes a batch.
    pub async fn complete(&self, batch_id: Uuid) -> Result<Batch, PipelineError> {
        self.ask(|reply| Request::Complete { batch_id, reply }).await
    }

    /// Takes on a batch that was completed before a restart and whose epoch has been fed again.
    pub async fn scattered(&self, batch_id: Uuid) -> Result<(), PipelineError> {
        self.tell(Request::Scattered { batch_id }).await
    }

    /// A way to tell the pipeline something that does not keep it from ending.
    pub fn downgrade(&self) -> WeakPipeline {
        WeakPipeline { requests: self.requests.downgrade() }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, PipelineError> {
        let (reply, answer) = oneshot::channel();
        self.tell(request(reply)).await?;
        answer.await.map_err(|_| PipelineError::Stopping)?
    }

    async fn tell(&self, request: Request) -> Result<(), PipelineError> {
        self.requests.send(request).await.map_err(|_| PipelineError::Stopping)
    }
}

/// Says how a request ended, once its round is durable or is known not to be.
type Answer = Box<dyn FnOnce(Result<(), PipelineError>) + Send>;

/// What a request leads to when its round is durable.
#[derive(Default)]
struct Outcome {
    answer: Option<Answer>,
    follow_up: Option<Request>,
    committed: Option<u64>,
    /// Told when what is committed has been forgotten.
    forgotten: Option<oneshot::Sender<()>>,
}

impl Sequencer {
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

/// Applies a request to the round. An error is the round's: nothing of it will be durable.
async fn apply(round: &mut Round<'_>, request: Request) -> Result<Outcome, MetadataError> {
    Ok(match request {
        Request::CreateBatch { described, key, reply } => {
            let result = round.create_batch(described, key.as_deref(), now()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::AcceptFile { upload, key, reply } => {
            let result = round.accept_file(&upload, key.as_ref()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::Append { part, offset, key, reply } => {
            let result = round.append(&part, offset, key.as_ref()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::Complete { batch_id, reply } => {
            let result = round.complete(batch_id, now()).await;
            let follow_up = result.is_ok().then_some(Request::Scattered { batch_id });
            Outcome { answer: Some(answer(reply, result)?), follow_up, ..Outcome::default() }
        }
        Request::Reopen { batch_id, reply } => {
            let result = round.reopen(batch_id, now()).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::DeleteFile { batch_id, name, reply } => {
            let result = round.delete_file(batch_id, &name, now()).await.map(|()| round.epoch());
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::DeleteBatch { batch_id, reply } => {
            let result = round.delete_batch(batch_id).await.map(|()| round.epoch());
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::Abandon { version } => {
            round.abandon(version);
            Outcome::default()
        }
        Request::Scattered { batch_id } => {
            let events = [
                (BatchEvent::ScatterBegan, None),
                (BatchEvent::AllFilesScattered, Some(EventKind::AllFilesScattered)),
                (BatchEvent::GatherBegan, None),
            ];
            pass(round, batch_id, &events).await?;
            Outcome::default()
        }
        Request::Parsed { batch_id, file, generation } => {
            round.parsed(batch_id, file, generation, now()).await?;
            Outcome::default()
        }
        Request::Gathered { batch_id, totals: Gathered { total_lines, error_codes } } => {
            // Nothing makes a diagnosis yet, so it is done, without one, at once.
            let events = [
                (BatchEvent::AllFilesGathered, Some(EventKind::AllFilesGathered { total_lines, error_codes })),
                (BatchEvent::DiagnosisBegan, None),
                (BatchEvent::DiagnosisCompleted, None),
            ];
            pass(round, batch_id, &events).await?;
            Outcome::default()
        }
        Request::Committed { epoch, forgotten } => Outcome { committed: Some(epoch), forgotten, ..Outcome::default() },
        Request::PartsAreStored { version, start, last_start, reply } => {
            let result = round.parts_are_stored(version, start, last_start).await;
            Outcome { answer: Some(answer(reply, result)?), ..Outcome::default() }
        }
        Request::ForgetBefore { keys, epochs } => {
            round.forget_before(keys, epochs).await?;
            Outcome::default()
        }
    })
}

fn answer<T: Send + 'static>(reply: Reply<T>, result: Result<T, Refused>) -> Result<Answer, MetadataError> {
    let result = match result {
        Err(Refused::Metadata(error)) => return Err(error),
        result => result.map_err(PipelineError::from),
    };
    Ok(Box::new(move |durable| {
        // Whoever asked may have gone away; what happened has happened.
        let _ = reply.send(durable.and(result));
    }))
}

async fn pass(
    round: &mut Round<'_>,
    batch_id: Uuid,
    events: &[(BatchEvent, Option<EventKind>)],
) -> Result<(), MetadataError> {
    match round.pass(batch_id, events, now()).await {
        Ok(()) => Ok(()),
        Err(Refused::Metadata(error)) => Err(error),
        Err(refused) => {
            tracing::warn!(batch.id = %batch_id, %refused, "a batch did not move on");
            Ok(())
        }
    }
}

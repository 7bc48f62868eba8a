//! The events of a batch, as server-sent events.
//!
//! `status`, `diagnosis` and the final `report` events come from the event log;
//! `progress` events and `report` events before it come from the snapshot that readers
//! see. A `report` event has the codes that changed since the one before it. An event's
//! id has the position in the log and the epoch of the snapshot, `POSITION-EPOCH`, so
//! that `Last-Event-ID` resumes without a gap. A follower is woken when its batch
//! changes, and ends when the batch is deleted.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as SseEvent, KeepAlive};
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::access::{Access, Caller};
use crate::answers::answer::AnswerError;
use crate::answers::event_details::{EventDetails, EventDetailsError};
use crate::answers::report_changes::{CodeCounts, ReportChanges};
use crate::answers::reports::{CachedReport, Reports};
use crate::app::Service;
use crate::assistant::Assistant;
use crate::domain::batch::Batch;
use crate::domain::event::{Event, EventKind};
use crate::http::error_responses::{Invalid, NotFound};
use crate::http::extract::Segments;
use crate::http::problem::{Problem, batch_id};
use crate::http::routes::report::ProgressBody;
use crate::metadata::{Metadata, MetadataError};
use crate::pipeline::followers::{Follower, Followers};
use crate::shutdown::Stopping;

/// The keep-alive interval: a comment is sent if there was no event for this long.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events read at once.
pub(super) const PAGE: u32 = 100;
/// The shortest time between two `report` events of a batch that is not gathered.
const REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct EventsContext {
    metadata: Metadata,
    reports: Reports,
    details: EventDetails,
    assistant: Option<Assistant>,
    access: Access,
    followers: Followers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<Stopping>,
}

/// `/batches/{id}/events`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = EventsContext {
        metadata: service.metadata.clone(),
        reports: service.reports.clone(),
        details: service.event_details.clone(),
        assistant: service.assistant.clone(),
        access: service.access.clone(),
        followers: service.followers.clone(),
        snapshots: service.snapshots.clone(),
        stopping: service.stopping.clone(),
    };
    OpenApiRouter::new().routes(routes!(follow)).with_state(context)
}

/// The id of a server-sent event: how far a client has read.
#[derive(Debug, Clone, Copy, Default)]
struct EventId {
    position: i64,
    epoch: u64,
}

impl EventId {
    fn parse(text: &str) -> Option<EventId> {
        let (position, epoch) = text.split_once('-')?;
        Some(EventId { position: position.parse().ok()?, epoch: epoch.parse().ok()? })
    }

    fn text(self) -> String {
        format!("{}-{}", self.position, self.epoch)
    }
}

/// Follows the events of a batch.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/events",
    tag = "batches",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        (
            "Last-Event-ID" = Option<String>,
            Header,
            description = "the id of the last event received; the stream continues after it"
        ),
    ),
    responses(
        (
            status = 200,
            description = "a stream of events: `status`, `progress`, `report`, `diagnosis`. A `report` event has the \
                           codes that changed since the one before, with their counts now; `final` is true once the \
                           batch is gathered",
            body = String,
            content_type = "text/event-stream"
        ),
        NotFound, Invalid,
    ),
)]
async fn follow(
    State(context): State<EventsContext>,
    Segments(id): Segments<String>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Problem> {
    let id = batch_id(&id)?;
    let context_access = context.access.clone();
    context.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    let last_id = match headers.get("last-event-id").map(|value| value.to_str().ok().and_then(EventId::parse)) {
        None => EventId::default(),
        Some(Some(id)) => id,
        Some(None) => {
            return Err(Problem::invalid("the Last-Event-ID is invalid; omit it to start at the first event"));
        }
    };
    // Subscribe before the first read, so that no change between the two is missed.
    let changes = context.followers.follow(id);
    let report = LastReport { counts: CodeCounts::default(), due: Instant::now() };
    let (progress, ready) = (Value::Null, VecDeque::new());
    let reader = EventReader { context, id, changes, last_id, progress, report, explained: 0, ready, ended: false };
    let stream = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    let stream = stream.take_until(Box::pin(context_access.ended(caller.map(|Extension(caller)| caller))));
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Why events could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Details(#[from] EventDetailsError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Reads the events of a batch for one client.
struct EventReader {
    context: EventsContext,
    id: Uuid,
    changes: Follower,
    last_id: EventId,
    /// The progress sent last, without epoch and status.
    progress: Value,
    report: LastReport,
    /// The version of the explanation that was sent last.
    explained: u64,
    ready: VecDeque<SseEvent>,
    /// Whether the batch is deleted.
    ended: bool,
}

/// The report that was sent last.
struct LastReport {
    counts: CodeCounts,
    /// When the next one may be sent, if the batch is not gathered.
    due: Instant,
}

impl EventReader {
    /// The next event; `None` when the server stops or the batch is deleted.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.read().await {
                // The client reconnects with the last id that it has received.
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "an event stream was aborted: its events could not be read"
                );
                return None;
            }
            if self.ready.is_empty() && !self.ended {
                let EventReader { changes, context, report, .. } = self;
                let due = report.due;
                tokio::select! {
                    () = changes.changed() => {}
                    () = tokio::time::sleep_until(due), if due > Instant::now() => {}
                    _ = context.stopping.wait_for(|stopping| *stopping != Stopping::No) => return None,
                }
            }
        }
    }

    /// Reads what is new since the last id.
    async fn read(&mut self) -> Result<(), FollowError> {
        // The snapshot first: the metadata is never behind it.
        let snapshot = Arc::clone(&self.context.snapshots.borrow());
        let Some(batch) = self.context.metadata.batch(self.id).await? else {
            let data = json!({"batch_id": self.id, "status": "deleted", "epoch": snapshot.epoch});
            self.send("status", &data);
            self.ended = true;
            return Ok(());
        };
        // Send the progress of all files before the status that the batch is complete.
        self.read_progress(&batch, snapshot.epoch).await?;
        if !batch.status_at(snapshot.epoch).is_gathered() {
            self.read_report().await?;
        }
        self.read_events(&snapshot).await?;
        self.read_explanation(snapshot.epoch);
        Ok(())
    }

    /// Sends what a language model has written since the last read.
    fn read_explanation(&mut self, epoch: u64) {
        let Some(assistant) = &self.context.assistant else { return };
        let Some(live) = assistant.of(self.id).filter(|live| live.version > self.explained) else { return };
        self.explained = live.version;
        let data = json!({"batch_id": self.id, "epoch": epoch, "explanation": live.explanation});
        self.send("diagnosis", &data);
    }

    /// Sends the codes that changed since the last report, but not too often.
    async fn read_report(&mut self) -> Result<(), FollowError> {
        if self.report.due > Instant::now() {
            return Ok(());
        }
        let Some((report, changes)) = self.changes().await? else { return Ok(()) };
        // Once it is gathered, the event log has the report.
        if changes.is_final || changes.changed.is_empty() {
            return Ok(());
        }
        let mut data = json!(changes);
        data["batch_id"] = json!(self.id);
        data["epoch"] = json!(report.epoch());
        self.report = LastReport { counts: report.counts(), due: Instant::now() + REPORT_EVERY };
        self.send("report", &data);
        Ok(())
    }

    /// The report now, and how it differs from the last one; `None` if the batch is deleted.
    async fn changes(&self) -> Result<Option<(Arc<CachedReport>, ReportChanges)>, FollowError> {
        let report = match self.context.reports.counted(self.id).await {
            Err(AnswerError::NoBatch(_)) => return Ok(None),
            report => report?,
        };
        let changes = report.changes_since(&self.report.counts);
        Ok(Some((report, changes)))
    }

    /// Reads the event log, up to the first event that the frontier has not passed.
    async fn read_events(&mut self, snapshot: &Snapshot) -> Result<(), FollowError> {
        loop {
            let page = self.context.metadata.events(self.id, self.last_id.position, PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            for (position, mut event) in page {
                if event.kind.waits_for_frontier() && event.epoch > snapshot.epoch {
                    return Ok(());
                }
                let mut changes = None;
                if let EventKind::AllFilesGathered { total_lines, error_codes } = &mut event.kind {
                    // Without one, the batch is deleted: the next read says so.
                    let Some((report, now)) = self.changes().await? else { return Ok(()) };
                    (*total_lines, *error_codes) = (now.total_lines, now.error_codes);
                    self.report.counts = report.counts();
                    changes = Some(now);
                } else {
                    self.context.details.fill(&mut event, snapshot).await?;
                }
                self.last_id.position = position;
                if let Some((name, mut data)) = sse_event(&event) {
                    if let Some(changes) = changes {
                        merge(&mut data, json!(changes));
                    }
                    self.send(name, &data);
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    async fn read_progress(&mut self, batch: &Batch, epoch: u64) -> Result<(), FollowError> {
        if epoch <= self.last_id.epoch && !self.progress.is_null() {
            return Ok(());
        }
        let totals = self.context.metadata.file_totals(self.id, epoch).await?;
        let mut progress = json!(ProgressBody::new(batch, totals, epoch));
        self.last_id.epoch = epoch;
        // A change of the epoch or the status alone is not progress of the files.
        let data = progress.clone();
        progress["epoch"].take();
        progress["status"].take();
        if progress != self.progress {
            self.progress = progress;
            self.send("progress", &data);
        }
        Ok(())
    }

    fn send(&mut self, name: &str, data: &Value) {
        self.ready.push_back(SseEvent::default().event(name).id(self.last_id.text()).data(data.to_string()));
    }
}

/// Adds the fields of an object to another one.
fn merge(object: &mut Value, fields: Value) {
    if let (Value::Object(object), Value::Object(fields)) = (object, fields) {
        object.extend(fields);
    }
}

/// The name and data of the server-sent event for `event`, if it has one.
pub(super) fn sse_event(event: &Event) -> Option<(&'static str, Value)> {
    let name = match &event.kind {
        EventKind::BatchStatusChanged { to, .. } => {
            let mut data = json!(event);
            data["status"] = json!(to);
            return Some(("status", data));
        }
        EventKind::AllFilesGathered { .. } => "report",
        EventKind::DiagnosisCompleted { .. } => "diagnosis",
        _ => return None,
    };
    Some((name, json!(event)))
}

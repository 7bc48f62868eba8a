//! What happens to a batch, as server-sent events.
//!
//! `status` and `report` events come from the log of events; `progress` comes
//! from what readers see. An event's id is the place in both,
//! `POSITION-EPOCH`, so that `Last-Event-ID` resumes without a gap. A follower
//! is woken when its own batch changes, and ends with it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use argus_query::{Engine, QueryError, Report};
use argus_sinks::Snapshot;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as SseEvent, KeepAlive};
use futures::Stream;
use serde_json::{Value, json};
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::events::{Event, EventKind};
use crate::followers::{Follower, Followers};
use crate::http::extract::Segments;
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{Invalid, NotFound};
use crate::http::report::ProgressBody;
use crate::metadata::{Metadata, MetadataError};
use crate::model::Batch;
use crate::service::{Service, Stopping};

/// A comment goes out when there was nothing else for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events that are read at once.
const PAGE: u32 = 100;

#[derive(Clone)]
struct Parts {
    metadata: Metadata,
    engine: Engine,
    followers: Followers,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<Stopping>,
}

/// `/batches/{id}/events`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        metadata: service.metadata.clone(),
        engine: service.engine.clone(),
        followers: service.followers.clone(),
        snapshots: service.snapshots.clone(),
        stopping: service.stopping.clone(),
    };
    OpenApiRouter::new().routes(routes!(follow)).with_state(parts)
}

/// How far a follower has come.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    position: i64,
    epoch: u64,
}

impl Place {
    fn parse(text: &str) -> Option<Place> {
        let (position, epoch) = text.split_once('-')?;
        Some(Place { position: position.parse().ok()?, epoch: epoch.parse().ok()? })
    }

    fn id(self) -> String {
        format!("{}-{}", self.position, self.epoch)
    }
}

/// Follows what happens to a batch.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/events",
    tag = "batches",
    params(("id" = Uuid, Path, description = "the batch"), ("Last-Event-ID" = Option<String>, Header, description = "where to go on")),
    responses(
        (status = 200, description = "events: status, progress, report, diagnosis", body = String, content_type = "text/event-stream"),
        NotFound, Invalid,
    ),
)]
async fn follow(
    State(parts): State<Parts>,
    Segments(id): Segments<String>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Problem> {
    let id = batch_id(&id)?;
    parts.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    let place = match headers.get("last-event-id").map(|value| value.to_str().ok().and_then(Place::parse)) {
        None => Place::default(),
        Some(Some(place)) => place,
        Some(None) => return Err(Problem::invalid("the Last-Event-ID is not one of ours; begin without it")),
    };
    // First, so that nothing between this and the first reading is missed.
    let changes = parts.followers.follow(id);
    let reader = EventReader { parts, id, changes, place, progress: Value::Null, ready: VecDeque::new(), ended: false };
    let stream = futures::stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Why a follower cannot be told more for now.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// Reads the events of a batch on behalf of one client.
struct EventReader {
    parts: Parts,
    id: Uuid,
    changes: Follower,
    place: Place,
    /// The progress that was last sent.
    progress: Value,
    ready: VecDeque<SseEvent>,
    /// Whether the batch is gone.
    ended: bool,
}

impl EventReader {
    /// The next event; `None` when the server stops, or the batch is gone.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.read().await {
                // The client connects again with the last id that it has seen.
                tracing::error!(error = &error as &dyn std::error::Error, "a stream of events was interrupted");
                return None;
            }
            if self.ready.is_empty() && !self.ended {
                let EventReader { changes, parts, .. } = self;
                tokio::select! {
                    () = changes.changed() => {}
                    _ = parts.stopping.wait_for(|stopping| *stopping != Stopping::No) => return None,
                }
            }
        }
    }

    /// Reads what is new since the reader's place.
    async fn read(&mut self) -> Result<(), FollowError> {
        // What readers see first: the metadata are never behind it.
        let snapshot = Arc::clone(&self.parts.snapshots.borrow());
        let Some(batch) = self.parts.metadata.batch(self.id).await? else {
            let data = json!({"batch_id": self.id, "status": "deleted", "epoch": snapshot.epoch});
            self.send("status", &data);
            self.ended = true;
            return Ok(());
        };
        // What came to all of a batch is told before that it is complete.
        self.read_progress(&batch, snapshot.epoch).await?;
        self.read_events(&snapshot).await
    }

    /// Reads the log of events, up to the first that the frontier has not passed.
    async fn read_events(&mut self, snapshot: &Snapshot) -> Result<(), FollowError> {
        loop {
            let page = self.parts.metadata.events(self.id, self.place.position, PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            for (position, mut event) in page {
                if event.kind.waits_for_frontier() && event.epoch > snapshot.epoch {
                    return Ok(());
                }
                if let EventKind::AllFilesGathered { total_lines, error_codes } = &mut event.kind {
                    (*total_lines, *error_codes) = Report::totals(&self.parts.engine, snapshot, self.id).await?;
                }
                self.place.position = position;
                if let Some((name, data)) = told(&event) {
                    self.send(name, &data);
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    async fn read_progress(&mut self, batch: &Batch, epoch: u64) -> Result<(), FollowError> {
        if epoch <= self.place.epoch && !self.progress.is_null() {
            return Ok(());
        }
        let totals = self.parts.metadata.file_totals(self.id, epoch).await?;
        let mut progress = json!(ProgressBody::new(batch, totals, epoch));
        self.place.epoch = epoch;
        // What changes with every epoch, and with the status, is no progress of the files.
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
        self.ready.push_back(SseEvent::default().event(name).id(self.place.id()).data(data.to_string()));
    }
}

/// The name and data of an event, for those that have one of their own.
fn told(event: &Event) -> Option<(&'static str, Value)> {
    let name = match &event.kind {
        EventKind::BatchStatusChanged { to, .. } => {
            let mut data = json!(event);
            data["status"] = json!(to);
            return Some(("status", data));
        }
        EventKind::AllFilesGathered { .. } => "report",
        EventKind::DiagnosisCompleted => "diagnosis",
        _ => return None,
    };
    Some((name, json!(event)))
}

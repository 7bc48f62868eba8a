//! What happens to a batch, as server-sent events.
//!
//! `status` and `report` events come from the log of events; `progress` comes
//! from what readers see. An event's id is the place in both,
//! `POSITION-EPOCH`, so that `Last-Event-ID` resumes without a gap.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

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

use crate::events::{Event, EventKind, EventLog};
use crate::http::extract::Segments;
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{Invalid, NotFound};
use crate::http::report::ProgressBody;
use crate::metadata::{Metadata, MetadataError};
use crate::service::{Service, Stopping};

/// A comment goes out when there was nothing else for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events that are read at once.
const PAGE: u32 = 100;

#[derive(Clone)]
struct Parts {
    metadata: Metadata,
    events: EventLog,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    stopping: watch::Receiver<Stopping>,
}

/// `/batches/{id}/events`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        metadata: service.metadata.clone(),
        events: service.events.clone(),
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
    let follower = Follower { parts, id, place, progress: Value::Null, ready: VecDeque::new() };
    let stream = futures::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Follower {
    parts: Parts,
    id: Uuid,
    place: Place,
    /// The progress that was last told.
    progress: Value,
    ready: VecDeque<SseEvent>,
}

impl Follower {
    /// The next event; `None` when the server stops.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if let Err(error) = self.read().await {
                // The client comes again with the last id that it has seen.
                tracing::error!(error = &error as &dyn std::error::Error, "a follower of events was cut off");
                return None;
            }
            if self.ready.is_empty() {
                let Parts { events, snapshots, stopping, .. } = &mut self.parts;
                tokio::select! {
                    more = events.changed() => more.then_some(())?,
                    seen = snapshots.changed() => seen.ok()?,
                    _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return None,
                }
            }
        }
    }

    /// Reads what is new since the follower's place.
    async fn read(&mut self) -> Result<(), MetadataError> {
        for (position, event) in self.parts.metadata.events(self.id, self.place.position, PAGE).await? {
            self.place.position = position;
            if let Some((name, data)) = told(&event) {
                self.ready.push_back(SseEvent::default().event(name).id(self.place.id()).data(data.to_string()));
            }
        }
        let epoch = self.parts.snapshots.borrow_and_update().epoch;
        if epoch > self.place.epoch || self.progress.is_null() {
            let Some(batch) = self.parts.metadata.batch(self.id).await? else { return Ok(()) };
            let totals = self.parts.metadata.file_totals(self.id, epoch).await?;
            let mut progress = json!(ProgressBody::new(&batch, totals, epoch));
            self.place.epoch = epoch;
            // What changes with every epoch, and with the status, is no progress of the files.
            let told = progress.clone();
            progress["epoch"].take();
            progress["status"].take();
            if progress != self.progress {
                self.progress = progress;
                self.ready.push_back(SseEvent::default().event("progress").id(self.place.id()).data(told.to_string()));
            }
        }
        Ok(())
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

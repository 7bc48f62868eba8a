//! The events of the whole fleet, as server-sent events.
//!
//! One task reads the event log and passes each event to all followers; without
//! followers it reads nothing. A follower that resumes reads the log by itself up to
//! the position at which it joined. One that is too slow for the queue gets a `resync`
//! event and the end of its stream: it can resume by the id of its last event.

use std::convert::Infallible;
use std::sync::Arc;

use argus_sinks::Snapshot;
use axum::Extension;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event as SseEvent, KeepAlive};
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, broadcast, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{Access, Caller};
use crate::answers::event_details::EventDetails;
use crate::app::Service;
use crate::domain::event::Event;
use crate::http::error_responses::{Invalid, Unavailable};
use crate::http::problem::Problem;
use crate::http::routes::events::{FollowError, KEEP_ALIVE, PAGE, sse_event};
use crate::metadata::{Metadata, MetadataError};
use crate::pipeline::followers::Followers;
use crate::shutdown::Stopping;

/// Events that wait for a slow follower.
const QUEUE_MAX: usize = 4096;

/// An event with its position in the log, as it is sent.
#[derive(Debug, Clone)]
struct Sent {
    position: i64,
    name: &'static str,
    data: Arc<str>,
}

impl Sent {
    fn into_event(self) -> SseEvent {
        SseEvent::default().event(self.name).id(self.position.to_string()).data(&*self.data)
    }
}

/// Reads the log of events.
#[derive(Clone)]
struct Log {
    metadata: Metadata,
    details: EventDetails,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// Consecutive events of the log.
struct Page {
    events: Vec<Sent>,
    /// Whether the next event waits for the frontier.
    waits: bool,
}

impl Log {
    /// A page of the events after a position, up to the first that the frontier has not passed.
    async fn after(&self, position: i64) -> Result<Page, FollowError> {
        // The snapshot first: the metadata is never behind it.
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let mut events = Vec::new();
        for (position, mut event) in self.metadata.all_events(position, PAGE).await? {
            if event.kind.waits_for_frontier() && event.epoch > snapshot.epoch {
                return Ok(Page { events, waits: true });
            }
            self.details.fill(&mut event, &snapshot).await?;
            let (name, data) = named(&event);
            events.push(Sent { position, name, data: data.to_string().into() });
        }
        Ok(Page { events, waits: false })
    }
}

/// The name and the data of an event. Those that a batch's own stream does not have are named `event`.
fn named(event: &Event) -> (&'static str, Value) {
    sse_event(event).unwrap_or_else(|| ("event", json!(event)))
}

#[derive(Clone)]
struct FleetEventsContext {
    log: Log,
    access: Access,
    followers: Followers,
    events: broadcast::Sender<Sent>,
    /// The position up to which the events were passed on. Followers join under this lock, so that none misses an event
    /// after the position at which it joined.
    position: Arc<Mutex<i64>>,
    stopping: watch::Receiver<Stopping>,
}

/// `/events`.
pub fn router(service: &Service) -> OpenApiRouter {
    let log = Log {
        metadata: service.metadata.clone(),
        details: service.event_details.clone(),
        snapshots: service.snapshots.clone(),
    };
    let (events, _) = broadcast::channel(QUEUE_MAX);
    let (followers, stopping) = (service.followers.clone(), service.stopping.clone());
    let access = service.access.clone();
    let context = FleetEventsContext { log, access, followers, events, position: Arc::default(), stopping };
    tokio::spawn(context.clone().pass_on());
    OpenApiRouter::new().routes(routes!(follow)).with_state(context)
}

impl FleetEventsContext {
    /// Passes on the events of each change until the server stops.
    async fn pass_on(mut self) {
        let mut changes = self.followers.follow_all();
        loop {
            tokio::select! {
                // The sender is in `self`.
                _ = changes.changed() => {}
                _ = self.stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            }
            if let Err(error) = self.pass_on_new().await {
                // The next change tries again.
                tracing::warn!(error = &error as &dyn std::error::Error, "could not read the events of the fleet");
            }
        }
    }

    async fn pass_on_new(&self) -> Result<(), FollowError> {
        let mut position = self.position.lock().await;
        while self.events.receiver_count() > 0 {
            let Page { events, .. } = self.log.after(*position).await?;
            let Some(last) = events.last() else { break };
            *position = last.position;
            for sent in events {
                // Without followers, it is dropped.
                let _ = self.events.send(sent);
            }
        }
        Ok(())
    }

    /// Adds a follower. Returns its queue, and the position after which that has the events.
    async fn join(&self) -> Result<(broadcast::Receiver<Sent>, i64), MetadataError> {
        let mut position = self.position.lock().await;
        if self.events.receiver_count() == 0 {
            *position = self.log.metadata.last_event().await?;
        }
        Ok((self.events.subscribe(), *position))
    }
}

/// Follows the events of all batches.
///
/// A new stream begins with the next event; one with `Last-Event-ID` continues after that event.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "batches",
    params(
        (
            "Last-Event-ID" = Option<String>,
            Header,
            description = "the id of the last event received; the stream continues after it"
        ),
    ),
    responses(
        (
            status = 200,
            description = "a stream of events: `status`, `report`, `diagnosis`, `event` (all others, see `event_type`), \
                           and `resync` if the client reads too slowly",
            body = String,
            content_type = "text/event-stream"
        ),
        Invalid, Unavailable,
    ),
)]
async fn follow(
    State(context): State<FleetEventsContext>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Problem> {
    let context_access = context.access.clone();
    let last_id = headers.get("last-event-id").map(|value| value.to_str().ok()?.parse::<i64>().ok());
    let (events, joined) = context.join().await?;
    let position = match last_id {
        None => joined,
        Some(Some(last)) => last,
        Some(None) => {
            return Err(Problem::invalid("the Last-Event-ID is invalid; omit it to begin with the next event"));
        }
    };
    let follower = Follower { context, events, position, joined, read: Vec::new(), ended: false };
    let stream = futures::stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    });
    let stream = stream.take_until(Box::pin(context_access.ended(caller.map(|Extension(caller)| caller))));
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Reads the events for one client.
struct Follower {
    context: FleetEventsContext,
    events: broadcast::Receiver<Sent>,
    /// The position of the last event that was sent.
    position: i64,
    /// The queue has the events after this position; it reads those before from the log.
    joined: i64,
    /// Events read from the log, the last first.
    read: Vec<Sent>,
    ended: bool,
}

impl Follower {
    /// The next event; `None` when the server stops, or after `resync`.
    async fn next(&mut self) -> Option<SseEvent> {
        while !self.ended {
            if let Some(sent) = self.read.pop() {
                self.position = sent.position;
                return Some(sent.into_event());
            }
            if self.position < self.joined {
                if let Err(error) = self.read_log().await {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "an event stream was aborted: its events could not be read");
                    return None;
                }
                continue;
            }
            let received = tokio::select! {
                received = self.events.recv() => received,
                _ = self.context.stopping.wait_for(|stopping| *stopping != Stopping::No) => return None,
            };
            match received {
                Ok(sent) if sent.position <= self.position => {}
                Ok(sent) => {
                    self.position = sent.position;
                    return Some(sent.into_event());
                }
                Err(RecvError::Lagged(missed)) => {
                    self.ended = true;
                    let data = json!({"missed": missed, "detail": "connect again with the id of the last event"});
                    return Some(SseEvent::default().event("resync").data(data.to_string()));
                }
                Err(RecvError::Closed) => return None,
            }
        }
        None
    }

    /// Reads a page of the log. If the next event waits for the frontier, so does this.
    async fn read_log(&mut self) -> Result<(), FollowError> {
        // Before the read, so that no change between the two is missed.
        let mut changes = self.context.followers.follow_all();
        let Page { mut events, waits } = self.context.log.after(self.position).await?;
        if events.is_empty() && waits {
            tokio::select! {
                // The sender is in `self`.
                _ = changes.changed() => {}
                _ = self.context.stopping.wait_for(|stopping| *stopping != Stopping::No) => self.ended = true,
            }
        } else if events.is_empty() {
            // The events up to there were deleted with their batches.
            self.position = self.joined;
        }
        events.reverse();
        self.read = events;
        Ok(())
    }
}

//! Publishes the events of batches to the topic [`TOPIC`], in their order.
//!
//! The events table is the outbox: the transaction that accepts a change writes its
//! events. The publisher sends what comes after the last published position, waits
//! until the brokers have it, and then records the new position. After a crash between
//! the two, events are sent again, with the same `event_id`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use argus_sinks::Snapshot;
use futures::future::try_join_all;
use rdkafka::error::KafkaError;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::watch;

use super::{client, ensure_topic};
use crate::answers::event_details::{EventDetails, EventDetailsError};
use crate::domain::event::Event;
use crate::metadata::{Metadata, MetadataError};
use crate::pipeline::WeakPipeline;
use crate::shutdown::Stopping;

/// The topic of the events; the key of a record is the id of its batch.
pub const TOPIC: &str = "argus.events";

/// Events that are sent at once.
const PAGE: u32 = 500;

/// For how long librdkafka repeats a record before it gives up.
const MESSAGE_TIMEOUT_MS: &str = "30000";

/// The memory of records that wait to be sent (16 MiB).
const QUEUE_KBYTES: &str = "16384";

/// The wait after a failure.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// Publishes events.
pub struct Publisher {
    producer: FutureProducer,
    /// Where events are read from, and where the position is recorded.
    pub(crate) metadata: Metadata,
    pub(crate) details: EventDetails,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) pipeline: WeakPipeline,
}

/// Why events could not be published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Details(#[from] EventDetailsError),
    #[error("the brokers did not take an event")]
    Kafka(#[from] KafkaError),
    #[error("an event could not be encoded")]
    Encode(#[from] serde_json::Error),
    #[error("the position could not be recorded")]
    Position,
}

impl Publisher {
    /// Connects to brokers; fails if none answers.
    pub async fn connect(
        brokers: &str,
        metadata: Metadata,
        details: EventDetails,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        pipeline: WeakPipeline,
    ) -> Result<Publisher> {
        ensure_topic(brokers, TOPIC).await?;
        let producer: FutureProducer = client(brokers)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", MESSAGE_TIMEOUT_MS)
            .set("queue.buffering.max.kbytes", QUEUE_KBYTES)
            .set("linger.ms", "2")
            .create()?;
        Ok(Publisher { producer, metadata, details, snapshots, pipeline })
    }

    /// Publishes until the server stops. What is left is published after the next start.
    pub async fn run(mut self, mut stopping: watch::Receiver<Stopping>) {
        loop {
            let wait = match self.publish().await {
                // More may be there already.
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "could not publish events; will retry");
                    Some(RETRY_WAIT)
                }
            };
            let changed = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    // Every change of a batch has an epoch. A lake that has stopped publishes nothing more.
                    None if self.snapshots.changed().await.is_err() => std::future::pending().await,
                    None => {}
                }
            };
            tokio::select! {
                () = changed => {}
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            }
        }
    }

    /// Publishes a page of events, up to the first that the frontier has not passed. Returns whether there was any.
    async fn publish(&mut self) -> Result<bool, PublishError> {
        // The snapshot first: the metadata is never behind it.
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let after = self.metadata.published().await?;
        let mut last = None;
        let mut sent = Vec::new();
        for (position, mut event) in self.metadata.all_events(after, PAGE).await? {
            if event.kind.waits_for_frontier() && event.epoch > snapshot.epoch {
                break;
            }
            self.details.fill(&mut event, &snapshot).await?;
            sent.push(self.send(&event)?);
            last = Some(position);
        }
        let Some(position) = last else { return Ok(false) };
        try_join_all(sent).await?;
        match self.pipeline.events_published(position).await {
            true => Ok(true),
            false => Err(PublishError::Position),
        }
    }

    /// Puts an event into the queue of the producer; the future ends when the brokers have it.
    fn send(&self, event: &Event) -> Result<impl Future<Output = Result<(), KafkaError>> + use<>, PublishError> {
        let (producer, key, body) = (self.producer.clone(), event.batch_id.to_string(), serde_json::to_vec(event)?);
        let delivery =
            producer.send_result(FutureRecord::to(TOPIC).key(&key).payload(&body)).map_err(|(error, _)| error)?;
        Ok(async move {
            match delivery.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err((error, _))) => Err(error),
                Err(_) => Err(KafkaError::Canceled),
            }
        })
    }
}

//! Consumes log lines from a topic (`--lines-topic`).
//!
//! A record is one or more lines. Its headers name the vehicle (`vehicle_id`, `vin`), the
//! file (`file`; default: the partition), and optionally the batch (`batch_id`). Without
//! a batch, lines join the vehicle's open stream batch, which is created when there is
//! none.
//!
//! Each record counts exactly once: the offsets are stored in the round that counts the
//! lines, and a round that does not begin at the stored offsets is refused. So nothing
//! depends on a consumer group: this process reads all partitions, from the stored
//! offsets on. Nothing is read ahead beyond the queue of librdkafka, which is bounded.
//!
//! A record that cannot be counted goes to [`rejected::TOPIC`], with the reason and its
//! coordinates, before its offset is stored. It stops no other record.
//!
//! - [`record`]: what the headers of a record must say; [`rejected`]: the records that cannot be counted.

mod record;
pub mod rejected;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use uuid::Uuid;

use self::record::{BYTES_MAX, Raw, Record, Target};
use self::rejected::Rejected;
use super::{client, ensure_topic};
use crate::domain::batch::Part;
use crate::metadata::{Consumed, Metadata, MetadataError, Refused, RefusedPart};
use crate::pipeline::streams::{StreamBatches, has_ended, parts};
use crate::pipeline::{Pipeline, PipelineError};
use crate::shutdown::Stopping;

/// Records of one round. Their bytes are limited too, by [`BYTES_MAX`].
const RECORDS_MAX: usize = 20_000;

/// How long records are collected for one round after the first.
const COLLECT: Duration = Duration::from_millis(2);

/// Records that librdkafka reads ahead, in KiB.
const QUEUE_KBYTES: &str = "16384";

/// The wait after a failure.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// How often the topic is looked at, for new partitions and for the lag.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The time limit of a question to the brokers.
const ASK_WAIT: Duration = Duration::from_secs(15);

/// Consumes lines.
pub struct LinesConsumer {
    topic: String,
    consumer: Arc<StreamConsumer>,
    rejected: Rejected,
    metadata: Metadata,
    pipeline: Pipeline,
    /// The stored offset of each assigned partition.
    offsets: BTreeMap<i32, Option<i64>>,
    streams: StreamBatches,
}

/// Why records could not be consumed.
#[derive(Debug, thiserror::Error)]
enum ConsumeError {
    #[error("the brokers did not answer")]
    Kafka(#[from] KafkaError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(
        "partition {partition} ends at offset {high}, before the offset {next} of the next record: the topic was truncated \
         or created anew; consume another topic, or delete the row of the partition in the table offsets to begin anew"
    )]
    Truncated { partition: i32, next: i64, high: i64 },
    #[error("a question to the brokers was aborted")]
    Aborted(#[from] JoinError),
}

impl LinesConsumer {
    /// Connects to brokers. Fails if none answers or the topic does not exist.
    pub async fn connect(brokers: &str, topic: &str, metadata: Metadata, pipeline: Pipeline) -> Result<LinesConsumer> {
        describe_counter!("argus_kafka_records_total", "Records consumed, by outcome.");
        describe_gauge!("argus_kafka_lag", "Records of a partition that are not consumed yet.");
        ensure_topic(brokers, rejected::TOPIC).await?;
        let group = format!("argus-{}", metadata.deployment().await?.id);
        let consumer: StreamConsumer = client(brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            // The stored offsets alone say where to begin.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("queued.max.messages.kbytes", QUEUE_KBYTES)
            .set("fetch.queue.backoff.ms", "5")
            .create()?;
        let producer = client(brokers).set("enable.idempotence", "true").set("acks", "all").create()?;
        let mut lines = LinesConsumer {
            topic: topic.to_owned(),
            consumer: Arc::new(consumer),
            rejected: Rejected { from: topic.to_owned(), producer },
            streams: StreamBatches::new(metadata.clone(), pipeline.clone(), topic.to_owned()),
            metadata,
            pipeline,
            offsets: BTreeMap::new(),
        };
        let partitions = lines.partitions().await;
        let partitions = partitions.with_context(|| format!("no Kafka broker answers at {brokers}; check --kafka"))?;
        if partitions.is_empty() {
            bail!("the topic {topic:?} of --lines-topic does not exist; create it, with a partition for each producer");
        }
        lines.assign(partitions).await?;
        Ok(lines)
    }

    /// Asks the brokers, on a thread that may wait.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&StreamConsumer, &str) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, ConsumeError> {
        let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
        Ok(tokio::task::spawn_blocking(move || question(&consumer, &topic)).await??)
    }

    /// The partitions of the topic.
    async fn partitions(&self) -> Result<Vec<i32>, ConsumeError> {
        self.ask(partitions_of).await
    }

    /// Reads partitions from the stored offsets on.
    async fn assign(&mut self, partitions: Vec<i32>) -> Result<(), ConsumeError> {
        let stored = self.metadata.offsets(&self.topic).await?;
        let mut list = TopicPartitionList::new();
        let mut offsets = BTreeMap::new();
        for partition in partitions {
            let next = stored.get(&partition).copied();
            let from = match next {
                None => Offset::Beginning,
                Some(next) => Offset::Offset(self.available(partition, next).await?),
            };
            list.add_partition_offset(&self.topic, partition, from)?;
            offsets.insert(partition, next);
        }
        self.consumer.assign(&list)?;
        self.offsets = offsets;
        Ok(())
    }

    /// Where a partition continues: at `next`, or at its first record if those before were deleted.
    async fn available(&self, partition: i32, next: i64) -> Result<i64, ConsumeError> {
        let marks = move |consumer: &StreamConsumer, topic: &str| consumer.fetch_watermarks(topic, partition, ASK_WAIT);
        let (low, high) = self.ask(marks).await?;
        if next > high {
            return Err(ConsumeError::Truncated { partition, next, high });
        }
        if next < low {
            tracing::error!(
                topic = self.topic,
                partition,
                from = next,
                to = low,
                "records were deleted before they were consumed"
            );
        }
        Ok(next.max(low))
    }

    /// Consumes until the server stops. What is left is consumed after the next start.
    pub async fn run(mut self, mut stopping: watch::Receiver<Stopping>) {
        let mut look = None;
        loop {
            let consumed = tokio::select! {
                consumed = self.next_round(&mut look) => consumed,
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            };
            let Err(error) = consumed else { continue };
            if matches!(error, ConsumeError::Pipeline(PipelineError::Stopping | PipelineError::Indeterminate(_))) {
                return;
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                topic = self.topic,
                "could not consume; will retry"
            );
            tokio::select! {
                () = tokio::time::sleep(RETRY_WAIT) => {}
                _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
            }
            // Read again what was read and not counted.
            let assigned = self.offsets.keys().copied().collect();
            if let Err(error) = self.assign(assigned).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    topic = self.topic,
                    "could not assign partitions"
                );
            }
        }
    }

    /// Assigns new partitions, and consumes the records of one round.
    async fn next_round(&mut self, look: &mut Option<JoinHandle<Vec<i32>>>) -> Result<(), ConsumeError> {
        match look {
            Some(looked) if !looked.is_finished() => {}
            Some(_) => {
                let found = match look.take() {
                    Some(looked) => looked.await?,
                    None => Vec::new(),
                };
                if found.iter().any(|partition| !self.offsets.contains_key(partition)) {
                    self.assign(found).await?;
                }
            }
            None => *look = Some(tokio::spawn(self.look())),
        }
        self.consume().await
    }

    /// Measures the lag, and returns the partitions of the topic; none if the brokers do not answer. Runs beside the
    /// consumption: a partition without a leader must not stop the others.
    fn look(&self) -> impl Future<Output = Vec<i32>> + use<> {
        let (consumer, topic, offsets) = (Arc::clone(&self.consumer), self.topic.clone(), self.offsets.clone());
        async move {
            tokio::time::sleep(LOOK_EVERY).await;
            let looked = tokio::task::spawn_blocking(move || {
                for (partition, next) in offsets {
                    let Ok((low, high)) = consumer.fetch_watermarks(&topic, partition, ASK_WAIT) else { continue };
                    let lag = (high - next.unwrap_or(low)).max(0);
                    gauge!("argus_kafka_lag", "topic" => topic.clone(), "partition" => partition.to_string())
                        .set(lag as f64);
                }
                partitions_of(&consumer, &topic).unwrap_or_default()
            });
            looked.await.unwrap_or_default()
        }
    }

    /// Consumes the records of one round.
    async fn consume(&mut self) -> Result<(), ConsumeError> {
        let (mut records, mut ends) = (Vec::new(), BTreeMap::new());
        let mut bytes = 0;
        let Ok(first) = tokio::time::timeout(LOOK_EVERY, self.consumer.recv()).await else { return Ok(()) };
        let until = Instant::now() + COLLECT;
        let mut next = Some(first?);
        let mut bad = Vec::new();
        while let Some(message) = next.take() {
            let is_new = self.offsets.get(&message.partition()).is_some_and(|next| Some(message.offset()) >= *next);
            if is_new {
                ends.insert(message.partition(), message.offset() + 1);
                match Record::check(Raw::of(&message)) {
                    Ok(record) => {
                        bytes += record.raw.payload.len();
                        records.push(record);
                    }
                    Err(rejected) => bad.push(rejected),
                }
            }
            // A record may be as long as the limit, so the last one may exceed it once.
            if records.len() + bad.len() >= RECORDS_MAX || bytes >= BYTES_MAX {
                break;
            }
            if let Ok(received) = tokio::time::timeout_at(until, self.consumer.recv()).await {
                next = Some(received?);
            }
        }
        for (record, rejection) in &bad {
            self.rejected.publish(record, &rejection.to_string()).await?;
        }
        if ends.is_empty() {
            return Ok(());
        }
        self.count(records, ends).await
    }

    /// Counts records, and stores the offsets after them. Records that are refused are rejected.
    async fn count(&mut self, mut records: Vec<Record>, ends: BTreeMap<i32, i64>) -> Result<(), ConsumeError> {
        let consumed: Vec<Consumed> = ends
            .iter()
            .map(|(&partition, &next)| {
                let from = self.offsets.get(&partition).copied().flatten();
                Consumed { topic: self.topic.clone(), partition, from, next }
            })
            .collect();
        loop {
            let parts = self.parts(&records).await?;
            match self.pipeline.consume(parts, consumed.clone()).await {
                Ok(None) => break,
                Ok(Some(RefusedPart { batch_id, file, reason })) => {
                    self.refuse(&mut records, batch_id, Some(&file), &reason).await?;
                }
                Err(PipelineError::NotLoaded(batches)) => {
                    let loads =
                        batches.into_iter().map(async |batch_id| (batch_id, self.pipeline.load(batch_id).await));
                    for (batch_id, loaded) in join_all(loads).await {
                        match loaded {
                            Ok(()) => {}
                            Err(PipelineError::Refused(reason)) => {
                                self.refuse(&mut records, batch_id, None, &reason).await?;
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        counter!("argus_kafka_records_total", "outcome" => "counted").increment(records.len() as u64);
        for (partition, next) in ends {
            self.offsets.insert(partition, Some(next));
        }
        Ok(())
    }

    /// The lines of records by batch and file.
    async fn parts(&mut self, records: &[Record]) -> Result<Vec<Part>, ConsumeError> {
        let mut texts = Vec::with_capacity(records.len());
        for record in records {
            texts.push((self.batch_of(&record.target).await?, &*record.file, &*record.raw.payload));
        }
        Ok(parts(texts))
    }

    /// The batch that lines go to; the stream batch of a vehicle is created when there is none.
    async fn batch_of(&mut self, target: &Target) -> Result<Uuid, ConsumeError> {
        match target {
            Target::Batch(id) => Ok(*id),
            Target::Stream(sender) => Ok(self.streams.open(sender).await?),
        }
    }

    /// Rejects the records for a batch, or for a file of it, and removes them. A stream batch that was completed or
    /// deleted meanwhile is replaced by a new one instead, and its records stay.
    async fn refuse(
        &mut self,
        records: &mut Vec<Record>,
        batch_id: Uuid,
        file: Option<&str>,
        reason: &Refused,
    ) -> Result<(), ConsumeError> {
        let has_ended = has_ended(reason);
        let streams = &self.streams;
        let is_of_batch = |target: &Target| match target {
            Target::Batch(id) => *id == batch_id,
            Target::Stream(sender) => !has_ended && streams.used(sender) == Some(batch_id),
        };
        let mut kept = Vec::with_capacity(records.len());
        let mut published = Ok(());
        for record in records.drain(..) {
            let is_refused = is_of_batch(&record.target) && (has_ended || file.is_none_or(|file| file == record.file));
            match is_refused && published.is_ok() {
                false => kept.push(record),
                true => published = self.rejected.publish(&record.raw, &reason.to_string()).await,
            }
        }
        *records = kept;
        if has_ended {
            self.streams.forget(batch_id);
        }
        Ok(published?)
    }
}

fn partitions_of(consumer: &StreamConsumer, topic: &str) -> Result<Vec<i32>, KafkaError> {
    let found = consumer.fetch_metadata(Some(topic), ASK_WAIT)?;
    let of_topic = found.topics().iter().filter(|found| found.name() == topic && found.error().is_none());
    Ok(of_topic.flat_map(|found| found.partitions()).map(|partition| partition.id()).collect())
}

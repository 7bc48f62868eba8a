//! Consumes log lines from a topic (`--lines-topic`).
//!
//! A record is one or more lines. Its headers name the vehicle (`vehicle_id`, `vin`), the
//! file (`file`; default: the partition), and optionally the batch (`batch_id`). Without
//! a batch, lines join the vehicle's open stream batch, which is created when there is
//! none.
//!
//! Each record counts exactly once: the offsets are stored in the round that counts the
//! lines, and records that do not continue at the stored offsets are refused. So nothing
//! depends on a consumer group: this process reads all partitions, from the stored
//! offsets on. Nothing is read ahead beyond the queue of librdkafka, which is bounded.
//!
//! A record that cannot be counted goes to the topic [`REJECTED`], with the reason and
//! its coordinates, before its offset is stored. It stops no other record.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::{client, ensure_topic};
use crate::domain::batch::{Invalid, NewBatch, Part, check_name};
use crate::domain::clock::now;
use crate::domain::status::BatchStatus;
use crate::metadata::{BatchFilter, Consumed, Metadata, MetadataError, Refused};
use crate::pipeline::{Pipeline, PipelineError};
use crate::shutdown::Stopping;

/// The topic of records that could not be counted.
pub const REJECTED: &str = "argus.rejected";

/// The label of a stream batch: its value is the topic.
const STREAM: &str = "stream";

/// Records of one round.
const RECORDS_MAX: usize = 20_000;

/// Bytes of one round, and of one record (4 MiB).
const BYTES_MAX: usize = 4 << 20;

/// How long records are collected for one round after the first.
const COLLECT: Duration = Duration::from_millis(2);

/// Records that librdkafka reads ahead, in KiB.
const QUEUE_KBYTES: &str = "16384";

/// The wait after a failure.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// How often new partitions are looked for, and the lag is measured.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The time limit of a question to the brokers.
const ASK_WAIT: Duration = Duration::from_secs(15);

/// Consumes lines.
pub struct LinesConsumer {
    topic: String,
    consumer: StreamConsumer,
    rejected: FutureProducer,
    metadata: Metadata,
    pipeline: Pipeline,
    /// The stored offset of each assigned partition.
    offsets: BTreeMap<i32, Option<i64>>,
    /// The open stream batch of each vehicle.
    streams: HashMap<(String, String), Uuid>,
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
}

/// Why a record is rejected.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error("it has no header {0}")]
    NoHeader(&'static str),
    #[error("its header {0} is not text in UTF-8")]
    NotText(&'static str),
    #[error("its header batch_id is {0:?}, which is not the id of a batch")]
    NotAnId(String),
    #[error("it has {0} bytes, and the limit is {BYTES_MAX}")]
    TooLong(usize),
    #[error("it is empty")]
    Empty,
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// A record whose headers are valid.
struct Record {
    partition: i32,
    offset: i64,
    target: Target,
    file: String,
    lines: Bytes,
}

/// Where the lines of a record go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    Batch(Uuid),
    Stream { vehicle_id: String, vin: String },
}

impl LinesConsumer {
    /// Connects to brokers. Fails if none answers or the topic does not exist.
    pub async fn connect(brokers: &str, topic: &str, metadata: Metadata, pipeline: Pipeline) -> Result<LinesConsumer> {
        describe_counter!("argus_kafka_records_total", "Records consumed, by outcome.");
        describe_gauge!("argus_kafka_lag", "Records of a partition that are not consumed yet.");
        ensure_topic(brokers, REJECTED).await?;
        let group = format!("argus-{}", metadata.deployment().await?.id);
        let consumer: StreamConsumer = client(brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("queued.max.messages.kbytes", QUEUE_KBYTES)
            .set("fetch.queue.backoff.ms", "5")
            .create()?;
        let rejected = client(brokers).set("enable.idempotence", "true").set("acks", "all").create()?;
        let (offsets, streams) = (BTreeMap::new(), HashMap::new());
        let mut lines =
            LinesConsumer { topic: topic.to_owned(), consumer, rejected, metadata, pipeline, offsets, streams };
        let partitions = lines.partitions();
        let partitions = partitions.with_context(|| format!("no Kafka broker answers at {brokers}; check --kafka"))?;
        if partitions.is_empty() {
            bail!("the topic {topic:?} of --lines-topic does not exist; create it, with a partition for each producer");
        }
        lines.assign(partitions).await?;
        Ok(lines)
    }

    /// The partitions of the topic.
    fn partitions(&self) -> Result<Vec<i32>, KafkaError> {
        let found = tokio::task::block_in_place(|| self.consumer.fetch_metadata(Some(&self.topic), ASK_WAIT))?;
        let of_topic = found.topics().iter().filter(|topic| topic.name() == self.topic && topic.error().is_none());
        Ok(of_topic.flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect())
    }

    /// Reads partitions from the stored offsets on.
    async fn assign(&mut self, partitions: Vec<i32>) -> Result<(), ConsumeError> {
        let stored = self.metadata.offsets(&self.topic).await?;
        let mut list = TopicPartitionList::new();
        self.offsets.clear();
        for partition in partitions {
            let next = stored.get(&partition).copied();
            list.add_partition_offset(&self.topic, partition, next.map_or(Offset::Beginning, Offset::Offset))?;
            self.offsets.insert(partition, next);
        }
        self.consumer.assign(&list)?;
        Ok(())
    }

    /// Consumes until the server stops. What is left is consumed after the next start.
    pub async fn run(mut self, mut stopping: watch::Receiver<Stopping>) {
        let mut look = Instant::now() + LOOK_EVERY;
        loop {
            let next = async {
                if Instant::now() >= look {
                    look = Instant::now() + LOOK_EVERY;
                    self.look().await?;
                }
                self.consume().await
            };
            let consumed = tokio::select! {
                consumed = next => consumed,
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

    /// Looks for new partitions, and measures the lag.
    async fn look(&mut self) -> Result<(), ConsumeError> {
        let partitions = self.partitions()?;
        if partitions.iter().any(|partition| !self.offsets.contains_key(partition)) {
            self.assign(partitions).await?;
        }
        for (&partition, &next) in &self.offsets {
            let marks = || self.consumer.fetch_watermarks(&self.topic, partition, ASK_WAIT);
            let (low, high) = tokio::task::block_in_place(marks)?;
            let lag = (high - next.unwrap_or(low)).max(0);
            gauge!("argus_kafka_lag", "topic" => self.topic.clone(), "partition" => partition.to_string())
                .set(lag as f64);
        }
        Ok(())
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
            ends.insert(message.partition(), message.offset() + 1);
            match Record::read(&message) {
                Ok(record) => {
                    bytes += record.lines.len();
                    records.push(record);
                }
                Err(rejection) => bad.push((message.detach(), rejection)),
            }
            // A record may be as long as the limit, so the last one may exceed it once.
            if records.len() + bad.len() >= RECORDS_MAX || bytes >= BYTES_MAX {
                break;
            }
            if let Ok(received) = tokio::time::timeout_at(until, self.consumer.recv()).await {
                next = Some(received?);
            }
        }
        for (message, rejection) in &bad {
            self.reject(message.payload(), message.partition(), message.offset(), &rejection.to_string()).await?;
        }
        self.count(records, ends).await
    }

    /// Counts records, and stores the offsets after them. Records whose batch cannot change are rejected.
    async fn count(&mut self, mut records: Vec<Record>, ends: BTreeMap<i32, i64>) -> Result<(), ConsumeError> {
        let consumed: Vec<Consumed> = ends
            .iter()
            .map(|(&partition, &next)| {
                let from = self.offsets.get(&partition).copied().flatten();
                Consumed { topic: self.topic.clone(), partition, from, next }
            })
            .collect();
        loop {
            let parts = match self.parts(&records).await? {
                Ok(parts) => parts,
                Err(refused) => {
                    self.refuse(&mut records, refused).await?;
                    continue;
                }
            };
            let refused = match self.pipeline.consume(parts, consumed.clone()).await {
                Ok(refused) if refused.is_empty() => break,
                Ok(refused) => refused,
                Err(PipelineError::NotLoaded(batch_id)) => match self.pipeline.load(batch_id).await {
                    Ok(()) => continue,
                    Err(PipelineError::Refused(reason)) => vec![(batch_id, reason)],
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            };
            self.refuse(&mut records, refused).await?;
        }
        counter!("argus_kafka_records_total", "outcome" => "counted").increment(records.len() as u64);
        for (partition, next) in ends {
            self.offsets.insert(partition, Some(next));
        }
        Ok(())
    }

    /// The lines of records by batch and file, or the batches that do not exist.
    async fn parts(&mut self, records: &[Record]) -> Result<Result<Vec<Part>, Vec<(Uuid, Refused)>>, ConsumeError> {
        let mut batches: HashMap<&Target, Uuid> = HashMap::new();
        let mut missing = Vec::new();
        let mut texts: HashMap<(Uuid, &str), Vec<u8>> = HashMap::new();
        // In the order of their first records, so that a history can be repeated.
        let mut order = Vec::new();
        for record in records {
            let batch_id = match batches.get(&record.target) {
                Some(batch_id) => *batch_id,
                None => {
                    let batch_id = match self.batch_of(&record.target).await? {
                        Ok(batch_id) => batch_id,
                        Err((batch_id, reason)) => {
                            missing.push((batch_id, reason));
                            batch_id
                        }
                    };
                    batches.insert(&record.target, batch_id);
                    batch_id
                }
            };
            let key = (batch_id, record.file.as_str());
            let text = texts.entry(key).or_insert_with(|| {
                order.push(key);
                Vec::new()
            });
            text.extend_from_slice(&record.lines);
            if record.lines.last() != Some(&b'\n') {
                text.push(b'\n');
            }
        }
        if !missing.is_empty() {
            return Ok(Err(missing));
        }
        let uploaded_at = now();
        let mut parts = Vec::with_capacity(order.len());
        for (batch_id, name) in order {
            let bytes = texts.remove(&(batch_id, name)).unwrap_or_default().into();
            parts.push(Part { batch_id, name: name.to_owned(), bytes, uploaded_at });
        }
        Ok(Ok(parts))
    }

    /// The batch that lines go to; the stream batch of a vehicle is created when there is none.
    async fn batch_of(&mut self, target: &Target) -> Result<Result<Uuid, (Uuid, Refused)>, ConsumeError> {
        let (vehicle_id, vin) = match target {
            Target::Batch(id) => {
                return Ok(match self.metadata.batch(*id).await? {
                    Some(_) => Ok(*id),
                    None => Err((*id, Refused::BatchNotFound(*id))),
                });
            }
            Target::Stream { vehicle_id, vin } => (vehicle_id, vin),
        };
        let key = (vehicle_id.clone(), vin.clone());
        if let Some(batch_id) = self.streams.get(&key) {
            return Ok(Ok(*batch_id));
        }
        let filter = BatchFilter {
            status: Some(BatchStatus::Pending),
            vin: Some(vin.clone()),
            vehicle_id: Some(vehicle_id.clone()),
            limit: 1000,
            ..BatchFilter::default()
        };
        let open = self.metadata.batches(&filter, 0).await?;
        let is_stream = |labels: &BTreeMap<String, String>| labels.get(STREAM) == Some(&self.topic);
        let batch_id = match open.iter().find(|(batch, _)| is_stream(&batch.described.labels)) {
            Some((batch, _)) => batch.id,
            None => {
                let labels = BTreeMap::from([(STREAM.to_owned(), self.topic.clone())]);
                let described = NewBatch {
                    vehicle_id: vehicle_id.clone(),
                    vin: vin.clone(),
                    platform: None,
                    firmware: None,
                    expected_files: None,
                    labels,
                };
                self.pipeline.create_batch(described, None).await?.id
            }
        };
        self.streams.insert(key, batch_id);
        Ok(Ok(batch_id))
    }

    /// Rejects the records of batches that cannot change, and removes them. A stream batch that was completed
    /// meanwhile is replaced by a new one.
    async fn refuse(&mut self, records: &mut Vec<Record>, refused: Vec<(Uuid, Refused)>) -> Result<(), ConsumeError> {
        let reasons: HashMap<Uuid, String> = refused.into_iter().map(|(id, reason)| (id, reason.to_string())).collect();
        self.streams.retain(|_, batch_id| !reasons.contains_key(batch_id));
        let mut kept = Vec::with_capacity(records.len());
        for record in records.drain(..) {
            let reason = match &record.target {
                Target::Batch(id) => reasons.get(id),
                Target::Stream { .. } => None,
            };
            match reason {
                None => kept.push(record),
                Some(reason) => self.reject(Some(&record.lines), record.partition, record.offset, reason).await?,
            }
        }
        *records = kept;
        Ok(())
    }

    /// Publishes a record that cannot be counted, and waits until the brokers have it.
    async fn reject(
        &self,
        payload: Option<&[u8]>,
        partition: i32,
        offset: i64,
        reason: &str,
    ) -> Result<(), ConsumeError> {
        counter!("argus_kafka_records_total", "outcome" => "rejected").increment(1);
        let (at, offset) = (partition.to_string(), offset.to_string());
        tracing::warn!(topic = self.topic, partition, offset, reason, "rejected a record");
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("reason", reason))
            .insert(header("topic", self.topic.as_str()))
            .insert(header("partition", at.as_str()))
            .insert(header("offset", offset.as_str()));
        let key = format!("{}/{at}/{offset}", self.topic);
        // A record that is too long to be counted may be too long to be published: its beginning is enough.
        let payload = payload.unwrap_or_default();
        let payload = &payload[..payload.len().min(BYTES_MAX / 8)];
        let record = FutureRecord::to(REJECTED).key(&key).payload(payload).headers(headers);
        self.rejected.send(record, ASK_WAIT).await.map(drop).map_err(|(error, _)| error.into())
    }
}

impl Record {
    /// Checks the headers and the length of a record.
    fn read(message: &BorrowedMessage<'_>) -> Result<Record, Rejection> {
        let header = |name: &'static str| -> Result<Option<String>, Rejection> {
            let headers = message.headers();
            let found = headers.and_then(|headers| headers.iter().filter(|header| header.key == name).last());
            let value = found.and_then(|header| header.value);
            let text = value.map(|value| std::str::from_utf8(value).map(str::to_owned)).transpose();
            text.map_err(|_| Rejection::NotText(name))
        };
        let required = |name| header(name)?.ok_or(Rejection::NoHeader(name));
        let target = match header("batch_id")? {
            Some(id) => Target::Batch(id.parse().map_err(|_| Rejection::NotAnId(id))?),
            None => {
                let (vehicle_id, vin) = (required("vehicle_id")?, required("vin")?);
                let (platform, firmware, expected_files, labels) = (None, None, None, BTreeMap::new());
                let described = NewBatch { vehicle_id, vin, platform, firmware, expected_files, labels };
                described.check()?;
                let NewBatch { vehicle_id, vin, .. } = described;
                Target::Stream { vehicle_id, vin }
            }
        };
        let file = header("file")?.unwrap_or_else(|| message.partition().to_string());
        check_name(&file)?;
        let lines = message.payload().unwrap_or_default();
        match lines.len() {
            0 => return Err(Rejection::Empty),
            length if length > BYTES_MAX => return Err(Rejection::TooLong(length)),
            _ => {}
        }
        let lines = Bytes::copy_from_slice(lines);
        Ok(Record { partition: message.partition(), offset: message.offset(), target, file, lines })
    }
}

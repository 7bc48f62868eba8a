//! Kafka: events out, lines in. A cargo feature (`kafka`): its client library is built with make.
//!
//! - [`events`]: publishes the events of batches;
//! - [`lines`]: consumes log lines.

pub mod events;
pub mod lines;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// How long a start waits for a broker.
const START_WAIT: Duration = Duration::from_secs(15);

/// The settings that all clients share. `brokers` is a list of HOST:PORT.
fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("client.id", "argus").set("socket.keepalive.enable", "true");
    config
}

/// Creates a topic that Argus writes to, unless it exists. Fails if no broker answers.
async fn ensure_topic(brokers: &str, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create()?;
    let name = topic.to_owned();
    let (admin, found) = tokio::task::spawn_blocking(move || {
        let found = admin.inner().fetch_metadata(Some(&name), START_WAIT).map(|metadata| {
            metadata.topics().iter().any(|topic| topic.name() == name && !topic.partitions().is_empty())
        });
        (admin, found)
    })
    .await?;
    if found.with_context(|| format!("no Kafka broker answers at {brokers}; check --kafka"))? {
        return Ok(());
    }
    // The brokers' defaults first. Brokers before Kafka 2.4 have none for new topics.
    for (partitions, replication) in [(-1, -1), (1, 1)] {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
        let created = admin.create_topics(&[new], &AdminOptions::new().request_timeout(Some(START_WAIT))).await?;
        match created.into_iter().next() {
            None | Some(Ok(_)) | Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => return Ok(()),
            Some(Err((_, error))) if partitions == 1 => {
                return Err(error).with_context(|| format!("cannot create the topic {topic:?}; create it"));
            }
            Some(Err(_)) => {}
        }
    }
    Ok(())
}

/// The topic with which `argus check` tries the brokers.
const CHECK_TOPIC: &str = "argus.check";

/// Publishes a record and consumes it. Fails if the topic of lines does not exist.
pub async fn try_out(brokers: &str, lines_topic: Option<&str>) -> Result<String> {
    ensure_topic(brokers, CHECK_TOPIC).await?;
    let producer: FutureProducer = client(brokers).set("acks", "all").set("message.timeout.ms", "15000").create()?;
    let record: FutureRecord<'_, str, str> = FutureRecord::to(CHECK_TOPIC).payload("check");
    let published = producer.send(record, START_WAIT).await.map_err(|(error, _)| error);
    let delivered = published.context("cannot publish a record")?;
    let consumer: StreamConsumer =
        client(brokers).set("group.id", "argus-check").set("enable.auto.commit", "false").create()?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(CHECK_TOPIC, delivered.partition, Offset::Offset(delivered.offset))?;
    consumer.assign(&from)?;
    let consumed = tokio::time::timeout(START_WAIT, consumer.recv()).await;
    consumed.context("the published record did not come back")?.context("cannot consume a record")?;
    if let Some(topic) = lines_topic {
        let found = tokio::task::block_in_place(|| consumer.fetch_metadata(Some(topic), START_WAIT))?;
        if found.topics().iter().all(|found| found.name() != topic || found.partitions().is_empty()) {
            bail!("the topic {topic:?} of --lines-topic does not exist; create it");
        }
    }
    Ok("create a topic, publish, consume".to_owned())
}

//! Publishes the records that cannot be counted.

use std::time::Duration;

use metrics::counter;
use rdkafka::error::KafkaError;
use rdkafka::message::Header;
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::record::Raw;

/// The topic of records that could not be counted.
pub const TOPIC: &str = "argus.rejected";

/// The time limit of a record.
const SEND_WAIT: Duration = Duration::from_secs(15);

/// A longer record is cut to this length (512 KiB): the brokers' limit is about 1 MiB by default.
const PAYLOAD_BYTES_MAX: usize = 512 << 10;

/// Publishes rejected records.
pub(super) struct Rejected {
    /// The topic that they come from.
    pub(super) from: String,
    pub(super) producer: FutureProducer,
}

impl Rejected {
    /// Publishes a record with its own headers, then `reason`, `topic`, `partition` and `offset`,
    /// and waits until the brokers have it.
    pub(super) async fn publish(&self, record: &Raw, reason: &str) -> Result<(), KafkaError> {
        counter!("argus_kafka_records_total", "outcome" => "rejected").increment(1);
        let (partition, offset) = (record.partition.to_string(), record.offset.to_string());
        tracing::warn!(topic = self.from, partition, offset, reason, "rejected a record");
        let mut headers = record.headers.clone();
        for (key, value) in [("reason", reason), ("topic", &self.from), ("partition", &partition), ("offset", &offset)]
        {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let key = format!("{}/{partition}/{offset}", self.from);
        let payload = &record.payload[..record.payload.len().min(PAYLOAD_BYTES_MAX)];
        let send = self.producer.send(FutureRecord::to(TOPIC).key(&key).payload(payload).headers(headers), SEND_WAIT);
        send.await.map(drop).map_err(|(error, _)| error)
    }
}

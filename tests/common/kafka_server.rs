//! A server with Kafka's protocol (tansu) for one test, and clients of it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

use super::{Deadline, python};

/// A running broker; killed when dropped. What it has is in memory.
pub struct KafkaServer {
    child: Child,
    port: u16,
}

impl KafkaServer {
    /// Starts on a free port; returns when it answers.
    pub fn start() -> KafkaServer {
        let port = KafkaServer::free_port();
        KafkaServer::start_behind(port, port)
    }

    /// A free port.
    pub fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("an address").port()
    }

    /// Starts on a port, and tells clients to connect to another one, which is that of a proxy.
    pub fn start_behind(port: u16, advertised: u16) -> KafkaServer {
        let url = |port: u16| format!("tcp://127.0.0.1:{port}");
        let child = Command::new(python::tansu())
            .args(["broker", "--silent", "--storage-engine", "memory://tansu/"])
            .args(["--listener-url", &url(port), "--advertised-listener-url", &url(advertised)])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tansu starts");
        let mut server = KafkaServer { child, port };
        server.wait();
        server
    }

    fn wait(&mut self) {
        let deadline = Deadline::new("the Kafka server");
        let consumer: BaseConsumer = self.config().create().expect("a client");
        while consumer.fetch_metadata(None, Duration::from_secs(1)).is_err() {
            deadline.check();
            assert!(self.child.try_wait().expect("it can be waited for").is_none(), "tansu ended");
        }
    }

    /// Its address.
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Suspends (`-STOP`) or resumes (`-CONT`) it.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers()).set("group.id", "test").set("enable.auto.commit", "false");
        config
    }

    /// Creates a topic.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.config().create().expect("a client");
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let created = admin.create_topics(&[topic], &AdminOptions::new()).await.expect("the broker answers");
        created.into_iter().for_each(|created| drop(created.expect("the topic is created")));
    }

    /// A producer.
    pub fn producer(&self) -> Producer {
        let producer = self.config().set("enable.idempotence", "true").set("linger.ms", "2").create();
        Producer(producer.expect("a client"))
    }

    /// All records of a topic, of each partition in order, once there are at least `count`.
    pub fn records(&self, topic: &str, count: usize) -> Vec<OwnedMessage> {
        let deadline = Deadline::new(format!("{count} records in {topic}"));
        let consumer: BaseConsumer = self.config().set("auto.offset.reset", "earliest").create().expect("a client");
        let partitions = loop {
            deadline.check();
            let Ok(metadata) = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)) else { continue };
            let partitions: Vec<i32> =
                metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|partition| partition.id()).collect();
            if !partitions.is_empty() {
                break partitions;
            }
        };
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&list).expect("assigns");
        let mut records = Vec::new();
        while records.len() < count {
            deadline.check();
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(200)) {
                records.push(record.detach());
            }
        }
        // What came too often comes at once.
        while let Some(Ok(record)) = consumer.poll(Duration::from_millis(200)) {
            records.push(record.detach());
        }
        records
    }
}

/// Sends records.
pub struct Producer(FutureProducer);

impl Producer {
    /// Sends a record, and waits until the broker has it.
    pub async fn send(&self, topic: &str, partition: i32, headers: &[(&str, &str)], lines: &[u8]) {
        let all = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let record: FutureRecord<'_, str, [u8]> =
            FutureRecord::to(topic).partition(partition).payload(lines).headers(all);
        self.0.send(record, Duration::from_secs(30)).await.map_err(|(error, _)| error).expect("the broker has it");
    }
}

/// A header of a record.
pub fn header(record: &OwnedMessage, name: &str) -> String {
    let headers = record.headers().expect("headers");
    let header = headers.iter().find(|header| header.key == name).expect("the header");
    String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned()
}

impl Drop for KafkaServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

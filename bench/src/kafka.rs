//! Lines from a topic of Kafka: the rate at which they are counted, from the start of the server to the last line.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use serde_json::json;

use crate::client::Connection;
use crate::generate::default_log;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::truth::{Truth, same};

/// Flags of `argus-bench kafka`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// HOST:PORT of the brokers.
    #[arg(long, env = "ARGUS_KAFKA", value_name = "HOST:PORT,…")]
    brokers: String,
    /// Approximate bytes of all lines.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Approximate bytes of the lines of a record.
    #[arg(long, default_value_t = 64 << 10)]
    record_bytes: usize,
    /// Partitions of the topic; each has the lines of one vehicle.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    partitions: u16,
    /// Timely workers; default: one per core.
    #[arg(long)]
    workers: Option<u16>,
}

/// The lines of one log, which is sent repeatedly.
const LOG_BYTES: u64 = 32 << 20;

/// The time limit for the broker, and for the counting.
const TIME: Duration = Duration::from_secs(600);

/// The rate that a machine with two cores should reach.
const TARGET: f64 = 100.0;

/// Fills a new topic, and measures how long a new server takes to count it.
pub async fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("lines.log");
    let truth = default_log(&log, LOG_BYTES.min(args.bytes), 7)?;
    let text = std::fs::read(&log)?;
    let topic = format!("argus-bench-{}", uuid::Uuid::now_v7());
    create_topic(args, &topic).await?;
    let times = args.bytes.div_ceil(truth.bytes);
    let filled = Instant::now();
    let records = fill(args, &topic, &text, times)?;
    let filled = filled.elapsed();
    let expected = Truth { lines: truth.lines * times, bytes: truth.bytes * times, ..truth.clone() };

    let arguments = ["--kafka", &args.brokers, "--lines-topic", &topic];
    let begun = Instant::now();
    // On the embedded stores: the topic alone is measured.
    let server = Server::start_embedded(&folder.path().join("data"), args.workers, &arguments)?;
    let mut connection = Connection::open(server.address())?;
    loop {
        let lines = connection.metric("argus_lines_total")? as u64;
        ensure!(lines <= expected.lines, "{lines} lines were counted, but the topic has {}", expected.lines);
        if lines == expected.lines {
            break;
        }
        ensure!(
            begun.elapsed() < TIME,
            "only {lines} of {} lines were counted in {} s",
            expected.lines,
            TIME.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let taken = begun.elapsed();
    check(&mut connection, &truth, times)?;
    let peak = server.stop();
    let rate = |time: Duration| expected.bytes as f64 / 1e6 / time.as_secs_f64();
    run.add(Measurement::higher("kafka", "lines counted", rate(taken), "MB/s").target(TARGET));
    run.add(Measurement::lower("kafka", "lines counted", (peak >> 20) as f64, "MiB"));
    run.add(Measurement::info("kafka", "producer and broker, before", rate(filled), "MB/s"));
    run.remark(format!(
        "kafka: {} MiB in {records} records on {} partitions, from the start of the server; counts checked",
        expected.bytes >> 20,
        args.partitions
    ));
    Ok(())
}

/// Compares the counts of all codes.
fn check(connection: &mut Connection, truth: &Truth, times: u64) -> Result<()> {
    let answer =
        connection.post("/api/v1/query", &json!({"sql": "SELECT code, sum(count) FROM error_counts GROUP BY code"}))?;
    let rows = answer["rows"].as_array().context("the answer has no rows")?;
    let row = |row: &serde_json::Value| Some((row[0].as_str()?.to_owned(), row[1].as_u64()?));
    let counted: Option<BTreeMap<String, u64>> = rows.iter().map(row).collect();
    let expected = truth.codes.iter().map(|(code, count)| (code.clone(), count * times)).collect();
    same(&counted.context("the answer has other columns")?, &expected)
}

async fn create_topic(args: &Args, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &args.brokers).create()?;
    let new = NewTopic::new(topic, i32::from(args.partitions), TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(TIME));
    for created in admin.create_topics(&[new], &options).await.context("the broker does not create topics")? {
        created.map_err(|(topic, error)| anyhow::anyhow!("cannot create the topic {topic}: {error}"))?;
    }
    Ok(())
}

/// Sends the text `times` times, in records of whole lines. Returns the number of records.
fn fill(args: &Args, topic: &str, text: &[u8], times: u64) -> Result<usize> {
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", &args.brokers)
        .set("enable.idempotence", "true")
        .set("batch.size", "1000000")
        .set("linger.ms", "5")
        .set("queue.buffering.max.kbytes", "65536")
        .create()?;
    let vehicles: Vec<OwnedHeaders> = (0..args.partitions).map(headers).collect();
    let mut sent = 0;
    for _ in 0..times {
        for lines in whole_lines(text, args.record_bytes) {
            let partition = sent % vehicles.len();
            let record = || {
                BaseRecord::<(), [u8]>::to(topic)
                    .partition(partition as i32)
                    .payload(lines)
                    .headers(vehicles[partition].clone())
            };
            loop {
                match producer.send(record()) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Err((error, _)) => bail!("cannot send a record: {error}"),
                }
            }
            sent += 1;
        }
    }
    producer.flush(TIME).context("the broker does not take the records")?;
    Ok(sent)
}

fn headers(vehicle: u16) -> OwnedHeaders {
    let (id, vin) = (format!("bench-{vehicle}"), format!("WVWZZZ1JZXW{vehicle:06}"));
    let header = |key, value| Header { key, value: Some(value) };
    OwnedHeaders::new().insert(header("vehicle_id", &id)).insert(header("vin", &vin))
}

/// Pieces of about `bytes` bytes that end with a line.
fn whole_lines(mut text: &[u8], bytes: usize) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let least = bytes.min(text.len());
        let end = text[least..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| least + at + 1);
        let (piece, rest) = text.split_at(end);
        text = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_lines_and_all_of_them() {
        let text = b"one\ntwo\n\nthree\nfour";
        for bytes in [1, 3, 4, 8, 100] {
            let pieces: Vec<&[u8]> = whole_lines(text, bytes).collect();
            assert_eq!(pieces.concat(), text);
            assert!(pieces[..pieces.len() - 1].iter().all(|piece| piece.ends_with(b"\n")), "{bytes}");
        }
    }
}

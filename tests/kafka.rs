//! Kafka: events out, and lines in, each record counted once whatever crashes.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::kafka_server::{KafkaServer, header};
use common::{Deadline, Server, VIN, argus};
use rdkafka::message::Message;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn every_event_is_published_in_the_order_of_its_batch_and_again_after_a_crash() {
    let kafka = KafkaServer::start();
    let data = TempDir::new().expect("a folder");
    let brokers = kafka.brokers();
    let server = Server::start_with(data.path(), &["--kafka", &brokers]);
    let batch = server.new_batch().await;
    server.put(&batch, "a.log", "E_FAIL\nfine\n").await;
    server.put(&batch, "a.log", "E_FAIL\nE_ABORT\n").await;
    server.put(&batch, "b.log", "fine\n").await;
    let deleted = server.send(Method::DELETE, &format!("/batches/{batch}/files/b.log"), "").await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    server.complete(&batch).await;
    let names = [
        "BatchCreated",
        "FileUploaded",
        "FileParsed",
        "FileReplaced",
        "FileParsed",
        "FileUploaded",
        "FileParsed",
        "FileDeleted",
        "BatchStatusChanged",
        "BatchStatusChanged",
        "BatchStatusChanged",
        "AllFilesScattered",
        "BatchStatusChanged",
        "BatchStatusChanged",
        "AllFilesGathered",
        "BatchStatusChanged",
        "BatchStatusChanged",
        "DiagnosisCompleted",
    ];
    let published = |count: usize| -> Vec<Value> {
        let records = kafka.records("argus.events", count);
        let event = |record: &rdkafka::message::OwnedMessage| -> Value {
            let event: Value = serde_json::from_slice(record.payload().expect("a body")).expect("JSON");
            assert_eq!(record.key(), event["batch_id"].as_str().map(str::as_bytes));
            event
        };
        records.iter().map(event).collect()
    };
    let events = published(names.len());
    let types: Vec<&str> = events.iter().filter_map(|event| event["event_type"].as_str()).collect();
    assert_eq!(types, names, "{events:#?}");
    for event in &events {
        for field in ["event_id", "event_type", "version", "batch_id", "epoch", "occurred_at"] {
            assert!(!event[field].is_null(), "{field} of {event}");
        }
    }
    let gathered = events.iter().find(|event| event["event_type"] == "AllFilesGathered").expect("it is there");
    assert_eq!((&gathered["total_lines"], &gathered["error_codes"]), (&json!(2), &json!(2)));
    let diagnosed = events.last().expect("it is there");
    assert!(diagnosed["summary"].as_str().is_some_and(|text| text.contains("too few other vehicles")), "{diagnosed}");
    assert_eq!([&diagnosed["top_codes"], &diagnosed["tokens"]], [&json!([]), &json!(0)]);

    // A crash may repeat events, with the same ids; it loses none.
    server.kill();
    let server = Server::start_with(data.path(), &["--kafka", &brokers]);
    let second = server.new_batch().await;
    let deadline = Deadline::new("the event of the second batch");
    let events = loop {
        deadline.check();
        let events = published(names.len() + 1);
        if events.iter().any(|event| event["batch_id"] == json!(second)) {
            break events;
        }
    };
    let ids: BTreeSet<&str> = events.iter().filter_map(|event| event["event_id"].as_str()).collect();
    assert_eq!(ids.len(), names.len() + 1);
    server.stop();
}

/// The lines in the stream batches, by VIN.
async fn counted(server: &Server) -> BTreeMap<String, u64> {
    let rows = server.sql("SELECT vin, sum(count) FROM error_counts JOIN batches USING (batch_id) GROUP BY 1").await;
    let rows = rows.as_array().expect("rows").iter();
    rows.map(|row| (row[0].as_str().expect("a VIN").to_owned(), row[1].as_u64().expect("a number"))).collect()
}

async fn wait_for(server: &Server, what: &str, expected: &BTreeMap<String, u64>) {
    let deadline = Deadline::new(what.to_owned());
    loop {
        deadline.check();
        let counted = counted(server).await;
        assert!(counted.iter().all(|(vin, count)| count <= &expected[vin]), "{what}: {counted:?} is too much");
        if counted == *expected {
            return;
        }
    }
}

const VINS: [&str; 3] = [VIN, "WVWZZZ1JZXW000002", "WVWZZZ1JZXW000003"];

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_records_count_once_through_crashes() {
    let kafka = KafkaServer::start();
    kafka.create_topic("lines", 4).await;
    let data = TempDir::new().expect("a folder");
    let brokers = kafka.brokers();
    let flags = ["--kafka", &brokers, "--lines-topic", "lines"];
    let mut server = Server::start_with(data.path(), &flags);
    let producer = kafka.producer();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let crashes: usize = std::env::var("ARGUS_CRASHES").map_or(4, |value| value.parse().expect("a number"));
    for round in 0..crashes {
        for number in 0..60 {
            let vin = VINS[(round + number) % 3];
            let lines = "2026-03-01 10:15:30 ERROR ota: E_FAIL\nfine\n".repeat(1 + number % 3);
            let headers = [("vehicle_id", "veh"), ("vin", vin), ("file", "ota.log")];
            producer.send("lines", (number % 4) as i32, &headers, lines.trim_end().as_bytes()).await;
            *expected.entry(vin.to_owned()).or_default() += 1 + number as u64 % 3;
        }
        // Anywhere in the work on these records.
        if round % 2 == 1 {
            wait_for(&server, "the lines of a round", &expected).await;
        }
        server.kill();
        server = Server::start_with(data.path(), &flags);
    }
    wait_for(&server, "all lines", &expected).await;

    // Each vehicle has one open stream batch; when it is completed, the next lines open another.
    let batches = server.get("/batches?status=pending").await;
    let batches = batches["batches"].as_array().expect("a list").clone();
    assert_eq!(batches.len(), 3);
    let first = batches.iter().find(|batch| batch["vin"] == VIN).expect("a batch");
    server.complete(first["id"].as_str().expect("an id")).await;
    producer.send("lines", 0, &[("vehicle_id", "veh"), ("vin", VIN)], b"E_FAIL\n").await;
    *expected.get_mut(VIN).expect("a vehicle") += 1;
    wait_for(&server, "the lines of a new stream batch", &expected).await;
    server.stop();
}

/// Headers, lines, and what the reason for the rejection says.
type BadRecord<'a> = (&'a [(&'a str, &'a str)], &'a [u8], &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_cannot_be_counted_is_rejected_and_stops_no_other() {
    let kafka = KafkaServer::start();
    kafka.create_topic("lines", 1).await;
    let data = TempDir::new().expect("a folder");
    let brokers = kafka.brokers();
    let server = Server::start_with(data.path(), &["--kafka", &brokers, "--lines-topic", "lines"]);
    let open = server.new_batch().await;
    let completed = server.new_batch().await;
    server.complete(&completed).await;
    let long = vec![b'x'; (4 << 20) + 1];
    let nowhere = uuid::Uuid::now_v7().to_string();
    let bad: [BadRecord; 9] = [
        (&[], b"E_FAIL", "no header vehicle_id"),
        (&[("vehicle_id", "v")], b"E_FAIL", "no header vin"),
        (&[("vehicle_id", "v"), ("vin", "short")], b"E_FAIL", "short"),
        (&[("batch_id", "7")], b"E_FAIL", "batch_id"),
        (&[("batch_id", &nowhere)], b"E_FAIL", &nowhere),
        (&[("batch_id", &completed)], b"E_FAIL", "completed"),
        (&[("batch_id", &open), ("file", "../x")], b"E_FAIL", "name"),
        (&[("batch_id", &open)], b"", "empty"),
        (&[("batch_id", &open)], &long[..100], ""),
    ];
    let producer = kafka.producer();
    for (headers, lines, _) in &bad {
        producer.send("lines", 0, headers, lines).await;
        producer.send("lines", 0, &[("batch_id", &open), ("file", "good.log")], b"E_FAIL\n").await;
    }
    let deadline = Deadline::new("the good records");
    loop {
        deadline.check();
        let report = server.get(&format!("/batches/{open}/report")).await;
        if report["total_errors"] == json!(bad.len()) {
            break;
        }
    }
    let mut rejected = kafka.records("argus.rejected", bad.len() - 1);
    // The topic may have several partitions.
    rejected.sort_by_key(|record| header(record, "offset").parse::<u64>().expect("a number"));
    assert_eq!(rejected.len(), bad.len() - 1);
    for ((_, _, reason), record) in bad.iter().zip(&rejected) {
        assert!(header(record, "reason").contains(reason), "{:?} has no {reason}", header(record, "reason"));
        assert_eq!((header(record, "topic").as_str(), header(record, "partition").as_str()), ("lines", "0"));
    }
    let offsets: Vec<String> = rejected.iter().map(|record| header(record, "offset")).collect();
    assert_eq!(offsets, ["0", "2", "4", "6", "8", "10", "12", "14"]);
    assert!(server.metric("argus_kafka_records_total{outcome=\"rejected\"}").await >= 8.0);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_refuses_lines_does_not_count_the_others_again() {
    let kafka = KafkaServer::start();
    kafka.create_topic("lines", 1).await;
    let data = TempDir::new().expect("a folder");
    let brokers = kafka.brokers();
    let producer = kafka.producer();
    let server = Server::start_with(data.path(), &["--kafka", &brokers]);
    let batch = server.new_batch().await;
    // Its last line is open, and too long to be continued.
    server.put(&batch, "long.log", "x".repeat(argus_dataflow::LINE_BYTES_MAX + 1)).await;
    server.stop();
    // All records are there before the server is, so that they are in one round.
    for file in ["a.log", "long.log", "b.log"] {
        producer.send("lines", 0, &[("batch_id", &batch), ("file", file)], b"E_FAIL\n").await;
    }
    let server = Server::start_with(data.path(), &["--kafka", &brokers, "--lines-topic", "lines"]);
    let rejected = kafka.records("argus.rejected", 1);
    assert_eq!((rejected.len(), header(&rejected[0], "file").as_str()), (1, "long.log"), "its own headers are kept");
    assert!(header(&rejected[0], "reason").contains("longer than"), "{}", header(&rejected[0], "reason"));
    // What comes later shows that the records before were counted once.
    producer.send("lines", 0, &[("batch_id", &batch), ("file", "c.log")], b"E_FAIL\n").await;
    let deadline = Deadline::new("the last record");
    loop {
        deadline.check();
        let report = server.get(&format!("/batches/{batch}/report")).await;
        let names: Vec<&str> =
            report["files"].as_array().expect("files").iter().filter_map(|file| file["name"].as_str()).collect();
        if names.contains(&"c.log") {
            assert_eq!((names, &report["total_errors"]), (vec!["a.log", "b.log", "c.log", "long.log"], &json!(3)));
            break;
        }
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_created_anew_is_not_counted_again() {
    let kafka = KafkaServer::start();
    kafka.create_topic("lines", 1).await;
    let data = TempDir::new().expect("a folder");
    let brokers = kafka.brokers();
    let flags = ["--kafka", &brokers, "--lines-topic", "lines"];
    let server = Server::start_with(data.path(), &flags);
    kafka.producer().send("lines", 0, &[("vehicle_id", "veh"), ("vin", VIN)], b"E_FAIL\n").await;
    wait_for(&server, "the line", &BTreeMap::from([(VIN.to_owned(), 1)])).await;
    server.stop();
    // The same name on another broker, which keeps nothing.
    drop(kafka);
    let kafka = KafkaServer::start();
    kafka.create_topic("lines", 1).await;
    let folder = data.path().to_str().expect("text");
    let brokers = kafka.brokers();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data", folder, "--kafka", &brokers, "--lines-topic", "lines"];
    let output = argus(&serve, b"");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("partition 0 ends at offset 0, before the offset 1"), "{error}");
}

#[test]
fn a_broker_that_does_not_answer_is_named_at_the_start() {
    let data = TempDir::new().expect("a folder");
    let data = data.path().to_str().expect("text");
    let output = argus(&["serve", "--listen", "127.0.0.1:0", "--data", data, "--kafka", "127.0.0.1:1"], b"");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("127.0.0.1:1") && error.contains("--kafka"), "{error}");
    let output = argus(&["serve", "--data", data, "--lines-topic", "lines"], b"");
    assert_eq!(output.status.code(), Some(2));
}

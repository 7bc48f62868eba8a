//! Logs of OpenTelemetry, from its Python SDK and by hand.
#![cfg(feature = "otlp")]

mod common;

use std::process::Command;

use common::python::python;
use common::{Server, VIN, gzip};
use reqwest::{Client, Response};
use serde_json::{Value, json};

/// Logs with the SDK: a message, an exception, and a logger of its own.
const SCRIPT: &str = "
import logging, sys
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
resource = Resource.create({'vehicle.id': 'veh-1', 'vin': sys.argv[2], 'firmware': '7.2.1', 'platform': 'mk4', 'service.name': 'updater'})
provider = LoggerProvider(resource=resource)
provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=sys.argv[1], compression=Compression.Gzip)))
flash = logging.getLogger('flash')
flash.addHandler(LoggingHandler(logger_provider=provider))
flash.setLevel(logging.INFO)
for block in range(200):
    flash.info('block %d written', block)
    flash.error('block %d: ERR_FLASH_WRITE', block)
try:
    raise TimeoutError('no answer')
except TimeoutError:
    flash.exception('the update stopped')
provider.shutdown()
";

async fn send(server: &Server, kind: &str, body: Vec<u8>) -> Response {
    let request = Client::new().post(server.root_url("/v1/logs")).header("content-type", kind);
    request.body(body).send().await.expect("the server answers")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_sends_logs_that_are_counted_for_their_vehicle() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let url = server.root_url("/v1/logs");
    let client = tokio::task::spawn_blocking(move || {
        Command::new(python()).args(["-c", SCRIPT, &url, VIN]).output().expect("python runs")
    });
    let output = client.await.expect("no panic");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("Failed to export"), "{errors}");

    let batches = server.get("/batches").await["batches"].clone();
    assert_eq!(batches.as_array().map(Vec::len), Some(1));
    let batch = &batches[0];
    let described = ["vehicle_id", "vin", "firmware", "platform", "labels"].map(|name| batch[name].clone());
    assert_eq!(described, [json!("veh-1"), json!(VIN), json!("7.2.1"), json!("mk4"), json!({"stream": "otlp"})]);
    let id = batch["id"].as_str().expect("an id");
    let report = server.get(&format!("/batches/{id}/report?min_epoch={}", batch["epoch"])).await;
    assert_eq!((&report["total_files"], &report["files"][0]["name"]), (&json!(1), &json!("updater.log")));
    let codes = common::counts(&report);
    assert_eq!((&codes["ERR_FLASH_WRITE"], &codes["TimeoutError"]), (&json!(200), &json!(1)), "{codes}");
    let lines = server.get(&format!("/batches/{id}/errors?code=ERR_FLASH_WRITE&limit=1")).await;
    let line = &lines["errors"][0];
    assert_eq!((&line["component"], &line["level"]), (&json!("flash"), &json!("error")), "{line}");
    assert!(
        line["ts"].as_str().is_some()
            && line["text"].as_str().is_some_and(|text| text.ends_with("block 0: ERR_FLASH_WRITE"))
    );
    server.stop();
}

#[tokio::test]
async fn some_records_are_rejected_and_bad_bodies_are_refused_in_their_format() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let logs = |vin: &str, text: &str| {
        json!({
            "resource": {"attributes": [{"key": "vin", "value": {"stringValue": vin}}]},
            "scopeLogs": [{"logRecords": [{"body": {"stringValue": text}, "futureField": [1]}]}],
        })
    };
    let body = json!({"resourceLogs": [logs(VIN, "E_FAIL"), logs("short", "E_ABORT"), logs(VIN, "E_FAIL")]});
    let answer = send(&server, "application/json; charset=utf-8", body.to_string().into_bytes()).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/json".parse().expect("a value"))
    );
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["partialSuccess"]["rejectedLogRecords"], "1");
    assert!(answer["partialSuccess"]["errorMessage"].as_str().is_some_and(|text| text.contains("17 characters")));
    let counts = server.sql("SELECT code, sum(count) FROM error_counts GROUP BY code").await;
    assert_eq!(counts, json!([["E_FAIL", 2]]));

    // Nothing to count is a success; protobuf is answered in protobuf.
    let empty = send(&server, "application/x-protobuf", Vec::new()).await;
    assert_eq!(
        (empty.status().as_u16(), &empty.headers()["content-type"]),
        (200, &"application/x-protobuf".parse().expect("a value"))
    );
    assert!(empty.bytes().await.expect("a body").is_empty());

    let refused = send(&server, "application/x-protobuf", b"\x0a\x7fx".to_vec()).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["content-type"]),
        (400, &"application/x-protobuf".parse().expect("a value"))
    );
    assert!(String::from_utf8_lossy(&refused.bytes().await.expect("a body")).contains("ExportLogsServiceRequest"));
    for (kind, body, status) in [
        ("application/json", b"{".to_vec(), 400),
        ("application/json", b"[]".to_vec(), 400),
        ("text/plain", b"E_FAIL".to_vec(), 415),
        ("application/json", vec![b' '; 64 << 20], 413),
    ] {
        let refused = send(&server, kind, body).await;
        assert_eq!(refused.status().as_u16(), status);
        let problem: Value = refused.json().await.expect("JSON");
        assert_eq!(problem["status"], status);
    }
    let compressed = Client::new()
        .post(server.root_url("/v1/logs"))
        .header("content-type", "application/json")
        .header("content-encoding", "gzip")
        .body(gzip(json!({"resourceLogs": [logs(VIN, "E_FAIL")]}).to_string().as_bytes()));
    assert_eq!(compressed.send().await.expect("the server answers").json::<Value>().await.expect("JSON"), json!({}));
    let counts = server.sql("SELECT code, sum(count) FROM error_counts GROUP BY code").await;
    assert_eq!(counts, json!([["E_FAIL", 3]]));
    server.stop();
}

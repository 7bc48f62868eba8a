//! Syslog over TCP and TLS, from the tools of the system and by hand.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use common::{Deadline, Server, VIN, counts};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const VIN_2: &str = "WVWZZZ1JZXW000002";

/// Writes a certificate for localhost and its key, signed by itself.
fn certify(folder: &Path) -> (PathBuf, PathBuf) {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (cert, key)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Waits until the server has counted this many messages.
async fn counted(server: &Server, messages: f64) {
    let deadline = Deadline::new(format!("{messages} messages"));
    while server.metric("argus_shipped_records_total{outcome=\"counted\"}").await < messages {
        deadline.check();
    }
}

async fn address(server: &Server, kind: &str) -> String {
    server.ready().await["syslog"][kind].as_str().expect("it listens").to_owned()
}

/// The report of the only batch of a vehicle.
async fn report(server: &Server, vin: &str) -> serde_json::Value {
    let batches = server.get(&format!("/batches?vin={vin}")).await;
    assert_eq!(batches["batches"].as_array().map(Vec::len), Some(1), "{batches}");
    let batch = &batches["batches"][0];
    assert_eq!(batch["labels"], json!({"stream": "syslog"}));
    let id = batch["id"].as_str().expect("an id");
    server.get(&format!("/batches/{id}/report?min_epoch={}", batch["epoch"])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_logger_are_counted_for_their_vehicle() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_with(data.path(), &["--syslog", "127.0.0.1:0"]);
    let address = address(&server, "tcp").await;
    let (host, port) = address.split_once(':').expect("HOST:PORT");
    let fields = [("vin", VIN), ("vehicle_id", "veh-7"), ("firmware", "7.2.1"), ("platform", "mk4")];
    for (framing, message) in [("--octet-count", "E_FAIL in slot B"), ("--rfc5424", "E_FAIL and E_ABORT")] {
        let mut logger = Command::new("logger");
        logger.args(["--server", host, "--port", port, "--tcp", "--rfc5424", framing, "--priority", "user.err"]);
        logger.args(["--tag", "ota", "--sd-id", "vehicle@32473"]);
        for (name, value) in fields {
            logger.args(["--sd-param", &format!("{name}=\"{value}\"")]);
        }
        let output = logger.arg(message).output().expect("logger runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    counted(&server, 2.0).await;
    let report = report(&server, VIN).await;
    assert_eq!(counts(&report), json!({"E_FAIL": 2, "E_ABORT": 1}));
    let described = ["vehicle_id", "firmware", "platform"].map(|name| report[name].clone());
    assert_eq!(described, [json!("veh-7"), json!("7.2.1"), json!("mk4")]);
    assert_eq!(report["files"][0]["name"], "ota.log");
    let id = report["batch_id"].as_str().expect("an id");
    let errors = server.get(&format!("/batches/{id}/errors?code=E_ABORT")).await;
    assert_eq!(errors["errors"][0]["level"], "error", "the priority is the level: {errors}");
    server.stop();
}

#[tokio::test]
async fn messages_without_a_vehicle_are_rejected_and_others_counted() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_with(data.path(), &["--syslog", "127.0.0.1:0"]);
    let mut stream = TcpStream::connect(address(&server, "tcp").await).await.expect("it listens");
    let from = |host: &str, text: &str| format!("<11>1 2026-03-01T10:15:30Z {host} ota - - - {text}");
    let counted_frame = from(VIN, "E_FAIL\nE_FAIL once more");
    let messages = [
        from("gateway", "E_FAIL") + "\n",
        "no priority\n".to_owned(),
        from(VIN, "E_ABORT") + "\n",
        format!("{} {counted_frame}", counted_frame.len()),
        format!("<11>Mar  1 10:15:30 {VIN_2} flash[7]: E_FAIL\n"),
        // Cut, and so without a line feed.
        from(VIN_2, "E_ABORT"),
    ];
    // In pieces that end anywhere.
    for piece in messages.concat().as_bytes().chunks(37) {
        stream.write_all(piece).await.expect("the server reads");
        stream.flush().await.expect("the server reads");
    }
    stream.shutdown().await.expect("it is open");
    counted(&server, 4.0).await;
    assert_eq!(counts(&report(&server, VIN).await), json!({"E_FAIL": 2, "E_ABORT": 1}));
    assert_eq!(counts(&report(&server, VIN_2).await), json!({"E_FAIL": 1, "E_ABORT": 1}));
    assert_eq!(server.metric("argus_shipped_records_total{outcome=\"rejected\"}").await, 2.0);
}

#[tokio::test]
async fn a_stream_without_frames_is_closed_and_nothing_of_it_counted_twice() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_with(data.path(), &["--syslog", "127.0.0.1:0"]);
    let address = address(&server, "tcp").await;
    for garbage in ["99999999 <11>".to_owned(), "12x".to_owned(), "x".repeat(70_000)] {
        let mut stream = TcpStream::connect(&address).await.expect("it listens");
        let good = format!("<11>Mar  1 10:15:30 {VIN} ota: E_FAIL\n");
        // The server may close it before all is sent.
        let _ = stream.write_all((good + &garbage).as_bytes()).await;
        let mut rest = Vec::new();
        // Closed, or reset because not all was read; not left open.
        let closed = tokio::time::timeout(std::time::Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the stream is closed");
    }
    counted(&server, 3.0).await;
    assert_eq!(counts(&report(&server, VIN).await), json!({"E_FAIL": 3}));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_http_and_syslog_and_a_new_certificate_is_read() {
    let (data, keys) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (cert, key) = certify(keys.path());
    let flags = ["--tls-cert", text(&cert), "--tls-key", text(&key), "--syslog-tls", "127.0.0.1:0", "--syslog"];
    let server = Server::start_with(data.path(), &[&flags[..], &["127.0.0.1:0"]].concat());
    assert!(server.root_url("/").starts_with("https://"));
    let get = |path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--fail", "--cacert"]).arg(&cert).arg(server.root_url(path));
        let output = curl.output().expect("curl runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let ready: serde_json::Value = serde_json::from_str(&get("/readyz")).expect("JSON");
    let addresses = ["tcp", "tls"].map(|kind| ready["syslog"][kind].as_str().expect("it listens").to_owned());

    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-no_ign_eof", "-verify_return_error", "-CAfile", text(&cert)])
        .args(["-connect", &addresses[1]])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    let message = format!("<11>1 2026-03-01T10:15:30Z {VIN} ota - - - E_FAIL");
    let framed = format!("{} {message}", message.len());
    std::io::Write::write_all(&mut client.stdin.take().expect("piped"), framed.as_bytes()).expect("openssl reads");
    client.wait().expect("openssl ends");
    let deadline = Deadline::new("the message");
    while !get("/metrics").contains("argus_shipped_records_total{outcome=\"counted\"} 1") {
        deadline.check();
    }

    // Without TLS, no byte is answered.
    let mut plain = TcpStream::connect(&addresses[1]).await.expect("it listens");
    let _ = plain.write_all(format!("{message}\n").as_bytes()).await;
    let mut answer = Vec::new();
    // Closed by the server, which has counted nothing of it.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(get("/metrics").contains("argus_shipped_records_total{outcome=\"counted\"} 1\n"));

    // A new pair is read without a restart.
    let before = std::fs::read(&cert).expect("it is there");
    certify(keys.path());
    assert_ne!(std::fs::read(&cert).expect("it is there"), before);
    let now = SystemTime::now();
    for path in [&cert, &key] {
        let file = std::fs::File::options().append(true).open(path).expect("it is there");
        file.set_modified(now).expect("it is ours");
    }
    let deadline = Deadline::new("the new certificate");
    // curl trusts the new certificate only.
    while get("/healthz").is_empty() {
        deadline.check();
    }
    server.stop();
}

#[test]
fn a_certificate_that_cannot_be_used_is_an_error_at_the_start() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (cert, key) = certify(folder.path());
    let (_, other_key) = certify(other.path());
    let missing = folder.path().join("missing.pem");
    for (cert, key, reason) in [
        (&missing, &key, "cannot read a certificate"),
        (&key, &key, "it has no section CERTIFICATE"),
        (&cert, &cert, "cannot read a private key"),
        (&cert, &other_key, "does not fit the certificate"),
    ] {
        let data = folder.path().join("data");
        let flags = ["serve", "--listen", "127.0.0.1:0", "--data", text(&data)];
        let output = common::argus(&[&flags[..], &["--tls-cert", text(cert), "--tls-key", text(key)]].concat(), b"");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(!data.exists(), "nothing was touched");
    }
}

//! Metadata in PostgreSQL and storage in S3: the same answers as on a local disk, also after crashes of the process and
//! of each server, and while two processes compete.

mod common;

use std::time::Duration;

use common::postgres_server::PostgresServer;
use common::s3_server::S3Server;
use common::{Deadline, Server, argus_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// For how long a server is paused.
const PAUSE: Duration = Duration::from_secs(3);

/// A deployment: a database, a bucket, and data directories of processes.
struct Deployment {
    postgres: PostgresServer,
    s3: S3Server,
    data: TempDir,
}

impl Deployment {
    fn new() -> Deployment {
        Deployment { postgres: PostgresServer::start(), s3: S3Server::start(), data: TempDir::new().expect("a folder") }
    }

    fn start(&self) -> Server {
        self.try_start("one").expect("argus listens")
    }

    /// Starts a process with its own data directory.
    fn try_start(&self, name: &str) -> Option<Server> {
        let url = self.postgres.url();
        let flags = ["--metadata", &url, "--store", "s3://argus/fleet"];
        let variables = self.s3.variables();
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Server::try_start(&self.data.path().join(name), &flags, &variables)
    }
}

/// A batch with two files; returns its id.
async fn upload(server: &Server) -> String {
    let batch = server.new_batch().await;
    server.put(&batch, "a.log", "2026-03-01 10:15:30 ERROR ota: E_FAIL\nfine\n".repeat(1000)).await;
    server.put(&batch, "b.log", "E_ABORT\n").await;
    server.put(&batch, "b.log", "E_ABORT\nE_FAIL\n").await;
    let lines = format!("/batches/{batch}/files/c.log/lines");
    for _ in 0..3 {
        let answer = server.send(Method::POST, &lines, "E_TIMEOUT\n").await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap_or_default());
    }
    batch
}

/// Every view of the batch is right.
async fn check(server: &Server, batch: &str, batches: u64) {
    let report = server.get(&format!("/batches/{batch}/report")).await;
    assert_eq!((&report["total_lines"], &report["total_errors"]), (&json!(2005), &json!(1005)), "{report}");
    assert_eq!(
        server.sql("SELECT code, sum(count) FROM error_counts GROUP BY 1 ORDER BY 1").await,
        json!([["E_ABORT", batches], ["E_FAIL", 1001 * batches], ["E_TIMEOUT", 3 * batches]])
    );
    assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[1005 * batches]]));
    let fleet = server.get("/fleet/codes?group_by=vehicle").await;
    assert_eq!(fleet["codes"][0]["count"], json!(1001 * batches));
    let listed = server.get("/batches?limit=100").await;
    assert_eq!(listed["batches"].as_array().map(Vec::len), Some(batches as usize));
}

#[tokio::test]
async fn postgres_and_s3_keep_everything_through_crashes() {
    let mut deployment = Deployment::new();
    let mut server = deployment.start();
    let batch = upload(&server).await;
    check(&server, &batch, 1).await;
    // A file in several parts, which the next start reads again.
    let large = server.new_batch().await;
    let text: String = (0..300_000).map(|_| format!("{}\n", uuid::Uuid::new_v4())).collect();
    server.put(&large, "large.log", text).await;
    server.kill();
    server = deployment.start();
    let report = server.get(&format!("/batches/{large}/report")).await;
    assert_eq!((&report["total_lines"], &report["status"]), (&json!(300_000), &json!("pending")), "{report}");
    let deleted = server.send(Method::DELETE, &format!("/batches/{large}"), "").await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    check(&server, &batch, 1).await;
    server.complete(&batch).await;
    server.committed().await;

    let sql = "SELECT sum(count) AS n FROM error_counts";
    let read =
        argus_with(&["sql", "--store", "s3://argus/fleet", "--format", "csv", sql], &deployment.s3.variables(), b"");
    assert_eq!(String::from_utf8_lossy(&read.stdout).trim(), "n\n1005", "{}", String::from_utf8_lossy(&read.stderr));

    // Each server crashes; the process goes on without help.
    deployment.postgres.crash();
    let second = again(&server).await;
    check(&server, &second, 2).await;
    deployment.s3.crash();
    let third = again(&server).await;
    check(&server, &third, 3).await;

    // A server that does not answer delays, and loses nothing.
    for pause in [true, false] {
        let signal = |deployment: &Deployment, signal: &str| match pause {
            true => deployment.postgres.signal(signal),
            false => deployment.s3.signal(signal),
        };
        signal(&deployment, "-STOP");
        let mut upload = std::pin::pin!(again(&server));
        assert!(tokio::time::timeout(PAUSE, &mut upload).await.is_err(), "the upload waits for the server");
        signal(&deployment, "-CONT");
        let paused = upload.await;
        let deleted = server.send(Method::DELETE, &format!("/batches/{paused}"), "").await;
        assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    }

    // Nothing of a deleted batch remains.
    let deleted = server.send(Method::DELETE, &format!("/batches/{third}"), "").await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    check(&server, &second, 2).await;
    server.stop();
    server = deployment.start();
    check(&server, &batch, 2).await;
    common::check_filters_of_batches(&server).await;
    common::check_catalog(&server).await;
    server.kill();
}

#[tokio::test]
async fn a_multipart_upload_that_a_crash_left_unfinished_is_aborted() {
    let s3 = S3Server::start();
    let data = TempDir::new().expect("a folder");
    let variables = s3.variables();
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let start = || Server::try_start(data.path(), &["--store", "s3://argus/fleet"], &variables).expect("argus listens");
    let server = start();
    let batch = server.new_batch().await;
    // Several parts, which do not compress, and then nothing more.
    let text: String = (0..400_000).map(|_| format!("{}\n", uuid::Uuid::new_v4())).collect();
    let (part, rest) = futures::channel::mpsc::unbounded::<Result<Vec<u8>, std::io::Error>>();
    part.unbounded_send(Ok(text.into_bytes())).expect("it is open");
    let url = server.url(&format!("/batches/{batch}/files/a.log"));
    let upload = tokio::spawn(reqwest::Client::new().put(url).body(reqwest::Body::wrap_stream(rest)).send());
    let deadline = Deadline::new("a multipart upload");
    while s3.unfinished_uploads() == 0 {
        deadline.check();
        tokio::task::yield_now().await;
    }
    server.kill();
    drop(part);
    assert!(upload.await.expect("no panic").is_err());
    assert_eq!(s3.unfinished_uploads(), 1);
    let server = start();
    let deadline = Deadline::new("the abort of the unfinished upload");
    while s3.unfinished_uploads() > 0 {
        deadline.check();
        tokio::task::yield_now().await;
    }
    server.put(&batch, "a.log", "E_FAIL\n").await;
    server.stop();
}

/// Uploads a batch, as a client does that repeats what failed.
async fn again(server: &Server) -> String {
    let deadline = Deadline::new("an upload after the crash of a server");
    let send = async |method: Method, path: String, body: String, key: &str| loop {
        deadline.check();
        let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("Idempotency-Key", key)] };
        let answer = server.send_with(method.clone(), &path, headers, body.clone().into_bytes()).await;
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        if status.is_success() {
            return serde_json::from_str::<Value>(&text).expect("JSON");
        }
        assert!(status.is_server_error(), "{status} {text}");
    };
    let described = json!({"vehicle_id": "veh-1", "vin": common::VIN}).to_string();
    let key = uuid::Uuid::new_v4().to_string();
    let batch = send(Method::POST, "/batches".to_owned(), described, &key).await;
    let batch = batch["id"].as_str().expect("an id").to_owned();
    let file = |name: &str| format!("/batches/{batch}/files/{name}");
    let text = "2026-03-01 10:15:30 ERROR ota: E_FAIL\nfine\n".repeat(1000);
    send(Method::PUT, file("a.log"), text, "").await;
    send(Method::PUT, file("b.log"), "E_ABORT\nE_FAIL\n".to_owned(), "").await;
    let last = send(Method::PUT, file("c.log"), "E_TIMEOUT\n".repeat(3), "").await;
    server.get(&format!("/batches/{batch}/report?min_epoch={}&timeout_ms=60000", last["epoch"])).await;
    batch
}

#[tokio::test]
async fn a_second_process_is_refused_and_takes_over_when_the_first_is_paused() {
    let deployment = Deployment::new();
    let first = deployment.start();
    let batch = upload(&first).await;
    assert!(deployment.try_start("two").is_none(), "the first process is running");
    first.signal("-STOP");
    let deadline = Deadline::new("the second process to take over");
    let second = loop {
        deadline.check();
        if let Some(second) = deployment.try_start("two") {
            break second;
        }
    };
    check(&second, &batch, 1).await;
    let more = upload(&second).await;
    // The first process wakes up, and can write nothing more.
    first.signal("-CONT");
    let answer =
        first.try_send(Method::POST, "/batches", &[], json!({"vehicle_id": "v", "vin": common::VIN}).to_string());
    if let Some(answer) = answer.await {
        assert!(answer.status().is_server_error(), "{}", answer.status());
    }
    let mut first = first;
    assert!(!first.wait().success(), "the replaced process ends with an error");
    check(&second, &more, 2).await;
    second.committed().await;
    check(&second, &batch, 2).await;
    second.stop();
    let third = deployment.start();
    check(&third, &more, 2).await;
}

/// Flags, variables, the exit code, and what the error says.
type Case<'a> = (&'a [&'a str], Vec<(&'static str, String)>, i32, &'a [&'a str]);

#[tokio::test]
async fn what_is_wrong_with_a_server_is_said_at_the_start() {
    let s3 = S3Server::start();
    let data = TempDir::new().expect("a folder");
    let data = data.path().to_str().expect("text");
    let endpoint = s3.variables();
    let with = |changed: &[(&'static str, &'static str)]| {
        let mut variables = endpoint.clone();
        for (name, value) in changed {
            variables.retain(|(known, _)| known != name);
            variables.push((*name, (*value).to_owned()));
        }
        variables
    };
    let cases: [Case; 7] = [
        (&["--store", "s3://argus/x"], with(&[("AWS_SECRET_ACCESS_KEY", "wrong")]), 1, &["keys are wrong"]),
        (&["--store", "s3://argus/x"], with(&[("AWS_ENDPOINT_URL", "http://127.0.0.1:1")]), 1, &["AWS_ENDPOINT_URL"]),
        (&["--store", "gs://argus/x"], with(&[]), 1, &["no store for gs"]),
        (&["--metadata", "mysql://host/db"], with(&[]), 2, &["postgres://USER"]),
        (&["--metadata", "postgres://postgres@127.0.0.1:1/db"], with(&[]), 1, &["metadata", "127.0.0.1:1"]),
        (&["--metadata", "sqlite:"], with(&[]), 2, &["sqlite:PATH"]),
        (&["--metadata", "postgres://u:secret@host"], with(&[]), 2, &["u:***@host"]),
    ];
    for (flags, variables, code, words) in cases {
        let output =
            argus_with(&[&["serve", "--listen", "127.0.0.1:0", "--data", data], flags].concat(), &variables, b"");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

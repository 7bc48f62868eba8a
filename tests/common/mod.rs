//! The harness for all tests that run the real binary, so that a test mentions only what it is about.

#![allow(dead_code, reason = "each test file uses its part of the harness")]

pub mod kafka_server;
pub mod postgres_server;
pub mod proxy;
pub mod python;
pub mod redis;
pub mod s3_server;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

/// The binary under test.
pub const ARGUS: &str = env!("CARGO_BIN_EXE_argus");

/// A valid VIN.
pub const VIN: &str = "WVWZZZ1JZXW000001";

/// The longest time that a test waits for one thing.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// The limit of a wait: a wait that takes longer fails with what it waited for.
pub struct Deadline {
    what: String,
    end: Instant,
}

impl Deadline {
    /// A wait for something begins.
    pub fn new(what: impl Into<String>) -> Deadline {
        Deadline { what: what.into(), end: Instant::now() + WAIT_MAX }
    }

    /// Fails when the time is over.
    pub fn check(&self) {
        assert!(Instant::now() < self.end, "timed out after {} s waiting for {}", WAIT_MAX.as_secs(), self.what);
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    base: String,
    client: Client,
}

impl Server {
    /// Starts on a data directory and a free port; returns when it listens.
    pub fn start(data: &Path) -> Server {
        Server::start_with(data, &[])
    }

    /// Starts with more flags.
    pub fn start_with(data: &Path, flags: &[&str]) -> Server {
        Server::try_start(data, flags, &[]).expect("argus listens")
    }

    /// Starts with more flags, and with maintenance every `every_ms` milliseconds, which only test builds support.
    pub fn start_maintained(data: &Path, every_ms: &str, flags: &[&str]) -> Server {
        Server::try_start(data, flags, &[("ARGUS_MAINTAIN_EVERY_MS", every_ms)]).expect("argus listens")
    }

    /// Starts with more flags and variables; `None` when it ends before it listens.
    pub fn try_start(data: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Option<Server> {
        let listen: &[&str] = if flags.contains(&"--listen") { &[] } else { &["--listen", "127.0.0.1:0"] };
        let mut child = Command::new(ARGUS)
            .args(["serve", "--data"])
            .arg(data)
            .args(listen)
            .args(flags)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("argus starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its output is text");
        let Some(base) = line.trim().strip_prefix("argus listening on ") else {
            child.wait().expect("argus ends");
            return None;
        };
        Some(Server { child, base: base.to_owned(), client: Client::new() })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A metric of the server, by its name and labels; 0 if there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = self.client.get(self.root_url("/metrics")).send().await.expect("the server answers");
        let text = answer.text().await.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        line.unwrap_or(0.0)
    }

    /// The address of the server for another SQL protocol: `postgres` or `flight`.
    pub async fn sql_address(&self, protocol: &str) -> String {
        self.ready().await["sql"][protocol].as_str().expect("the server is open").to_owned()
    }

    /// What `/readyz` says.
    pub async fn ready(&self) -> Value {
        let answer = self.client.get(self.root_url("/readyz")).send().await.expect("the server answers");
        answer.json().await.expect("JSON")
    }

    /// Sends a request; `None` if the server dies during it.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Option<Response> {
        let request = self.client.request(method, self.url(path)).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.ok()
    }

    /// A path below the API.
    pub fn url(&self, path: &str) -> String {
        format!("{}/api/v1{path}", self.base)
    }

    /// A path of the server.
    pub fn root_url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Sends a request.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> Response {
        self.client.request(method, self.url(path)).body(body).send().await.expect("the server answers")
    }

    /// Sends a request with headers.
    pub async fn send_with(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response {
        let request = self.client.request(method, self.url(path)).body(body);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.expect("the server answers")
    }

    /// The JSON at a path; the status must be 200.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(self.url(path)).send().await.expect("the server answers");
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        answer.json().await.expect("JSON")
    }

    /// Creates a batch; returns its id.
    pub async fn new_batch(&self) -> String {
        self.new_batch_of(json!({"vehicle_id": "veh-1", "vin": VIN})).await
    }

    /// Creates a batch as described; returns its id.
    pub async fn new_batch_of(&self, described: Value) -> String {
        let answer = self.send(Method::POST, "/batches", described.to_string()).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let batch: Value = answer.json().await.expect("JSON");
        batch["id"].as_str().expect("an id").to_owned()
    }

    /// Uploads a file, which must be accepted; returns the receipt.
    pub async fn put(&self, batch: &str, name: &str, body: impl Into<reqwest::Body>) -> Value {
        let answer = self.send(Method::PUT, &format!("/batches/{batch}/files/{name}"), body).await;
        assert!(answer.status().is_success(), "{name}: {}", answer.text().await.unwrap_or_default());
        answer.json().await.expect("JSON")
    }

    /// Completes a batch and waits for its final report.
    pub async fn complete(&self, batch: &str) -> Value {
        let answer = self.send(Method::POST, &format!("/batches/{batch}/complete"), "").await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let done: Value = answer.json().await.expect("JSON");
        self.final_report(batch, done["epoch"].as_u64().expect("an epoch")).await
    }

    /// The report that covers an epoch, once the batch is completed.
    pub async fn final_report(&self, batch: &str, epoch: u64) -> Value {
        let deadline = Deadline::new(format!("the completion of batch {batch}"));
        loop {
            deadline.check();
            // The server waits for the epoch; the status follows within one more round.
            let report = self.get(&format!("/batches/{batch}/report?min_epoch={epoch}&timeout_ms=60000")).await;
            if report["status"] == "completed" {
                return report;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until all accepted epochs are committed to the lake.
    pub async fn committed(&self) {
        let deadline = Deadline::new("the commit of all accepted epochs");
        while self.metric("argus_committed_epoch").await < self.metric("argus_epoch").await {
            deadline.check();
        }
    }

    /// The rows of a query.
    pub async fn sql(&self, sql: &str) -> Value {
        let answer = self.send(Method::POST, "/query", json!({"sql": sql}).to_string()).await;
        assert_eq!(answer.status(), StatusCode::OK, "{sql}");
        answer.json::<Value>().await.expect("JSON")["rows"].take()
    }

    /// SIGTERM; it must exit with 0.
    pub fn stop(self) {
        assert!(self.ends_well());
    }

    /// SIGTERM; whether it exits with 0.
    pub fn ends_well(mut self) -> bool {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(killed.success());
        self.child.wait().expect("argus ends").success()
    }

    /// Sends a signal, such as `-STOP`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_some()
    }

    /// Waits until the process ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("argus ends")
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("argus is there");
        self.child.wait().expect("argus ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Usually already stopped or killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Checks the filters of batches that are in no index, on any metadata database.
pub async fn check_filters_of_batches(server: &Server) {
    for (platform, site) in [("mk4", "north"), ("mk5", "a \"b\"&'c"), ("mk5", "north")] {
        let labels = json!({"site": site, "a.b": "1"});
        server
            .new_batch_of(json!({"vehicle_id": "filtered", "vin": VIN, "platform": platform, "labels": labels}))
            .await;
    }
    for (filter, count) in [
        ("platform=mk5", 2),
        ("label.site=north", 2),
        ("label.site=north&platform=mk5", 1),
        ("label.site=a+%22b%22%26'c&label.a.b=1", 1),
        ("label.site=nort", 0),
        ("label.other=north", 0),
        ("since=2000-01-01T00:00:00Z&until=2100-01-01T00:00:00Z", 3),
        ("since=2100-01-01T00:00:00Z", 0),
        ("until=2000-01-01T00:00:00Z", 0),
    ] {
        let listed = server.get(&format!("/batches?vehicle_id=filtered&{filter}")).await;
        assert_eq!(listed["batches"].as_array().map(Vec::len), Some(count), "{filter}");
    }
}

/// Checks users' entries of the catalogue, on any metadata database.
pub async fn check_catalog(server: &Server) {
    for (platform, meaning, status) in
        [(None, "of all", 201), (Some("mk5"), "of mk5", 201), (Some("mk5"), "of mk5 'again'", 200)]
    {
        let entry = json!({"meaning": meaning, "platform": platform});
        let answer = server.send(Method::PUT, "/catalog/ACME-100", entry.to_string()).await;
        assert_eq!(answer.status().as_u16(), status, "{meaning}");
    }
    assert_eq!(server.get("/codes/ACME-100").await["description"]["meaning"], "of all");
    let found = server.get("/catalog?q=acme-100+AGAIN").await;
    assert_eq!((&found["entries"][0]["platform"], found["entries"].as_array().map(Vec::len)), (&json!("mk5"), Some(1)));
    for status in [204, 404] {
        let answer = server.send(Method::DELETE, "/catalog/ACME-100?platform=mk5", "").await;
        assert_eq!(answer.status().as_u16(), status);
    }
    assert_eq!(server.get("/catalog?q=ACME-100").await["entries"].as_array().map(Vec::len), Some(1));
}

/// Runs the binary with some standard input.
pub fn argus(arguments: &[&str], input: &[u8]) -> Output {
    argus_with(arguments, &[], input)
}

/// The same with more variables.
pub fn argus_with(arguments: &[&str], variables: &[(&str, String)], input: &[u8]) -> Output {
    let mut child = Command::new(ARGUS)
        .args(arguments)
        // Where `argus upload` remembers what is unfinished.
        .env("XDG_STATE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/state"))
        .envs(variables.iter().map(|(name, value)| (*name, value.as_str())))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("argus starts");
    // A process that ends early does not read its input.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("argus ends")
}

/// The report of `argus analyze`.
pub fn analyze(arguments: &[&str], input: &[u8]) -> Value {
    let output = argus(&[&["analyze", "--format", "json"], arguments].concat(), input);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    })
}

/// Code → count of a report.
pub fn counts(report: &Value) -> Value {
    let codes = report["codes"].as_array().expect("a report has codes");
    codes.iter().map(|code| (code["code"].as_str().expect("text").to_owned(), code["count"].clone())).collect()
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there").flatten();
    entries.flat_map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { vec![entry.path()] }).collect()
}

/// The data files of a table of the lake.
pub fn data_files(data: &Path, table: &str) -> Vec<PathBuf> {
    let mut files = files(&data.join("lake").join(table));
    files.retain(|file| {
        file.extension().is_some_and(|end| end == "parquet") && !file.to_string_lossy().contains("_delta_log")
    });
    files
}

/// gzip of some bytes, by the system's tool.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let mut out = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut out).expect("reads");
    writer.join().expect("writes").expect("writes");
    child.wait().expect("gzip ends");
    out
}

/// Real logs with their expected counts, if they exist next to the project.
pub struct RealLogs {
    folder: PathBuf,
    golden: serde_json::Map<String, Value>,
}

impl RealLogs {
    /// `None`, with a message, if there are none.
    pub fn find() -> Option<RealLogs> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
        let Ok(golden) = std::fs::read(folder.join("golden.json")) else {
            eprintln!("skipped: no real logs next to the project");
            return None;
        };
        Some(RealLogs { folder, golden: serde_json::from_slice(&golden).expect("golden.json is JSON") })
    }

    /// The folder of the logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Each log's name, bytes and expected counts.
    pub fn each(&self) -> impl Iterator<Item = (&str, Vec<u8>, &Value)> {
        // The file counts the bytes of DLT as text, and Argus its messages.
        let is_text = |(_, expected): &(&String, &Value)| expected["dlt"]["messages"].is_null();
        self.golden.iter().filter(is_text).map(|(name, expected)| {
            let bytes = std::fs::read(self.folder.join(name)).expect("the log is there");
            (name.as_str(), bytes, expected.get("decoded").unwrap_or(expected))
        })
    }
}

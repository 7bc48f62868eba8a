//! Random histories compared with a plain map. After any sequence of uploads, appends, replacements, aborted uploads,
//! deletions, completions, reopens, compactions, restarts and kills, every view equals a loop over the files. No reader
//! sees a part of a change or an older epoch.
//!
//! `ARGUS_HISTORIES=1000 cargo test --test histories` runs more histories.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use argus_dataflow::scan::Scanner;
use argus_dataflow::scan::header::Reader;
use argus_dataflow::{BlockReader, Occurrence, RuleSet};
use chrono::{DateTime, SecondsFormat, Utc};
use common::postgres_server::PostgresServer;
use common::s3_server::S3Server;
use common::{Server, argus_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

const STEPS: usize = 40;
const VINS: [&str; 3] = ["WVWZZZ1JZXW000001", "WVWZZZ1JZXW000002", "WVWZZZ1JZXW000003"];
const NAMES: [&str; 3] = ["a.log", "b.log", "c.log"];

/// Lines and pieces of lines, which appends combine in relevant ways.
const PIECES: [&str; 12] = [
    "2026-03-01 10:15:30 ERROR ota: E_FAIL\n",
    "2026-03-01 10:15:29 ERROR ota: E_FAIL and SIGSEGV\n",
    "2026-03-01 10:15:35 WARN bms: E_ABORT\n",
    "2026-02-28 23:59:59 ERROR bms: E_FAIL\n",
    "nothing to see here\n",
    "\n",
    "E_TIMEOUT without a time\n",
    "2026-03-01 10:15:31 ERROR ota: E_AB",
    "ORT\n",
    "E_F",
    "AIL",
    "2026-03-02 00:00:00 ERROR can: DTC P0301-07 stored\r\n",
];

/// xorshift64*, so that a seed reproduces a history.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn text(&mut self) -> String {
        (0..self.below(6)).map(|_| self.pick(&PIECES)).collect()
    }
}

/// The expected state of a batch.
#[derive(Debug, Clone)]
struct ModelBatch {
    id: String,
    vin: &'static str,
    platform: Option<&'static str>,
    firmware: Option<&'static str>,
    completed: bool,
    created_at: i64,
    /// By name.
    files: BTreeMap<&'static str, ModelFile>,
}

#[derive(Debug, Clone)]
struct ModelFile {
    text: String,
    /// The bytes whose lines count: all, or all but an open last line.
    counted: usize,
    /// The ends of the parts that were counted together.
    parts: Vec<usize>,
    generation: u64,
}

struct World {
    seed: u64,
    random: Random,
    /// Stopped before its folder is deleted.
    server: Option<Server>,
    data: TempDir,
    /// Where metadata and files are, if not in the folder.
    servers: Option<Servers>,
    batches: Vec<ModelBatch>,
    scanner: Scanner,
    epoch: u64,
    log: Vec<String>,
}

fn occurrences(scanner: &mut Scanner, text: &str) -> Vec<Occurrence> {
    let mut blocks = BlockReader::new(text.as_bytes(), 4096);
    let mut all = Vec::new();
    while let Some(block) = blocks.next_block().expect("memory reads") {
        all.extend(scanner.scan(&block, now()).1);
    }
    all
}

fn now() -> i64 {
    Utc::now().timestamp_micros()
}

fn rfc3339(time: Option<i64>) -> Value {
    time.and_then(DateTime::from_timestamp_micros)
        .map_or(Value::Null, |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into())
}

/// A dimension, a group of it, and a code.
type CodeOfGroup = (&'static str, Option<String>, String);

/// The expected values of a code in some batches.
#[derive(Debug, Default, Clone)]
struct Seen {
    count: u64,
    batches: BTreeSet<String>,
    vins: BTreeSet<&'static str>,
    first: Option<i64>,
    last: Option<i64>,
}

impl Seen {
    fn add(&mut self, batch: &ModelBatch, time: Option<i64>) {
        self.count += 1;
        self.batches.insert(batch.id.clone());
        self.vins.insert(batch.vin);
        self.first = [self.first, time].into_iter().flatten().min();
        self.last = self.last.max(time);
    }
}

impl ModelFile {
    /// A whole file; its open line is a separate part.
    fn uploaded(text: String, generation: u64) -> ModelFile {
        let (counted, whole) = (text.len(), text.rfind('\n').map_or(0, |last| last + 1));
        ModelFile { text, counted, parts: vec![whole, counted], generation }
    }

    /// Counts more of the file. A line that was open is counted again with its continuation.
    fn count_up_to(&mut self, counted: usize) {
        while self.parts.last().is_some_and(|&end| end > 0 && !self.text[..end].ends_with('\n')) {
            self.parts.pop();
        }
        self.parts.push(counted);
        self.counted = counted;
    }

    fn lines(&self) -> usize {
        self.text[..self.counted].split_inclusive('\n').count()
    }

    /// The timestamps of the first and the last line of each part that have one.
    fn times(&self) -> Vec<i64> {
        let mut times = Vec::new();
        for (start, end) in std::iter::once(&0).chain(&self.parts).zip(&self.parts) {
            let of = |line: &str| Reader::default().read(line.trim_end().as_bytes(), now()).observed_at;
            let named: Vec<i64> = self.text[*start..*end].split_inclusive('\n').filter_map(of).collect();
            times.extend(named.first().into_iter().chain(named.last()));
        }
        times
    }
}

impl World {
    fn new(seed: u64, servers: Option<Servers>) -> World {
        let data = tempfile::tempdir().expect("a temporary folder");
        let server = Some(start(data.path(), servers.as_ref()));
        let scanner = Scanner::new(RuleSet::built_in().expect("the built-in rules are valid"));
        let random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        World { seed, random, data, servers, server, batches: Vec::new(), scanner, epoch: 0, log: Vec::new() }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    async fn run(mut self) {
        for _ in 0..STEPS {
            self.step().await;
            self.check().await;
        }
    }

    async fn step(&mut self) {
        let what = self.random.below(26);
        if self.batches.is_empty() || what == 0 {
            return self.create().await;
        }
        let index = self.random.below(self.batches.len());
        let name = self.random.pick(&NAMES);
        match what {
            1..=6 => self.put(index, name).await,
            7..=12 => self.append(index, name).await,
            13 => self.abort_upload(index, name),
            14 | 15 => self.delete_file(index, name).await,
            16 => self.delete_batch(index).await,
            17..=19 => self.complete(index).await,
            20 | 21 => self.reopen(index).await,
            22 => self.restart(Server::stop),
            23 => self.restart(Server::kill),
            24 => self.maintain(),
            _ => self.create().await,
        }
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    async fn create(&mut self) {
        let vin = self.random.pick(&VINS);
        let platform = self.random.pick(&[None, Some("p1"), Some("p2")]);
        let firmware = self.random.pick(&[None, Some("7.2.0"), Some("7.2.1")]);
        let described =
            json!({"vehicle_id": format!("veh-{vin}"), "vin": vin, "platform": platform, "firmware": firmware});
        let id = self.server().new_batch_of(described).await;
        let batch: Value = self.server().get(&format!("/batches/{id}")).await;
        self.epoch = batch["epoch"].as_u64().expect("an epoch");
        self.note(format!("create {} {vin} {platform:?} {firmware:?}", self.batches.len()));
        let created_at = batch["created_at"].as_str().expect("a time").parse::<DateTime<Utc>>().expect("a time");
        let created_at = created_at.timestamp_micros();
        self.batches.push(ModelBatch {
            id,
            vin,
            platform,
            firmware,
            completed: false,
            created_at,
            files: BTreeMap::new(),
        });
    }

    async fn put(&mut self, index: usize, name: &'static str) {
        let text = self.random.text();
        self.note(format!("put {index} {name} {text:?}"));
        let batch = &self.batches[index];
        let path = format!("/batches/{}/files/{name}", batch.id);
        let answer = self.server().send(Method::PUT, &path, text.clone()).await;
        if batch.completed {
            assert_eq!(answer.status(), StatusCode::CONFLICT);
            return;
        }
        let before = batch.files.get(name).cloned();
        let same = before.as_ref().is_some_and(|file| file.text == text && file.counted == text.len());
        assert_eq!(answer.status(), if before.is_none() { StatusCode::CREATED } else { StatusCode::OK });
        let receipt: Value = answer.json().await.expect("JSON");
        let generation = before.map_or(1, |file| file.generation + u64::from(!same));
        assert_eq!(receipt["generation"], json!(generation));
        self.take_epoch(&receipt);
        if !same {
            self.batches[index].files.insert(name, ModelFile::uploaded(text, generation));
        }
    }

    async fn append(&mut self, index: usize, name: &'static str) {
        let part = self.random.text();
        self.note(format!("append {index} {name} {part:?}"));
        let batch = &self.batches[index];
        let path = format!("/batches/{}/files/{name}/lines", batch.id);
        let offset = batch.files.get(name).map_or(0, |file| file.text.len()).to_string();
        let headers = [("Upload-Offset", offset.as_str())];
        let answer = self.server().send_with(Method::POST, &path, &headers, part.clone().into_bytes()).await;
        if batch.completed {
            assert_eq!(answer.status(), StatusCode::CONFLICT);
            return;
        }
        assert_eq!(answer.status(), StatusCode::OK);
        let receipt: Value = answer.json().await.expect("JSON");
        self.take_epoch(&receipt);
        let new = ModelFile { text: String::new(), counted: 0, parts: Vec::new(), generation: 1 };
        let file = self.batches[index].files.entry(name).or_insert(new);
        if !part.is_empty() {
            file.text += &part;
            file.count_up_to(file.text.rfind('\n').map_or(0, |last| last + 1));
        }
        assert_eq!((&receipt["bytes"], &receipt["lines"]), (&json!(file.text.len()), &json!(file.lines())));
    }

    /// Sends less of an upload than its `Content-Length`.
    fn abort_upload(&mut self, index: usize, name: &'static str) {
        self.note(format!("abort upload {index} {name}"));
        let url = self.server().url(&format!("/batches/{}/files/{name}", self.batches[index].id));
        let (host, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("a URL");
        let mut stream = TcpStream::connect(host).expect("connects");
        let head = format!("PUT /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\nE_FAIL\nE_BROKEN\n");
        stream.write_all(head.as_bytes()).expect("sends");
    }

    async fn delete_file(&mut self, index: usize, name: &'static str) {
        self.note(format!("delete {index} {name}"));
        let batch = &self.batches[index];
        let answer = self.server().send(Method::DELETE, &format!("/batches/{}/files/{name}", batch.id), "").await;
        let expected = match (batch.completed, batch.files.contains_key(name)) {
            (true, _) => StatusCode::CONFLICT,
            (false, true) => StatusCode::NO_CONTENT,
            (false, false) => StatusCode::NOT_FOUND,
        };
        assert_eq!(answer.status(), expected);
        if expected == StatusCode::NO_CONTENT {
            self.batches[index].files.remove(name);
        }
    }

    async fn delete_batch(&mut self, index: usize) {
        self.note(format!("delete {index}, later ones move up"));
        let deleted = self.batches.remove(index);
        let path = format!("/batches/{}", deleted.id);
        assert_eq!(self.server().send(Method::DELETE, &path, "").await.status(), StatusCode::NO_CONTENT);
        assert_eq!(self.server().send(Method::GET, &path, "").await.status(), StatusCode::NOT_FOUND);
    }

    async fn complete(&mut self, index: usize) {
        self.note(format!("complete {index}"));
        let id = self.batches[index].id.clone();
        self.server().complete(&id).await;
        let batch = self.server().get(&format!("/batches/{id}")).await;
        self.take_epoch(&batch);
        self.batches[index].completed = true;
        for file in self.batches[index].files.values_mut() {
            if file.counted < file.text.len() {
                file.parts.push(file.text.len());
                file.counted = file.text.len();
            }
        }
    }

    async fn reopen(&mut self, index: usize) {
        self.note(format!("reopen {index}"));
        let path = format!("/batches/{}/reopen", self.batches[index].id);
        let answer = self.server().send(Method::POST, &path, "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        let batch: Value = answer.json().await.expect("JSON");
        self.take_epoch(&batch);
        self.batches[index].completed = false;
    }

    fn restart(&mut self, end: fn(Server)) {
        self.note("restart".to_owned());
        end(self.server.take().expect("it runs"));
        self.server = Some(start(self.data.path(), self.servers.as_ref()));
    }

    fn maintain(&mut self) {
        let retention = self.random.pick(&["0s", "7d"]);
        self.note(format!("maintain {retention}"));
        self.server.take().expect("it runs").stop();
        let data = self.data.path().to_str().expect("text");
        let flags = Servers::flags(self.servers.as_ref());
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let variables = Servers::variables(self.servers.as_ref());
        let maintain = [&["maintain", "--data", data, "--retention", retention][..], &flags].concat();
        let output = argus_with(&maintain, &variables, b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.server = Some(start(self.data.path(), self.servers.as_ref()));
    }

    fn take_epoch(&mut self, answer: &Value) {
        self.epoch = self.epoch.max(answer["epoch"].as_u64().expect("an epoch"));
    }

    /// Compares all views with the model.
    async fn check(&mut self) {
        let batches = self.batches.clone();
        let mut codes: BTreeMap<CodeOfGroup, Seen> = BTreeMap::new();
        let mut by_vin: BTreeMap<(&str, String), (i64, &str)> = BTreeMap::new();
        let mut platforms: BTreeMap<(&str, Option<String>), u64> = BTreeMap::new();
        let mut own: BTreeMap<(&str, String), u64> = BTreeMap::new();
        let mut errors = Vec::new();
        for batch in &batches {
            let recorded = batch.files.values().flat_map(ModelFile::times).min().unwrap_or(batch.created_at);
            for (name, file) in &batch.files {
                if let Some(platform) = batch.platform {
                    *platforms.entry((platform, None)).or_default() += file.lines() as u64;
                }
                for occurrence in occurrences(&mut self.scanner, &file.text[..file.counted]) {
                    let (code, time) = (occurrence.code.to_string(), occurrence.observed_at);
                    let groups = [
                        ("firmware", batch.firmware.map(str::to_owned)),
                        ("platform", batch.platform.map(str::to_owned)),
                        ("vehicle", Some(format!("veh-{}", batch.vin))),
                        ("component", occurrence.component.as_deref().map(str::to_owned)),
                    ];
                    for (by, group) in groups {
                        codes.entry((by, group, code.clone())).or_default().add(batch, time);
                    }
                    let first = by_vin.entry((batch.vin, code.clone())).or_insert((recorded, &batch.id));
                    *first = (recorded, &*batch.id).min(*first);
                    if let Some(platform) = batch.platform {
                        *platforms.entry((platform, Some(code.clone()))).or_default() += 1;
                    }
                    *own.entry((&batch.id, code.clone())).or_default() += 1;
                    errors.push(json!([batch.id, name, occurrence.line, occurrence.offset, code]));
                }
            }
        }
        for batch in &batches {
            let report = self.server().get(&format!("/batches/{}/report?min_epoch={}", batch.id, self.epoch)).await;
            assert_eq!(report["status"], json!(if batch.completed { "completed" } else { "pending" }));
            let files: Vec<Value> = batch
                .files
                .iter()
                .map(|(name, file)| {
                    let mut codes: BTreeMap<String, u64> = BTreeMap::new();
                    for occurrence in occurrences(&mut self.scanner, &file.text[..file.counted]) {
                        *codes.entry(occurrence.code.to_string()).or_default() += 1;
                    }
                    let (first, last) = (file.times().into_iter().min(), file.times().into_iter().max());
                    json!({"name": name, "generation": file.generation, "bytes": file.counted, "lines": file.lines(),
                       "first_ts": rfc3339(first), "last_ts": rfc3339(last), "long_lines": 0, "errors": codes.values().sum::<u64>(), "codes": codes})
                })
                .collect();
            assert_eq!(report["files"], json!(files), "{}", batch.id);
            let lines: u64 = batch.files.values().map(|file| file.lines() as u64).sum();
            assert_eq!(report["total_lines"], json!(lines));
            let mut counts: Vec<(&String, u64)> =
                own.iter().filter(|((id, _), _)| **id == batch.id).map(|((_, code), count)| (code, *count)).collect();
            counts.sort_by_key(|(code, count)| (std::cmp::Reverse(*count), (*code).clone()));
            let reported = report["codes"].as_array().expect("codes");
            assert_eq!(reported.len(), counts.len());
            for (code, (name, count)) in reported.iter().zip(counts) {
                assert_eq!((&code["code"], &code["count"]), (&json!(name), &json!(count)));
                let is_first = by_vin[&(batch.vin, name.clone())].1 == batch.id;
                assert_eq!(code["new_for_vehicle"], json!(is_first), "{name} of {}", batch.id);
                let ratio = batch.platform.and_then(|platform| {
                    let others = platforms[&(platform, Some(name.clone()))] - count;
                    let other_lines = platforms[&(platform, None)] - lines;
                    (others > 0).then(|| count as f64 / lines as f64 / (others as f64 / other_lines as f64))
                });
                assert_eq!(code["fleet_ratio"].as_f64().is_some(), ratio.is_some(), "{code}");
                if let (Some(ours), Some(ratio)) = (code["fleet_ratio"].as_f64(), ratio) {
                    assert!((ours / ratio - 1.0).abs() < 1e-9, "{ours} {ratio}");
                }
            }
        }
        errors.sort_by_key(Value::to_string);
        let mut read = self.server().sql("SELECT batch_id, file, line, \"offset\", code FROM errors").await;
        read.as_array_mut().expect("rows").sort_by_key(Value::to_string);
        assert_eq!(read, json!(errors));
        let totals = self.server().sql("SELECT coalesce(sum(count), 0) FROM error_counts").await;
        assert_eq!(totals, json!([[errors.len()]]));
        let totals = self.server().sql("SELECT coalesce(sum(count), 0) FROM fleet_codes").await;
        assert_eq!(totals, json!([[errors.len()]]));
        let counts =
            self.server().sql("SELECT (SELECT count(*) FROM batches) AS b, (SELECT count(*) FROM files) AS f").await;
        let files: usize = batches.iter().map(|batch| batch.files.len()).sum();
        assert_eq!(counts, json!([[batches.len(), files]]));
        for by in ["firmware", "platform", "vehicle", "component"] {
            let answer = self.server().get(&format!("/fleet/codes?group_by={by}&limit=1000")).await;
            let mut expected: Vec<(&CodeOfGroup, &Seen)> =
                codes.iter().filter(|((dimension, ..), _)| *dimension == by).collect();
            expected
                .sort_by_key(|((_, group, code), seen)| (std::cmp::Reverse(seen.count), code.clone(), group.clone()));
            let expected: Vec<Value> = expected
                .into_iter()
                .map(|((_, group, code), seen)| {
                    json!([
                        group,
                        code,
                        seen.count,
                        seen.batches.len(),
                        seen.vins.len(),
                        rfc3339(seen.first),
                        rfc3339(seen.last)
                    ])
                })
                .collect();
            let row = |row: &Value| {
                let names = ["group", "code", "count", "batches", "vehicles", "first_seen", "last_seen"];
                names.map(|name| row[name].clone())
            };
            let read: Vec<Value> =
                answer["codes"].as_array().expect("rows").iter().map(|code| json!(row(code))).collect();
            assert_eq!(json!(read), json!(expected), "by {by}");
        }
    }
}

/// PostgreSQL for the metadata and S3 for the files.
struct Servers {
    postgres: PostgresServer,
    s3: S3Server,
}

impl Servers {
    fn flags(servers: Option<&Servers>) -> Vec<String> {
        let flags = servers
            .map(|servers| ["--metadata", &servers.postgres.url(), "--store", "s3://argus/x"].map(str::to_owned));
        flags.into_iter().flatten().collect()
    }

    fn variables(servers: Option<&Servers>) -> Vec<(&'static str, String)> {
        servers.map(|servers| servers.s3.variables()).unwrap_or_default()
    }
}

fn start(data: &Path, servers: Option<&Servers>) -> Server {
    let flags = Servers::flags(servers);
    let flags: Vec<&str> = ["--retention", "0s"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let variables = Servers::variables(servers);
    let variables = variables.iter().map(|(name, value)| (*name, value.as_str()));
    let variables: Vec<(&str, &str)> = variables.chain([("ARGUS_MAINTAIN_EVERY_MS", "150")]).collect();
    Server::try_start(data, &flags, &variables).expect("argus listens")
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("history {}:\n  {}", self.seed, self.log.join("\n  "));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_any_history_all_views_equal_a_plain_loop() {
    let histories: u64 = std::env::var("ARGUS_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let first: u64 = std::env::var("ARGUS_HISTORY").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for seed in first..first + histories {
        World::new(seed, None).run().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_history_on_postgres_and_s3_all_views_equal_a_plain_loop() {
    let servers = Servers { postgres: PostgresServer::start(), s3: S3Server::start() };
    World::new(11, Some(servers)).run().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_interface_reads_exactly_one_generation_while_a_file_is_replaced() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_maintained(data.path(), "50", &["--retention", "0s"]);
    let id = server.new_batch_of(json!({"vehicle_id": "v", "vin": VINS[0], "firmware": "7.2.1"})).await;
    let texts = ["2026-03-01 10:15:30 ERROR ota: E_FAIL\n", "2026-03-01 10:15:30 ERROR bms: E_ABORT\n"]
        .map(|text| text.repeat(100));
    let first = server.put(&id, "a.log", texts[0].clone()).await;
    server.get(&format!("/batches/{id}/report?min_epoch={}", first["epoch"])).await;
    let done = Arc::new(AtomicBool::new(false));
    let write = async {
        for round in 1..60 {
            match round % 20 {
                // Deleting and appending would be two changes; a completion and a reopen change no count.
                19 => {
                    server.complete(&id).await;
                    server.send(Method::POST, &format!("/batches/{id}/reopen"), "").await;
                }
                _ => drop(server.put(&id, "a.log", texts[round % 2].clone()).await),
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    let read = async {
        let mut epoch = 0;
        while !done.load(Ordering::Relaxed) {
            let report = server.get(&format!("/batches/{id}/report")).await;
            assert_eq!((&report["total_errors"], &report["codes"][0]["count"]), (&json!(100), &json!(100)));
            let seen = report["epoch"].as_u64().expect("an epoch");
            assert!(seen >= epoch, "epochs never decrease");
            let fleet = server.get("/fleet/codes?group_by=firmware").await;
            assert_eq!((&fleet["codes"][0]["count"], &fleet["codes"][1]), (&json!(100), &Value::Null));
            epoch = fleet["epoch"].as_u64().expect("an epoch");
            assert!(epoch >= seen, "epochs never decrease");
            for sql in [
                "SELECT sum(count), count(*) FROM error_counts",
                "SELECT sum(count), count(*) FROM fleet_codes",
                "SELECT sum(errors), count(*) FROM files",
            ] {
                assert_eq!(server.sql(sql).await, json!([[100, 1]]), "{sql}");
            }
            assert_eq!(server.sql("SELECT count(*), count(DISTINCT code) FROM errors").await, json!([[100, 1]]));
            let page = server.get(&format!("/batches/{id}/errors?limit=1000")).await;
            assert_eq!(page["errors"].as_array().map(Vec::len), Some(100));
            let past = server.send(Method::GET, &format!("/batches/{id}/report?as_of={epoch}"), "").await;
            // With a retention of 0 s, the epoch may be removed before it is read.
            if past.status() != StatusCode::GONE {
                assert_eq!(past.json::<Value>().await.expect("JSON")["total_errors"], json!(100));
            }
        }
    };
    tokio::join!(write, read);
}

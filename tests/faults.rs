//! All four servers at once, each behind a proxy, while vehicles upload: every server crashes, stands still and loses
//! its connections, and so does Argus. At the end, a plain sum over what was answered equals every view.
//!
//! `ARGUS_FAULT_ROUNDS` repeats the faults, and `ARGUS_FAULT_SECONDS` is how long each lasts (`./check.sh faults`).

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::kafka_server::KafkaServer;
use common::postgres_server::PostgresServer;
use common::proxy::{Fault, Proxy};
use common::redis::RedisServer;
use common::s3_server::S3Server;
use common::{Deadline, Server, argus_with};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::block_in_place;

const TOPIC: &str = "argus.lines";

/// The text of each upload: 3 lines with 2 codes.
const TEXT: &str = "2026-03-01 10:15:30 ERROR ota: E_FAIL\nfine\n2026-03-01 10:15:31 ERROR ota: E_ABORT\n";

/// Two lines of a record, with one code.
const RECORD: &[u8] = b"2026-03-01 10:15:30 ERROR ota: E_TIMEOUT\nfine\n";

/// The VIN of the records.
const STREAM_VIN: &str = "WVWZZZ1JZXW999999";

/// A setting of the test.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

struct Servers {
    postgres: PostgresServer,
    s3: S3Server,
    redis: RedisServer,
    kafka: KafkaServer,
    to_postgres: Proxy,
    to_s3: Proxy,
    to_redis: Proxy,
    to_kafka: Proxy,
    data: TempDir,
}

impl Servers {
    async fn start() -> Servers {
        let (postgres, s3, redis) = (PostgresServer::start(), S3Server::start(), RedisServer::start());
        let port = KafkaServer::free_port();
        let to_kafka = Proxy::start(port).await;
        let advertised = to_kafka.port();
        // Its client waits on a thread, and the proxy needs this one.
        let kafka = tokio::task::spawn_blocking(move || KafkaServer::start_behind(port, advertised));
        let kafka = kafka.await.expect("the broker starts");
        kafka.create_topic(TOPIC, 2).await;
        let to_postgres = Proxy::start(postgres.port()).await;
        let to_s3 = Proxy::start(s3.port()).await;
        let to_redis = Proxy::start(redis.port()).await;
        let data = TempDir::new().expect("a folder");
        Servers { postgres, s3, redis, kafka, to_postgres, to_s3, to_redis, to_kafka, data }
    }

    fn argus(&self) -> Server {
        let metadata = self.postgres.url_at(self.to_postgres.port());
        let (redis, kafka) = (format!("redis://127.0.0.1:{}", self.to_redis.port()), self.kafka.brokers());
        let servers = ["--metadata", &metadata, "--store", "s3://argus/fleet", "--redis", &redis, "--kafka", &kafka];
        let flags = [&servers[..], &["--lines-topic", TOPIC]].concat();
        let variables = self.s3.variables_at(self.to_s3.port());
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Server::try_start(self.data.path(), &flags, &variables).expect("argus listens")
    }
}

/// What the vehicles were answered.
#[derive(Default)]
struct Load {
    batches: AtomicU64,
    records: AtomicU64,
    stop: AtomicBool,
}

/// Uploads a batch of each vehicle, repeating what fails, reads its report, and completes it.
async fn upload(load: Arc<Load>, servers: watch::Receiver<String>, uploader: u32) {
    let client = Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
    let url = |path: &str| format!("{}/api/v1{path}", *servers.borrow());
    let repeat = async |method: Method, path: String, key: Option<String>, body: String| {
        let deadline = Deadline::new(format!("{method} {path}"));
        loop {
            let mut request = client.request(method.clone(), url(&path)).body(body.clone());
            if let Some(key) = &key {
                request = request.header("Idempotency-Key", key);
            }
            if let Ok(answer) = request.send().await {
                let status = answer.status();
                let text = answer.text().await;
                if status.is_success()
                    && let Ok(text) = text
                {
                    return serde_json::from_str::<Value>(&text).expect("JSON");
                }
                assert!(!status.is_client_error(), "{method} {path}: {status} {text:?}");
            }
            deadline.check();
            // As a client that obeys `Retry-After`, but sooner.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut vehicle = 0;
    while !load.stop.load(Ordering::SeqCst) {
        vehicle += 1;
        let vin = format!("WVWZZZ1JZX{uploader}{vehicle:06}");
        let described = json!({"vehicle_id": format!("veh-{vin}"), "vin": vin, "firmware": "7.2.1"}).to_string();
        let key = Some(uuid::Uuid::new_v4().to_string());
        let batch = repeat(Method::POST, "/batches".to_owned(), key, described).await;
        let path = format!("/batches/{}", batch["id"].as_str().expect("an id"));
        let receipt = repeat(Method::PUT, format!("{path}/files/a.log"), None, TEXT.to_owned()).await;
        let read = format!("{path}/report?min_epoch={}&timeout_ms=30000", receipt["epoch"]);
        let report = repeat(Method::GET, read, None, String::new()).await;
        assert_eq!((&report["total_errors"], &report["total_lines"]), (&json!(2), &json!(3)), "{report}");
        let done = repeat(Method::POST, format!("{path}/complete"), None, String::new()).await;
        assert_ne!(done["status"], "pending", "{done}");
        load.batches.fetch_add(1, Ordering::SeqCst);
    }
}

/// Sends records to the topic, each until the broker has it.
async fn produce(load: Arc<Load>, producer: common::kafka_server::Producer) {
    while !load.stop.load(Ordering::SeqCst) {
        let partition = (load.records.load(Ordering::SeqCst) % 2) as i32;
        let headers = [("vehicle_id", "stream"), ("vin", STREAM_VIN), ("file", "stream.log")];
        producer.send(TOPIC, partition, &headers, RECORD).await;
        load.records.fetch_add(1, Ordering::SeqCst);
        // Not to flood the broker, which keeps all in memory.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The faults, one after the other. What blocks a thread meanwhile must not hold up the proxies: `block_in_place`.
const FAULTS: [&str; 14] = [
    "postgres crashes",
    "s3 crashes",
    "redis crashes",
    "argus crashes",
    "postgres stands still",
    "s3 stands still",
    "redis stands still",
    "kafka stands still",
    "postgres loses connections",
    "s3 loses connections",
    "redis loses connections",
    "kafka loses connections",
    "answers are cut",
    "everything crashes",
];

/// Starts Argus again, after `kill -9` if it runs.
fn restart(servers: &Servers, argus: &mut Option<Server>, bases: &watch::Sender<String>) {
    // Killed when dropped.
    drop(argus.take());
    let started = argus.insert(block_in_place(|| servers.argus()));
    bases.send_replace(started.root_url(""));
}

/// Makes a fault happen for a while.
async fn fault(name: &str, servers: &mut Servers, argus: &mut Option<Server>, bases: &watch::Sender<String>) {
    let lasts = Duration::from_secs(setting("ARGUS_FAULT_SECONDS", 2));
    let proxies = [&servers.to_postgres, &servers.to_s3, &servers.to_redis, &servers.to_kafka];
    match name {
        "postgres crashes" => block_in_place(|| servers.postgres.crash()),
        "s3 crashes" => block_in_place(|| servers.s3.crash()),
        "redis crashes" => block_in_place(|| servers.redis.restart()),
        "argus crashes" => restart(servers, argus, bases),
        "everything crashes" => {
            if let Some(running) = argus.take() {
                running.kill();
            }
            block_in_place(|| {
                servers.postgres.crash();
                servers.s3.crash();
                servers.redis.restart();
            });
            restart(servers, argus, bases);
        }
        "postgres stands still" => {
            servers.postgres.signal("-STOP");
            tokio::time::sleep(lasts).await;
            servers.postgres.signal("-CONT");
        }
        "s3 stands still" => {
            servers.s3.signal("-STOP");
            tokio::time::sleep(lasts).await;
            servers.s3.signal("-CONT");
        }
        "redis stands still" => {
            servers.redis.pause();
            tokio::time::sleep(lasts).await;
            servers.redis.resume();
        }
        "kafka stands still" => {
            servers.kafka.signal("-STOP");
            tokio::time::sleep(lasts).await;
            servers.kafka.signal("-CONT");
        }
        "answers are cut" => {
            for bytes in [0, 1, 100, 5000] {
                proxies.iter().for_each(|proxy| proxy.set(Fault::Truncate(bytes)));
                tokio::time::sleep(lasts / 4).await;
            }
            proxies.iter().for_each(|proxy| proxy.set(Fault::None));
        }
        loses => {
            let names = ["postgres", "s3", "redis", "kafka"];
            let which = names.iter().position(|server| loses.starts_with(server)).expect("a server");
            for fault in [Fault::Stall, Fault::Drop] {
                proxies[which].set(fault);
                tokio::time::sleep(lasts / 2).await;
            }
            proxies[which].set(Fault::None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_doubled_while_servers_fail() {
    let mut servers = Servers::start().await;
    let mut argus = Some(servers.argus());
    let load = Arc::new(Load::default());
    let base = argus.as_ref().expect("it runs").root_url("");
    let (bases, base) = watch::channel(base);
    let mut vehicles: Vec<_> =
        (0..3).map(|number| tokio::spawn(upload(Arc::clone(&load), base.clone(), number))).collect();
    vehicles.push(tokio::spawn(produce(Arc::clone(&load), servers.kafka.producer())));

    for round in 0..setting("ARGUS_FAULT_ROUNDS", 1) {
        for name in FAULTS {
            let before = load.batches.load(Ordering::SeqCst);
            fault(name, &mut servers, &mut argus, &bases).await;
            // It recovers without help: each vehicle can upload again.
            let deadline = Deadline::new(format!("uploads after \"{name}\" in round {round}"));
            while load.batches.load(Ordering::SeqCst) < before + 6 {
                deadline.check();
                // Argus ends by itself when it cannot know whether a round is durable, and is started again, as systemd
                // or Kubernetes do.
                if argus.as_mut().is_some_and(Server::has_ended) {
                    restart(&servers, &mut argus, &bases);
                }
                assert!(!vehicles.iter().any(|vehicle| vehicle.is_finished()), "a vehicle failed after \"{name}\"");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    load.stop.store(true, Ordering::SeqCst);
    for vehicle in vehicles {
        vehicle.await.expect("every answer was right");
    }

    let server = argus.as_ref().expect("it runs");
    let (batches, records) = (load.batches.load(Ordering::SeqCst), load.records.load(Ordering::SeqCst));
    assert!(batches > 0 && records > 0);
    let deadline = Deadline::new(format!("{records} records to be counted"));
    let lines =
        format!("SELECT coalesce(sum(lines), 0) FROM files JOIN batches USING (batch_id) WHERE vin = '{STREAM_VIN}'");
    while server.sql(&lines).await != json!([[records * 2]]) {
        deadline.check();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let expected = json!([["E_ABORT", batches], ["E_FAIL", batches], ["E_TIMEOUT", records]]);
    let counts = "SELECT code, sum(count) FROM error_counts GROUP BY 1 ORDER BY 1";
    let rows = "SELECT code, count(*) FROM errors GROUP BY 1 ORDER BY 1";
    assert_eq!(server.sql(counts).await, expected);
    assert_eq!(server.sql(rows).await, expected);
    let fleet = server.get("/fleet/codes?group_by=firmware").await;
    let of_fleet = |code: &str| {
        let codes = fleet["codes"].as_array().expect("codes").iter().filter(|entry| entry["code"] == code);
        codes.filter_map(|entry| entry["count"].as_u64()).sum::<u64>()
    };
    assert_eq!((of_fleet("E_FAIL"), of_fleet("E_TIMEOUT")), (batches, records));

    // The same after a last crash, from the tables alone.
    server.committed().await;
    argus.take().expect("it runs").kill();
    let server = servers.argus();
    assert_eq!(server.sql(counts).await, expected);
    assert_eq!(server.sql(rows).await, expected);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_batch_is_looked_up_by_a_few_requests() {
    let (s3, data) = (S3Server::start(), TempDir::new().expect("a folder"));
    let proxy = Proxy::start(s3.port()).await;
    let variables = s3.variables_at(proxy.port());
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let start = || Server::try_start(data.path(), &["--store", "s3://argus/fleet"], &variables).expect("argus listens");
    let server = start();
    let mut batches = Vec::new();
    for _ in 0..20 {
        let batch = server.new_batch().await;
        server.put(&batch, "a.log", TEXT).await;
        server.complete(&batch).await;
        batches.push(batch);
    }
    server.committed().await;
    server.stop();
    // Compaction puts the rows that several commits have of a batch into one file of each table.
    let (path, environment) = (data.path().display().to_string(), s3.variables_at(proxy.port()));
    let maintain = move || argus_with(&["maintain", "--data", &path, "--store", "s3://argus/fleet"], &environment, b"");
    let maintained = tokio::task::spawn_blocking(maintain).await;
    let maintained = maintained.expect("no panic");
    assert!(maintained.status.success(), "{}", String::from_utf8_lossy(&maintained.stderr));
    // Batches that were completed before the start are in the tables' files only.
    let server = start();
    let report = async |batch: &str| {
        let before = proxy.ranges();
        let report = server.get(&format!("/batches/{batch}/report")).await;
        assert_eq!(report["total_errors"], json!(2));
        proxy.ranges() - before
    };
    report(&batches[0]).await;
    let mut requests = Vec::new();
    for batch in &batches[1..] {
        requests.push(report(batch).await);
    }
    // The median: the proxy also counts what the client repeats after a closed connection.
    requests.sort_unstable();
    let median = requests[requests.len() / 2];
    let maintained = String::from_utf8_lossy(&maintained.stdout);
    assert!((1..=3).contains(&median), "range requests per batch: {requests:?}; maintenance: {maintained}");
    assert!(server.metric("argus_object_store_requests_total{operation=\"get\",outcome=\"ok\"}").await > 0.0);
    let answer = server.send(Method::GET, &format!("/batches/{}/report", batches[0]), "").await;
    assert_eq!(answer.status(), StatusCode::OK);
    server.stop();
}

//! Several processes on one metadata database and one store: every process answers every request alike, also while the
//! process that leads is killed or paused. A plain map is the reference.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use common::postgres_server::PostgresServer;
use common::{Deadline, Server, argus_with};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Steps of a history. `ARGUS_CLUSTER_STEPS=1000 cargo test --test cluster` makes longer ones.
const STEPS: usize = 40;

/// The port on which the processes reach each other, each at a loopback address of its own.
const PORT: u16 = 7401;

/// Processes of a cluster, and what they share.
struct Cluster {
    postgres: PostgresServer,
    folder: TempDir,
    hosts: PathBuf,
    servers: Vec<Option<Server>>,
}

/// Loopback addresses that no other test has: 127.A.B.n.
fn network() -> String {
    static CLUSTERS: AtomicU32 = AtomicU32::new(1);
    let number = std::process::id().wrapping_mul(8).wrapping_add(CLUSTERS.fetch_add(1, Ordering::SeqCst));
    format!("127.{}.{}", 1 + (number >> 8) % 250, number % 256)
}

impl Cluster {
    /// A cluster of this many processes, none of which has started.
    fn of(processes: usize) -> Cluster {
        let folder = TempDir::new().expect("a folder");
        let network = network();
        let lines: String = (0..processes).map(|process| format!("{network}.{}:{PORT}\n", process + 1)).collect();
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, lines).expect("writes");
        let servers = (0..processes).map(|_| None).collect();
        Cluster { postgres: PostgresServer::start(), folder, hosts, servers }
    }

    /// The same, with all processes running.
    fn start(processes: usize) -> Cluster {
        let mut cluster = Cluster::of(processes);
        (0..processes).for_each(|process| cluster.start_process(process));
        cluster
    }

    /// The flags of a process, but for those of the cluster.
    fn flags(&self) -> Vec<String> {
        let store = self.folder.path().join("store").to_string_lossy().into_owned();
        ["--metadata", &self.postgres.url(), "--store", &store, "--workers", "1"].map(str::to_owned).into()
    }

    fn flags_of(&self, process: usize) -> Vec<String> {
        let (processes, process, hosts) =
            (self.servers.len().to_string(), process.to_string(), self.hosts.to_string_lossy().into_owned());
        let of_cluster = ["--processes", &processes, "--process", &process, "--hosts", &hosts];
        self.flags().into_iter().chain(of_cluster.map(str::to_owned)).collect()
    }

    fn data_of(&self, process: usize) -> PathBuf {
        self.folder.path().join(format!("data-{process}"))
    }

    fn start_process(&mut self, process: usize) {
        let flags = self.flags_of(process);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        self.servers[process] = Some(Server::start_with(&self.data_of(process), &flags));
    }

    fn server(&self, process: usize) -> &Server {
        self.servers[process].as_ref().expect("it runs")
    }

    /// The number of the process that leads, when there is one.
    async fn leader(&self) -> usize {
        let deadline = Deadline::new("a process that leads");
        loop {
            deadline.check();
            for (process, server) in self.servers.iter().enumerate() {
                let Some(server) = server else { continue };
                if role_of(&server.root_url("/readyz")).await.as_deref() == Some("leader") {
                    return process;
                }
            }
        }
    }
}

/// What a process says that it is; `None` if it does not answer.
async fn role_of(url: &str) -> Option<String> {
    let answer = Client::new().get(url).timeout(std::time::Duration::from_secs(1)).send().await.ok()?;
    let ready: Value = answer.json().await.ok()?;
    ready["cluster"]["role"].as_str().map(str::to_owned)
}

/// xorshift64*, so that a seed reproduces a history.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}

/// A batch, as it must be: whether it is completed, and the occurrences in each of its files.
#[derive(Debug, Default, Clone)]
struct ModelBatch {
    is_completed: bool,
    files: BTreeMap<&'static str, usize>,
}

impl ModelBatch {
    fn total(&self) -> usize {
        self.files.values().sum()
    }
}

const LINE: &str = "2026-03-01 10:15:30 ERROR ota: E_FAIL\n";
const TOTAL: &str = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT), \
                     (SELECT CAST(count(*) AS BIGINT) FROM errors) FROM error_counts";

/// What a process answers about a batch and about the fleet, at `min_epoch` or later.
async fn check(server: &Server, batches: &BTreeMap<String, ModelBatch>, of: &str, min_epoch: Option<u64>) {
    let min_epoch = min_epoch.map_or(String::new(), |epoch| format!("?min_epoch={epoch}"));
    let path = format!("/batches/{of}/report{min_epoch}");
    match batches.get(of) {
        None => {
            let answer = server.send(Method::GET, &path, "").await;
            assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        }
        Some(batch) => {
            let report = server.get(&path).await;
            assert_eq!(report["total_errors"], batch.total(), "{report}");
            assert_eq!(report["total_files"], batch.files.len(), "{report}");
            if batch.is_completed {
                assert!(matches!(report["status"].as_str(), Some("gathering" | "completed")), "{report}");
            } else {
                assert_eq!(report["status"], "pending");
            }
        }
    }
    let total: usize = batches.values().map(ModelBatch::total).sum();
    let fleet = server.get(&format!("/fleet/codes{min_epoch}")).await;
    assert_eq!(fleet["codes"][0]["count"].as_u64().unwrap_or(0), total as u64, "{fleet}");
    assert_eq!(server.sql(TOTAL).await, json!([[total, total]]));
}

/// Changes a random batch through a random process. Returns the batch, the process, and the epoch of the change; the
/// epoch of one that is visible when it is answered is not needed.
async fn change(
    cluster: &Cluster,
    random: &mut Random,
    batches: &mut BTreeMap<String, ModelBatch>,
) -> (String, usize, Option<u64>) {
    let process = random.below(cluster.servers.len());
    let server = cluster.server(process);
    let name = ["a.log", "b.log"][random.below(2)];
    let what = random.below(10);
    if batches.is_empty() || what == 0 {
        let id = server.new_batch().await;
        batches.insert(id.clone(), ModelBatch::default());
        let epoch = server.get(&format!("/batches/{id}")).await["epoch"].as_u64();
        return (id, process, epoch);
    }
    let id = batches.keys().nth(random.below(batches.len())).expect("there is one").clone();
    let batch = batches.get_mut(&id).expect("it is known");
    let lines = random.below(5);
    let file = format!("/batches/{id}/files/{name}");
    let (method, path, body) = match what {
        1..=3 => (Method::PUT, file, LINE.repeat(lines)),
        4 | 5 => (Method::POST, format!("{file}/lines"), LINE.repeat(1 + lines)),
        6 => (Method::DELETE, file, String::new()),
        7 => (Method::POST, format!("/batches/{id}/complete"), String::new()),
        8 => (Method::POST, format!("/batches/{id}/reopen"), String::new()),
        _ => (Method::DELETE, format!("/batches/{id}"), String::new()),
    };
    let answer = server.send(method, &path, body).await;
    let status = answer.status();
    let epoch = answer.json::<Value>().await.ok().and_then(|body| body["epoch"].as_u64());
    assert!(!status.is_server_error(), "{path} {status}");
    let is_pending = !batch.is_completed;
    let is_done = status.is_success();
    match what {
        1..=5 => assert_eq!(is_done, is_pending, "{path} {status}"),
        6 => assert_eq!(is_done, is_pending && batch.files.contains_key(name), "{path} {status}"),
        _ => assert!(is_done || what == 8, "{path} {status}"),
    }
    if is_done {
        match what {
            1..=3 => drop(batch.files.insert(name, lines)),
            4 | 5 => *batch.files.entry(name).or_default() += 1 + lines,
            6 => drop(batch.files.remove(name)),
            7 => batch.is_completed = true,
            8 => batch.is_completed = false,
            _ => drop(batches.remove(&id)),
        }
    }
    (id, process, epoch)
}

#[tokio::test]
async fn every_process_answers_alike_whichever_of_them_is_asked() {
    let cluster = Cluster::start(3);
    let mut random = Random(2026);
    let mut batches = BTreeMap::new();
    let steps = std::env::var("ARGUS_CLUSTER_STEPS").map_or(STEPS, |steps| steps.parse().expect("a number"));
    for _ in 0..steps {
        let (id, process, epoch) = change(&cluster, &mut random, &mut batches).await;
        // Where the change was made, and with its receipt anywhere else.
        let visible = if epoch.is_none() { Some(process) } else { None };
        let asked = visible.unwrap_or_else(|| random.below(3));
        check(cluster.server(asked), &batches, &id, epoch).await;
    }
    // A token that is revoked through one process is refused by all.
    let create = json!({"name": "admin", "scopes": ["admin"]}).to_string();
    let (first, second) = (cluster.server(0), cluster.server(1));
    let created: Value = first.send(Method::POST, "/tokens", create).await.json().await.expect("JSON");
    let bearer = format!("Bearer {}", created["secret"].as_str().expect("a token"));
    let with_token: &[(&str, &str)] = &[("authorization", &bearer)];
    for server in [first, second, cluster.server(2)] {
        let deadline = Deadline::new("a token to be known");
        while server.send_with(Method::GET, "/batches", &[], Vec::new()).await.status() != StatusCode::UNAUTHORIZED {
            deadline.check();
        }
        let answer = server.send_with(Method::GET, "/batches", with_token, Vec::new()).await;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let id = created["id"].as_str().expect("an id");
    let revoked = second.send_with(Method::DELETE, &format!("/tokens/{id}"), with_token, Vec::new()).await;
    assert!(revoked.status().is_success(), "{}", revoked.status());
    let here = second.send_with(Method::GET, "/batches", with_token, Vec::new()).await;
    assert_eq!(here.status(), StatusCode::UNAUTHORIZED, "at once where it was revoked");
    for server in [first, cluster.server(2)] {
        let deadline = Deadline::new("a revoked token to be refused");
        while server.send_with(Method::GET, "/batches", with_token, Vec::new()).await.status() == StatusCode::OK {
            deadline.check();
        }
    }
}

/// Reads a report at one process again and again: it never goes back in time.
async fn watch(url: String, done: Arc<AtomicBool>) -> u64 {
    let client = Client::new();
    let (mut epoch, mut count, mut reads) = (0, 0, 0);
    while !done.load(Ordering::SeqCst) {
        // A process that takes the lead, or was killed, does not answer for a moment.
        let Ok(answer) = client.get(&url).send().await else {
            tokio::task::yield_now().await;
            continue;
        };
        if answer.status() != StatusCode::OK {
            continue;
        }
        let Ok(report) = answer.json::<Value>().await else { continue };
        let (at, errors) = (report["epoch"].as_u64().expect("an epoch"), report["total_errors"].as_u64());
        assert!(at >= epoch && errors >= Some(count), "epoch {at} after {epoch}, {errors:?} occurrences after {count}");
        (epoch, count, reads) = (at, errors.unwrap_or(0), reads + 1);
    }
    reads
}

/// Appends a line through a process, and another time through others, until one of them has answered. The offset says that
/// a line which was counted is not counted again.
async fn append(urls: &[String], batch: &str, lines: usize, random: &mut Random) {
    let client = Client::new();
    let deadline = Deadline::new("an appended line");
    let offset = lines * LINE.len();
    loop {
        deadline.check();
        let url = &urls[random.below(urls.len())];
        let url = format!("{url}/batches/{batch}/files/a.log/lines");
        let Ok(answer) = client.post(url).header("upload-offset", offset).body(LINE).send().await else { continue };
        let status = answer.status();
        if status.is_success() {
            return;
        }
        let problem: Value = answer.json().await.unwrap_or_default();
        // It was counted, and the answer was lost.
        if status == StatusCode::CONFLICT && problem["upload_offset"].as_u64() == Some((offset + LINE.len()) as u64) {
            return;
        }
        assert!(status.is_server_error(), "{status} {problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_when_the_leader_is_killed_or_paused() {
    let mut cluster = Cluster::start(3);
    let batch = cluster.server(0).new_batch().await;
    let urls: Vec<String> = (0..3).map(|process| cluster.server(process).url("")).collect();
    let done = Arc::new(AtomicBool::new(false));
    let watchers: Vec<_> = urls
        .iter()
        .map(|url| tokio::spawn(watch(format!("{url}/batches/{batch}/report"), Arc::clone(&done))))
        .collect();
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (urls, done) = (urls.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut random = Random(7 + writer);
                let batch = {
                    // The batch of the writer, whose creation is repeated with its key.
                    let deadline = Deadline::new("a batch");
                    let key = format!("writer-{writer}");
                    loop {
                        deadline.check();
                        let url = format!("{}/batches", urls[random.below(3)]);
                        let described = json!({"vehicle_id": "veh-1", "vin": common::VIN}).to_string();
                        let sent = Client::new().post(url).header("idempotency-key", &key).body(described).send().await;
                        let Ok(answer) = sent else { continue };
                        let Ok(batch) = answer.json::<Value>().await else { continue };
                        if let Some(id) = batch["id"].as_str() {
                            break id.to_owned();
                        }
                    }
                };
                let mut lines = 0;
                while !done.load(Ordering::SeqCst) {
                    append(&urls, &batch, lines, &mut random).await;
                    lines += 1;
                }
                (batch, lines)
            })
        })
        .collect();

    // Killed: another process takes its place, and it comes back as one that follows.
    for _ in 0..2 {
        let leader = cluster.leader().await;
        let listen = cluster.server(leader).root_url("").trim_start_matches("http://").to_owned();
        cluster.servers[leader].take().expect("it runs").kill();
        let next = cluster.leader().await;
        assert_ne!(next, leader);
        let flags = cluster.flags_of(leader);
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(["--listen", &listen]).collect();
        cluster.servers[leader] = Some(Server::start_with(&cluster.data_of(leader), &flags));
        assert_eq!(role_of(&cluster.server(leader).root_url("/readyz")).await.as_deref(), Some("follower"));
    }
    // Paused for longer than any timeout: it is replaced, and when it wakes up it can write nothing.
    let leader = cluster.leader().await;
    cluster.server(leader).signal("-STOP");
    let paused = cluster.servers[leader].take().expect("it runs");
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    paused.signal("-CONT");
    let answer = paused.try_send(Method::POST, &format!("/batches/{batch}/complete"), &[], String::new()).await;
    if let Some(answer) = answer {
        assert!(answer.status().is_server_error(), "{}", answer.status());
    }
    let mut paused = paused;
    assert!(!paused.wait().success(), "a replaced leader ends with an error");

    done.store(true, Ordering::SeqCst);
    let mut total = 0;
    for writer in writers {
        let (batch, lines) = writer.await.expect("every line is counted once");
        assert!(lines > 0);
        total += lines;
        for server in cluster.servers.iter().flatten() {
            let epoch = server.get(&format!("/batches/{batch}")).await["epoch"].as_u64().expect("an epoch");
            let report = server.get(&format!("/batches/{batch}/report?min_epoch={epoch}")).await;
            assert_eq!((&report["total_errors"], &report["total_lines"]), (&json!(lines), &json!(lines)));
        }
    }
    for watcher in watchers {
        assert!(watcher.await.expect("no reader goes back in time") > 0);
    }
    for server in cluster.servers.iter().flatten() {
        assert_eq!(server.sql(TOTAL).await, json!([[total, total]]));
    }
    // The one that leads last has committed everything of those before it.
    let last = cluster.leader().await;
    cluster.server(last).committed().await;
    assert_eq!(cluster.server(last).sql(TOTAL).await, json!([[total, total]]));
}

#[tokio::test]
async fn one_process_becomes_three_and_three_become_one() {
    let mut cluster = Cluster::of(3);
    let flags = cluster.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let alone = Server::start_with(&cluster.data_of(0), &flags);
    let batch = alone.new_batch().await;
    alone.put(&batch, "a.log", LINE.repeat(3)).await;
    alone.stop();
    (0..3).for_each(|process| cluster.start_process(process));
    let second = cluster.server(2);
    second.put(&batch, "b.log", LINE.repeat(4)).await;
    let report = second.complete(&batch).await;
    assert_eq!(report["total_errors"], 7, "{report}");
    for process in (0..3).rev() {
        cluster.servers[process].take().expect("it runs").stop();
    }
    let alone = Server::start_with(&cluster.data_of(1), &flags);
    assert_eq!(alone.sql(TOTAL).await, json!([[7, 7]]));
}

#[tokio::test]
async fn a_process_that_does_not_belong_to_the_cluster_is_refused_with_the_reason() {
    let cluster = {
        let mut cluster = Cluster::of(2);
        cluster.start_process(0);
        cluster
    };
    let folder = cluster.folder.path();
    let other_hosts = folder.join("other-hosts");
    let hosts = std::fs::read_to_string(&cluster.hosts).expect("text");
    let (first, second) = hosts.trim().split_once('\n').expect("two lines");
    let third = first.replace(".1:", ".9:");
    std::fs::write(&other_hosts, format!("{first}\n{second}\n{third}\n")).expect("writes");
    let rules = folder.join("rules.toml");
    std::fs::write(&rules, "[[rule]]\nname = \"acme\"\npatterns = [{ pattern = '(?P<code>ACME-[0-9]+)' }]\n")
        .expect("writes");
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let (hosts, other_hosts, rules) = (text(&cluster.hosts), text(&other_hosts), text(&rules));
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (
            &["--processes", "3", "--process", "1", "--hosts", &other_hosts],
            1,
            &["number of processes 3", "process 0, has 2"],
        ),
        (&["--processes", "2", "--process", "1", "--hosts", &hosts, "--rules", &rules], 1, &["rules"]),
        (&["--processes", "2", "--process", "0", "--hosts", &hosts], 1, &["cannot listen on", "--hosts"]),
        (&["--processes", "3", "--process", "1", "--hosts", &hosts], 1, &["2 lines", "--processes is 3"]),
        (&["--processes", "2", "--process", "2", "--hosts", &hosts], 1, &["--process is 2", "from 0"]),
        (&["--processes", "2"], 1, &["--hosts FILE"]),
    ];
    for (flags, code, words) in cases {
        let shared = cluster.flags();
        let data = folder.join("refused").to_string_lossy().into_owned();
        let shared: Vec<&str> = shared.iter().map(String::as_str).collect();
        let arguments = [&["serve", "--listen", "127.0.0.1:0", "--data", &data], &shared[..], flags].concat();
        let output = argus_with(&arguments, &[], b"");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
    }
    // Without what they share.
    let data = folder.join("refused").to_string_lossy().into_owned();
    let arguments =
        ["serve", "--listen", "127.0.0.1:0", "--data", &data, "--processes", "2", "--process", "1", "--hosts", &hosts];
    let output = argus_with(&arguments, &[], b"");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("--metadata postgres://"), "{error}");
    // A stranger on the address of the processes.
    let follow = format!("http://{first}/internal/v1/follow");
    let answer = Client::new().post(&follow).body("{}").send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let read = Client::new().get(format!("http://{first}/api/v1/batches")).send().await.expect("an answer");
    assert_eq!(read.status(), StatusCode::UNAUTHORIZED);
}

/// The status of a request whose path is sent as it is.
fn status_of(server: &Server, method: &str, path: &str) -> String {
    let address = server.root_url("").trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(&address).expect("connects");
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
    stream.write_all(request.as_bytes()).expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_client_cannot_reach_what_is_for_the_processes_through_one_that_follows() {
    let mut cluster = Cluster::of(2);
    (0..2).for_each(|process| cluster.start_process(process));
    let follower = cluster.server(1 - cluster.leader().await);
    let up = "%2e%2e/".repeat(6);
    for path in [
        "/internal/v1/follow".to_owned(),
        "/internal/v1/alive".to_owned(),
        "/internal/v1/uploads".to_owned(),
        format!("/api/v1/batches/x/files/{up}internal/v1/follow"),
        "/api/v1/batches/x/files/../../../../../../internal/v1/follow".to_owned(),
        "/api/v1/batches\\..\\..\\..\\internal\\v1\\follow".to_owned(),
    ] {
        let status = status_of(follower, "POST", &path);
        assert!(["400", "404", "405"].contains(&&status[..]), "{path}: {status}");
    }
    // A client's key is not the cluster's.
    let keyed = follower.send_with(Method::POST, "/batches", &[("argus-cluster-key", "x")], b"{}".to_vec()).await;
    assert_eq!(keyed.status(), StatusCode::UNPROCESSABLE_ENTITY, "it is passed on without the header");
}

#[tokio::test]
async fn a_leader_that_stops_is_replaced_by_another_process() {
    let mut cluster = Cluster::start(2);
    let batch = cluster.server(0).new_batch().await;
    let leader = cluster.leader().await;
    cluster.server(1 - leader).put(&batch, "a.log", LINE).await;
    // The requests of its followers end with it.
    cluster.servers[leader].take().expect("it runs").stop();
    assert_eq!(cluster.leader().await, 1 - leader);
    let left = cluster.server(1 - leader);
    left.put(&batch, "b.log", LINE.repeat(2)).await;
    assert_eq!(left.complete(&batch).await["total_errors"], 3);
}

#[tokio::test]
async fn a_paused_leader_that_nobody_asks_ends_by_itself() {
    let mut cluster = Cluster::start(2);
    let leader = cluster.leader().await;
    cluster.server(leader).signal("-STOP");
    let mut paused = cluster.servers[leader].take().expect("it runs");
    assert_eq!(cluster.leader().await, 1 - leader);
    paused.signal("-CONT");
    assert!(!paused.wait().success(), "a replaced leader ends with an error");
}

#[tokio::test]
async fn a_large_upload_is_scanned_where_it_arrives_and_counted_once() {
    let cluster = Cluster::start(2);
    let leader = cluster.leader().await;
    let (follower, leader) = (cluster.server(1 - leader), cluster.server(leader));
    let batch = follower.new_batch().await;
    // Its occurrences take several MiB, and its last line is open.
    let text = format!("{}2026-03-01 10:15:31 WARN bms: E_ABORT", format!("{LINE}fine\n").repeat(50_000));
    let receipt = follower.put(&batch, "a.log", text.clone()).await;
    assert_eq!((&receipt["bytes"], &receipt["lines"]), (&json!(text.len()), &json!(100_001)));
    // The same again is not counted again, other content is.
    let again = follower.put(&batch, "a.log", text.clone()).await;
    assert_eq!(again["generation"], receipt["generation"]);
    for server in [follower, leader] {
        let report = server.get(&format!("/batches/{batch}/report?min_epoch={}", receipt["epoch"])).await;
        assert_eq!((&report["total_errors"], &report["total_lines"]), (&json!(50_001), &json!(100_001)));
        assert_eq!(server.sql(TOTAL).await, json!([[50_001, 50_001]]));
        let codes: Vec<&str> =
            report["codes"].as_array().expect("a list").iter().filter_map(|code| code["code"].as_str()).collect();
        assert_eq!(codes, ["E_FAIL", "E_ABORT"]);
    }
    // What is not accepted leaves nothing: a completed batch, a body that is no gzip.
    follower.complete(&batch).await;
    let refused = follower.send(Method::PUT, &format!("/batches/{batch}/files/b.log"), LINE).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    let other = follower.new_batch().await;
    let damaged = follower
        .send_with(Method::PUT, &format!("/batches/{other}/files/b.log"), &[("content-encoding", "gzip")], LINE.into())
        .await;
    assert!(damaged.status().is_client_error(), "{}", damaged.status());
    follower.put(&other, "c.log", "E_TIMEOUT\n").await;
    assert_eq!(follower.complete(&other).await["total_errors"], 1);
    assert_eq!(leader.sql(TOTAL).await, json!([[50_002, 50_002]]));
}

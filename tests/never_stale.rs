//! Writers change batches while readers query every server and both caches, and Redis is paused, corrupted and
//! restarted. No read is older than the receipt of its client, and none shows part of an epoch.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::Server;
use common::python::python;
use common::redis::RedisServer;
use reqwest::Method;
use serde_json::{Value, json};

/// Appends of each writer. `ARGUS_ROUNDS=100 cargo test --test never_stale` makes more.
const ROUNDS: u64 = 8;

fn rounds() -> u64 {
    std::env::var("ARGUS_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("a number"))
}

/// Three counts of a batch that are equal at every epoch.
fn sums(batch: &str) -> String {
    format!(
        "SELECT (SELECT count(*) FROM errors WHERE batch_id = '{batch}'), \
                (SELECT coalesce(sum(count), 0) FROM error_counts WHERE batch_id = '{batch}'), \
                (SELECT coalesce(sum(lines), 0) FROM files WHERE batch_id = '{batch}')"
    )
}

/// Runs each line of standard input as a statement over the PostgreSQL protocol and Flight SQL.
const READERS: &str = r#"
import json, sys, warnings
import adbc_driver_flightsql.dbapi, psycopg
warnings.simplefilter("ignore")
host, port = sys.argv[1].split(":")
with psycopg.connect(f"host={host} port={port} user=anybody dbname=argus", autocommit=True) as pg, \
     adbc_driver_flightsql.dbapi.connect(f"grpc://{sys.argv[2]}") as flight:
    def over_pg(sql):
        # Prepared once and run often: it must not reuse the snapshot of its preparation.
        return pg.execute(sql, prepare=True).fetchone()
    def over_flight(sql):
        with flight.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()
    def rows_of(ask, sql):
        while True:
            try:
                return list(map(int, ask(sql)))
            except Exception as error:
                # A slow machine may be busy with the other readers.
                if "too many concurrent requests; retry later" not in str(error):
                    raise
    for sql in sys.stdin:
        print(json.dumps([rows_of(over_pg, sql), rows_of(over_flight, sql)]), flush=True)
"#;

/// The Python process that reads over other protocols.
struct SqlServers {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl SqlServers {
    fn open(pg: &str, flight: &str) -> SqlServers {
        let mut child = Command::new(python())
            .args(["-c", READERS, pg, flight])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        SqlServers { child, answers }
    }

    fn ask(&mut self, sql: &str) -> Vec<[u64; 3]> {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{sql}").expect("it reads");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

impl Drop for SqlServers {
    fn drop(&mut self) {
        // It ends with the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn ask(server: &Server, batch: &str) -> [u64; 3] {
    let rows = server.sql(&sums(batch)).await;
    serde_json::from_value(rows[0].clone()).expect("three numbers")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_is_older_than_its_receipt() {
    let (data, redis) = (tempfile::tempdir().expect("a temporary folder"), Mutex::new(RedisServer::start()));
    let url = redis.lock().expect("ours").url();
    let flags = ["--redis", &url, "--pg", "127.0.0.1:0", "--flight", "127.0.0.1:0"];
    let server = Arc::new(Server::start_with(data.path(), &flags));
    let (pg, flight) = (server.sql_address("postgres").await, server.sql_address("flight").await);
    let mut batches = Vec::new();
    for _ in 0..3 {
        batches.push(server.new_batch().await);
    }
    let done = Arc::new(AtomicBool::new(false));

    // Readers without a receipt: counts never decrease, and each read is of one epoch.
    let watchers = batches.clone().into_iter().map(|batch| {
        let (server, done) = (Arc::clone(&server), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut epoch, mut seen) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let report = server.get(&format!("/batches/{batch}/report")).await;
                let (at, count) = (report["epoch"].as_u64().expect("an epoch"), report["total_errors"].as_u64());
                assert!(at >= epoch && count >= Some(seen), "{at} {count:?} after {epoch} {seen}");
                assert_eq!(report["total_errors"], report["total_lines"], "part of an epoch");
                (epoch, seen) = (at, count.unwrap_or(0));
                let [errors, counts, lines] = ask(&server, &batch).await;
                assert!(errors >= seen && errors == counts && counts == lines, "{errors} {counts} {lines} {seen}");
                seen = errors;
            }
        })
    });
    let watchers: Vec<_> = watchers.collect();

    let writers = batches.iter().enumerate().map(|(number, batch)| {
        let (server, batch, redis) = (&server, batch.clone(), &redis);
        let mut sql_servers = SqlServers::open(&pg, &flight);
        async move {
            let mut written = 0;
            for round in 0..rounds() {
                let lines = 1 + round % 3;
                let path = format!("/batches/{batch}/files/s.log/lines");
                let answer = server.send(Method::POST, &path, "E_FAIL\n".repeat(lines as usize)).await;
                assert!(answer.status().is_success());
                written += lines;
                // After the response, every reader sees the lines.
                let report = server.get(&format!("/batches/{batch}/report")).await;
                assert_eq!(report["total_errors"], written, "report");
                let chart = server.send(Method::GET, &format!("/batches/{batch}/chart.svg"), "").await.text().await;
                assert!(chart.expect("text").contains(&format!("1 code, {written} occurrence")), "chart");
                assert_eq!(ask(server, &batch).await, [written; 3], "query");
                let asked = tokio::task::block_in_place(|| sql_servers.ask(&sums(&batch)));
                assert_eq!(asked, [[written; 3]; 2], "PostgreSQL, Flight SQL");
                if number == 0 {
                    let mut redis = redis.lock().expect("ours");
                    match round % 8 {
                        1 => drop(redis.corrupt()),
                        3 => redis.pause(),
                        5 => redis.resume(),
                        7 => redis.restart(),
                        _ => {}
                    }
                }
            }
        }
    });
    futures::future::join_all(writers).await;

    // A replaced file: each receipt's epoch shows exactly what was uploaded.
    let replaced = server.new_batch().await;
    for lines in [3_usize, 1, 5, 2] {
        let receipt = server.put(&replaced, "r.log", "E_FAIL\n".repeat(lines)).await;
        let report = server.get(&format!("/batches/{replaced}/report?min_epoch={}", receipt["epoch"])).await;
        assert_eq!(report["total_errors"], lines);
        let body = json!({"sql": sums(&replaced), "min_epoch": receipt["epoch"]}).to_string();
        let answer: Value = server.send(Method::POST, "/query", body).await.json().await.expect("JSON");
        assert_eq!(answer["rows"], json!([[lines, lines, lines]]));
    }
    done.store(true, Ordering::SeqCst);
    for watcher in watchers {
        watcher.await.expect("it saw no inconsistency");
    }
}

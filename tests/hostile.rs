//! Hostile SQL: each statement ends in an error or at a limit, and the service keeps running within its memory.

mod common;

use std::time::Duration;

use common::{Deadline, Server};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// The server's maximum peak memory (1.5 GiB; tests are built without optimisation).
const PEAK_KIB_MAX: u64 = 1536 << 10;

/// Queries that run at the same time.
const QUERIES_MAX: u32 = 4;
/// Tables and condition of a nested loop join, to be completed with a number.
const JOIN: &str = "generate_series(0, 1000000) a, generate_series(0, 10000000) b WHERE a.value * b.value % 7 = ";
const QUERIES: &str = "argus_computed_total{kind=\"sql\"}";

/// Statements that are forbidden.
const FORBIDDEN: [&str; 24] = [
    "COPY files TO '/tmp/argus-hostile.csv'",
    "COPY (SELECT 1) TO 's3://bucket/key'",
    "COPY files FROM '/etc/passwd'",
    "WITH x AS (INSERT INTO files VALUES (1)) SELECT 1",
    "ATTACH DATABASE 'x' AS y",
    "EXPLAIN SELECT * FROM errors",
    "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
    "CREATE TABLE t AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "CREATE SCHEMA s",
    "CREATE FUNCTION f(INT) RETURNS INT RETURN $1",
    "INSERT INTO files VALUES (1)",
    "DELETE FROM files",
    "UPDATE files SET bytes = 0",
    "DROP TABLE files",
    "ALTER TABLE files ADD COLUMN x INT",
    "TRUNCATE TABLE files",
    "SET datafusion.execution.batch_size = 1",
    "EXPLAIN ANALYZE SELECT 1",
    "PREPARE p AS SELECT 1",
    "SELECT 1 INTO t",
    "SELECT 1; DROP TABLE files",
    "BEGIN",
    "SHOW ALL",
];

/// Statements that read outside the tables or need too much: they fail immediately or at a limit.
fn too_much() -> Vec<String> {
    let nested =
        |open: &str, close: &str, depth: usize| format!("SELECT {}1{}", open.repeat(depth), close.repeat(depth));
    let mut all: Vec<String> = [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM lake.errors",
        "SELECT count(*) FROM generate_series(0, 2000) a, generate_series(0, 2000) b, generate_series(0, 2000) c \
         WHERE a.value + b.value + c.value = -1",
        "SELECT count(*) FROM (SELECT value FROM generate_series(1, 9000000) GROUP BY 1) a \
         JOIN generate_series(1, 10) b ON a.value < b.value - 100",
        "SELECT count(*) FROM (SELECT value FROM generate_series(1, 9000000) GROUP BY 1) a \
         LEFT JOIN generate_series(1, 10) b ON a.value < b.value - 100",
        "SELECT * FROM read_parquet('http://127.0.0.1/x')",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r AS (SELECT repeat('x', 1000) AS n UNION ALL SELECT n || n FROM r) SELECT max(length(n)) FROM r",
        "SELECT value FROM generate_series(1, 1000000000) ORDER BY value DESC",
        "SELECT value % 100000000, count(*) FROM generate_series(1, 1000000000) GROUP BY 1",
        "SELECT array_agg(value) FROM generate_series(1, 10000000000)",
        "SELECT string_agg(CAST(value AS VARCHAR), ',') FROM generate_series(1, 10000000000)",
        "SELECT count(DISTINCT value) FROM generate_series(1, 10000000000)",
        "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b, generate_series(1, 1000) c",
        "SELECT * FROM generate_series(1, 10000000) a JOIN generate_series(1, 10000000) b ON a.value < b.value ORDER BY 1 DESC",
        "SELECT row_number() OVER (ORDER BY value DESC) FROM generate_series(1, 1000000000)",
        "SELECT repeat('x', 2000000000)",
        "SELECT repeat(repeat('x', 1000), 1000000)",
        "SELECT repeat(text, 100000000) FROM errors",
        "SELECT lpad('x', 2000000000, 'y')",
        "SELECT rpad('x', 2000000000)",
        "SELECT array_repeat(1, 1000000000)",
        "SELECT range(1, 1000000000000)",
        "SELECT generate_series(1, 1000000000000)",
        "SELECT range(TIMESTAMP '1970-01-01', TIMESTAMP '2200-01-01', INTERVAL '1 microsecond')",
        "SELECT array_repeat(repeat(text, 4), 256) FROM errors",
        "SELECT replace(repeat('a', 1000), 'a', repeat('b', 1000))",
        "SELECT regexp_replace(repeat('a', 1000), 'a', repeat('b', 1000), 'g')",
        "SELECT regexp_like('a', '((a{1,1000}){1,1000}){1,1000}')",
        "SELECT date_bin(INTERVAL '0 seconds', now())",
        "SELECT arrow_cast('x' || value, 'Dictionary(Int8, Utf8)') FROM generate_series(1, 100000)",
        "SELECT CAST(1e300 AS INT)",
        "SELECT 1 / 0",
        "SELECT \u{0}",
    ]
    .map(str::to_owned)
    .to_vec();
    all.extend([
        nested("(", ")", 3000),
        nested("(SELECT ", ")", 200),
        nested("NOT ", "", 5000),
        format!("SELECT 1{}", " + 1".repeat(5000)),
        format!("SELECT '{}'", "x".repeat(100_000)),
        format!("SELECT 1 IN ({}1)", "1, ".repeat(25_000)),
        format!("SELECT * FROM errors{}", ", errors".repeat(1500)),
        format!("SELECT 1{} FROM errors", ", repeat(text, 8)".repeat(200)),
    ]);
    all
}

#[tokio::test]
async fn hostile_statements_end_and_the_service_keeps_running() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n".repeat(1000)).await;
    server.complete(&id).await;
    let ask = async |sql: &str| {
        let body = json!({"sql": sql, "timeout_ms": 1000}).to_string();
        let answer = tokio::time::timeout(Duration::from_secs(60), server.send(Method::POST, "/query", body));
        let answer = answer.await.unwrap_or_else(|_| panic!("does not end: {sql:.80}"));
        // A response that has begun may be aborted, but must end.
        let status = answer.status();
        (status, answer.text().await)
    };
    for sql in FORBIDDEN {
        assert_eq!(ask(sql).await.0, StatusCode::FORBIDDEN, "{sql}");
    }
    for sql in too_much() {
        let (status, body) = ask(&sql).await;
        let refused = status.is_client_error() || status == StatusCode::GATEWAY_TIMEOUT;
        let aborted = body.is_err();
        assert!(refused || aborted, "{sql:.80}: {status}");
        let leaked = body.is_ok_and(|body| body.contains("root:"));
        assert!(!leaked, "{sql:.80}");
        let report: Value = server.get(&format!("/batches/{id}/report")).await;
        assert_eq!(report["total_errors"], 1000, "after {sql:.80}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(peak.is_some_and(|peak: u64| peak < PEAK_KIB_MAX), "{peak:?} KiB");
    server.stop();
}

#[tokio::test]
async fn queries_above_the_limit_are_refused_with_retry_after() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let client = reqwest::Client::new();
    let ask = |number: usize| {
        let sql = format!("SELECT count(*) + {number} FROM generate_series(1, 1000000000000)");
        let request = client.post(server.url("/query")).body(json!({"sql": sql, "timeout_ms": 1500}).to_string());
        async move { request.send().await.expect("the server answers") }
    };
    let answers = futures::future::join_all((0..60).map(ask)).await;
    let busy: Vec<_> = answers.iter().filter(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).collect();
    assert!(busy.len() >= 60 - 4 - 32, "{} were refused", busy.len());
    assert!(busy.iter().all(|answer| answer.headers().contains_key("retry-after")));
    assert_eq!(server.sql("SELECT 1").await, json!([[1]]));
    server.stop();
}

#[tokio::test]
async fn a_client_that_disconnects_ends_its_query_and_frees_its_permit() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    // As many as run at the same time, for longer than others wait for a permit; half of them keep their threads.
    let endless = ["generate_series(1, 1000000000000) a WHERE 0 <> ", JOIN];
    let asked = (0..QUERIES_MAX).map(|number| {
        let sql = format!("SELECT count(*) FROM {} -{}", endless[number as usize % 2], number + 1);
        let sql = json!({"sql": sql, "timeout_ms": 60_000}).to_string();
        server.send(Method::POST, "/query", sql)
    });
    let all_run = running(&server, f64::from(QUERIES_MAX));
    tokio::select! {
        _ = futures::future::join_all(asked) => panic!("a query ended"),
        () = all_run => {}
    }
    assert_eq!(server.sql("SELECT 1").await, json!([[1]]));
    server.stop();
}

/// Waits until so many queries run.
async fn running(server: &Server, queries: f64) {
    let deadline = Deadline::new(format!("{queries} running queries"));
    while server.metric(QUERIES).await < queries {
        deadline.check();
    }
}

#[tokio::test]
async fn joins_without_keys_end_on_time_and_leave_threads_for_others() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let asked = (1..4).map(|number| {
        let sql = json!({"sql": format!("SELECT count(*) FROM {JOIN} -{number}"), "timeout_ms": 1000}).to_string();
        server.send(Method::POST, "/query", sql)
    });
    let others = async {
        running(&server, 3.0).await;
        assert_eq!(server.sql("SELECT 1").await, json!([[1]]));
    };
    let (answers, ()) = tokio::join!(futures::future::join_all(asked), others);
    for answer in answers {
        assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    }
    server.stop();
}

#[tokio::test]
async fn a_condition_that_does_not_fit_its_column_is_a_client_error() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    // The rows must be in files of the lake, whose reader evaluates conditions first.
    server.committed().await;
    for (sql, reason) in [
        ("SELECT count(*) FROM batches WHERE vin = 1", "Cannot cast string"),
        ("SELECT * FROM errors WHERE code = 1", "Cannot cast string 'E_FAIL' to value of Int64 type"),
        ("SELECT CAST('x' AS INT)", "Cannot cast string 'x' to value of Int32 type"),
        ("SELECT * FROM errors WHERE text ~ '('", "unclosed group"),
        ("SELECT * FROM errors LIMIT -1", "LIMIT must be >= 0"),
    ] {
        let answer = server.send(Method::POST, "/query", json!({"sql": sql}).to_string()).await;
        let status = answer.status();
        let problem: Value = answer.json().await.expect("JSON");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(status == StatusCode::UNPROCESSABLE_ENTITY && detail.contains(reason), "{sql}: {problem}");
    }
    server.stop();
}

#[tokio::test]
async fn a_response_that_is_read_too_slowly_is_aborted_and_does_not_look_complete() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let long = format!("SELECT '{}' FROM generate_series(1, 500000)", "x".repeat(1000));
    let asked = json!({"sql": long, "timeout_ms": 5000, "limit": 500_000}).to_string();
    let headers = [("accept", "text/csv")];
    let mut slow = server.send_with(Method::POST, "/query", &headers, asked.into_bytes()).await;
    assert!(slow.chunk().await.is_ok_and(|chunk| chunk.is_some()));
    // The timeout of another query ends later than its own.
    let other = json!({"sql": format!("SELECT count(*) FROM {JOIN} -1"), "timeout_ms": 8000}).to_string();
    assert_eq!(server.send(Method::POST, "/query", other).await.status(), StatusCode::GATEWAY_TIMEOUT);
    let rest = async {
        while slow.chunk().await?.is_some() {}
        Ok::<_, reqwest::Error>(())
    };
    assert!(rest.await.is_err(), "the response is aborted");
    server.stop();
}

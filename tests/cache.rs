//! Cached responses: hit, shared and never stale, whatever Redis does.

mod common;

use common::redis::RedisServer;
use common::{Server, VIN};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const REDIS_HIT: &str = "argus_cache_requests_total{tier=\"redis\",outcome=\"hit\"}";
const REPORTS: &str = "argus_computed_total{kind=\"report\"}";
const QUERIES: &str = "argus_computed_total{kind=\"sql\"}";
const CHARTS: &str = "argus_computed_total{kind=\"chart\"}";
const FLEET: &str = "argus_computed_total{kind=\"fleet\"}";

/// Concurrent requests for one report.
const REQUESTS: usize = 10_000;

fn header<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[tokio::test]
async fn the_etag_of_a_report_depends_on_its_content() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch_of(json!({"vehicle_id": "v", "vin": VIN, "platform": "p"})).await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    let path = format!("/batches/{id}/report");
    let first = server.send(Method::GET, &path, "").await;
    let tag = header(&first, "etag").to_owned();
    assert_eq!(header(&first, "cache-control"), "no-cache");
    let again = server.send(Method::GET, &path, "").await;
    assert_eq!((header(&again, "cache-status"), header(&again, "etag")), ("argus; hit", &*tag));
    let before: Value = again.json().await.expect("JSON");
    let strong = tag.strip_prefix("W/").expect("a weak ETag, without the epoch");
    for known in [&tag, strong, &format!("\"other\", {tag}"), "*"] {
        let known = server.send_with(Method::GET, &path, &[("if-none-match", known)], Vec::new()).await;
        assert_eq!((known.status(), header(&known, "etag")), (StatusCode::NOT_MODIFIED, &*tag));
        assert!(known.bytes().await.expect("a body").is_empty());
    }
    let computed = server.metric(REPORTS).await;
    // Another vehicle of the platform changes the epoch and the fleet fields.
    let other = server.new_batch_of(json!({"vehicle_id": "w", "vin": VIN.replace('1', "2"), "platform": "p"})).await;
    let receipt = server.put(&other, "b.log", "E_FAIL\nno code\n").await;
    let report = server.get(&format!("{path}?min_epoch={}", receipt["epoch"])).await;
    assert!(report["epoch"].as_u64() >= receipt["epoch"].as_u64() && report["epoch"] != before["epoch"]);
    assert_eq!((&before["codes"][0]["fleet_ratio"], &report["codes"][0]["fleet_ratio"]), (&json!(null), &json!(2.0)));
    let changed = server.send_with(Method::GET, &path, &[("if-none-match", &tag)], Vec::new()).await;
    assert_eq!(changed.status(), StatusCode::OK);
    // Fewer codes give another ETag.
    let cut = server.send(Method::GET, &format!("{path}?top=0"), "").await;
    assert_ne!(header(&cut, "etag"), header(&changed, "etag"));
    assert_eq!(cut.json::<Value>().await.expect("JSON")["codes"], json!([]));
    assert_eq!(server.metric(REPORTS).await, computed, "nothing was computed again");
}

#[tokio::test]
async fn a_cached_report_is_the_same_before_and_behind_the_router() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    let path = format!("/batches/{id}/report");
    let tag = header(&server.send(Method::GET, &path, "").await, "etag").to_owned();
    let fetched = async |path: &str, known: &str| {
        let answer = server.send_with(Method::GET, path, &[("if-none-match", known)], Vec::new()).await;
        let mut headers = answer.headers().clone();
        headers.remove("date");
        // Each request that is routed has an id of its own.
        headers.remove("x-request-id");
        (answer.status(), headers, answer.bytes().await.expect("a body"))
    };
    let head = server.send_with(Method::HEAD, &path, &[("if-none-match", &tag)], Vec::new()).await;
    let whole = server.send(Method::GET, &path, "").await;
    assert_eq!(
        (head.status(), header(&head, "content-length")),
        (StatusCode::NOT_MODIFIED, header(&whole, "content-length"))
    );
    for known in ["\"another\"", &tag] {
        // Only the exact path is handled before the router.
        let (before, behind) = (fetched(&path, known).await, fetched(&format!("{path}?"), known).await);
        assert_eq!(before, behind);
        assert_eq!(before.1["cache-status"], "argus; hit");
        assert_eq!(before.1.contains_key("content-length"), before.0 == StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_for_one_report_compute_it_once() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\nSIGSEGV\n").await;
    server.complete(&id).await;
    server.stop();
    // After a restart no report is cached in memory, so it comes from the files.
    let server = Server::start(data.path());
    let client = reqwest::Client::new();
    let url = server.url(&format!("/batches/{id}/report"));
    let asked: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let request = client.get(&url);
            tokio::spawn(async move {
                let answer = request.send().await.expect("the server answers");
                assert_eq!(answer.status(), StatusCode::OK);
                answer.text().await.expect("text")
            })
        })
        .collect();
    let mut answers = Vec::new();
    for asked in asked {
        answers.push(asked.await.expect("it ends"));
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "all responses are the same");
    assert_eq!(server.metric(REPORTS).await, 1.0);
}

#[tokio::test]
async fn the_same_query_at_the_same_epoch_is_computed_once() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch_of(json!({"vehicle_id": "v", "vin": VIN, "firmware": "7.2.1"})).await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    let query = async |sql: &str| {
        let answer = server.send(Method::POST, "/query", json!({"sql": sql}).to_string()).await;
        answer.json::<Value>().await.expect("JSON")
    };
    let sql = "SELECT code, sum(count) FROM error_counts GROUP BY code";
    assert_eq!(query(sql).await["rows"], json!([["E_FAIL", 1]]));
    assert_eq!(query(sql).await, query(sql).await);
    assert_eq!(server.metric(QUERIES).await, 1.0);
    // A query with random values is not cached.
    assert_ne!(query("SELECT random()").await["rows"], query("SELECT random()").await["rows"]);
    for path in ["/fleet/codes?group_by=firmware", "/fleet/codes?group_by=firmware", "/fleet/codes?group_by=vehicle"] {
        server.get(path).await;
    }
    assert_eq!(server.metric(FLEET).await, 2.0);
    // A batch without files does not change the fleet, but the response has its epoch.
    let other = server.new_batch().await;
    let path = "/fleet/codes?group_by=firmware&min_epoch=";
    let before = server.get(path.trim_end_matches("&min_epoch=")).await;
    let epoch = server.get(&format!("/batches/{other}")).await["epoch"].clone();
    let after = server.get(&format!("{path}{epoch}")).await;
    assert!(after["epoch"].as_u64() >= epoch.as_u64() && after["codes"] == before["codes"]);
    assert_eq!(server.metric(FLEET).await, 2.0);
    server.put(&other, "b.log", "E_FAIL\n").await;
    server.complete(&other).await;
    let codes = server.get("/fleet/codes?group_by=firmware").await;
    assert_eq!(codes["codes"].as_array().map(Vec::len), Some(2), "{codes}");
    assert_eq!(server.metric(FLEET).await, 3.0);
    assert_eq!(query(sql).await["rows"], json!([["E_FAIL", 2]]));
}

#[tokio::test]
async fn cached_responses_survive_a_restart_in_redis() {
    let (data, redis) = (tempfile::tempdir().expect("a temporary folder"), RedisServer::start());
    let start = || Server::start_with(data.path(), &["--redis", &redis.url()]);
    let server = start();
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    let report = server.get(&format!("/batches/{id}/report")).await;
    let sql = "SELECT count(*) FROM errors";
    assert_eq!(server.sql(sql).await, json!([[1]]));
    let chart = async |server: &Server| {
        let chart = server.send(Method::GET, &format!("/batches/{id}/chart.png"), "").await;
        chart.bytes().await.expect("a body")
    };
    let drawn = chart(&server).await;
    server.stop();

    let server = start();
    let found = server.send(Method::GET, &format!("/batches/{id}/report"), "").await;
    assert_eq!(header(&found, "cache-status"), "argus-redis; hit, argus; fwd=uri-miss; stored");
    assert_eq!(found.json::<Value>().await.expect("JSON")["codes"], report["codes"]);
    assert_eq!(server.sql(sql).await, json!([[1]]));
    assert_eq!(chart(&server).await, drawn);
    for metric in [REPORTS, QUERIES, CHARTS] {
        assert_eq!(server.metric(metric).await, 0.0, "{metric}");
    }
    assert_eq!(server.metric(REDIS_HIT).await, 3.0);
    server.stop();

    // Corrupted entries are not used.
    assert!(redis.corrupt() >= 2);
    let server = start();
    let found = server.send(Method::GET, &format!("/batches/{id}/report"), "").await;
    assert_eq!(header(&found, "cache-status"), "argus; fwd=uri-miss; stored");
    assert_eq!(found.json::<Value>().await.expect("JSON")["codes"], report["codes"]);
    assert_eq!(server.sql(sql).await, json!([[1]]));
    assert_eq!((server.metric(REPORTS).await, server.metric(QUERIES).await), (1.0, 1.0));
    server.stop();

    // With other rules the same query has another result at the same epoch.
    let rules = data.path().join("rules.toml");
    std::fs::write(&rules, "[[rule]]\nname = \"other\"\npatterns = [{ pattern = '(?P<code>OTHER)' }]\n")
        .expect("writes");
    let known = "SELECT count(*) FROM catalog WHERE code IS NULL";
    let server = start();
    assert_eq!(server.sql(known).await, json!([[19]]));
    server.stop();
    let rules = rules.to_str().expect("text");
    let server = Server::start_with(data.path(), &["--redis", &redis.url(), "--rules", rules]);
    assert_eq!(server.sql(known).await, json!([[1]]));
    server.stop();

    // Another deployment with the same Redis does not read these entries.
    let elsewhere = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_with(elsewhere.path(), &["--redis", &redis.url()]);
    assert_eq!(server.sql(sql).await, json!([[0]]));
}

#[tokio::test]
async fn a_missing_or_hanging_redis_fails_no_request() {
    let (data, mut redis) = (tempfile::tempdir().expect("a temporary folder"), RedisServer::start());
    let server = Server::start_with(data.path(), &["--redis", &redis.url()]);
    let check = async |count: u64| {
        let id = server.new_batch().await;
        server.put(&id, "a.log", "E_FAIL\n").await;
        assert_eq!(server.complete(&id).await["total_errors"], 1);
        assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[count]]));
    };
    check(1).await;
    redis.pause();
    check(2).await;
    redis.resume();
    check(3).await;
    redis.restart();
    check(4).await;
    drop(redis);
    check(5).await;
    server.stop();
    let refused = common::argus(&["serve", "--redis", "nonsense", "--data", data.path().to_str().expect("text")], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the Redis URL is invalid"));
}

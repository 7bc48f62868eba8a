//! Stored data without an owner is deleted, and no other: after failed requests, kills, and wrong clocks.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{ARGUS, Server, argus, counts, files};
use futures::StreamExt;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

/// The longest time that a test waits for anything.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Waits until a condition is true.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < WAIT_MAX, "timed out waiting for {what}");
        tokio::task::yield_now().await;
    }
}

fn raw_files(data: &Path) -> Vec<PathBuf> {
    let mut all = files(&data.join("raw"));
    all.retain(|file| file.is_file());
    all
}

/// Bytes that do not compress (xorshift64*), in lines.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
    };
    (0..bytes).map(|index| if index % 120 == 119 { b'\n' } else { next().max(11) }).collect()
}

/// A form with these files.
fn form(parts: &[(&str, Vec<u8>)]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let head = format!("--xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--xx--\r\n");
    ("multipart/form-data; boundary=xx".to_owned(), body)
}

#[tokio::test]
async fn a_form_that_is_refused_leaves_nothing_behind() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let path = format!("/batches/{id}/files");
    let lines = b"E_FAIL x\n".repeat(50_000);
    let (kind, bad_name) = form(&[("a.log", lines.clone()), ("..", lines.clone())]);
    let (_, good) = form(&[("a.log", lines.clone()), ("b.log", lines)]);
    for _ in 0..3 {
        let headers = [("content-type", kind.as_str())];
        let answer = server.send_with(Method::POST, &path, &headers, bad_name.clone()).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let headers = [("content-type", kind.as_str()), ("Idempotency-Key", "")];
        let answer = server.send_with(Method::POST, &path, &headers, good.clone()).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
    until("the deletion of what was stored", || raw_files(data.path()).is_empty()).await;
    let report = server.complete(&id).await;
    assert_eq!((&report["total_files"], &report["total_errors"]), (&json!(0), &json!(0)));
    assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[0]]));
    server.stop();
}

#[tokio::test]
async fn an_upload_that_a_kill_interrupts_leaves_no_unfinished_file() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let address = server.root_url("");
    let mut half = TcpStream::connect(address.strip_prefix("http://").expect("an address")).expect("connects");
    write!(half, "PUT /api/v1/batches/{id}/files/a.log HTTP/1.1\r\nhost: x\r\ncontent-length: 99000000\r\n\r\n")
        .expect("writes");
    half.write_all(&noise(6 << 20)).expect("writes");
    let unfinished = || raw_files(data.path()).iter().any(|file| file.to_string_lossy().contains('#'));
    until("the first part of the upload", unfinished).await;
    server.kill();
    assert!(unfinished(), "the kill left the file");
    let server = Server::start(data.path());
    until("the deletion of what the kill left", || !unfinished()).await;
    server.stop();
    assert!(raw_files(data.path()).is_empty());
}

#[tokio::test]
async fn bytes_that_cannot_be_deleted_are_deleted_later() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL secret\n").await;
    let [object] = &raw_files(data.path())[..] else { panic!("one object") };
    // A folder in its place: deleting a file of that name fails.
    let aside = data.path().join("aside");
    std::fs::rename(object, &aside).expect("moves");
    std::fs::create_dir(object).expect("makes a folder");
    let answer = server.send(Method::DELETE, &format!("/batches/{id}/files/a.log"), "").await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    // The commit at the stop must not remove its entry: nothing else records that the bytes are to be deleted.
    server.stop();
    std::fs::remove_dir(object).expect("removes the folder");
    std::fs::rename(&aside, object).expect("moves back");
    let server = Server::start(data.path());
    until("the erasure", || raw_files(data.path()).is_empty()).await;
    server.stop();
}

#[tokio::test]
async fn a_server_whose_clock_was_ahead_deletes_no_bytes_that_are_in_use() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_maintained(data.path(), "20", &[]);
    let id = server.new_batch().await;
    let old = std::time::SystemTime::now() - Duration::from_secs(7200);
    let address = server.root_url("");
    let mut slow = TcpStream::connect(address.strip_prefix("http://").expect("an address")).expect("connects");
    let body = noise(6 << 20);
    write!(slow, "PUT /api/v1/batches/{id}/files/a.log HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len())
        .expect("writes");
    slow.write_all(&body[..5 << 20]).expect("writes");
    until("the first part of the upload", || !raw_files(data.path()).is_empty()).await;
    // By the clock, the file that is being written was abandoned two hours ago.
    for file in raw_files(data.path()) {
        std::fs::File::options().write(true).open(&file).expect("opens").set_modified(old).expect("sets its time");
    }
    // Maintenance runs meanwhile, and moves what was appended to the raw store.
    let other = server.new_batch().await;
    server.send(Method::POST, &format!("/batches/{other}/files/s.log/lines"), "E_FAIL\n").await;
    server.complete(&other).await;
    until("a run of the maintenance", || {
        raw_files(data.path()).iter().any(|file| file.to_string_lossy().contains(&other))
    })
    .await;
    slow.write_all(&body[5 << 20..]).expect("writes");
    let received = async || server.get(&format!("/batches/{id}/progress")).await["total_files"] == json!(1);
    let begun = Instant::now();
    while !received().await {
        assert!(begun.elapsed() < WAIT_MAX, "the upload was not accepted");
    }
    server.kill();
    let server = Server::start(data.path());
    let report = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!((&report["total_bytes"], &report["files"][0]["status"]), (&json!(body.len()), &Value::Null));
}

#[tokio::test]
async fn a_line_that_panics_the_scan_fails_only_its_file() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let variables = [("ARGUS_PANIC_ON", "boom")];
    let start = || Server::try_start(data.path(), &[], &variables).expect("it starts");
    let server = start();
    let id = server.new_batch().await;
    server.put(&id, "bad.log", "E_FAIL\nE_FAIL boom\nE_ABORT\n").await;
    server.put(&id, "good.log", "E_FAIL\n").await;
    let check = async |server: &Server| {
        let report = server.get(&format!("/batches/{id}/report?min_epoch=3")).await;
        assert_eq!(counts(&report), json!({"E_FAIL": 1}));
        let [bad, good] = &report["files"].as_array().expect("files")[..] else { panic!("two files") };
        assert_eq!((&bad["status"], &bad["lines"], &bad["errors"]), (&json!("failed"), &json!(3), &json!(0)));
        assert_eq!(bad["failure"], json!("line 2 could not be searched"));
        assert_eq!(good["status"], Value::Null);
        assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[1]]));
    };
    check(&server).await;
    let ready: Value =
        Client::new().get(server.root_url("/readyz")).send().await.expect("answers").json().await.expect("JSON");
    assert_eq!(ready["failed_files"][0]["file"], json!("bad.log"));
    server.kill();
    let server = start();
    check(&server).await;
    server.stop();
    check(&start()).await;
}

#[tokio::test]
async fn a_missing_raw_object_fails_its_file_and_the_server_starts() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    let [lost] = &raw_files(data.path())[..] else { panic!("one object") };
    let lost = lost.clone();
    server.put(&id, "b.log", "E_ABORT\n").await;
    server.kill();
    std::fs::remove_file(&lost).expect("removes");
    let server = Server::start(data.path());
    let report = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1}));
    let failure = json!("its bytes are missing in the raw store");
    assert_eq!((&report["files"][0]["status"], &report["files"][0]["failure"]), (&json!("failed"), &failure));
    server.stop();
    // Uploading the same bytes again repairs the file.
    let server = Server::start(data.path());
    server.put(&id, "a.log", "E_FAIL\n").await;
    let report = server.complete(&id).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1, "E_FAIL": 1}));
    assert_eq!(report["files"][0].get("status"), None);
}

#[tokio::test]
async fn a_missing_or_older_lake_is_refused_and_a_recount_restores_every_number() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let folder = data.path().to_str().expect("text");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "old.log", "2026-03-01 10:15:30 ERROR ota: E_FAIL\n").await;
    server.stop();
    let older = data.path().join("older");
    copy(&data.path().join("lake"), &older);

    let server = Server::start(data.path());
    server.put(&id, "old.log", "2026-03-01 10:15:30 ERROR ota: E_FAIL\nE_ABORT\nE_TIMEOUT without an end").await;
    server.put(&id, "packed.log", common::gzip(b"E_FAIL packed\n")).await;
    let lines = format!("/batches/{id}/files/stream.log/lines");
    for part in ["E_FAIL one\nE_AB", "ORT\nE_FAIL two\n", "E_TIMEOUT open"] {
        server.send(Method::POST, &lines, part).await;
    }
    let deleted = server.new_batch().await;
    server.put(&deleted, "gone.log", "E_GONE\n").await;
    server.send(Method::DELETE, &format!("/batches/{deleted}"), "").await;
    let done = server.new_batch_of(json!({"vehicle_id": "v2", "vin": "WVWZZZ1JZXW000002", "firmware": "7.2.1"})).await;
    server.put(&done, "a.log", "E_FAIL\nDTC P0301-07 stored\n").await;
    server.complete(&done).await;
    let numbers = async |server: &Server| {
        let mut all = Vec::new();
        for id in [&id, &done] {
            let mut report = server.get(&format!("/batches/{id}/report")).await;
            report["epoch"].take();
            all.push(report);
        }
        for sql in [
            "SELECT batch_id, name, generation, bytes, lines, long_lines, error_lines, errors FROM files ORDER BY 1, 2",
            "SELECT batch_id, file, code, count, first_seen, example_line FROM error_counts ORDER BY 1, 2, 3",
            "SELECT batch_id, file, line, \"offset\", code, text FROM errors ORDER BY 1, 2, 3, 5",
            "SELECT batch_id, vin, firmware, status FROM batches ORDER BY 1",
            "SELECT firmware, vin, code, count, batches FROM fleet_codes ORDER BY 2, 3",
        ] {
            all.push(server.sql(sql).await);
        }
        all.push(server.get("/fleet/codes?group_by=firmware").await["codes"].take());
        all
    };
    let expected = numbers(&server).await;
    server.stop();

    let refused = |why: &str| {
        let output = Command::new(ARGUS).args(["serve", "--listen", "127.0.0.1:0", "--data", folder]).output();
        let output = output.expect("argus runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{why}: {errors}");
        assert!(errors.contains("argus recount"), "{why}: {errors}");
    };
    let recounted = async |why: &str| {
        let output = argus(&["recount", "--data", folder], b"");
        assert!(output.status.success(), "{why}: {}", String::from_utf8_lossy(&output.stderr));
        let server = Server::start(data.path());
        assert_eq!(numbers(&server).await, expected, "{why}");
        server.stop();
    };
    std::fs::remove_dir_all(data.path().join("lake")).expect("removes");
    refused("a missing lake");
    recounted("after a missing lake").await;
    std::fs::remove_dir_all(data.path().join("lake")).expect("removes");
    std::fs::rename(&older, data.path().join("lake")).expect("moves");
    refused("an older lake");
    recounted("after an older lake").await;
    std::fs::remove_dir_all(data.path().join("lake/error_counts")).expect("removes");
    refused("a lake without a table");
    // Later appends are counted as usual.
    recounted("after a lake without a table").await;
    let server = Server::start(data.path());
    server.send(Method::POST, &lines, " goes on\n").await;
    let report = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!(report["files"][2]["lines"], json!(4));
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

#[tokio::test]
async fn more_distinct_codes_than_the_limit_are_counted_together() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let text: String =
        (0..2000).map(|number| format!("ota: error 0x{:08X} failed\n", 0x8007_1000_u32 + number)).collect();
    server.put(&id, "many.log", text).await;
    server.put(&id, "few.log", "SIGSEGV\n").await;
    let report = server.complete(&id).await;
    let codes = report["codes"].as_array().expect("codes");
    let other: Vec<&Value> =
        codes.iter().filter(|code| code["code"].as_str().expect("text").starts_with("OTHER:")).collect();
    let [other] = other[..] else { panic!("one rule is over the limit: {other:?}") };
    assert_eq!(other["code"], json!(format!("OTHER:{}", other["rule"].as_str().expect("text"))));
    let sum: u64 = codes.iter().map(|code| code["count"].as_u64().expect("a number")).sum();
    assert_eq!(Some(sum), report["total_errors"].as_u64());
    let named = codes.iter().filter(|code| code["rule"] == other["rule"]).count();
    assert_eq!((named, &other["count"]), (501, &json!(1500)));
    let many = report["files"].as_array().expect("files").iter().find(|file| file["name"] == "many.log");
    assert_eq!(many.expect("it is there")["codes_limited"], json!(true));
    // The lines keep their own codes.
    assert_eq!(server.sql("SELECT count(DISTINCT code) FROM errors WHERE file = 'many.log'").await, json!([[2000]]));
}

#[tokio::test]
async fn a_known_key_with_another_body_is_refused_and_a_deleted_file_can_be_uploaded_again() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let path = format!("/batches/{id}/files/a.log");
    let put = async |body: &str| {
        server.send_with(Method::PUT, &path, &[("Idempotency-Key", "k1")], body.as_bytes().to_vec()).await
    };
    let first: Value = put("E_FAIL\n").await.json().await.expect("JSON");
    let again = put("E_FAIL\n").await;
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_eq!(again.json::<Value>().await.expect("JSON"), first);
    assert_eq!(put("E_ABORT\n").await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let answer = server.send(Method::DELETE, &path, "").await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let again = put("E_ABORT\n").await;
    assert_eq!(again.status(), StatusCode::CREATED);
    let report = server.complete(&id).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1}));
}

#[tokio::test]
async fn slow_clients_block_nobody_and_a_compression_bomb_is_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let address = server.root_url("").strip_prefix("http://").expect("an address").to_owned();
    // Half of them send almost nothing, half enough to get a permit; then all of them stop sending.
    let slow: Vec<TcpStream> = (0..80)
        .map(|number| {
            let mut client = TcpStream::connect(&address).expect("connects");
            let path = format!("/api/v1/batches/{id}/files/{number}.log");
            write!(client, "PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99000000\r\n\r\n").expect("writes");
            let sent = if number % 2 == 0 { 1 } else { 20_000 };
            client.write_all(&noise(sent)).expect("writes");
            client
        })
        .collect();
    let upload = server.put(&id, "quick.log", "E_FAIL\n");
    tokio::time::timeout(Duration::from_secs(25), upload).await.expect("slow uploads do not block others");
    drop(slow);
    let bomb = zstd::encode_all(&b"E_FAIL\n".repeat(30 << 20)[..], 3).expect("encodes");
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    let answer = server.send(Method::PUT, &format!("/batches/{id}/files/bomb.log"), bomb).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.json::<Value>().await.expect("JSON")["type"], json!("urn:argus:problem:expands-too-much"));
    assert_eq!(counts(&server.complete(&id).await), json!({"E_FAIL": 1}));
}

#[tokio::test]
async fn the_event_stream_of_a_deleted_batch_reports_it_and_ends() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let answer = Client::new().get(server.url(&format!("/batches/{id}/events"))).send().await.expect("answers");
    let mut events = answer.bytes_stream();
    let mut text = String::new();
    while !text.contains("progress") {
        let chunk = events.next().await.expect("it goes on").expect("is whole");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    assert_eq!(server.send(Method::DELETE, &format!("/batches/{id}"), "").await.status(), StatusCode::NO_CONTENT);
    let rest = async {
        while let Some(chunk) = events.next().await {
            text.push_str(std::str::from_utf8(&chunk.expect("is whole")).expect("text"));
        }
    };
    tokio::time::timeout(WAIT_MAX, rest).await.expect("the stream ends");
    assert!(text.contains("\"status\":\"deleted\""), "{text}");
}

#[tokio::test]
async fn readers_do_not_block_uploads_to_unloaded_batches() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut ids = Vec::new();
    for _ in 0..24 {
        let id = server.new_batch().await;
        server.put(&id, "a.log", "2026-03-01 10:15:30 ERROR ota: E_FAIL\n".repeat(4000)).await;
        ids.push(id);
    }
    server.stop();
    // After the restart nothing of these batches is loaded.
    let server = Server::start(data.path());
    let readers: Vec<_> = (0..24)
        .map(|number| {
            let url = server.url(&format!("/fleet/codes?since=2026-01-{:02}T00:00:00Z", number + 1));
            tokio::spawn(async move { Client::new().get(url).send().await.expect("answers").status() })
        })
        .collect();
    let writes = ids.iter().map(|id| server.put(id, "b.log", "E_ABORT\n"));
    futures::future::join_all(writes).await;
    for reader in readers {
        let status = reader.await.expect("ends");
        assert!(status == StatusCode::OK || status == StatusCode::TOO_MANY_REQUESTS, "{status}");
    }
    for id in ids {
        assert_eq!(counts(&server.get(&format!("/batches/{id}/report")).await), json!({"E_FAIL": 4000, "E_ABORT": 1}));
    }
}

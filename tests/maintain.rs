//! Compaction, retention and erasure: on the command line, and in a running server.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use common::{Deadline, Server, argus, counts, data_files, files};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection;

fn maintain(data: &Path, flags: &[&str]) {
    let output = argus(&[&["maintain", "--data", data.to_str().expect("text")], flags].concat(), b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Every text in every row of every data file of the lake, read with a plain Parquet reader.
fn texts_in_lake(data: &Path) -> BTreeSet<String> {
    let mut texts = BTreeSet::new();
    for path in ["batches", "files", "error_counts", "errors"].into_iter().flat_map(|table| data_files(data, table)) {
        let rows = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).expect("opens")).expect("is Parquet");
        for rows in rows.build().expect("reads") {
            for column in rows.expect("reads").columns() {
                if let Some(column) = column.as_string_opt::<i32>() {
                    texts.extend(column.iter().flatten().map(str::to_owned));
                }
            }
        }
    }
    texts
}

#[tokio::test]
async fn deleted_data_leaves_no_row_in_any_parquet_file_and_no_byte_on_disk() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let remaining = server.new_batch().await;
    let deleted = server.new_batch_of(json!({"vehicle_id": "veh-gone", "vin": "WVWZZZ1JZXW000666"})).await;
    for id in [&remaining, &deleted] {
        server.put(id, "stays.log", "E_FAIL stays\n").await;
        server.put(id, "goes.log", "E_OLD of-a-generation-before\n").await;
        server.put(id, "goes.log", "E_GONE of-a-deleted-file\nE_OPEN in-a-last-line").await;
    }
    let stream = format!("/batches/{remaining}/files/stream.log/lines");
    server.send(Method::POST, &stream, "E_STREAM of-a-deleted-stream\n").await;
    // After a restart the rows are in the lake, not only in memory.
    server.stop();
    let server = Server::start(data.path());
    for path in [format!("{remaining}/files/goes.log"), format!("{remaining}/files/stream.log"), deleted.clone()] {
        let answer = server.send(Method::DELETE, &format!("/batches/{path}"), "").await;
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    }
    let before = server.complete(&remaining).await;
    server.stop();
    assert!(texts_in_lake(data.path()).iter().any(|text| text.contains("of-a-deleted-file")), "before maintenance");
    maintain(data.path(), &[]);
    let texts = texts_in_lake(data.path());
    // The events of the remaining batch still name the file, but contain nothing of its content.
    for trace in ["goes.log", "stream.log"] {
        assert!(!texts.contains(trace), "{trace} is in the lake");
    }
    let traces = [
        "of-a-generation-before",
        "of-a-deleted-file",
        "in-a-last-line",
        "of-a-deleted-stream",
        "E_GONE",
        "E_OLD",
        "veh-gone",
        "WVWZZZ1JZXW000666",
        &deleted,
    ];
    for trace in traces {
        assert!(!texts.iter().any(|text| text.contains(trace)), "{trace} is in the lake");
        // The audit log says which batches were deleted, and nothing else of them.
        let is_id_in_audit = |file: &std::path::Path| trace == deleted && file.starts_with(data.path().join("audit"));
        for file in files(data.path()).into_iter().filter(|file| !is_id_in_audit(file)) {
            let bytes = std::fs::read(&file).expect("reads");
            assert!(memchr::memmem::find(&bytes, trace.as_bytes()).is_none(), "{trace} is in {}", file.display());
        }
    }
    assert!(texts.iter().any(|text| text.contains("E_FAIL stays")));
    let server = Server::start(data.path());
    let after = server.get(&format!("/batches/{remaining}/report")).await;
    assert_eq!((counts(&after), &after["files"]), (json!({"E_FAIL": 1}), &before["files"]));
}

#[tokio::test]
async fn an_erased_vehicle_leaves_no_byte_on_disk() {
    const GONE: &str = "WVWZZZ1JZXW000666";
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let stays = server.new_batch().await;
    server.put(&stays, "a.log", "E_FAIL stays\n").await;
    for number in 0..3 {
        let labels = json!({"note": format!("label-of-gone-{number}")});
        let described = json!({"vehicle_id": "veh-gone", "vin": GONE, "firmware": "7.2.1", "labels": labels});
        let batch = server.new_batch_of(described).await;
        server.put(&batch, "b.log", format!("E_ABORT line-of-gone-{number} of {GONE}\n")).await;
        server.complete(&batch).await;
    }
    let record = json!({"vehicle_id": "veh-gone", "vin": GONE, "message": "E_FAIL line-of-gone in a stream"});
    assert_eq!(server.send(Method::POST, "/lines", record.to_string()).await.status(), StatusCode::OK);
    // After a restart the rows are in the lake, not only in memory.
    server.stop();
    let server = Server::start(data.path());
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let answer = server.send(Method::DELETE, &format!("/vehicles/{GONE}"), "").await;
        assert_eq!(answer.status(), status);
    }
    assert_eq!(server.send(Method::GET, &format!("/vehicles/{GONE}"), "").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(server.sql("SELECT count(*) FROM batches").await, json!([[1]]));
    assert_eq!(server.get("/fleet/totals").await["vehicles"], 1);
    server.stop();
    maintain(data.path(), &[]);
    for file in files(data.path()) {
        let bytes = std::fs::read(&file).expect("reads");
        for trace in [GONE, "veh-gone", "label-of-gone", "line-of-gone"] {
            assert!(memchr::memmem::find(&bytes, trace.as_bytes()).is_none(), "{trace} is in {}", file.display());
        }
    }
    let server = Server::start(data.path());
    assert_eq!(counts(&server.get(&format!("/batches/{stays}/report")).await), json!({"E_FAIL": 1}));
    server.stop();
}

#[tokio::test]
async fn compacted_small_files_give_the_same_results() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut ids = Vec::new();
    for number in 0..5 {
        let server = Server::start(data.path());
        let id = server.new_batch().await;
        for part in 0..3 {
            let path = format!("/batches/{id}/files/a.log/lines");
            server.send(Method::POST, &path, format!("2026-03-01 10:15:3{part} ERROR ota: E_FAIL\n")).await;
        }
        server.put(&id, "b.log", "E_ABORT\n".repeat(number)).await;
        server.complete(&id).await;
        ids.push(id);
        server.stop();
    }
    let queries = ["batches", "files", "error_counts", "errors", "fleet_codes"]
        .map(|table| format!("SELECT * FROM {table} ORDER BY 1, 2, 3, 4, 5"));
    let read = async |server: &Server| {
        let mut results = Vec::new();
        for id in &ids {
            let mut report = server.get(&format!("/batches/{id}/report")).await;
            report["epoch"].take();
            results.push(report);
        }
        for query in &queries {
            results.push(server.sql(query).await);
        }
        results
    };
    let server = Server::start(data.path());
    let before = read(&server).await;
    server.stop();
    assert_eq!(data_files(data.path(), "error_counts").len(), 5);
    maintain(data.path(), &["--retention", "0s"]);
    for table in ["batches", "files", "error_counts", "errors"] {
        assert_eq!(data_files(data.path(), table).len(), 1, "{table}");
    }
    // Old differences are consolidated to one row per key.
    let rows =
        argus(&["sql", "--data", data.path().to_str().expect("text"), "SELECT count(*) FROM lake.error_counts"], b"");
    assert_eq!(String::from_utf8_lossy(&rows.stdout), "count(*)\n9\n");
    let server = Server::start(data.path());
    assert_eq!(read(&server).await, before);
    maintain_twice_changes_nothing(data.path(), server).await;
}

async fn maintain_twice_changes_nothing(data: &Path, server: Server) {
    server.stop();
    let before: BTreeSet<PathBuf> = data_files(data, "error_counts").into_iter().collect();
    maintain(data, &["--retention", "0s"]);
    assert_eq!(data_files(data, "error_counts").into_iter().collect::<BTreeSet<_>>(), before);
}

#[tokio::test]
async fn a_report_as_of_an_epoch_equals_the_report_at_that_epoch() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let mut reports = Vec::new();
    for (name, text) in
        [("a.log", "E_FAIL\n"), ("b.log", "E_ABORT\n"), ("a.log", "E_TIMEOUT\nE_FAIL\n"), ("a.log", "ok\n")]
    {
        let receipt = server.put(&id, name, text).await;
        reports.push(server.get(&format!("/batches/{id}/report?min_epoch={}", receipt["epoch"])).await);
    }
    reports.push(server.complete(&id).await);
    let check = async |server: &Server| {
        for report in &reports {
            let epoch = &report["epoch"];
            let mut present = report.clone();
            // What stands out is only known of the present.
            present.as_object_mut().expect("an object").remove("diagnosis");
            assert_eq!(server.get(&format!("/batches/{id}/report?as_of={epoch}")).await, present);
            let asked = json!({"sql": "SELECT coalesce(sum(count), 0) FROM error_counts", "as_of": epoch}).to_string();
            let answer = server.send(Method::POST, "/query", asked).await;
            let answer: Value = answer.json().await.expect("JSON");
            assert_eq!((&answer["rows"][0][0], &answer["epoch"]), (&report["total_errors"], epoch));
        }
    };
    check(&server).await;
    let status = async |server: &Server, path: &str| server.send(Method::GET, path, "").await.status();
    let early = format!("/batches/{id}/report?as_of=0");
    assert_eq!(status(&server, &early).await, StatusCode::NOT_FOUND, "there was no batch");
    let late = format!("/batches/{id}/report?as_of=1000&timeout_ms=1");
    assert_eq!(status(&server, &late).await, StatusCode::UNPROCESSABLE_ENTITY);
    server.stop();
    // Compaction keeps the epochs within the retention.
    maintain(data.path(), &[]);
    let server = Server::start(data.path());
    check(&server).await;
    server.stop();
    maintain(data.path(), &["--retention", "0s"]);
    let server = Server::start(data.path());
    let first = format!("/batches/{id}/report?as_of={}", reports[0]["epoch"]);
    assert_eq!(status(&server, &first).await, StatusCode::GONE);
    let asked = json!({"sql": "SELECT 1", "as_of": 1}).to_string();
    assert_eq!(server.send(Method::POST, "/query", asked).await.status(), StatusCode::GONE);
    assert_eq!(counts(&server.get(&format!("/batches/{id}/report")).await), json!({"E_ABORT": 1}));
}

/// A log in which every line has a code and a unique text.
fn log_with_codes(upload: usize, lines: usize) -> String {
    let line = |number: usize| {
        // Digits that do not repeat, so that they do not compress well.
        let digits = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (upload as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let (minute, second) = (number / 60 % 60, number % 60);
        let code = ["E_FAIL", "E_ABORT", "E_TIMEOUT"][number % 3];
        format!(
            "2026-03-01 10:{minute:02}:{second:02} ERROR ota: {code} block {digits:x}{:x} of {upload}\n",
            digits.rotate_left(23)
        )
    };
    (0..lines).map(line).collect()
}

#[tokio::test]
async fn compacted_large_files_give_the_same_results() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut ids = Vec::new();
    for upload in 0..15 {
        let id = server.new_batch().await;
        server.put(&id, "a.log", log_with_codes(upload, 20_000)).await;
        server.complete(&id).await;
        ids.push(id);
    }
    let read = async |server: &Server| {
        let counts = server
            .sql("SELECT code, sum(count), min(first_seen), max(last_seen) FROM error_counts GROUP BY 1 ORDER BY 1");
        let lines =
            "SELECT code, count(*), sum(line), sum(\"offset\"), min(text), max(text) FROM errors GROUP BY 1 ORDER BY 1";
        let mut results = vec![counts.await, server.sql(lines).await];
        for id in &ids {
            let mut report = server.get(&format!("/batches/{id}/report")).await;
            report["epoch"].take();
            results.push(report);
        }
        results
    };
    let before = read(&server).await;
    server.stop();
    assert!(data_files(data.path(), "errors").len() > 5, "large uploads have their own files");
    maintain(data.path(), &["--retention", "0s"]);
    for table in ["batches", "files", "error_counts", "errors"] {
        assert!(data_files(data.path(), table).len() <= 2, "{table}");
    }
    let server = Server::start(data.path());
    assert_eq!(read(&server).await, before);
}

#[tokio::test]
async fn a_damaged_file_is_reported_and_the_others_are_compacted() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut ids = Vec::new();
    for number in 0..5 {
        let server = Server::start(data.path());
        let id = server.new_batch().await;
        server.put(&id, "a.log", format!("E_FAIL of-upload-{number}\n")).await;
        server.put(&id, "b.log", "E_ABORT\n").await;
        ids.push(id);
        server.stop();
    }
    let server = Server::start(data.path());
    let path = format!("/batches/{}/files/a.log", ids[3]);
    assert_eq!(server.send(Method::DELETE, &path, "").await.status(), StatusCode::NO_CONTENT);
    server.stop();
    // Truncate to its half the file that contains only the first batch.
    let has = |path: &PathBuf, text: &str| {
        let rows = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("opens")).expect("is Parquet");
        rows.build().expect("reads").flatten().any(|rows| format!("{rows:?}").contains(text))
    };
    let errors = data_files(data.path(), "errors");
    let damaged = errors.iter().find(|path| has(path, "of-upload-0")).expect("the file of the first batch").clone();
    let bytes = std::fs::read(&damaged).expect("reads");
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).expect("writes");
    let flags = ["maintain", "--retention", "0s", "--data", data.path().to_str().expect("text")];
    for _ in 0..2 {
        let output = argus(&flags, b"");
        assert_eq!(output.status.code(), Some(1));
        let reason = String::from_utf8_lossy(&output.stderr);
        let name = damaged.file_name().expect("a name").to_string_lossy();
        assert!(reason.contains("table errors") && reason.contains(&*name), "{reason}");
    }
    let mut left = data_files(data.path(), "errors");
    left.retain(|path| *path != damaged);
    assert_eq!(left.len(), 1, "the others are compacted to one");
    assert!(has(&left[0], "of-upload-1") && has(&left[0], "of-upload-4") && !has(&left[0], "of-upload-3"));
    for table in ["batches", "files", "error_counts"] {
        assert_eq!(data_files(data.path(), table).len(), 1, "{table}");
    }
    // The damaged file has no rows of the deleted file, so the deletion is complete.
    let texts: BTreeSet<PathBuf> = files(data.path()).into_iter().collect();
    assert!(texts.contains(&damaged), "it is kept for a repair");
    assert!(!data_files(data.path(), "error_counts").iter().any(|path| has(path, "of-upload-3")));
}

#[tokio::test]
async fn a_server_runs_maintenance_while_it_is_read() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_maintained(data.path(), "20", &["--retention", "0s"]);
    let id = server.new_batch().await;
    server.put(&id, "keeps.log", "E_FAIL\n").await;
    for _ in 0..3 {
        server.put(&id, "goes.log", "E_GONE of-a-deleted-file\n").await;
        // It may or may not be committed and compacted before it is deleted.
        let rows = server.sql("SELECT count(*) FROM errors WHERE code = 'E_GONE'").await;
        assert!(rows == json!([[1]]) || rows == json!([[0]]));
        let path = format!("/batches/{id}/files/goes.log");
        assert_eq!(server.send(Method::DELETE, &path, "").await.status(), StatusCode::NO_CONTENT);
    }
    let has_trace = || {
        let traces = [("errors", "of-a-deleted-file"), ("files", "goes.log")];
        traces.iter().any(|(table, trace)| texts_in_lake_while_it_changes(data.path(), table, trace))
    };
    // A commit follows within its interval, and the maintenance that follows the commit erases.
    let deadline = Deadline::new("the erasure of the deleted file");
    while server.metric("argus_committed_epoch").await < server.metric("argus_epoch").await || has_trace() {
        deadline.check();
        assert_eq!(server.sql("SELECT code FROM errors").await, json!([["E_FAIL"]]));
    }
    assert_eq!(counts(&server.complete(&id).await), json!({"E_FAIL": 1}));
}

/// Whether a file of a table of the lake contains the text; files may be deleted while they are read.
fn texts_in_lake_while_it_changes(data: &Path, table: &str, trace: &str) -> bool {
    data_files(data, table).into_iter().any(|path| {
        let Ok(file) = File::open(path) else { return false };
        let rows = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|rows| rows.build());
        rows.is_ok_and(|rows| rows.flatten().any(|rows| format!("{rows:?}").contains(trace)))
    })
}

#[test]
fn a_directory_without_data_and_one_in_use_are_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let path = data.path().to_str().expect("text");
    let output = argus(&["maintain", "--data", path], b"");
    assert_eq!(output.status.code(), Some(1));
    let _server = Server::start(data.path());
    let output = argus(&["maintain", "--data", path], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another argus"), "{output:?}");
    assert_eq!(argus(&["maintain", "--retention", "soon"], b"").status.code(), Some(2));
}

#[tokio::test]
async fn events_are_deleted_after_the_retention_also_of_existing_batches() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    for number in 0..3 {
        server.put(&id, &format!("{number}.log"), "E_FAIL\n").await;
    }
    server.stop();
    let events = async || {
        let database = format!("sqlite:{}", data.path().join("argus.db").display());
        let mut connection = sqlx::SqliteConnection::connect(&database).await.expect("opens");
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(&mut connection).await.expect("counts");
        connection.close().await.expect("closes");
        count
    };
    maintain(data.path(), &["--retention", "1h"]);
    assert_eq!(events().await, 7, "all are from the last hour");
    maintain(data.path(), &["--retention", "0s"]);
    assert_eq!(events().await, 0);
    let server = Server::start(data.path());
    assert_eq!(server.complete(&id).await["total_errors"], json!(3));
}

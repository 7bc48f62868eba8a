//! Uploads are undone: files are replaced and deleted, batches are deleted and reopened.

mod common;

use common::{Server, counts};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// Waits until the raw store contains `wanted` objects, which follows the commit of the deletion.
async fn wait_for_raw_objects(data: &std::path::Path, wanted: usize) {
    let count = || {
        let batches = std::fs::read_dir(data.join("raw")).expect("the raw store is there");
        batches.flatten().flat_map(|batch| std::fs::read_dir(batch.path())).flatten().count()
    };
    let deadline = common::Deadline::new(format!("{wanted} objects in the raw store"));
    while count() != wanted {
        deadline.check();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_deleted_file_disappears_from_all_responses_and_from_the_raw_store() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\nE_FAIL\n").await;
    let uploaded = server.put(&id, "b.log", "E_ABORT\n").await;
    let path = format!("/batches/{id}/files/a.log");
    assert_eq!(server.send(Method::DELETE, &path, "").await.status(), StatusCode::NO_CONTENT);
    // The response is sent when no reader sees the file any more.
    let report = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1}));
    assert_eq!((&report["total_files"], &report["total_lines"]), (&json!(1), &json!(1)));
    assert_eq!(server.sql("SELECT file, code FROM errors").await, json!([["b.log", "E_ABORT"]]));
    assert_eq!(server.send(Method::DELETE, &path, "").await.status(), StatusCode::NOT_FOUND);
    wait_for_raw_objects(data.path(), 1).await;
    // Past epochs do not show it either, although its rows may still be in the lake.
    let before = uploaded["epoch"].as_u64().expect("an epoch");
    let asked = json!({"sql": "SELECT file FROM errors UNION SELECT name FROM files", "as_of": before}).to_string();
    let past: Value = server.send(Method::POST, "/query", asked).await.json().await.expect("JSON");
    assert_eq!((&past["rows"], &past["epoch"]), (&json!([["b.log"]]), &json!(before)));
    let asked = json!({"sql": "SELECT code FROM fleet_codes", "as_of": before}).to_string();
    let past: Value = server.send(Method::POST, "/query", asked).await.json().await.expect("JSON");
    assert_eq!(past["rows"], json!([]), "past epochs leave out its vehicle");
    let report = server.get(&format!("/batches/{id}/report?as_of={before}")).await;
    assert_eq!((counts(&report), &report["total_files"]), (json!({"E_ABORT": 1}), &json!(1)));
    // The name is free again, and its generations start at 1.
    let again = server.put(&id, "a.log", "E_TIMEOUT\n").await;
    assert_eq!(again["generation"], json!(1));
    server.kill();
    let server = Server::start(data.path());
    assert_eq!(counts(&server.complete(&id).await), json!({"E_ABORT": 1, "E_TIMEOUT": 1}));
}

#[tokio::test]
async fn a_deleted_batch_disappears_everywhere_also_after_a_restart() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let (deleted, remaining) = (server.new_batch().await, server.new_batch().await);
    for id in [&deleted, &remaining] {
        server.put(id, "a.log", "E_FAIL\n").await;
        server.complete(id).await;
    }
    assert_eq!(server.send(Method::DELETE, &format!("/batches/{deleted}"), "").await.status(), StatusCode::NO_CONTENT);
    let check = async |server: &Server| {
        for path in ["", "/report", "/progress", "/errors", "/events"] {
            let answer = server.send(Method::GET, &format!("/batches/{deleted}{path}"), "").await;
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        }
        for table in ["batches", "files", "error_counts", "errors"] {
            let rows = server.sql(&format!("SELECT DISTINCT batch_id FROM {table}")).await;
            assert_eq!(rows, json!([[remaining]]), "{table}");
        }
    };
    check(&server).await;
    assert_eq!(server.send(Method::DELETE, &format!("/batches/{deleted}"), "").await.status(), StatusCode::NOT_FOUND);
    wait_for_raw_objects(data.path(), 1).await;
    server.stop();
    check(&Server::start(data.path())).await;
}

#[tokio::test]
async fn a_batch_is_reopened_changed_and_completed_again() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    let file = format!("/batches/{id}/files/a.log");
    assert_eq!(server.send(Method::DELETE, &file, "").await.status(), StatusCode::CONFLICT);
    for _ in 0..2 {
        let answer = server.send(Method::POST, &format!("/batches/{id}/reopen"), "").await;
        assert_eq!(answer.status(), StatusCode::OK);
        let opened: Value = answer.json().await.expect("JSON");
        assert_eq!(opened["status"], "pending");
        let report = server.get(&format!("/batches/{id}/report?min_epoch={}", opened["epoch"])).await;
        assert_eq!(report["final"], json!(false));
    }
    assert_eq!(server.sql("SELECT status FROM batches").await, json!([["pending"]]));
    server.put(&id, "a.log", "E_ABORT\n").await;
    let report = server.complete(&id).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1}));
    assert_eq!(server.sql("SELECT status FROM batches").await, json!([["completed"]]));
    let unknown = server.send(Method::POST, "/batches/00000000-0000-7000-8000-000000000000/reopen", "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn readers_see_exactly_one_generation_of_a_replaced_file() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let texts = ["E_FAIL\n".repeat(100), "E_ABORT\n".repeat(100)];
    let first = server.put(&id, "a.log", texts[0].clone()).await;
    server.get(&format!("/batches/{id}/report?min_epoch={}", first["epoch"])).await;
    let write = async {
        for round in 1..40 {
            server.put(&id, "a.log", texts[round % 2].clone()).await;
        }
    };
    let read = async {
        let mut epoch = 0;
        for _ in 0..60 {
            let report = server.get(&format!("/batches/{id}/report")).await;
            assert_eq!(report["total_errors"], json!(100));
            assert_eq!(report["codes"].as_array().map(Vec::len), Some(1), "{report}");
            let seen = report["epoch"].as_u64().expect("an epoch");
            assert!(seen >= epoch, "epochs never decrease");
            epoch = seen;
            let rows = server.sql("SELECT count(*), count(DISTINCT code) FROM errors").await;
            assert_eq!(rows, json!([[100, 1]]));
        }
    };
    tokio::join!(write, read);
}

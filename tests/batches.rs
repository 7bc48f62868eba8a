//! From `POST /batches` to the final report, over a socket.

mod common;

use std::collections::BTreeSet;

use common::{RealLogs, Server, counts, gzip};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const BMS: &str = "2026-03-01 10:15:30,123 ERROR [main] bms.Monitor - DTC P0A1F-87 stored\n\
                   2026-03-01 10:15:31,000 INFO [main] bms.Monitor - all good\n\
                   2026-03-01 10:15:32,500 WARN [main] bms.Monitor - DTC P0A1F-87 stored, errno: 5\n";

#[tokio::test]
async fn a_batch_goes_from_creation_to_a_final_report_and_survives_a_restart() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let new = json!({"vehicle_id": "veh-1", "vin": common::VIN, "platform": "p1", "firmware": "7.2.1"});
    let id = server.new_batch_of(new).await;

    let receipt = server.put(&id, "bms.log", BMS).await;
    assert_eq!((&receipt["name"], &receipt["generation"]), (&json!("bms.log"), &json!(1)));
    assert_eq!((&receipt["bytes"], &receipt["lines"]), (&json!(BMS.len()), &json!(3)));
    let open = server.get(&format!("/batches/{id}/report?min_epoch={}", receipt["epoch"])).await;
    assert_eq!((&open["status"], &open["final"], &open["total_errors"]), (&json!("pending"), &json!(false), &json!(3)));

    let report = server.complete(&id).await;
    let expected = json!({
        "batch_id": id, "status": "completed", "final": true, "epoch": report["epoch"],
        "vehicle_id": report["vehicle_id"], "vin": report["vin"], "platform": report["platform"], "firmware": report["firmware"],
        "recorded_first": "2026-03-01T10:15:30.123Z", "recorded_last": "2026-03-01T10:15:32.500Z",
        "total_files": 1, "parsed_files": 1, "total_bytes": BMS.len(), "total_lines": 3, "error_lines": 2, "total_errors": 3,
        "codes": [
            {"code": "P0A1F-87", "rule": "dtc", "severity": "error", "count": 2, "inactive": 0, "files": 1,
             "first_seen": "2026-03-01T10:15:30.123Z", "last_seen": "2026-03-01T10:15:32.500Z",
             "new_for_vehicle": true, "fleet_ratio": null,
             "example": {"file": "bms.log", "line": 1, "text": BMS.lines().next()}},
            {"code": "ERRNO:5", "rule": "errno_num", "severity": "error", "count": 1, "inactive": 0, "files": 1,
             "first_seen": "2026-03-01T10:15:32.500Z", "last_seen": "2026-03-01T10:15:32.500Z",
             "new_for_vehicle": true, "fleet_ratio": null,
             "example": {"file": "bms.log", "line": 3, "text": BMS.lines().nth(2)}},
        ],
        "files": [{"name": "bms.log", "generation": 1, "bytes": BMS.len(), "lines": 3, "long_lines": 0, "errors": 3,
                   "first_ts": "2026-03-01T10:15:30.123Z", "last_ts": "2026-03-01T10:15:32.500Z",
                   "codes": {"P0A1F-87": 2, "ERRNO:5": 1}}],
        "diagnosis": {
            "summary": "There are too few other vehicles with this firmware or platform to compare with.", "codes": []
        },
    });
    assert_eq!(report, expected);

    let progress = server.get(&format!("/batches/{id}/progress")).await;
    assert_eq!((&progress["percent"], &progress["lines"]), (&json!(100.0), &json!(3)));
    let before = server.get(&format!("/batches/{id}")).await;
    server.stop();

    let server = Server::start(data.path());
    assert_eq!(server.get(&format!("/batches/{id}")).await, before);
    assert_eq!(server.get(&format!("/batches/{id}/report")).await, expected);
    server.stop();
}

#[tokio::test]
async fn acknowledged_data_survives_kill_9_exactly_once() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut expected = 0;
    let mut server = Server::start(data.path());
    let id = server.new_batch().await;
    for round in 0..6 {
        for file in 0..round {
            server.put(&id, &format!("{round}-{file}.log"), "E_FAIL x\n".repeat(100)).await;
            expected += 100;
        }
        // Replaced in every round: 100 of one code or of the other, and never both.
        let code = if round % 2 == 0 { "E_ABORT\n" } else { "E_TIMEOUT\n" };
        server.put(&id, "replaced.log", code.repeat(100)).await;
        server.kill();
        server = Server::start(data.path());
        let report = server.get(&format!("/batches/{id}/report")).await;
        assert_eq!(report["total_errors"], json!(expected + 100), "round {round}");
        assert_eq!(counts(&report)[code.trim()], json!(100));
        let rows = server.sql("SELECT count(*) FROM errors").await;
        assert_eq!(rows, json!([[expected + 100]]), "round {round}");
    }
    let report = server.complete(&id).await;
    assert_eq!(report["total_errors"], json!(expected + 100));
    server.stop();
}

#[tokio::test]
async fn a_completed_batch_is_finished_although_the_server_was_killed() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    let answer = server.send(Method::POST, &format!("/batches/{id}/complete"), "").await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let done: Value = answer.json().await.expect("JSON");
    assert_eq!(done["status"], "uploaded");
    server.kill();
    let server = Server::start(data.path());
    let report = server.final_report(&id, done["epoch"].as_u64().expect("an epoch")).await;
    assert_eq!((&report["final"], &report["total_errors"]), (&json!(true), &json!(1)));
}

#[tokio::test]
async fn rejected_uploads_do_not_affect_a_restart() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut server = Server::start(data.path());
    let id = server.new_batch().await;
    let path = format!("/batches/{id}/files/a.log");
    for round in 1..4 {
        let text = "E_FAIL\n".repeat(round);
        server.put(&id, "a.log", text.clone()).await;
        // The same bytes again, and half a file: nothing of either counts.
        server.put(&id, "a.log", text).await;
        let mut half = gzip(&b"E_ABORT\n".repeat(10_000));
        half.truncate(half.len() / 2);
        let answer = server.send(Method::PUT, &path, half).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
        server.stop();
        server = Server::start(data.path());
        let report = server.get(&format!("/batches/{id}/report")).await;
        assert_eq!(counts(&report), json!({ "E_FAIL": round }));
    }
}

#[tokio::test]
async fn an_incomplete_form_leaves_none_of_its_files() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let part = |name: &str, text: &str| {
        format!("--cut\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{text}\r\n")
    };
    let headers = [("Content-Type", "multipart/form-data; boundary=cut")];
    let path = format!("/batches/{id}/files");
    for (body, status) in [
        (part("a.log", "E_FAIL\n") + &part("b.log", "E_FAIL\n"), 400),
        (part("a.log", "E_FAIL\n") + &part("../b.log", "E_FAIL\n") + "--cut--\r\n", 422),
    ] {
        let answer = server.send_with(Method::POST, &path, &headers, body.into_bytes()).await;
        assert_eq!(answer.status().as_u16(), status);
    }
    let report = server.complete(&id).await;
    assert_eq!((&report["total_files"], &report["total_errors"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn a_hundred_concurrent_batches_each_have_the_right_report() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let one = async |number: usize| {
        let vin = format!("WVWZZZ1JZXW{number:06}");
        let id = server.new_batch_of(json!({"vehicle_id": format!("veh-{number}"), "vin": vin})).await;
        for file in 0..3 {
            let text = format!("E_FAIL_{number}\n").repeat(number + 1) + &"nothing\n".repeat(file);
            server.put(&id, &format!("{file}.log"), text).await;
        }
        let report = server.complete(&id).await;
        let code = format!("E_FAIL_{number}");
        assert_eq!(counts(&report), json!({ code: 3 * (number + 1) }));
        assert_eq!(report["total_lines"], json!(3 * (number + 1) + 3));
    };
    futures::future::join_all((0..100).map(one)).await;
    let rows = server.sql("SELECT count(*), count(DISTINCT vin) FROM batches WHERE status = 'completed'").await;
    assert_eq!(rows, json!([[100, 100]]));
    server.stop();
}

#[tokio::test]
async fn real_logs_have_the_same_counts_over_http_in_every_encoding() {
    let Some(logs) = RealLogs::find() else { return };
    for (workers, block_bytes) in [("1", "64"), ("4", "1048576")] {
        let data = tempfile::tempdir().expect("a temporary folder");
        let server = Server::start_with(data.path(), &["--workers", workers, "--block-bytes", block_bytes]);
        let id = server.new_batch().await;
        let mut expected = serde_json::Map::new();
        for (index, (name, bytes, golden)) in logs.each().enumerate() {
            let name = name.replace('/', "_");
            let path = format!("/batches/{id}/files/{name}");
            let answer = match index % 3 {
                0 => server.send(Method::PUT, &path, bytes).await,
                1 => server.send_with(Method::PUT, &path, &[("Content-Encoding", "gzip")], gzip(&bytes)).await,
                _ => {
                    let zstd = zstd::encode_all(&bytes[..], 3).expect("encodes");
                    server.send_with(Method::PUT, &path, &[("Content-Encoding", "zstd")], zstd).await
                }
            };
            assert_eq!(answer.status(), StatusCode::CREATED, "{name}");
            expected.insert(name, golden.clone());
        }
        let report = server.complete(&id).await;
        assert_eq!(report["files"].as_array().expect("files").len(), expected.len());
        for file in report["files"].as_array().expect("files") {
            let golden = &expected[file["name"].as_str().expect("a name")];
            for key in ["bytes", "lines", "codes"] {
                assert_eq!(file[key], golden[key], "{key} of {}", file["name"]);
            }
        }
        let sum = |key: &str| expected.values().map(|golden| golden[key].as_u64().expect("a number")).sum::<u64>();
        assert_eq!(report["error_lines"], json!(sum("error_lines")));
        server.stop();
    }
}

#[tokio::test]
async fn lines_with_codes_are_paged_in_order_of_file_and_line() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let text = |code: &str| (0..40).map(|n| format!("{code} and SIGSEGV in line {n}\nnothing\n")).collect::<String>();
    server.put(&id, "b.log", text("E_SECOND")).await;
    let last = server.put(&id, "a.log", text("E_FIRST")).await;
    server.get(&format!("/batches/{id}/report?min_epoch={}", last["epoch"])).await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/batches/{id}/errors?limit=7{cursor}")).await;
        seen.extend(page["errors"].as_array().expect("a page").clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 160);
    let positions: Vec<_> =
        seen.iter().map(|e| (e["file"].to_string(), e["line"].as_u64(), e["code"].to_string())).collect();
    assert!(positions.is_sorted(), "{positions:?}");
    assert_eq!(positions.iter().collect::<BTreeSet<_>>().len(), 160);
    assert_eq!(seen[0]["text"], "E_FIRST and SIGSEGV in line 0");
    assert_eq!(seen[2]["offset"], json!("E_FIRST and SIGSEGV in line 0\nnothing\n".len()));
    let one = server.get(&format!("/batches/{id}/errors?code=E_SECOND&file=b.log&limit=1000")).await;
    assert_eq!(one["errors"].as_array().expect("a page").len(), 40);
    assert_eq!(one["next_cursor"], Value::Null);
}

#[tokio::test]
async fn batches_are_listed_newest_first_and_filtered() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut ids = Vec::new();
    for number in 0..5 {
        let firmware = if number % 2 == 0 { "1.0" } else { "1.1" };
        let new = json!({"vehicle_id": "v", "vin": common::VIN, "firmware": firmware, "labels": {"run": "7"}});
        ids.insert(0, json!(server.new_batch_of(new).await));
    }
    let first = server.get("/batches?limit=3").await;
    let listed =
        |page: &Value| page["batches"].as_array().expect("a list").iter().map(|b| b["id"].clone()).collect::<Vec<_>>();
    assert_eq!(listed(&first), ids[..3]);
    let cursor = first["next_cursor"].as_str().expect("there are more");
    let second = server.get(&format!("/batches?limit=3&cursor={cursor}")).await;
    assert_eq!(listed(&second), ids[3..]);
    assert_eq!(second["next_cursor"], Value::Null);
    assert_eq!(listed(&server.get("/batches?firmware=1.1&status=pending").await).len(), 2);
    assert_eq!(listed(&server.get("/batches?status=completed").await).len(), 0);
    common::check_filters_of_batches(&server).await;
    common::check_catalog(&server).await;
}

#[tokio::test]
async fn a_retry_with_the_same_idempotency_key_returns_the_first_batch() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let new = json!({"vehicle_id": "v", "vin": common::VIN}).to_string().into_bytes();
    let key = [("Idempotency-Key", "retry-1")];
    let post = async |body: Vec<u8>| server.send_with(Method::POST, "/batches", &key, body).await;
    let first: Value = post(new.clone()).await.json().await.expect("JSON");
    let again: Value = post(new).await.json().await.expect("JSON");
    assert_eq!(first["id"], again["id"]);
    let other = json!({"vehicle_id": "w", "vin": common::VIN}).to_string().into_bytes();
    assert_eq!(post(other).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn the_same_bytes_again_change_nothing_and_other_bytes_create_a_generation() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let first = server.put(&id, "a.log", "E_FAIL\n").await;
    let path = format!("/batches/{id}/files/a.log");
    let same = server.send_with(Method::PUT, &path, &[("Content-Encoding", "gzip")], gzip(b"E_FAIL\n")).await;
    assert_eq!(same.status(), StatusCode::OK);
    assert_eq!(same.json::<Value>().await.expect("JSON"), first);
    let other = server.send(Method::PUT, &path, "E_ABORT\n").await;
    assert_eq!(other.status(), StatusCode::OK);
    let other: Value = other.json().await.expect("JSON");
    assert_eq!((&other["generation"], &other["file_id"]), (&json!(2), &first["file_id"]));
    let report = server.complete(&id).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1}));
    assert_eq!(server.sql("SELECT code FROM errors").await, json!([["E_ABORT"]]));
}

#[tokio::test]
async fn a_form_uploads_several_files() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let part = |text: &'static str, name: &'static str| reqwest::multipart::Part::text(text).file_name(name);
    let form = reqwest::multipart::Form::new()
        .part("file", part("E_FAIL\n", "a.log"))
        .part("file", part("E_ABORT\n", "b.log"));
    let request = reqwest::Client::new().post(server.url(&format!("/batches/{id}/files"))).multipart(form);
    let answer = request.send().await.expect("the server answers");
    assert_eq!(answer.status(), StatusCode::CREATED);
    let receipts: Value = answer.json().await.expect("JSON");
    assert_eq!((&receipts[0]["name"], &receipts[1]["name"]), (&json!("a.log"), &json!("b.log")));
    assert_eq!(counts(&server.complete(&id).await), json!({"E_ABORT": 1, "E_FAIL": 1}));
}

#[tokio::test]
async fn codes_are_new_for_a_vehicle_once_and_compared_with_the_platforms_other_batches() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let upload = async |vin: &str, text: &str| {
        let id = server.new_batch_of(json!({"vehicle_id": vin, "vin": vin, "platform": "p"})).await;
        server.put(&id, "a.log", text.to_owned()).await;
        server.complete(&id).await
    };
    let code = |report: &Value, name: &str| {
        let codes = report["codes"].as_array().expect("codes").clone();
        let code = codes.into_iter().find(|code| code["code"] == name).expect("the code is there");
        (code["new_for_vehicle"].clone(), code["fleet_ratio"].clone())
    };
    let first = upload("WVWZZZ1JZXW000001", "E_FAIL\nok\nok\nok\n").await;
    assert_eq!(code(&first, "E_FAIL"), (json!(true), Value::Null));
    let second = upload("WVWZZZ1JZXW000001", "E_FAIL\nE_ABORT\n").await;
    assert_eq!(code(&second, "E_FAIL"), (json!(false), json!(2.0)));
    assert_eq!(code(&second, "E_ABORT"), (json!(true), Value::Null));
    let other = upload("WVWZZZ1JZXW000002", "E_ABORT\nok\nok\n").await;
    assert_eq!(code(&other, "E_ABORT"), (json!(true), json!(2.0)));
}

#[tokio::test]
async fn a_report_has_an_etag_and_can_be_truncated() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\nE_FAIL\nE_ABORT\n").await;
    server.complete(&id).await;
    let path = format!("/batches/{id}/report?top=1");
    let answer = server.send(Method::GET, &path, "").await;
    let tag = answer.headers()["etag"].to_str().expect("text").to_owned();
    let report: Value = answer.json().await.expect("JSON");
    assert_eq!(counts(&report), json!({"E_FAIL": 2}));
    let again = server.send_with(Method::GET, &path, &[("If-None-Match", &tag)], Vec::new()).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn firmwares_are_compared_by_vehicles_and_a_vehicle_has_a_history() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut last = String::new();
    for vehicle in 1..=4 {
        for (firmware, log) in [("7.2.0", "E_FAIL\nfine\n"), ("7.2.1", "E_FAIL\nE_NEW_CODE\nE_NEW_CODE\n")] {
            let vin = format!("WVWZZZ1JZXW00000{vehicle}");
            let described = json!({"vehicle_id": format!("veh-{vehicle}"), "vin": vin, "firmware": firmware});
            last = server.new_batch_of(described).await;
            server.put(&last, "a.log", log).await;
            server.complete(&last).await;
        }
    }
    let compared = server.get("/fleet/compare?firmware=7.2.1&against=7.2.0").await;
    assert_eq!((&compared["vehicles"], &compared["against_vehicles"]), (&json!(4), &json!(4)));
    let new = &compared["codes"][0];
    assert_eq!((&new["code"], &new["change"], &new["count"]), (&json!("E_NEW_CODE"), &json!("more"), &json!(8)));
    assert_eq!((&new["rate"], &new["share"], &new["against"]["count"]), (&json!(2.0), &json!(1.0), &json!(0)));
    // Fisher's exact test of 4 of 4 and 0 of 4: 2 in 70.
    let p_value = new["p_value"].as_f64().expect("a number");
    assert!((p_value - 2.0 / 70.0).abs() < 1e-9, "{p_value}");
    let same = &compared["codes"][1];
    assert_eq!((&same["code"], &same["change"], &same["p_value"]), (&json!("E_FAIL"), &json!("same"), &json!(1.0)));
    let unknown = server.send(Method::GET, "/fleet/compare?firmware=7.2.1&against=9.9.9", "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let missing = server.send(Method::GET, "/fleet/compare?firmware=7.2.1", "").await;
    assert_eq!(missing.status(), StatusCode::UNPROCESSABLE_ENTITY);

    let history = server.get("/vehicles/WVWZZZ1JZXW000004/history").await;
    assert_eq!(history["batches"][0]["batch_id"], last);
    assert_eq!(history["batches"][0]["codes"], json!({"E_FAIL": 1, "E_NEW_CODE": 2}));
    assert_eq!(history["batches"][1]["firmware"], "7.2.0");
    assert_eq!((&history["codes"][0]["code"], &history["codes"][0]["batches"]), (&json!("E_FAIL"), &json!(2)));
    let page = server.get("/vehicles/WVWZZZ1JZXW000004/history?limit=1").await;
    let cursor = page["next_cursor"].as_str().expect("there is more");
    let rest = server.get(&format!("/vehicles/WVWZZZ1JZXW000004/history?limit=1&cursor={cursor}")).await;
    assert_eq!((&rest["batches"][0]["firmware"], &rest["next_cursor"]), (&json!("7.2.0"), &Value::Null));
    let unknown = server.send(Method::GET, "/vehicles/WVWZZZ1JZXW000009/history", "").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

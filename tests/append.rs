//! Lines appended to an open file, part by part.

mod common;

use common::{Server, VIN, counts, gzip};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

async fn append(server: &Server, batch: &str, name: &str, offset: Option<usize>, part: &[u8]) -> Response {
    let offset = offset.map(|offset| offset.to_string());
    let headers: Vec<(&str, &str)> = offset.iter().map(|offset| ("Upload-Offset", offset.as_str())).collect();
    let path = format!("/batches/{batch}/files/{name}/lines");
    server.send_with(Method::POST, &path, &headers, part.to_vec()).await
}

async fn appended(server: &Server, batch: &str, name: &str, offset: usize, part: &[u8]) -> Value {
    let answer = append(server, batch, name, Some(offset), part).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.json().await.expect("JSON")
}

fn sha256(bytes: &[u8]) -> Value {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// The fields that must not depend on how the bytes arrived.
fn essence(report: &Value) -> Value {
    let of = |value: &Value, names: &[&str]| -> Value { names.iter().map(|name| value[*name].clone()).collect() };
    json!({
        "totals": of(report, &["total_files", "total_bytes", "total_lines", "error_lines", "total_errors"]),
        "codes": of(report, &["codes"])[0],
        "file": of(&report["files"][0], &["name", "bytes", "lines", "errors", "codes"]),
    })
}

#[tokio::test]
async fn a_file_appended_in_any_pieces_equals_the_file_uploaded_whole() {
    let text = "2026-03-01 10:15:30 ERROR ota: E_FAIL\nok\n2026-03-01 10:15:31 ERROR bms: E_FAIL and SIGSEGV\n\n\
                2026-03-01 10:15:29 ERROR ota: E_ABORT in an open line";
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let whole = server.new_batch().await;
    server.put(&whole, "a.log", text).await;
    let expected = essence(&server.complete(&whole).await);
    for pieces in [1, 2, 3, 7, 20, 1000] {
        let vin = format!("WVWZZZ1JZXW01{pieces:04}");
        let id = server.new_batch_of(json!({"vehicle_id": "veh-2", "vin": vin})).await;
        let mut offset = 0;
        for piece in text.as_bytes().chunks(text.len().div_ceil(pieces)) {
            let receipt = appended(&server, &id, "a.log", offset, piece).await;
            offset += piece.len();
            assert_eq!(receipt["bytes"], json!(offset));
            assert_eq!(receipt["sha256"], sha256(&text.as_bytes()[..offset]));
            let lines = text[..offset].matches('\n').count();
            assert_eq!((&receipt["lines"], &receipt["generation"]), (&json!(lines), &json!(1)));
            // The part is counted when the request is answered.
            let report = server.get(&format!("/batches/{id}/report")).await;
            assert_eq!(report["total_lines"], json!(lines), "at {offset}");
        }
        assert_eq!(essence(&server.complete(&id).await), expected, "{pieces} pieces");
    }
}

#[tokio::test]
async fn a_retry_at_an_old_offset_is_refused_with_the_current_one() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    appended(&server, &id, "a.log", 0, b"E_FAIL\n").await;
    for wrong in [0, 6, 8] {
        let answer = append(&server, &id, "a.log", Some(wrong), b"E_FAIL\n").await;
        assert_eq!(answer.status(), StatusCode::CONFLICT);
        assert_eq!(answer.headers()["upload-offset"], "7");
        assert_eq!(answer.json::<Value>().await.expect("JSON")["upload_offset"], json!(7));
    }
    let early = append(&server, &id, "b.log", Some(3), b"E_FAIL\n").await;
    assert_eq!(
        (early.status(), &early.headers()["upload-offset"]),
        (StatusCode::CONFLICT, &"0".parse().expect("text"))
    );
    // Without an offset there is nothing to check; with a key, a retry gets the first response.
    let path = format!("/batches/{id}/files/a.log/lines");
    for _ in 0..3 {
        let answer =
            server.send_with(Method::POST, &path, &[("Idempotency-Key", "part-2")], b"E_ABORT\n".to_vec()).await;
        assert_eq!(answer.json::<Value>().await.expect("JSON")["bytes"], json!(15));
    }
    assert_eq!(counts(&server.complete(&id).await), json!({"E_ABORT": 1, "E_FAIL": 1}));
    assert_eq!(append(&server, &id, "a.log", Some(15), b"x\n").await.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn an_open_line_is_continued_after_an_upload_a_completion_and_a_crash() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let uploaded = server.put(&id, "a.log", "E_FAIL\nE_AB").await;
    assert_eq!((&uploaded["lines"], &uploaded["bytes"]), (&json!(2), &json!(11)));
    appended(&server, &id, "a.log", 11, b"ORT\nE_TIME").await;
    let report = server.complete(&id).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1, "E_FAIL": 1, "E_TIME": 1}), "the open line counts as it is");
    let reopened = server.send(Method::POST, &format!("/batches/{id}/reopen"), "").await;
    assert_eq!(reopened.status(), StatusCode::OK);
    let receipt = appended(&server, &id, "a.log", 21, b"OUT\nE_FAIL").await;
    assert_eq!(receipt["lines"], json!(3));
    server.kill();
    let server = Server::start(data.path());
    let report = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1, "E_FAIL": 1, "E_TIMEOUT": 1}));
    let report = server.complete(&id).await;
    assert_eq!(counts(&report), json!({"E_FAIL": 2, "E_ABORT": 1, "E_TIMEOUT": 1}));
    assert_eq!((&report["total_lines"], &report["total_bytes"]), (&json!(4), &json!(31)));
    let lines = server.sql("SELECT line, \"offset\", code FROM errors ORDER BY line").await;
    assert_eq!(lines, json!([[1, 0, "E_FAIL"], [2, 7, "E_ABORT"], [3, 15, "E_TIMEOUT"], [4, 25, "E_FAIL"]]));
}

#[tokio::test]
async fn parts_have_limits_and_may_be_compressed() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let path = format!("/batches/{id}/files/a.log/lines");
    let send = async |headers: &[(&str, &str)], body: Vec<u8>| {
        server.send_with(Method::POST, &path, headers, body).await.status()
    };
    assert_eq!(send(&[("Content-Encoding", "gzip")], gzip(b"E_FAIL\n")).await, StatusCode::OK);
    assert_eq!(send(&[("Content-Encoding", "gzip")], b"E_FAIL\n".to_vec()).await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(send(&[("Content-Encoding", "br")], vec![]).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(send(&[("Upload-Offset", "-1")], vec![]).await, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(send(&[], vec![b'\n'; (4 << 20) + 1]).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send(&[], vec![b'x'; (1 << 20) + 1]).await, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(send(&[], [vec![b'x'; 2 << 20], b"\n".to_vec()].concat()).await, StatusCode::OK);
    assert_eq!(send(&[], vec![]).await, StatusCode::OK);
    let report = server.complete(&id).await;
    assert_eq!((&report["total_lines"], &report["files"][0]["long_lines"]), (&json!(2), &json!(1)));
    let unknown = append(&server, "00000000-0000-7000-8000-000000000000", "a.log", None, b"x\n").await;
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_appended_file_is_replaced_and_deleted_like_any_other() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    for number in 0..5 {
        appended(&server, &id, "a.log", number * 7, b"E_FAIL\n").await;
    }
    let same = server.put(&id, "a.log", "E_FAIL\n".repeat(5)).await;
    assert_eq!(same["generation"], json!(1), "the same bytes are no new generation");
    let replaced = server.put(&id, "a.log", "E_ABORT\n").await;
    assert_eq!(replaced["generation"], json!(2));
    let receipt = appended(&server, &id, "a.log", 8, b"E_TIMEOUT\nE_F").await;
    assert_eq!(receipt["generation"], json!(2));
    let report = server.get(&format!("/batches/{id}/report")).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1, "E_TIMEOUT": 1}));
    let path = format!("/batches/{id}/files/a.log");
    assert_eq!(server.send(Method::DELETE, &path, "").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(server.complete(&id).await["total_lines"], json!(0));
}

#[tokio::test]
async fn records_of_log_shippers_join_the_open_batch_of_their_vehicle() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let send = async |query: &str, headers: &[(&str, &str)], body: Vec<u8>| {
        let answer = server.send_with(Method::POST, &format!("/lines{query}"), headers, body).await;
        (answer.status(), answer.json::<Value>().await.expect("JSON"))
    };
    let record = |vin: &str, firmware: &str, message: &str| {
        json!({"vehicle_id": "v", "vin": vin, "firmware": firmware, "file": "/var/log/ota.log", "message": message})
            .to_string()
    };
    let other = "WVWZZZ1JZXW000002";
    let body = [
        record(VIN, "7.2.0", "E_FAIL"),
        "{".to_owned(),
        record(other, "7.2.0", "E_ABORT"),
        record(VIN, "7.2.0", "E_FAIL"),
    ]
    .join("\n");
    let (status, first) = send("", &[], body.into_bytes()).await;
    assert_eq!((status, &first["accepted"], &first["rejected"][0]["record"]), (StatusCode::OK, &json!(3), &json!(2)));
    let counts = async || {
        server.sql("SELECT vin, firmware, code, sum(count) FROM error_counts JOIN batches USING (batch_id) GROUP BY 1, 2, 3 ORDER BY 1, 2, 3").await
    };
    assert_eq!(counts().await, json!([[VIN, "7.2.0", "E_FAIL", 2], [other, "7.2.0", "E_ABORT", 1]]));
    // The same batch, an array, gzip, and defaults in the address; then another firmware, which begins another batch.
    let array = gzip(br#"[{"log": "E_FAIL"}]"#);
    let (status, _) =
        send(&format!("?vehicle_id=v&vin={VIN}&firmware=7.2.0&file=ota.log"), &[("Content-Encoding", "gzip")], array)
            .await;
    assert_eq!(status, StatusCode::OK);
    send("", &[], record(VIN, "7.2.1", "E_FAIL").into_bytes()).await;
    assert_eq!(
        counts().await,
        json!([[VIN, "7.2.0", "E_FAIL", 3], [VIN, "7.2.1", "E_FAIL", 1], [other, "7.2.0", "E_ABORT", 1]])
    );
    let batches = server.get(&format!("/batches?vin={VIN}")).await["batches"].clone();
    assert_eq!((batches.as_array().map(Vec::len), &batches[1]["labels"]), (Some(2), &json!({"stream": "http"})));
    // A batch that was completed is followed by a new one.
    server.complete(batches[0]["id"].as_str().expect("an id")).await;
    let (status, _) = send("", &[], record(VIN, "7.2.1", "E_FAIL").into_bytes()).await;
    assert_eq!(
        (status, server.get(&format!("/batches?vin={VIN}")).await["batches"].as_array().map(Vec::len)),
        (StatusCode::OK, Some(3))
    );
    for (body, status) in [("", 422), ("{\"message\": \"E_FAIL\"}", 422), ("[1, 2", 422)] {
        assert_eq!(send("", &[], body.into()).await.0.as_u16(), status, "{body:?}");
    }
    server.stop();
}

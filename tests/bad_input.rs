//! Bad input gets a clear problem response, and no data is lost.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;

use common::{Server, gzip};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

/// Checks the form of a problem response; returns its detail.
async fn problem(answer: Response, status: u16) -> String {
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert_eq!(answer.status(), StatusCode::from_u16(status).expect("a status"));
    let body: Value = answer.json().await.expect("JSON");
    assert_eq!(body["status"], json!(status));
    for field in ["type", "title", "detail"] {
        assert!(body[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {body}");
    }
    body["detail"].as_str().expect("text").to_owned()
}

#[tokio::test]
async fn invalid_batches_are_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    for body in [
        json!({"vehicle_id": "v", "vin": "short"}),
        json!({"vehicle_id": "v", "vin": "WVWZZZ1JZXW00000I"}),
        json!({"vehicle_id": "v", "vin": "wvwzzz1jzxw000001"}),
        json!({"vehicle_id": "", "vin": common::VIN}),
        json!({"vehicle_id": "v"}),
        json!({"vehicle_id": 7, "vin": common::VIN}),
        json!({"vehicle_id": "v", "vin": common::VIN, "oops": 1}),
        json!([]),
    ] {
        problem(server.send(Method::POST, "/batches", body.to_string()).await, 422).await;
    }
    for body in ["", "{", "nonsense", "\"\\ud800\""] {
        problem(server.send(Method::POST, "/batches", body).await, 422).await;
    }
    problem(server.send(Method::POST, "/batches", " ".repeat((1 << 20) + 1)).await, 413).await;
    assert_eq!(server.get("/batches").await["batches"], json!([]));
}

#[tokio::test]
async fn unknown_batches_and_paths_are_404_and_bad_parameters_422() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    for unknown in ["00000000-0000-7000-8000-000000000000", "nonsense", "%00"] {
        for path in ["", "/report", "/progress", "/errors"] {
            problem(server.send(Method::GET, &format!("/batches/{unknown}{path}"), "").await, 404).await;
        }
        problem(server.send(Method::PUT, &format!("/batches/{unknown}/files/a.log"), "x").await, 404).await;
        problem(server.send(Method::POST, &format!("/batches/{unknown}/complete"), "").await, 404).await;
    }
    problem(server.send(Method::GET, "/batches/%FF/report", "").await, 422).await;
    problem(server.send(Method::PUT, &format!("/batches/{id}/files/%FF"), "x").await, 422).await;
    problem(server.send(Method::POST, &format!("/batches/{id}/files"), "no form").await, 400).await;
    problem(server.send(Method::GET, "/nothing", "").await, 404).await;
    problem(server.send(Method::DELETE, "/batches", "").await, 405).await;
    for path in
        ["/batches?limit=0", "/batches?limit=x", "/batches?cursor=x", "/batches?status=open", "/fleet/codes?as_of=1"]
    {
        problem(server.send(Method::GET, path, "").await, 422).await;
    }
    for path in ["errors?limit=0", "errors?cursor=zz", "errors?as_of=1", "report?top=-1", "report?min_epoch=x"] {
        problem(server.send(Method::GET, &format!("/batches/{id}/{path}"), "").await, 422).await;
    }
    problem(server.send(Method::GET, &format!("/batches/{id}/report?as_of=1000000&timeout_ms=10"), "").await, 422)
        .await;
    let late = server.send(Method::GET, &format!("/batches/{id}/report?min_epoch=1000000&timeout_ms=10"), "").await;
    problem(late, 504).await;
}

#[tokio::test]
async fn file_names_that_leave_their_folder_are_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let long = "x".repeat(256);
    for name in ["", "a%2Fb", "a%2F..%2Fb", "a..b", "a%5Cb", "a%00b", "a%0Ab", &long] {
        problem(server.send(Method::PUT, &format!("/batches/{id}/files/{name}"), "E_FAIL\n").await, 422).await;
    }
    // A client would resolve the dots; the wire carries them as they are.
    let mut socket = TcpStream::connect(server.root_url("").trim_start_matches("http://")).expect("connects");
    write!(
        socket,
        "PUT /api/v1/batches/{id}/files/.. HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    .expect("writes");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("reads");
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
    assert_eq!(server.get(&format!("/batches/{id}")).await["total_files"], json!(0));
}

#[tokio::test]
async fn a_completed_batch_takes_no_file() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    for name in ["a.log", "b.log"] {
        let answer = server.send(Method::PUT, &format!("/batches/{id}/files/{name}"), "E_ABORT\n").await;
        assert!(problem(answer, 409).await.contains("reopen"), "the detail says what to do");
    }
    let again = server.send(Method::POST, &format!("/batches/{id}/complete"), "").await;
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    assert_eq!(server.get(&format!("/batches/{id}/report")).await["total_errors"], json!(1));
}

#[tokio::test]
async fn a_client_that_only_sends_still_gets_the_refusal() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.complete(&id).await;
    let body = vec![b'x'; 30_000_000];
    let mut socket = TcpStream::connect(server.root_url("").trim_start_matches("http://")).expect("connects");
    let length = body.len();
    write!(
        socket,
        "PUT /api/v1/batches/{id}/files/a.log HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .expect("writes");
    socket.write_all(&body).expect("the server reads all of it");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("reads");
    assert!(answer.starts_with("HTTP/1.1 409 "), "{answer}");
}

#[tokio::test]
async fn a_truncated_body_leaves_no_file_and_the_batch_intact() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let mut socket = TcpStream::connect(server.root_url("").trim_start_matches("http://")).expect("connects");
    write!(socket, "PUT /api/v1/batches/{id}/files/half.log HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        .expect("writes");
    socket.write_all(&b"E_FAIL\n".repeat(50_000)).expect("writes");
    socket.shutdown(std::net::Shutdown::Write).expect("shuts down");
    let mut answer = Vec::new();
    // The server may answer or just close; either way it has seen the end.
    let _ = socket.read_to_end(&mut answer);
    server.put(&id, "whole.log", "E_ABORT\n").await;
    let report = server.complete(&id).await;
    assert_eq!(common::counts(&report), json!({"E_ABORT": 1}));
    assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[1]]));
}

#[tokio::test]
async fn damaged_compression_is_422_and_counts_nothing() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let text: Vec<u8> = (0..20_000).flat_map(|n| format!("E_FAIL {n}\n").into_bytes()).collect();
    let gz = gzip(&text);
    let zst = zstd::encode_all(&text[..], 3).expect("encodes");
    let mut wrong_sum = gz.clone();
    let end = wrong_sum.len() - 6;
    wrong_sum[end] ^= 1;
    let cases: [(&str, Vec<u8>); 7] = [
        ("identity", gz[..gz.len() / 2].to_vec()),
        ("identity", wrong_sum),
        ("identity", zst[..zst.len() / 2].to_vec()),
        ("gzip", gz[..gz.len() - 1].to_vec()),
        ("gzip", text.clone()),
        ("zstd", zst[..zst.len() - 1].to_vec()),
        ("zstd", text.clone()),
    ];
    let path = format!("/batches/{id}/files/a.log");
    for (index, (encoding, body)) in cases.into_iter().enumerate() {
        let answer = server.send_with(Method::PUT, &path, &[("Content-Encoding", encoding)], body).await;
        eprintln!("case {index}");
        problem(answer, 422).await;
    }
    problem(server.send_with(Method::PUT, &path, &[("Content-Encoding", "br")], text).await, 415).await;
    let report = server.complete(&id).await;
    assert_eq!((&report["total_files"], &report["total_errors"]), (&json!(0), &json!(0)));
    let raw = data.path().join("raw").join(&id);
    assert_eq!(std::fs::read_dir(raw).map_or(0, Iterator::count), 0, "no bytes are left behind");
}

#[tokio::test]
async fn an_archive_is_415_and_counts_nothing() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let mut tar = b"E_FAIL\n".repeat(100);
    tar[257..263].copy_from_slice(b"ustar\0");
    let zip = [b"PK\x03\x04", &b"E_FAIL\n".repeat(100)[..]].concat();
    for (kind, body) in [("zip", zip.clone()), ("zip", gzip(&zip)), ("tar", tar.clone()), ("tar", gzip(&tar))] {
        let answer = server.send(Method::PUT, &format!("/batches/{id}/files/a.log"), body).await;
        assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["type"], json!("urn:argus:problem:archive"));
        let detail = format!(
            "this is a {kind} archive; unpack it and upload each file by itself, or the archive to POST /batches/{{id}}/files"
        );
        assert_eq!(body["detail"], json!(detail));
    }
    let path = format!("/batches/{id}/files/a.log");
    let answer = server.send_with(Method::PUT, &path, &[("Content-Encoding", "gzip")], gzip(&tar)).await;
    problem(answer, 415).await;
    let report = server.complete(&id).await;
    assert_eq!((&report["total_files"], &report["total_errors"]), (&json!(0), &json!(0)));
}

#[tokio::test]
async fn only_queries_are_allowed() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    server.complete(&id).await;
    let ask = async |sql: &str| {
        let body = json!({"sql": sql, "timeout_ms": 2000}).to_string();
        server.send(Method::POST, "/query", body).await
    };
    for sql in [
        "DROP TABLE files",
        "CREATE TABLE t AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "INSERT INTO files VALUES (1)",
        "DELETE FROM files",
        "UPDATE files SET bytes = 0",
        "COPY files TO '/tmp/argus-test.csv'",
        "SET datafusion.execution.batch_size = 1",
        "SELECT 1; SELECT 2",
        "SELECT 1 INTO t",
        "EXPLAIN SELECT 1",
        "",
    ] {
        problem(ask(sql).await, 403).await;
    }
    for sql in
        ["SELECT nothing FROM files", "SELEC 1", "SELECT * FROM '/etc/passwd'", "SELECT * FROM read_csv('/etc/passwd')"]
    {
        let detail = problem(ask(sql).await, 422).await;
        assert!(!detail.contains("root:"), "{detail}");
    }
    problem(ask("SELECT repeat('x', 30000000) FROM generate_series(1, 10)").await, 422).await;
    let endless = ask("SELECT count(*) FROM generate_series(1, 1000000000000) a, generate_series(1, 1000) b").await;
    problem(endless, 504).await;
    problem(server.send(Method::POST, "/query", "{\"sq\": 1}").await, 422).await;
    assert_eq!(server.sql("SELECT sum(count) FROM error_counts").await, json!([[1]]));
}

#[tokio::test]
async fn a_second_server_on_the_same_data_is_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let _first = Server::start(data.path());
    let path = data.path().to_str().expect("text");
    let second = common::argus(&["serve", "--listen", "127.0.0.1:0", "--data", path], b"");
    assert_eq!(second.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&second.stderr);
    assert!(errors.contains("another argus has"), "{errors}");
}

#[tokio::test]
async fn a_second_server_on_the_same_metadata_file_is_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let metadata = format!("sqlite:{}", data.path().join("shared.db").display());
    let _first = Server::start_with(&data.path().join("one"), &["--metadata", &metadata]);
    let path = data.path().join("two");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data", path.to_str().expect("text"), "--metadata", &metadata];
    let second = common::argus(&serve, b"");
    assert_eq!(second.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&second.stderr);
    assert!(errors.contains("shared.db open; stop it first"), "{errors}");
    let recount = common::argus(&["recount", "--data", path.to_str().expect("text"), "--metadata", &metadata], b"");
    assert_eq!(recount.status.code(), Some(1), "recount would build an empty lake");
}

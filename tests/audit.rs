//! The audit log: what it records, and that nothing in it can be changed unnoticed. Requests of one token have a rate.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Server, VIN, argus, argus_with};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

fn create(server: &Server, admin: Option<&str>, flags: &[&str]) -> String {
    let url = server.root_url("/");
    let arguments = [&["token", "create", "--server", &url], flags].concat();
    let variables: Vec<(&str, String)> = admin.iter().map(|token| ("ARGUS_TOKEN", (*token).to_owned())).collect();
    let output = argus_with(&arguments, &variables, b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

async fn send(server: &Server, method: Method, path: &str, token: &str, body: &str) -> StatusCode {
    let request =
        Client::new().request(method, server.root_url(path)).header("Authorization", format!("Bearer {token}"));
    let answer =
        request.header("Content-Type", "application/json").body(body.to_owned()).send().await.expect("answers");
    let status = answer.status();
    answer.bytes().await.expect("the whole answer");
    status
}

fn files(data: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(data.join("audit")).expect("a folder").map(|entry| entry.expect("reads").path()).collect();
    files.sort();
    files
}

fn records(data: &Path) -> Vec<Value> {
    let text: String = files(data).iter().map(|file| fs::read_to_string(file).expect("text")).collect();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The exit code of `argus audit verify`, and what it prints.
fn verify(data: &Path, flags: &[&str]) -> (Option<i32>, String, String) {
    let data = data.to_str().expect("text");
    let output = argus(&[&["audit", "verify", "--data", data], flags].concat(), b"");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_changed_queried_and_exported_is_recorded_without_identities() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_with(data.path(), &["--pg", "127.0.0.1:0"]);
    let address = server.sql_address("postgres").await;
    let admin = create(&server, None, &["--scope", "admin", "--name", "boss"]);
    let reader = create(&server, Some(&admin), &["--scope", "read", "--name", "reader"]);
    let described = json!({"vehicle_id": "veh-1", "vin": VIN, "firmware": "7.2.1"}).to_string();
    let client = Client::new();
    let created: Value = client
        .post(server.url("/batches"))
        .bearer_auth(&admin)
        .header("Content-Type", "application/json")
        .body(described)
        .send()
        .await
        .expect("answers")
        .json()
        .await
        .expect("JSON");
    let batch = created["id"].as_str().expect("an id");
    let file = format!("/api/v1/batches/{batch}/files/{VIN}.log");
    assert!(send(&server, Method::PUT, &file, &admin, "E_FAIL\n").await.is_success());
    assert!(send(&server, Method::GET, &file, &reader, "").await.is_success());
    assert!(send(&server, Method::GET, &format!("/api/v1/batches/{batch}"), &reader, "").await.is_success());
    let statement = format!("SELECT count(*) FROM batches WHERE vin = '{VIN}'");
    let sql = json!({"sql": statement}).to_string();
    assert!(send(&server, Method::POST, "/api/v1/query", &admin, &sql).await.is_success());
    assert_eq!(send(&server, Method::POST, "/api/v1/query", &reader, &sql).await, StatusCode::FORBIDDEN);
    assert_eq!(send(&server, Method::GET, "/api/v1/batches", "nonsense", "").await, StatusCode::UNAUTHORIZED);
    let strange = Method::from_bytes("X".repeat(70_000).as_bytes()).expect("a method");
    assert_eq!(send(&server, strange, "/api/v1/batches", "nonsense", "").await, StatusCode::UNAUTHORIZED);
    let csv = client.get(server.url("/fleet/codes")).bearer_auth(&reader).header("Accept", "text/csv");
    assert!(csv.send().await.expect("answers").status().is_success());
    let login = client.post(server.root_url("/login")).form(&[("token", admin.as_str()), ("to", "/")]);
    login.send().await.expect("answers");
    let page = format!("/sql?sql={}", statement.replace(' ', "+"));
    assert!(send(&server, Method::GET, &page, &admin, "").await.is_success());
    let (host, port) = address.rsplit_once(':').expect("host and port");
    let connect = format!("host={host} port={port} user=boss password={admin} dbname=argus");
    let psql = std::process::Command::new("psql").args([&connect, "-c", "SELECT 1"]).output().expect("psql runs");
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    assert!(send(&server, Method::DELETE, &format!("/api/v1/vehicles/{VIN}"), &admin, "").await.is_success());
    server.stop();

    let records = records(data.path());
    let found = |action: &str, status: u16| {
        let wanted = |record: &&Value| record["action"] == action && (status == 0 || record["status"] == status);
        records.iter().find(wanted).unwrap_or_else(|| panic!("{action}: {records:#?}"))
    };
    let token = |record: &Value| record["token"].as_str().map(str::to_owned);
    let (of_admin, of_reader) = (admin.split('_').nth(1).map(id), reader.split('_').nth(1).map(id));
    assert_eq!(token(found("POST /api/v1/tokens", 201)), None, "nobody needed a token yet");
    assert_eq!(token(found("POST /api/v1/batches", 201)), of_admin);
    let put = found("PUT /api/v1/batches/{id}/files/{name}", 201);
    let name = hex_of(&format!("{VIN}.log"));
    assert_eq!(put["target"], format!("/api/v1/batches/{batch}/files/sha256-{name}"));
    assert_eq!(put["from"], "127.0.0.1");
    assert_eq!(token(found("GET /api/v1/batches/{id}/files/{name}", 200)), of_reader);
    let hash = hex_of(&statement);
    assert_eq!(found("POST /api/v1/query", 200)["detail"], format!("statement {hash}"));
    assert_eq!(found("GET /sql", 200)["detail"], format!("statement {hash}"));
    let postgres = found("postgres query", 0);
    assert_eq!(
        (token(postgres), &postgres["detail"]),
        (of_admin.clone(), &json!(format!("statement {}", hex_of("SELECT 1"))))
    );
    assert_eq!(token(found("POST /login", 303)), of_admin);
    found("POST refused", 403);
    found("other refused", 401);
    assert_eq!(found("GET refused", 401)["target"], "/api/v1/batches");
    assert_eq!(token(found("GET /api/v1/fleet/codes", 200)), of_reader);
    assert_eq!(found("DELETE /api/v1/vehicles/{vin}", 204)["target"], "/api/v1/vehicles/[VIN]");
    assert!(!records.iter().any(|record| record["action"] == "GET /api/v1/batches/{id}"), "a look is not recorded");
    for file in files(data.path()) {
        let text = fs::read_to_string(file).expect("text");
        assert!(
            !text.contains(VIN)
                && !text.contains(&admin)
                && !text.contains(admin.splitn(3, '_').nth(2).expect("a secret"))
        );
    }
}

/// The id in the text of a token, as records spell it.
fn id(text: &str) -> String {
    uuid::Uuid::parse_str(text).map_or_else(|_| text.to_owned(), |id| id.to_string())
}

fn hex_of(text: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_whole_after_kill_9_and_says_where_it_was_changed() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    for _ in 0..20 {
        server.new_batch().await;
    }
    server.kill();
    let server = Server::start(data.path());
    server.new_batch().await;
    server.stop();
    let (code, text, _) = verify(data.path(), &[]);
    assert_eq!(code, Some(0), "{text}");
    let hash = text.trim().rsplit(' ').next().expect("a hash").to_owned();
    assert!(records(data.path()).len() >= 3, "two starts and a batch, which the stop made durable");

    let server = Server::start(data.path());
    server.new_batch().await;
    server.stop();
    assert_eq!(verify(data.path(), &["--contains", &hash]).0, Some(0));
    let (code, _, error) = verify(data.path(), &["--contains", &"ab".repeat(32)]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no record has the hash"), "{error}");

    let file = files(data.path()).pop().expect("a file");
    let whole = fs::read_to_string(&file).expect("text");
    fs::write(&file, whole.replacen("\"status\":201", "\"status\":200", 1)).expect("writes");
    let (code, _, error) = verify(data.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(error.contains("was changed") && error.contains("line "), "{error}");
    let without: Vec<&str> = whole.lines().enumerate().filter(|(index, _)| *index != 1).map(|(_, line)| line).collect();
    fs::write(&file, without.join("\n") + "\n").expect("writes");
    assert!(verify(data.path(), &[]).2.contains("records are missing"));
    let (code, _, error) = verify(&data.path().join("nothing"), &[]);
    assert_eq!(code, Some(1));
    assert!(error.lines().count() == 1, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_a_rate_of_its_own() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_with(data.path(), &["--requests-per-token", "1"]);
    let admin = create(&server, None, &["--scope", "admin"]);
    // Its first request is the creation of the other token.
    let other = create(&server, Some(&admin), &["--scope", "read"]);
    let client = Client::new();
    let requests = (0..40).map(|_| client.get(server.url("/batches")).bearer_auth(&admin).send());
    let answers = futures::future::join_all(requests).await.into_iter().map(|answer| answer.expect("answers"));
    let refused = answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS);
    let refused = refused.expect("40 requests at once are more than one a second");
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(refused.text().await.expect("text").contains("too-many-requests"));
    assert_eq!(send(&server, Method::GET, "/api/v1/batches", &other, "").await, StatusCode::OK);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_client_leaves_is_recorded_too() {
    use std::io::Write;
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    let batch = server.new_batch().await;
    let address = server.root_url("");
    let address = address.trim_start_matches("http://").trim_end_matches('/');
    let mut client = std::net::TcpStream::connect(address).expect("connects");
    // Half of a body: the upload waits for the rest.
    let request = format!(
        "PUT /api/v1/batches/{batch}/files/a.log HTTP/1.1\r\nhost: {address}\r\ncontent-length: 100\r\n\r\nE_FAIL\n"
    );
    client.write_all(request.as_bytes()).expect("sends");
    client.shutdown(std::net::Shutdown::Both).expect("leaves");
    drop(client);
    // The stop waits for the request, and for the log.
    server.stop();
    let records = records(data.path());
    let is_put = |record: &Value| record["action"].as_str().is_some_and(|action| action.starts_with("PUT "));
    assert!(records.iter().any(is_put), "{records:#?}");
}

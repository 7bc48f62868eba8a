//! API tokens: what each may do on every path, and what nobody may.

mod common;

use std::collections::BTreeMap;

use common::{Server, VIN, argus, argus_with};
use reqwest::{Client, Method, Response, StatusCode, header, redirect};
use serde_json::{Value, json};

const SCOPES: [&str; 4] = ["upload", "read", "query", "admin"];

/// The scopes that may use a path, beside `admin`; `None` for everybody.
fn allowed(method: &str, path: &str) -> Option<&'static [&'static str]> {
    let batch = "/api/v1/batches/{id}";
    let rest = path.strip_prefix(batch);
    Some(match (method, path, rest) {
        (_, "/healthz" | "/readyz", _) => return None,
        ("get", "/metrics", _) => &["read"],
        ("post", "/v1/logs" | "/api/v1/lines" | "/api/v1/batches", _) => &["upload"],
        ("post", "/api/v1/query", _) => &["query"],
        ("get", "/api/v1/batches" | "/api/v1/events" | "/api/v1/catalog" | "/api/v1/codes/{code}", _) => &["read"],
        (
            "get",
            "/api/v1/fleet/codes" | "/api/v1/fleet/compare" | "/api/v1/fleet/timeline" | "/api/v1/fleet/totals",
            _,
        ) => &["read"],
        ("get", "/api/v1/vehicles" | "/api/v1/vehicles/{vin}" | "/api/v1/vehicles/{vin}/history", _) => &["read"],
        ("post" | "put" | "delete", "/api/v1/catalog" | "/api/v1/catalog/{code}", _) => &[],
        ("post" | "get" | "delete", "/api/v1/tokens" | "/api/v1/tokens/{id}", _) => &[],
        ("delete", "/api/v1/vehicles/{vin}", _) => &[],
        ("get", _, Some("" | "/report" | "/progress" | "/events" | "/files")) => &["upload", "read"],
        ("delete", _, Some("")) => &["upload"],
        ("post", _, Some("/complete" | "/reopen")) => &["upload"],
        ("post", _, Some("/recount" | "/diagnosis")) => &[],
        ("post" | "delete", _, Some("/diagnosis/feedback")) => &["query"],
        ("get", _, Some("/diagnosis" | "/errors" | "/chart.svg" | "/chart.png" | "/files/{name}")) => &["read"],
        ("put" | "delete", _, Some("/files/{name}")) => &["upload"],
        ("post", _, Some("/files" | "/files/{name}/lines")) => &["upload"],
        (_, _, Some("/uploads" | "/uploads/{upload}")) => &["upload"],
        _ => panic!("who may {method} {path}? Say it here, and in src/access/rules.rs"),
    })
}

/// Creates a token with the command.
fn create(server: &Server, admin: Option<&str>, flags: &[&str]) -> String {
    let url = server.root_url("/");
    let variables: Vec<(&str, String)> = admin.map(|token| ("ARGUS_TOKEN", token.to_owned())).into_iter().collect();
    let output = argus_with(&[&["token", "create", "--server", &url], flags].concat(), &variables, b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

async fn send(server: &Server, method: &str, path: &str, token: Option<&str>, body: &str) -> Response {
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
    let client = Client::builder().redirect(redirect::Policy::none()).build().expect("a client");
    let request = client.request(method, server.root_url(path)).body(body.to_owned());
    let request = token.into_iter().fold(request, |request, token| request.bearer_auth(token));
    request.send().await.expect("the server answers")
}

async fn status(server: &Server, method: &str, path: &str, token: Option<&str>, body: &str) -> u16 {
    send(server, method, path, token, body).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_asks_for_its_scope() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    let document: Value =
        reqwest::get(server.root_url("/openapi.json")).await.expect("answers").json().await.expect("JSON");
    let refused = send(&server, "post", "/api/v1/tokens", None, r#"{"scopes":["read"]}"#).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT, "the first token must be an admin's");
    let admin = create(&server, None, &["--scope", "admin"]);
    let tokens: BTreeMap<&str, String> = SCOPES
        .into_iter()
        .map(|scope| (scope, create(&server, Some(&admin), &["--scope", scope, "--name", scope])))
        .collect();
    let mut checked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            let uses = ["get", "put", "post", "delete", "patch", "head", "options"].contains(&method.as_str());
            if !uses {
                continue;
            }
            let allowed = allowed(method, path);
            let concrete = path
                .replace("{id}", "01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e")
                .replace("{upload}", "01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e")
                .replace("{vin}", VIN)
                .replace(['{', '}'], "");
            let none = status(&server, method, &concrete, None, "{}").await;
            assert_eq!(none == 401, allowed.is_some(), "{method} {path} without a token: {none}");
            for (scope, token) in &tokens {
                let got = status(&server, method, &concrete, Some(token), "{}").await;
                let may = *scope == "admin" || allowed.is_none_or(|allowed| allowed.contains(scope));
                assert_eq!(![401, 403].contains(&got), may, "{method} {path} with {scope}: {got}");
            }
            checked += 1;
        }
    }
    assert!(checked > 45, "{checked}");
    for (path, allowed) in [
        ("/", &["read"][..]),
        ("/batches", &["read"]),
        ("/firmware", &["read"]),
        ("/codes", &["read"]),
        ("/vehicles", &["read"]),
        ("/sql", &["query"]),
        ("/sql/download?sql=SELECT+1", &["query"]),
        ("/upload", &["upload"]),
        ("/nowhere", &[]),
    ] {
        assert_eq!(status(&server, "get", path, None, "").await, 401, "{path}");
        for (scope, token) in &tokens {
            let got = status(&server, "get", path, Some(token), "").await;
            assert_eq!(got != 403, *scope == "admin" || allowed.contains(scope), "{path} with {scope}: {got}");
        }
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_valid_token_is_refused_alike() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    let admin = create(&server, None, &["--scope", "admin"]);
    let reader = create(&server, Some(&admin), &["--scope", "read"]);
    let short = create(&server, Some(&admin), &["--scope", "read", "--expires", "1ms"]);
    let answer = send(&server, "get", "/api/v1/batches", Some(&reader), "").await;
    assert_eq!(answer.status(), StatusCode::OK);

    let listed = send(&server, "get", "/api/v1/tokens", Some(&admin), "").await.text().await.expect("text");
    assert!(
        ![&admin, &reader, &short].iter().any(|token| listed.contains(token.splitn(3, '_').nth(2).expect("a secret")))
    );
    let tokens: Value = serde_json::from_str(&listed).expect("JSON");
    let token = tokens["tokens"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|token| token["scopes"] == json!(["read"]) && token["expires_at"].is_null());
    let token = token.expect("the reader's");
    assert!(token["last_used_at"].is_string(), "{token}");
    let id = token["id"].as_str().expect("an id");
    assert_eq!(status(&server, "delete", &format!("/api/v1/tokens/{id}"), Some(&admin), "").await, 204);
    assert_eq!(status(&server, "delete", "/api/v1/tokens/x", Some(&admin), "").await, 404);

    let wrong_secret = format!("{}x", &admin[..admin.len() - 1]);
    let mut bodies = Vec::new();
    for token in
        [&reader, &short, &wrong_secret, &admin.to_uppercase(), &"eyJhbGciOiJub25lIn0.e30.".to_owned(), &String::new()]
    {
        let answer = send(&server, "get", "/api/v1/batches", Some(token), "").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{token}");
        assert_eq!(answer.headers()[header::WWW_AUTHENTICATE], "Bearer");
        bodies.push(answer.text().await.expect("text"));
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    for scheme in ["Basic", "Digest"] {
        let request = Client::new().get(server.url("/batches")).header("authorization", format!("{scheme} {admin}"));
        assert_eq!(request.send().await.expect("answers").status(), StatusCode::UNAUTHORIZED);
    }
    // A crash forgets no token, and no revocation.
    server.kill();
    let server = Server::start(data.path());
    assert_eq!(status(&server, "get", "/api/v1/batches", Some(&admin), "").await, 200);
    assert_eq!(status(&server, "get", "/api/v1/batches", Some(&reader), "").await, 401);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_vehicle_writes_its_own_batches_only() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    let admin = create(&server, None, &["--scope", "admin"]);
    let own = create(&server, Some(&admin), &["--scope", "upload", "--vin", VIN]);
    let batch = |vin: &str| json!({"vehicle_id": "veh-1", "vin": vin, "firmware": "7.2.1"}).to_string();
    let other = "WVWZZZ1JZXW000002";
    let create = async |token: &str, vin: &str| {
        let answer = send(&server, "post", "/api/v1/batches", Some(token), &batch(vin)).await;
        (
            answer.status().as_u16(),
            answer.json::<Value>().await.expect("JSON")["id"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (status_of_other, others) = create(&admin, other).await;
    let (status_of_own, mine) = create(&own, VIN).await;
    assert_eq!((status_of_other, status_of_own, create(&own, other).await.0), (201, 201, 403));
    let file = |id: &str| format!("/api/v1/batches/{id}/files/a.log");
    assert_eq!(status(&server, "put", &file(&mine), Some(&own), "E_FAIL\n").await, 201);
    assert_eq!(status(&server, "post", &format!("/api/v1/batches/{mine}/complete"), Some(&own), "").await, 202);
    let report = send(&server, "get", &format!("/api/v1/batches/{mine}/report"), Some(&own), "").await;
    assert_eq!(report.json::<Value>().await.expect("JSON")["total_errors"], 1);

    // A batch of another vehicle answers like one that does not exist.
    let nobody = "01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e";
    for (method, rest) in [
        ("get", ""),
        ("get", "/report"),
        ("put", "/files/a.log"),
        ("delete", ""),
        ("post", "/complete"),
        ("get", "/events"),
    ] {
        let mut answers = Vec::new();
        for id in [others.as_str(), nobody] {
            let answer = send(&server, method, &format!("/api/v1/batches/{id}{rest}"), Some(&own), "x\n").await;
            answers.push((answer.status().as_u16(), answer.text().await.expect("text").replace(id, "ID")));
        }
        assert_eq!(answers[0].0, 404, "{method} {rest}");
        assert_eq!(answers[0], answers[1], "{method} {rest}");
    }
    for (method, path) in [
        ("get", "/api/v1/batches"),
        ("post", "/api/v1/lines"),
        ("post", "/v1/logs"),
        ("get", "/upload"),
        ("post", "/api/v1/query"),
    ] {
        assert_eq!(status(&server, method, path, Some(&own), "{}").await, 403, "{method} {path}");
    }
    // The key of another vehicle's request does not find its batch.
    let with_key = async |token: &str, vin: &str| {
        let request = Client::new().post(server.url("/batches")).bearer_auth(token).header("idempotency-key", "k");
        let answer = request.body(batch(vin)).send().await.expect("answers");
        answer.json::<Value>().await.expect("JSON")["id"].clone()
    };
    let first = with_key(&admin, VIN).await;
    let second = with_key(&own, VIN).await;
    assert!(first != second && second == with_key(&own, VIN).await);

    // The commands send the token of the environment.
    let url = server.root_url("/");
    let log = data.path().join("b.log");
    std::fs::write(&log, "E_ABORT\n").expect("writes");
    let flags = [
        "upload",
        "--server",
        &url,
        "--vehicle",
        "veh-1",
        "--vin",
        VIN,
        log.to_str().expect("text"),
        "--format",
        "json",
    ];
    let refused = argus(&flags, b"");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("needs a valid token"),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    let uploaded = argus_with(&flags, &[("ARGUS_TOKEN", own.clone())], b"");
    assert!(uploaded.status.success(), "{}", String::from_utf8_lossy(&uploaded.stderr));
    let codes = argus_with(&["codes", "--server", &url, "--format", "json"], &[("ARGUS_TOKEN", admin.clone())], b"");
    assert!(String::from_utf8_lossy(&codes.stdout).contains("E_ABORT"));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_logs_in_and_out() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    let admin = create(&server, None, &["--scope", "admin"]);
    let client = Client::builder().redirect(redirect::Policy::none()).build().expect("a client");
    let get = |path: &str, cookie: &str| {
        let request = client.get(server.root_url(path)).header("accept", "text/html").header("cookie", cookie);
        async move { request.send().await.expect("answers") }
    };
    let answer = get("/batches?vin=x", "").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (303, &header::HeaderValue::from_static("/login?to=%2Fbatches%3Fvin%3Dx"))
    );
    assert!(get("/login?to=//evil.example", "").await.text().await.expect("text").contains("name=\"to\" value=\"/\""));
    assert_eq!(get("/assets/argus.css", "").await.status(), StatusCode::OK);
    let log_in = |token: &str, to: &str| {
        let request = client.post(server.root_url("/login")).form(&[("token", token), ("to", to)]);
        async move { request.send().await.expect("answers") }
    };
    assert_eq!(log_in("wrong", "/").await.status(), StatusCode::UNAUTHORIZED);
    let answer = log_in(&admin, "/batches").await;
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].as_bytes()), (303, &b"/batches"[..]));
    let cookie = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let (pair, _) = cookie.split_once(';').expect("attributes");
    for path in ["/", "/batches", "/sql", "/upload"] {
        assert_eq!(get(path, pair).await.status(), StatusCode::OK, "{path}");
    }
    // Another site's page cannot use it.
    let foreign = client.post(server.url("/batches")).header("cookie", pair).header("origin", "http://evil.example");
    assert_eq!(foreign.send().await.expect("answers").status(), StatusCode::FORBIDDEN);
    let out = client.post(server.root_url("/logout")).header("cookie", pair).send().await.expect("answers");
    assert!(out.headers()["set-cookie"].to_str().expect("text").contains("Max-Age=0"));
    server.stop();
}

#[test]
fn a_server_without_tokens_serves_this_machine_only() {
    let data = tempfile::tempdir().expect("a folder");
    let folder = data.path().join("argus");
    let text = folder.to_str().expect("text");
    for flags in [&["--listen", "0.0.0.0:0"][..], &["--listen", "127.0.0.1:0", "--pg", "0.0.0.0:0"]] {
        let refused = argus(&[&["serve", "--data", text], flags].concat(), b"");
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{error}");
        assert!(error.contains("argus token create") && error.contains("--insecure"), "{error}");
    }
    Server::start_with(&folder, &["--listen", "0.0.0.0:0", "--insecure"]).stop();

    // Without a server, in the data directory.
    let refused = argus(&["token", "create", "--scope", "read", "--data", text], b"");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("must have the scope admin"));
    for bad in
        [&["--scope", "odd"][..], &["--scope", "upload", "--vin", "short"], &["--scope", "read", "--vin", VIN], &[]]
    {
        let refused = argus(&[&["token", "create", "--data", text], bad].concat(), b"");
        assert_ne!(refused.status.code(), Some(0), "{bad:?}");
    }
    let created = argus(&["token", "create", "--scope", "admin,read", "--name", "first", "--data", text], b"");
    assert!(created.status.success() && created.stdout.starts_with(b"argus_"));
    let listed = argus(&["token", "list", "--data", text], b"");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("first") && listed.contains("admin,read"), "{listed}");
    Server::start_with(&folder, &["--listen", "0.0.0.0:0"]).stop();
    let open = argus(&["serve", "--data", text, "--listen", "127.0.0.1:0", "--syslog", "0.0.0.0:0"], b"");
    assert!(String::from_utf8_lossy(&open.stderr).contains("syslog has no tokens"));
    let id = listed.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("an id").to_owned();
    let server = Server::start(&folder);
    let refused = argus(&["token", "revoke", &id, "--data", text], b"");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("--server"),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    server.stop();
    assert!(argus(&["token", "revoke", &id, "--data", text], b"").status.success());
    assert!(!argus(&["token", "revoke", "01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e", "--data", text], b"").status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_servers_ask_for_a_token_too() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_with(data.path(), &["--pg", "127.0.0.1:0", "--flight", "127.0.0.1:0"]);
    let [pg, flight] = ["postgres", "flight"].map(|protocol| server.sql_address(protocol));
    let (pg, flight) = (pg.await, flight.await);
    let (host, port) = pg.split_once(':').expect("HOST:PORT");
    let psql = |user: &str, password: &str| {
        let url = format!("host={host} port={port} user={user} dbname=argus");
        let mut psql = std::process::Command::new("psql");
        psql.args([url.as_str(), "-w", "-t", "-A", "-c", "SELECT count(*) FROM batches"]).env("PGPASSWORD", password);
        let output = psql.output().expect("psql runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let script = "import sys, adbc_driver_flightsql.dbapi as flight\n\
                  options = {'adbc.flight.sql.authorization_header': 'Bearer ' + sys.argv[2]} if sys.argv[2] else {}\n\
                  with flight.connect('grpc://' + sys.argv[1], db_kwargs=options) as connection, connection.cursor() as cursor:\n    \
                  cursor.execute('SELECT count(*) FROM batches')\n    print(cursor.fetchone()[0])\n";
    let adbc = |token: &str| {
        let mut python = std::process::Command::new(common::python::python());
        let output = python.args(["-c", script, &flight, token]).output().expect("python runs");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let zero = Some("0".to_owned());
    assert_eq!((psql("anybody", ""), adbc("")), (zero.clone(), zero.clone()), "without tokens it is open");
    let admin = create(&server, None, &["--scope", "admin"]);
    let analyst = create(&server, Some(&admin), &["--scope", "query", "--name", "analyst"]);
    let reader = create(&server, Some(&admin), &["--scope", "read", "--name", "reader"]);
    assert_eq!((psql("anybody", ""), adbc("")), (None, None), "from the first token on it is not");
    assert_eq!((psql("analyst", &analyst), adbc(&analyst)), (zero.clone(), zero.clone()));
    let id = admin.split('_').nth(1).expect("an id");
    assert_eq!(psql(id, &admin), zero, "the user may be the id of the token");
    assert_eq!((psql("reader", &reader), adbc(&reader)), (None, None), "its scope is another one");
    assert_eq!((psql("analyst", &admin), psql("analyst", ""), psql("nobody", &analyst)), (None, None, None));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_its_streams_and_readiness_tells_nothing_of_the_fleet() {
    use futures::StreamExt;
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_with(data.path(), &["--pg", "127.0.0.1:0"]);
    let admin = create(&server, None, &["--scope", "admin"]);
    let reader = create(&server, Some(&admin), &["--scope", "read"]);
    let batch =
        send(&server, "post", "/api/v1/batches", Some(&admin), &json!({"vehicle_id": "v", "vin": VIN}).to_string())
            .await;
    let batch = batch.json::<Value>().await.expect("JSON")["id"].as_str().expect("an id").to_owned();
    let mut streams = Vec::new();
    for path in ["/api/v1/events".to_owned(), format!("/api/v1/batches/{batch}/events")] {
        streams.push(send(&server, "get", &path, Some(&reader), "").await.bytes_stream());
    }
    let ready = async |token: Option<&str>| {
        send(&server, "get", "/readyz", token, "").await.json::<Value>().await.expect("JSON")
    };
    assert_eq!(ready(None).await["sql"], json!({}));
    assert!(ready(Some(&reader)).await["sql"]["postgres"].is_string());
    let id = reader.split('_').nth(1).expect("an id");
    assert_eq!(status(&server, "delete", &format!("/api/v1/tokens/{id}"), Some(&admin), "").await, 204);
    for stream in &mut streams {
        let ended = async { while stream.next().await.is_some() {} };
        tokio::time::timeout(std::time::Duration::from_secs(60), ended).await.expect("the stream ends");
    }
    server.stop();
}

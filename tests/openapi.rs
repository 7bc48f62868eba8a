//! The OpenAPI document matches the server.

mod common;

use std::process::Command;

use common::python::python;
use common::{Server, VIN};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

#[tokio::test]
async fn the_document_and_its_page_are_served_without_internet_access() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let client = Client::new();
    let document: Value =
        client.get(server.root_url("/openapi.json")).send().await.expect("it answers").json().await.expect("JSON");
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
    for (path, methods) in [
        ("/api/v1/batches", &["get", "post"][..]),
        ("/api/v1/batches/{id}", &["get", "delete"]),
        ("/api/v1/batches/{id}/files", &["post"]),
        ("/api/v1/batches/{id}/files/{name}", &["put", "delete"]),
        ("/api/v1/batches/{id}/files/{name}/lines", &["post"]),
        ("/api/v1/batches/{id}/complete", &["post"]),
        ("/api/v1/batches/{id}/reopen", &["post"]),
        ("/api/v1/batches/{id}/report", &["get"]),
        ("/api/v1/batches/{id}/chart.svg", &["get"]),
        ("/api/v1/batches/{id}/chart.png", &["get"]),
        ("/api/v1/batches/{id}/progress", &["get"]),
        ("/api/v1/batches/{id}/events", &["get"]),
        ("/api/v1/batches/{id}/errors", &["get"]),
        ("/api/v1/fleet/codes", &["get"]),
        ("/api/v1/fleet/compare", &["get"]),
        ("/api/v1/vehicles/{vin}/history", &["get"]),
        ("/api/v1/query", &["post"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
        ("/metrics", &["get"]),
    ] {
        for method in methods {
            assert!(document["paths"][path][method].is_object(), "{method} {path}");
        }
    }
    let mut references = Vec::new();
    references_of(&document, &mut references);
    assert!(references.contains(&"#/components/schemas/ProblemBody"));
    for reference in references {
        assert!(reference.strip_prefix('#').is_some_and(|path| document.pointer(path).is_some()), "{reference}");
    }
    let page = client.get(server.root_url("/docs/")).send().await.expect("it answers");
    assert_eq!(page.status(), StatusCode::OK);
    let page = page.text().await.expect("text");
    assert!(page.contains("swagger-ui") && !page.contains("https://"), "{page}");
}

/// The references in a document.
fn references_of<'d>(part: &'d Value, references: &mut Vec<&'d str>) {
    match part {
        Value::Array(parts) => parts.iter().for_each(|part| references_of(part, references)),
        Value::Object(parts) => {
            references.extend(parts.get("$ref").and_then(Value::as_str));
            parts.values().for_each(|part| references_of(part, references));
        }
        _ => {}
    }
}

/// schemathesis generates valid and invalid requests from the document, and checks the responses against it: statuses
/// (500 is not allowed), media types and schemas.
#[tokio::test]
async fn the_server_conforms_to_the_document() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch_of(json!({"vehicle_id": "v", "vin": VIN, "firmware": "7.2.1"})).await;
    server.put(&id, "a.log", "E_FAIL\n").await;
    let tool = python().with_file_name("schemathesis");
    let checks = "status_code_conformance,content_type_conformance,response_schema_conformance";
    // Media types of bytes and of text that schemathesis does not know.
    let hooks = "import schemathesis\n\
                 schemathesis.serializer.alias('application/offset+octet-stream', 'application/octet-stream')\n\
                 schemathesis.serializer.alias('application/x-ndjson', 'text/plain')\n";
    std::fs::write(data.path().join("media_types.py"), hooks).expect("writes");
    // Streams never end, and the first token closes the server.
    let (streams, streams_and_tokens) = ("/events$", "/events$|/tokens");
    let run = |examples: &str, excluded: &str, header: &[&str]| {
        let output = Command::new(&tool)
            .env("SCHEMATHESIS_HOOKS", "media_types")
            .env("PYTHONPATH", data.path())
            .args(["run", &server.root_url("/openapi.json"), "--checks", checks, "--max-examples", examples])
            .args(["--exclude-path-regex", excluded, "--request-timeout", "70", "--phases", "examples,fuzzing"])
            .args(["--seed", "5"])
            .args(header)
            .current_dir(data.path())
            .output()
            .expect("schemathesis runs");
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{report}");
    };
    run("15", streams_and_tokens, &[]);
    let created = server.send(reqwest::Method::POST, "/tokens", r#"{"scopes":["admin"]}"#).await;
    let secret = created.json::<Value>().await.expect("JSON")["secret"].as_str().expect("text").to_owned();
    run("3", streams, &[]);
    run("5", streams, &["--header", &format!("Authorization: Bearer {secret}")]);
}

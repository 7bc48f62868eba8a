//! Resumable uploads (tus 1.0): the protocol, a client that others wrote, and links that break.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::proxy::{Fault, Proxy};
use common::python::python;
use common::{Server, VIN, counts, files, gzip};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const LOG: &str = "ERROR ota: E_FAIL\nINFO ota: ok\nERROR ota: E_ABORT\n";

async fn start() -> (TempDir, Server, String) {
    let data = TempDir::new().expect("a folder");
    let server = Server::start(data.path());
    let batch = server.new_batch().await;
    (data, server, batch)
}

/// Sends a request of tus; the path is relative to the API, or as `Location` says it.
async fn tus(server: &Server, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let path = path.strip_prefix("/api/v1").unwrap_or(path);
    let headers = [&[("Tus-Resumable", "1.0.0")], headers].concat();
    server.send_with(method, path, &headers, body.to_vec()).await
}

fn metadata(name: &str, encoding: Option<&str>) -> String {
    let encoding = encoding.map(|encoding| format!(",encoding {}", BASE64_STANDARD.encode(encoding)));
    format!("filename {}{}", BASE64_STANDARD.encode(name), encoding.unwrap_or_default())
}

/// Creates an upload and returns its path.
async fn create(server: &Server, batch: &str, name: &str, length: usize) -> String {
    let headers = [("Upload-Length", &*length.to_string()), ("Upload-Metadata", &metadata(name, None))];
    let created = tus(server, Method::POST, &format!("/batches/{batch}/uploads"), &headers, b"").await;
    assert_eq!(created.status(), StatusCode::CREATED);
    location(&created)
}

fn location(created: &Response) -> String {
    created.headers()["location"].to_str().expect("text").to_owned()
}

async fn patch(server: &Server, upload: &str, offset: usize, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let (kind, offset) = ("application/offset+octet-stream", offset.to_string());
    let headers = [&[("Content-Type", kind), ("Upload-Offset", &offset)], headers].concat();
    tus(server, Method::PATCH, upload, &headers, body).await
}

/// The status of a `HEAD`, and its offset.
async fn head(server: &Server, upload: &str) -> (StatusCode, Option<usize>) {
    let answer = tus(server, Method::HEAD, upload, &[], b"").await;
    let offset = answer.headers().get("upload-offset").map(|offset| offset.to_str().expect("text").parse());
    (answer.status(), offset.map(|offset| offset.expect("a number")))
}

/// Files of unfinished uploads.
fn unfinished(data: &Path) -> usize {
    files(&data.join("resumable")).iter().filter(|path| path.extension().is_some_and(|kind| kind == "bytes")).count()
}

#[tokio::test]
async fn an_upload_continues_where_it_stopped_also_after_a_crash() {
    let (data, server, batch) = start().await;
    let upload = create(&server, &batch, "a.log", LOG.len()).await;
    assert_eq!(head(&server, &upload).await, (StatusCode::OK, Some(0)));
    let first = patch(&server, &upload, 0, &[], &LOG.as_bytes()[..10]).await;
    assert_eq!((first.status(), first.headers()["upload-offset"].to_str().ok()), (StatusCode::NO_CONTENT, Some("10")));
    assert!(first.headers().contains_key("upload-expires"));
    // Nothing is counted before the whole file has arrived.
    assert_eq!(server.get(&format!("/batches/{batch}/report")).await["total_files"], json!(0));
    server.kill();

    let server = Server::start(data.path());
    assert_eq!(head(&server, &upload).await, (StatusCode::OK, Some(10)));
    let differs = patch(&server, &upload, 0, &[], LOG.as_bytes()).await;
    assert_eq!(
        (differs.status(), differs.headers()["upload-offset"].to_str().ok()),
        (StatusCode::CONFLICT, Some("10"))
    );
    let last = patch(&server, &upload, 10, &[], &LOG.as_bytes()[10..]).await;
    assert_eq!(last.status(), StatusCode::NO_CONTENT);
    // A client that lost the last answer learns that all has arrived; the bytes are only in the raw store.
    assert_eq!(head(&server, &upload).await, (StatusCode::OK, Some(LOG.len())));
    assert_eq!(unfinished(data.path()), 0);
    let listed = server.get(&format!("/batches/{batch}/files")).await;
    assert_eq!(listed["files"][0]["sha256"], json!(hex::encode(Sha256::digest(LOG))));
    server.complete(&batch).await;
    let report = server.final_report(&batch, 0).await;
    assert_eq!(counts(&report), json!({"E_ABORT": 1, "E_FAIL": 1}));
    let late = [("Upload-Length", "1"), ("Upload-Metadata", &metadata("b.log", None))];
    let late = tus(&server, Method::POST, &format!("/batches/{batch}/uploads"), &late, b"").await;
    assert_eq!(late.status(), StatusCode::CONFLICT);
    server.stop();
}

#[tokio::test]
async fn the_protocol_is_spoken_as_tus_says() {
    let (data, server, batch) = start().await;
    let uploads = format!("/batches/{batch}/uploads");
    let options = server.send(Method::OPTIONS, &uploads, "").await;
    assert_eq!(options.status(), StatusCode::NO_CONTENT);
    let extensions = options.headers()["tus-extension"].to_str().expect("text").to_owned();
    for extension in ["creation", "creation-defer-length", "termination", "checksum", "expiration"] {
        assert!(extensions.split(',').any(|known| known == extension), "{extension}");
    }
    let other = server.send_with(Method::POST, &uploads, &[("Tus-Resumable", "0.2.2")], Vec::new()).await;
    assert_eq!(
        (other.status(), other.headers()["tus-version"].to_str().ok()),
        (StatusCode::PRECONDITION_FAILED, Some("1.0.0"))
    );

    for (headers, status) in [
        (vec![("Upload-Metadata", metadata("a.log", None))], StatusCode::UNPROCESSABLE_ENTITY),
        (vec![("Upload-Length", "1".to_owned())], StatusCode::UNPROCESSABLE_ENTITY),
        (
            vec![("Upload-Length", "-1".to_owned()), ("Upload-Metadata", metadata("a.log", None))],
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            vec![("Upload-Length", "1".to_owned()), ("Upload-Metadata", metadata("../a", None))],
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            vec![("Upload-Length", "1".to_owned()), ("Upload-Metadata", metadata("a", Some("br")))],
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            vec![("Upload-Length", u64::MAX.to_string()), ("Upload-Metadata", metadata("a", None))],
            StatusCode::PAYLOAD_TOO_LARGE,
        ),
    ] {
        let borrowed: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(tus(&server, Method::POST, &uploads, &borrowed, b"").await.status(), status, "{headers:?}");
    }

    // The checksum of a part.
    let upload = create(&server, &batch, "a.log", LOG.len()).await;
    let sha1 = |bytes: &[u8]| format!("sha1 {}", BASE64_STANDARD.encode(Sha1::digest(bytes)));
    let wrong = patch(&server, &upload, 0, &[("Upload-Checksum", &sha1(b"other"))], LOG.as_bytes()).await;
    assert_eq!((wrong.status().as_u16(), head(&server, &upload).await.1), (460, Some(0)));
    let unknown = patch(&server, &upload, 0, &[("Upload-Checksum", "md5 AAAA")], LOG.as_bytes()).await;
    assert_eq!(unknown.status(), StatusCode::BAD_REQUEST);
    let untyped = tus(&server, Method::PATCH, &upload, &[("Upload-Offset", "0")], b"x").await;
    assert_eq!(untyped.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let longer = patch(&server, &upload, 0, &[], format!("{LOG}more").as_bytes()).await;
    assert_eq!(longer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let right = patch(&server, &upload, 0, &[("Upload-Checksum", &sha1(LOG.as_bytes()))], LOG.as_bytes()).await;
    assert_eq!(right.status(), StatusCode::NO_CONTENT);

    // A length that is known later, and an encoding.
    let headers = [("Upload-Defer-Length", "1"), ("Upload-Metadata", &metadata("b.log", Some("gzip")))];
    let created = tus(&server, Method::POST, &uploads, &headers, b"").await;
    let (upload, bytes) = (location(&created), gzip(LOG.as_bytes()));
    assert_eq!(patch(&server, &upload, 0, &[], &bytes[..5]).await.status(), StatusCode::NO_CONTENT);
    let length = bytes.len().to_string();
    let last = patch(&server, &upload, 5, &[("Upload-Length", &length)], &bytes[5..]).await;
    assert_eq!(last.status(), StatusCode::NO_CONTENT);
    // An empty file is whole when it is created.
    create(&server, &batch, "empty.log", 0).await;

    // An upload that its client ends, and one whose bytes are damaged.
    let upload = create(&server, &batch, "c.log", 10).await;
    assert_eq!(patch(&server, &upload, 0, &[], b"abc").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(tus(&server, Method::DELETE, &upload, &[], b"").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(head(&server, &upload).await.0, StatusCode::NOT_FOUND);
    let headers = [("Upload-Length", "4"), ("Upload-Metadata", &metadata("d.log", Some("gzip")))];
    let damaged = location(&tus(&server, Method::POST, &uploads, &headers, b"").await);
    assert_eq!(patch(&server, &damaged, 0, &[], b"nope").await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(unfinished(data.path()), 0);

    server.complete(&batch).await;
    let report = server.final_report(&batch, 0).await;
    assert_eq!((counts(&report), &report["total_files"]), (json!({"E_ABORT": 2, "E_FAIL": 2}), &json!(3)));
    server.stop();
}

/// Uploads a file with tuspy. It asks for the offset once without a retry, when it begins.
const SCRIPT: &str = "
import sys
from tusclient import client, exceptions
tus, uploader = client.TusClient(''), None
while uploader is None:
    try:
        uploader = tus.uploader(sys.argv[2], url=sys.argv[1], chunk_size=1 << 20, retries=100000, retry_delay=0)
    except exceptions.TusCommunicationError:
        pass
uploader.upload()
assert uploader.offset == uploader.get_file_size()
";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_others_uploads_over_a_link_that_breaks_a_hundred_times() {
    let (data, server, batch) = start().await;
    let folder = TempDir::new().expect("a folder");
    let log = folder.path().join("ota.log");
    let lines: String =
        (0..300_000_u64).map(|line| format!("line {line} ERROR ota: E_FAIL {:x}\n", line * 7919)).collect();
    std::fs::write(&log, &lines).expect("writes");
    let port = server.root_url("").rsplit_once(':').expect("a port").1.parse().expect("a number");
    let proxy = Proxy::start(port).await;
    proxy.set(Fault::CutRequests(160_000));
    let upload = create(&server, &batch, "ota.log", lines.len()).await;
    let url = format!("http://127.0.0.1:{}{upload}", proxy.port());
    let client = tokio::task::spawn_blocking(move || {
        Command::new(python()).args(["-c", SCRIPT, &url]).arg(log).output().expect("python runs")
    });
    let output = client.await.expect("no panic");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Each continuation is two connections: for the offset, and for the bytes.
    assert!(proxy.connections() > 200, "{} connections", proxy.connections());
    let listed = server.get(&format!("/batches/{batch}/files")).await;
    let file = &listed["files"][0];
    assert_eq!((&file["sha256"], &file["generation"]), (&json!(hex::encode(Sha256::digest(&lines))), &json!(1)));
    server.complete(&batch).await;
    assert_eq!(counts(&server.final_report(&batch, 0).await), json!({"E_FAIL": 300_000}));
    assert_eq!(unfinished(data.path()), 0);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_drop_into_a_watched_folder_become_batches_once() {
    let (data, inbox, state) =
        (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let server = Server::start(data.path());
    let root = server.root_url("/");
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_argus"))
            .args(["upload", "--server", &root, "--vehicle", "v", "--vin", VIN, "--format", "json", "--watch"])
            .arg(inbox.path())
            .env("XDG_STATE_HOME", state.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("argus starts")
    };
    // A report is printed when a batch is final: that is what the test waits for.
    let reports = |child: &mut Child| {
        serde_json::Deserializer::from_reader(child.stdout.take().expect("piped")).into_iter::<Value>()
    };
    let write = |name: &str, text: &str| std::fs::write(inbox.path().join(name), text).expect("writes");
    write("a.log", "E_FAIL\n");
    write("b.log", "E_ABORT\n");
    write("c.log.part", "E_FAIL\n");
    let mut child = start();
    let mut first = reports(&mut child);
    let report = first.next().expect("a report").expect("JSON");
    assert_eq!((counts(&report), &report["total_files"]), (json!({"E_FAIL": 1, "E_ABORT": 1}), &json!(2)));
    // A refused file does not stop the others, and is not tried again and again.
    write("d.log", "SIGBUS\n");
    // The clock of a vehicle may be ahead.
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(86_400);
    let dropped = std::fs::File::options().append(true).open(inbox.path().join("d.log")).expect("opens");
    dropped.set_modified(ahead).expect("sets");
    write("broken.log", "PK\x03\x04 no archive");
    let report = first.next().expect("a report").expect("JSON");
    assert_eq!((counts(&report), &report["total_files"]), (json!({"SIGBUS": 1}), &json!(1)));
    terminate(&mut child);
    // The next run knows what was uploaded; a finished and a changed file are new.
    std::fs::rename(inbox.path().join("c.log.part"), inbox.path().join("c.log")).expect("renames");
    write("a.log", "E_FAIL\nE_FAIL\n");
    let mut child = start();
    let report = reports(&mut child).next().expect("a report").expect("JSON");
    assert_eq!((counts(&report), &report["total_files"]), (json!({"E_FAIL": 3}), &json!(2)));
    terminate(&mut child);
    assert_eq!(server.get("/batches").await["batches"].as_array().map(Vec::len), Some(3));
    server.stop();
}

/// Stops a process, which ends well.
fn terminate(child: &mut Child) {
    let killed = Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
    assert!(killed.success() && child.wait().expect("it ends").success());
}

//! Backups of a server that runs, and what becomes of them when they are restored, damaged, or of an earlier release.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use argus::metadata::{Location, Metadata};
use common::s3_server::S3Server;
use common::{Deadline, Server, argus, argus_with};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The exit code of a command with variables, and what it prints on both streams.
fn run(arguments: &[&str], variables: &[(&str, String)]) -> (Option<i32>, String) {
    let output = argus_with(arguments, variables, b"");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (output.status.code(), text)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn backup(data: &Path, to: &Path) -> u64 {
    let (code, printed) = run(&["backup", text(to), "--data", text(data)], &[]);
    assert_eq!(code, Some(0), "{printed}");
    let epoch = printed.strip_prefix("epoch ").and_then(|rest| rest.split(':').next());
    epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or_else(|| panic!("{printed}"))
}

fn restore(from: &Path, data: &Path) -> (Option<i32>, String) {
    run(&["restore", text(from), "--data", text(data)], &[])
}

/// All counts, at an epoch or now.
async fn counts(server: &Server, as_of: Option<u64>) -> Value {
    let sql = "SELECT b.vin, c.file, c.code, sum(c.count) FROM error_counts c JOIN batches b ON b.batch_id = c.batch_id \
               GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT 10000";
    let mut body = json!({"sql": sql});
    if let Some(epoch) = as_of {
        body["as_of"] = epoch.into();
        body["min_epoch"] = epoch.into();
    }
    let answer = server
        .send_with(Method::POST, "/query", &[("Content-Type", "application/json")], body.to_string().into())
        .await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.json::<Value>().await.expect("JSON")["rows"].take()
}

fn log(number: usize) -> String {
    (0..=number % 7).map(|line| format!("2026-03-01T10:00:{line:02}Z ERROR ota: E_FAIL_{} x\n", number % 13)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_load_is_the_state_of_its_epoch() {
    let (data, place) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let server = Arc::new(Server::start_maintained(data.path(), "100ms", &[]));
    let vins: Vec<String> = (0..6).map(|vehicle| format!("WVWZZZ1JZXW00000{vehicle}")).collect();
    let mut batches = Vec::new();
    for vin in &vins {
        batches.push(server.new_batch_of(json!({"vehicle_id": "v", "vin": vin})).await);
    }
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (server, done, batches) = (Arc::clone(&server), Arc::clone(&done), batches.clone());
        tokio::spawn(async move {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                let batch = &batches[number % batches.len()];
                // Replacements make the server delete files while they are copied.
                match number % 5 {
                    0 => {
                        let path = format!("/batches/{batch}/files/appended.log/lines");
                        assert!(server.send(Method::POST, &path, log(number)).await.status().is_success());
                    }
                    _ => drop(server.put(batch, &format!("{}.log", number % 4), log(number)).await),
                }
                number += 1;
            }
            number
        })
    };
    let mut backups = Vec::new();
    for number in 0..4 {
        // Each backup has more of the lake.
        let accepted = server.metric("argus_epoch").await;
        let deadline = Deadline::new(format!("the commit of epoch {accepted}"));
        while server.metric("argus_committed_epoch").await < accepted {
            deadline.check();
        }
        let to = place.path().join(number.to_string());
        backups.push((backup(data.path(), &to), to));
    }
    done.store(true, Ordering::Relaxed);
    assert!(writer.await.expect("it runs") > 20);
    assert!(backups.windows(2).all(|pair| pair[0].0 < pair[1].0), "{backups:?}");
    for (epoch, from) in &backups {
        let restored = TempDir::new().expect("a folder");
        let (code, printed) = restore(from, restored.path());
        assert_eq!(code, Some(0), "{printed}");
        let other = Server::start(restored.path());
        assert_eq!(counts(&other, None).await, counts(&server, Some(*epoch)).await, "epoch {epoch}");
        // It goes on, and its files are there.
        for batch in &batches {
            for file in other.get(&format!("/batches/{batch}/files")).await["files"].as_array().expect("files") {
                let path = format!("/batches/{batch}/files/{}", file["name"].as_str().expect("a name"));
                let answer = other.send(Method::GET, &path, "").await;
                assert_eq!(answer.status(), StatusCode::OK, "{path}");
                let length = answer.bytes().await.expect("the text").len();
                assert_eq!(json!(length), file["bytes"], "{path}");
            }
        }
        let receipt = other.put(&batches[0], "later.log", "E_LATER\n").await;
        assert!(receipt["epoch"].as_u64().is_some_and(|after| after > *epoch));
        let counted = other.get(&format!("/batches/{}/report?min_epoch={}", batches[0], receipt["epoch"])).await;
        assert!(counted.to_string().contains("E_LATER"));
        other.stop();
        assert_eq!(argus(&["audit", "verify", "--data", text(restored.path())], b"").status.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_in_the_way_is_refused() {
    let (data, place) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let server = Server::start(data.path());
    let batch = server.new_batch().await;
    server.put(&batch, "a.log", log(3)).await;
    server.committed().await;
    let whole = place.path().join("whole");
    backup(data.path(), &whole);
    // Not over another backup, and not of nothing.
    let (code, printed) = run(&["backup", text(&whole), "--data", text(data.path())], &[]);
    assert!(code == Some(1) && printed.contains("is not empty") && printed.lines().count() == 1, "{printed}");
    let (code, printed) =
        run(&["backup", text(&place.path().join("x")), "--data", text(&place.path().join("no"))], &[]);
    assert!(code == Some(1) && printed.contains("there is no data"), "{printed}");
    let (code, printed) = run(&["backup", text(&data.path().join("backup-1")), "--data", text(data.path())], &[]);
    assert!(code == Some(1) && printed.contains("is in the data directory"), "{printed}");
    let (code, printed) = restore(&whole, data.path());
    assert!(code == Some(1) && printed.contains("another argus"), "{printed}");
    server.stop();
    let (code, printed) = restore(&whole, data.path());
    assert!(code == Some(1) && printed.contains("has data"), "{printed}");
    let (code, printed) = restore(&place.path().join("nothing"), &place.path().join("y"));
    assert!(code == Some(1) && printed.contains("is no backup"), "{printed}");

    let files: Vec<_> = common::files(&whole).into_iter().filter(|file| file.is_file()).collect();
    assert!(files.len() > 8, "{files:?}");
    let list = whole.join("backup.jsonl");
    for file in &files {
        let bytes = fs::read(file).expect("reads");
        let mut damaged = bytes.clone();
        match damaged.len() {
            0 => damaged.push(1),
            length => damaged[length / 2] ^= 4,
        }
        for wrong in [Some(&damaged[..]), Some(&bytes[..bytes.len() / 2]), None] {
            match wrong {
                Some(wrong) => fs::write(file, wrong).expect("writes"),
                None => fs::remove_file(file).expect("deletes"),
            }
            let target = TempDir::new().expect("a folder");
            let (code, printed) = restore(&whole, target.path());
            // A digit of the list's time may change without harm; its files are all verified.
            let is_harmless = *file == list && wrong == Some(&damaged[..]);
            if bytes.as_slice() != wrong.unwrap_or_default() && !is_harmless {
                assert_eq!(code, Some(1), "{}: {printed}", file.display());
                assert_eq!(printed.lines().count(), 1, "{printed}");
                // A server does not start with half of the data.
                let arguments = ["serve", "--listen", "127.0.0.1:0", "--data", text(target.path())];
                if *file != list {
                    let (code, printed) = run(&arguments, &[]);
                    assert!(code == Some(1) && printed.contains("was interrupted"), "{}: {printed}", file.display());
                }
            }
            fs::write(file, &bytes).expect("writes");
        }
    }
    let target = TempDir::new().expect("a folder");
    assert_eq!(restore(&whole, target.path()).0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_to_a_bucket_and_comes_back() {
    let s3 = S3Server::start();
    let variables = s3.variables();
    let data = TempDir::new().expect("a folder");
    let server = Server::start(data.path());
    let batch = server.new_batch().await;
    server.put(&batch, "a.log", log(5)).await;
    server.committed().await;
    let expected = counts(&server, None).await;
    let url = "s3://argus/backups/one";
    let (code, printed) = run(&["backup", url, "--data", text(data.path())], &variables);
    assert_eq!(code, Some(0), "{printed}");
    server.stop();
    let restored = TempDir::new().expect("a folder");
    let (code, printed) = run(&["restore", url, "--data", text(restored.path())], &variables);
    assert_eq!(code, Some(0), "{printed}");
    let server = Server::start(restored.path());
    assert_eq!(counts(&server, None).await, expected);
    server.stop();
    // It is another deployment, so a shared cache does not mix the two.
    let mut ids = Vec::new();
    for data in [data.path(), restored.path()] {
        let (metadata, _writer) = Metadata::open(&Location::File(data.join("argus.db"))).await.expect("opens");
        ids.push(metadata.deployment().await.expect("an id").id);
        metadata.close().await;
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_of_every_release_opens_and_answers_as_then() {
    let releases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/releases");
    let mut opened = 0;
    for release in common::files(&releases).into_iter().filter(|file| file.extension().is_some_and(|end| end == "zst"))
    {
        let folder = TempDir::new().expect("a folder");
        let bytes = zstd::decode_all(&fs::read(&release).expect("reads")[..]).expect("zstd");
        tar::Archive::new(&bytes[..]).unpack(folder.path()).expect("a tar archive");
        let data = folder.path().join("data");
        let (code, printed) = restore(&folder.path().join("backup"), &data);
        assert_eq!(code, Some(0), "{}: {printed}", release.display());
        let server = Server::start(&data);
        for line in fs::read_to_string(folder.path().join("answers.jsonl")).expect("answers").lines() {
            let then: Value = serde_json::from_str(line).expect("JSON");
            let sql = then["sql"].as_str().expect("a statement");
            assert_eq!(server.sql(sql).await, then["answer"]["rows"], "{}: {sql}", release.display());
        }
        server.stop();
        opened += 1;
    }
    assert!(opened > 0);
}

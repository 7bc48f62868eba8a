//! `kill -9` at every named crash point, and a failing disk: acknowledged data is stored exactly once, and no response
//! is false.
//!
//! `ARGUS_CRASHES=100 cargo test --test crash` crashes 100 times at each point.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use argus_sinks::crash;
use common::{Server, argus};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// What the server acknowledged to the client.
#[derive(Default)]
struct Acknowledged {
    batches: BTreeMap<String, Batch>,
}

#[derive(Default, Clone)]
struct Batch {
    /// The lines after the last successful response.
    sure: u64,
    /// The lines if a request without a response took effect.
    maybe: Option<u64>,
    deleted: bool,
}

/// Runs a round of requests; `None` when the server dies. Each batch has one file of `E_FAIL` lines.
async fn work(server: &Server, acknowledged: &mut Acknowledged, seed: u64) -> Option<()> {
    for number in 0..6 {
        let described = json!({"vehicle_id": "v", "vin": common::VIN, "platform": "p"}).to_string();
        let answer = server.try_send(Method::POST, "/batches", &[], described).await?;
        let batch: Value = answer.json().await.ok()?;
        let id = batch["id"].as_str()?.to_owned();
        acknowledged.batches.insert(id.clone(), Batch::default());
        for step in 0..4 {
            let (now, wanted, request) = {
                let sure = acknowledged.batches[&id].sure;
                match (seed + number + step) % 4 {
                    0 => (sure, 3 + step, (Method::PUT, format!("/batches/{id}/files/a.log"), 3 + step)),
                    3 if sure > 0 => (sure, 0, (Method::DELETE, format!("/batches/{id}/files/a.log"), 0)),
                    _ => (sure, sure + 2, (Method::POST, format!("/batches/{id}/files/a.log/lines"), 2)),
                }
            };
            let (method, path, lines) = request;
            acknowledged.batches.get_mut(&id)?.maybe = Some(wanted);
            let body = "E_FAIL\n".repeat(lines as usize);
            let offset = (now * 7).to_string();
            let headers: &[(&str, &str)] = if path.ends_with("/lines") { &[("Upload-Offset", &offset)] } else { &[] };
            let answer = server.try_send(method, &path, headers, body).await?;
            assert!(answer.status().is_success(), "{path}: {}", answer.status());
            // The whole response, not only its status.
            answer.bytes().await.ok()?;
            *acknowledged.batches.get_mut(&id)? = Batch { sure: wanted, ..Batch::default() };
        }
        server.try_send(Method::POST, &format!("/batches/{id}/complete"), &[], String::new()).await?;
        if number % 3 == 2 {
            acknowledged.batches.get_mut(&id)?.deleted = true;
            server.try_send(Method::DELETE, &format!("/batches/{id}"), &[], String::new()).await?;
            acknowledged.batches.remove(&id);
        }
    }
    Some(())
}

/// Every view agrees with what was acknowledged, and with the others.
async fn check(server: &Server, acknowledged: &mut Acknowledged, point: &str) {
    let mut sum = 0;
    for (id, batch) in &mut acknowledged.batches {
        let answer = server.send(Method::GET, &format!("/batches/{id}/report"), "").await;
        if batch.deleted && answer.status() == StatusCode::NOT_FOUND {
            continue;
        }
        assert_eq!(answer.status(), StatusCode::OK, "{id} was acknowledged");
        let report: Value = answer.json().await.expect("JSON");
        let lines = report["total_errors"].as_u64().expect("a number");
        assert!(lines == batch.sure || batch.maybe == Some(lines), "{id}: {lines} of {:?}", (batch.sure, batch.maybe));
        assert_eq!(report["total_lines"], report["total_errors"]);
        *batch = Batch { sure: lines, maybe: None, deleted: batch.deleted };
        sum += lines;
    }
    for sql in [
        "SELECT coalesce(sum(count), 0) FROM error_counts",
        "SELECT count(*) FROM errors",
        "SELECT coalesce(sum(lines), 0) FROM files",
        "SELECT coalesce(sum(count), 0) FROM fleet_codes",
    ] {
        // A batch whose creation was not acknowledged has no file.
        assert_eq!(server.sql(sql).await, json!([[sum]]), "{sql} after {point}");
    }
    let fleet = server.get("/fleet/codes?group_by=platform").await;
    assert_eq!(fleet["codes"][0]["count"].as_u64().unwrap_or(0), sum);
}

#[tokio::test]
async fn acknowledged_data_survives_a_crash_at_every_point() {
    let crashes: u64 = std::env::var("ARGUS_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for point in crash::POINTS {
        let data = tempfile::tempdir().expect("a temporary folder");
        let mut acknowledged = Acknowledged::default();
        let mut crashed = 0;
        for round in 0..crashes {
            let at = format!("{point}:{}", 1 + round % 13 * 3);
            if ["compacting", "vacuuming"].contains(&point) {
                let server = Server::start(data.path());
                work(&server, &mut acknowledged, round).await.expect("it does not crash");
                server.stop();
                let at = format!("{point}:{}", 1 + round % 5);
                let mut maintain = Command::new(common::ARGUS);
                maintain.args(["maintain", "--retention", "0s", "--data"]).arg(data.path());
                crashed += u64::from(!maintain.env("ARGUS_CRASH_AT", at).status().expect("argus starts").success());
            } else {
                let variables = [("ARGUS_MAINTAIN_EVERY_MS", "40"), ("ARGUS_CRASH_AT", &*at)];
                // It may crash before it listens, while it recovers from the crash before.
                match Server::try_start(data.path(), &["--retention", "0s"], &variables) {
                    Some(server) => {
                        let worked = work(&server, &mut acknowledged, round).await.is_some();
                        // It may crash at the last commit.
                        crashed += u64::from(!(worked && server.ends_well()));
                    }
                    None => crashed += 1,
                }
            }
            let server = Server::start(data.path());
            check(&server, &mut acknowledged, point).await;
            server.kill();
        }
        assert!(crashed > 0, "no crash at {point:?}");
        let output = argus(&["maintain", "--data", data.path().to_str().expect("text"), "--retention", "0s"], b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        check(&Server::start(data.path()), &mut acknowledged, point).await;
    }
}

/// Builds the library that makes writes fail, once.
fn failing_disk() -> std::path::PathBuf {
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("failing_disk-{}.so", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failing_disk.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.expect("a C compiler runs").success());
    library
}

#[tokio::test]
async fn a_failing_disk_causes_errors_and_no_false_response() {
    let library = failing_disk();
    for mode in ["enospc", "short", "fsync"] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, switch) = (folder.path().join("data"), folder.path().join("mode"));
        std::fs::create_dir(&data).expect("makes a folder");
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let variables =
            [("LD_PRELOAD", text(&library)), ("FAILING_DISK_DIR", text(&data)), ("FAILING_DISK_MODE", text(&switch))];
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let server = Server::try_start(&data, &[], &variables).expect("it starts on a good disk");
        let id = server.new_batch().await;
        let mut sure = 0;
        let lines = format!("/batches/{id}/files/stream.log/lines");
        let mut refused = 0;
        for round in 0..12 {
            // Good, then bad, then good again.
            match round {
                4 => std::fs::write(&switch, mode).expect("writes"),
                8 => std::fs::remove_file(&switch).expect("removes"),
                _ => {}
            }
            let path = format!("/batches/{id}/files/{round}.log");
            for (method, path) in [(Method::PUT, &path), (Method::POST, &lines)] {
                match server.try_send(method, path, &[], "E_FAIL\n".to_owned()).await {
                    Some(answer) if answer.status().is_success() => sure += 1,
                    Some(answer) => {
                        assert!(answer.status().is_server_error(), "{mode}: {}", answer.status());
                        refused += 1;
                    }
                    // The server may exit if it cannot know the outcome.
                    None => refused += 1,
                }
            }
        }
        assert!(refused > 0, "{mode}: nothing failed");
        drop(server);
        let server = Server::start(&data);
        let report = server.get(&format!("/batches/{id}/report")).await;
        let found = report["total_errors"].as_u64().expect("a number");
        // A refused request may be durable nevertheless; an acknowledged one must be.
        assert!((sure..=sure + refused).contains(&found), "{mode}: {found} of {sure} and {refused}");
        assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[found]]));
    }
    std::fs::remove_file(library).expect("removes");
}

/// A restart loads more batches than were loaded before. What was read together with them must not stay in the cells.
#[tokio::test]
async fn a_deleted_batch_that_a_restart_loaded_leaves_the_fleet() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let (early, late) = (server.new_batch().await, server.new_batch().await);
    server.put(&early, "a.log", "2026-03-01T08:00:00Z E_FAIL\n").await;
    server.put(&late, "a.log", "2026-03-01T09:00:00Z E_FAIL\n").await;
    server.complete(&late).await;
    server.stop();
    // The batch is loaded, and the server crashes before it commits any of it to the lake.
    let server = Server::try_start(data.path(), &[], &[("ARGUS_CRASH_AT", "delta committed:1")]).expect("it listens");
    let opened = server.send(Method::POST, &format!("/batches/{late}/reopen"), "").await;
    assert_eq!(opened.status(), StatusCode::OK);
    assert!(!server.ends_well(), "it crashes");
    let server = Server::start(data.path());
    let deleted = server.send(Method::DELETE, &format!("/batches/{early}"), "").await;
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    let sql = "SELECT sum(count), min(first_seen), max(last_seen) FROM fleet_codes";
    let only_late = json!([[1, "2026-03-01T09:00:00Z", "2026-03-01T09:00:00Z"]]);
    assert_eq!(server.sql(sql).await, only_late);
    // Loading it again does not retract rows that were never inserted.
    server.complete(&late).await;
    server.send(Method::POST, &format!("/batches/{late}/reopen"), "").await;
    server.put(&late, "b.log", "2026-03-01T09:00:00Z E_FAIL\n").await;
    let report = server.complete(&late).await;
    assert_eq!(report["total_errors"], 2);
    server.stop();
    let server = Server::start(data.path());
    let both = json!([[2, "2026-03-01T09:00:00Z", "2026-03-01T09:00:00Z"]]);
    assert_eq!(server.sql(sql).await, both);
    assert_eq!(server.get("/fleet/codes?group_by=platform").await["codes"][0]["count"], 2);
}

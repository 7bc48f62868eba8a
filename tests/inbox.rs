//! Objects that appear in a folder or in a bucket become batches, each once.

mod common;

use std::path::Path as FsPath;
use std::process::Command;

use common::s3_server::S3Server;
use common::{Deadline, Server, VIN, argus, gzip};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore, PutOptions};
use serde_json::{Value, json};

const VIN_2: &str = "WVWZZZ1JZXW000002";

/// Waits until this many objects are done.
async fn done(server: &Server, outcome: &str, objects: f64) {
    let deadline = Deadline::new(format!("{objects} objects {outcome}"));
    while server.metric(&format!("argus_inbox_objects_total{{outcome=\"{outcome}\"}}")).await < objects {
        deadline.check();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The batches, each with its object's path, its vehicle, its status and its occurrences.
async fn batches(server: &Server) -> Vec<Value> {
    let rows = server
        .sql(
            "SELECT labels['inbox'], vin, status, (SELECT coalesce(sum(errors), 0) FROM files f WHERE f.batch_id = b.batch_id) \
             FROM batches b ORDER BY 1, batch_id",
        )
        .await;
    rows.as_array().expect("rows").clone()
}

fn write(path: &FsPath, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("creates");
    std::fs::write(path, bytes).expect("writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_folder_become_batches_once() {
    let (data, inbox) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let root = inbox.path().canonicalize().expect("it is there");
    write(&root.join(VIN).join("a.log"), b"E_FAIL\nE_FAIL\n");
    write(&root.join("lost.log"), b"E_FAIL\n");
    let packed = root.join(format!("vin={VIN_2}")).join("logs.tgz");
    let logs = tempfile::tempdir().expect("a folder");
    write(&logs.path().join("one.log"), b"E_ABORT\n");
    write(&logs.path().join("two.log"), &gzip(b"E_ABORT\nE_FAIL\n"));
    std::fs::create_dir_all(packed.parent().expect("a folder")).expect("creates");
    let tar = Command::new("tar").arg("-czf").arg(&packed).arg("-C").arg(logs.path()).arg(".").status();
    assert!(tar.expect("tar runs").success());
    write(&root.join(VIN).join("bad.tgz"), b"this is no archive");
    let flags = ["--inbox", root.to_str().expect("text")];
    let server = Server::start_with(data.path(), &flags);
    done(&server, "counted", 2.0).await;
    done(&server, "rejected", 2.0).await;
    let path = |below: &str| format!("{}/{below}", root.to_str().expect("text").trim_start_matches('/'));
    let first = json!([path(&format!("{VIN}/a.log")), VIN, "completed", 2]);
    let second = json!([path(&format!("vin={VIN_2}/logs.tgz")), VIN_2, "completed", 3]);
    assert_eq!(batches(&server).await, [first.clone(), second.clone()]);

    // After a crash nothing is counted again; other content is another batch.
    server.kill();
    let server = Server::start_with(data.path(), &flags);
    write(&root.join(VIN).join("a.log"), b"E_FAIL\n");
    write(&root.join(VIN).join("b.log"), b"E_ABORT\n");
    done(&server, "counted", 2.0).await;
    let again = json!([path(&format!("{VIN}/a.log")), VIN, "completed", 1]);
    let third = json!([path(&format!("{VIN}/b.log")), VIN, "completed", 1]);
    assert_eq!(batches(&server).await, [first, again, third, second]);
    assert_eq!(
        server.metric("argus_inbox_objects_total{outcome=\"rejected\"}").await,
        0.0,
        "a rejection is remembered"
    );
    server.stop();
    let missing = root.join("missing");
    let refused = argus(
        &[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data",
            data.path().to_str().expect("text"),
            "--inbox",
            missing.to_str().expect("text"),
        ],
        b"",
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot open the inbox"));
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_a_bucket_become_batches_once_through_a_crash() {
    const OBJECTS: usize = 40;
    let data = tempfile::tempdir().expect("a folder");
    let s3 = tokio::task::spawn_blocking(S3Server::start).await.expect("no panic");
    let variables = s3.variables();
    let bucket = AmazonS3Builder::new()
        .with_bucket_name("argus")
        .with_endpoint(&variables[0].1)
        .with_region(&variables[1].1)
        .with_access_key_id(&variables[2].1)
        .with_secret_access_key(&variables[3].1)
        .with_allow_http(true)
        .build()
        .expect("a bucket");
    let attributes: Attributes =
        [(Attribute::Metadata("vin".into()), VIN), (Attribute::Metadata("firmware".into()), "7.2.1")]
            .into_iter()
            .collect();
    for object in 0..OBJECTS {
        let path = Path::from(format!("in/box/{object:03}.log"));
        let text = "ok\nE_FAIL\n".repeat(object + 1);
        let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
        bucket.put_opts(&path, text.into(), options).await.expect("it is stored");
    }
    // Not in the inbox.
    bucket.put_opts(&Path::from("in/other.log"), "E_FAIL\n".into(), PutOptions::default()).await.expect("it is stored");
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let flags = ["--inbox", "s3://argus/in/box"];
    let server = Server::try_start(data.path(), &flags, &variables).expect("argus listens");
    let deadline = Deadline::new("the first batches");
    while server.get("/batches?limit=1000").await["batches"].as_array().map_or(0, Vec::len) < 7 {
        deadline.check();
    }
    server.kill();
    let server = Server::try_start(data.path(), &flags, &variables).expect("argus listens");
    let deadline = Deadline::new("all batches");
    loop {
        deadline.check();
        let all = batches(&server).await;
        if all.len() == OBJECTS && all.iter().all(|batch| batch[2] == "completed") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let expected: Vec<Value> =
        (0..OBJECTS).map(|object| json!([format!("in/box/{object:03}.log"), VIN, "completed", object + 1])).collect();
    assert_eq!(batches(&server).await, expected);
    assert_eq!(server.sql("SELECT DISTINCT firmware FROM batches").await, json!([["7.2.1"]]));
    server.stop();
}

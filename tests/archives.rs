//! Archives, made by tar(1) and Python's zipfile, as the files of a batch.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Server, argus, counts};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().expect("it runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder with logs in folders, one of them compressed.
fn logs() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    std::fs::create_dir_all(folder.path().join("logs/ecu")).expect("writes");
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("writes");
    write("logs/ota.log", "2026-03-01T10:00:00Z ERROR ota: E_FAIL\n".repeat(1000));
    write("logs/ecu/bms.log", "E_ABORT\nfine\n".repeat(7));
    write("logs/ecu/last.log", "E_ABORT".to_owned());
    run(folder.path(), "gzip", &["logs/ecu/last.log"]);
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_archive_is_the_files_in_it() {
    let (folder, data) = (logs(), TempDir::new().expect("a folder"));
    let server = Server::start(data.path());
    let path = |name: &str| folder.path().join(name);
    run(folder.path(), "tar", &["-cf", "a.tar", "logs"]);
    for (program, arguments) in [
        ("gzip", &["-k", "a.tar"][..]),
        ("zstd", &["-q", "a.tar"]),
        ("xz", &["-k", "a.tar"]),
        ("bzip2", &["-k", "a.tar"]),
    ] {
        run(folder.path(), program, arguments);
    }
    run(folder.path(), "python3", &["-m", "zipfile", "-c", "a.zip", "logs"]);
    for name in ["a.tar", "a.tar.gz", "a.tar.zst", "a.tar.xz", "a.tar.bz2", "a.zip"] {
        let id = server.new_batch().await;
        let body = std::fs::read(path(name)).expect("reads");
        let answer = server.send(Method::POST, &format!("/batches/{id}/files"), body.clone()).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{name}");
        let mut names: Vec<String> = answer
            .json::<Vec<Value>>()
            .await
            .expect("JSON")
            .iter()
            .map(|file| file["name"].as_str().expect("text").to_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["logs_ecu_bms.log", "logs_ecu_last.log.gz", "logs_ota.log"], "{name}");
        // Again: the same content, which is not counted twice.
        let again = server.send(Method::POST, &format!("/batches/{id}/files"), body).await;
        assert_eq!(again.status(), StatusCode::CREATED, "{name}");
        let completed = server.complete(&id).await;
        let report = server.final_report(&id, completed["epoch"].as_u64().expect("an epoch")).await;
        assert_eq!(counts(&report), json!({"E_FAIL": 1000, "E_ABORT": 8}), "{name}");
    }
    // From the command line, which sees what it is.
    let (root, archive) = (server.root_url("/"), path("a.tar.gz"));
    let uploaded = tokio::task::spawn_blocking(move || {
        let arguments = ["upload", "--server", &root, "--vehicle", "v", "--vin", common::VIN, "--format", "json"];
        argus(&[&arguments[..], &[archive.to_str().expect("text")]].concat(), b"")
    });
    let uploaded = uploaded.await.expect("no panic");
    assert!(uploaded.status.success(), "{}", String::from_utf8_lossy(&uploaded.stderr));
    let report: Value = serde_json::from_slice(&uploaded.stdout).expect("JSON");
    assert_eq!((counts(&report), &report["total_files"]), (json!({"E_FAIL": 1000, "E_ABORT": 8}), &json!(3)));
    server.stop();
}

/// Writes archives that no one should send: their names and contents are in the script.
const HOSTILE: &str = r"
import io, tarfile, zipfile
def tar(name, *entries):
    with tarfile.open(name, 'w') as archive:
        for path, kind, data in entries:
            entry = tarfile.TarInfo(path)
            entry.type, entry.size, entry.linkname = kind, len(data), '/etc/passwd'
            archive.addfile(entry, io.BytesIO(data))
good = ('good.log', tarfile.REGTYPE, b'E_FAIL\n')
tar('parent.tar', good, ('../../etc/cron.d/x', tarfile.REGTYPE, b'E_FAIL\n'))
tar('absolute.tar', good, ('/etc/passwd', tarfile.REGTYPE, b'E_FAIL\n'))
tar('symlink.tar', good, ('link.log', tarfile.SYMTYPE, b''))
tar('hardlink.tar', good, ('link.log', tarfile.LNKTYPE, b''))
tar('device.tar', good, ('null', tarfile.CHRTYPE, b''))
tar('nested.tar', good, ('inner.zip', tarfile.REGTYPE, b'PK\x03\x04' + b'x' * 600))
tar('twice.tar', good, ('./good.log', tarfile.REGTYPE, b'E_ABORT\n'))
tar('empty.tar')
tar('many.tar', *[(f'{n}.log', tarfile.REGTYPE, b'') for n in range(1001)])
with zipfile.ZipFile('entries.zip', 'w') as archive:
    for n in range(100000): archive.writestr(f'd{n}/', b'')
with zipfile.ZipFile('bomb.zip', 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for n in range(8):
        with archive.open(f'{n}.log', 'w') as out:
            for _ in range(128): out.write(b'E' * (1 << 20))
data = io.BytesIO()
with zipfile.ZipFile(data, 'w') as archive: archive.writestr('a.log', b'E_FAIL\n')
data = bytearray(data.getvalue())
data[6] |= 1; data[data.index(b'PK\x01\x02') + 8] |= 1
open('encrypted.zip', 'wb').write(data)
with tarfile.open('cut.tar.gz', 'w:gz') as archive:
    entry = tarfile.TarInfo('a.log'); entry.size = 100000
    archive.addfile(entry, io.BytesIO(b'E_FAIL\n' * 20000))
whole = open('cut.tar.gz', 'rb').read()
open('cut.tar.gz', 'wb').write(whole[:len(whole) // 2])
open('text.log', 'w').write('E_FAIL\n' * 100)
";

#[tokio::test]
async fn unsafe_archives_are_refused_whole() {
    let (folder, data) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let server = Server::start(data.path());
    run(folder.path(), "python3", &["-c", HOSTILE]);
    let id = server.new_batch().await;
    for (name, status, words) in [
        ("parent.tar", 422, "leaves its folder"),
        ("absolute.tar", 422, "leaves its folder"),
        ("symlink.tar", 422, "a link"),
        ("hardlink.tar", 422, "a link"),
        ("device.tar", 422, "a device"),
        ("nested.tar", 415, "zip archive"),
        ("twice.tar", 422, "two files named"),
        ("empty.tar", 422, "has no files"),
        ("many.tar", 413, "more than 1000 files"),
        ("entries.zip", 413, "10000 entries"),
        ("bomb.zip", 413, "256 times"),
        ("encrypted.zip", 422, "is encrypted"),
        ("cut.tar.gz", 422, "truncated or corrupt"),
        ("text.log", 400, "nor a tar archive"),
    ] {
        let body = std::fs::read(folder.path().join(name)).expect("reads");
        let answer = server.send(Method::POST, &format!("/batches/{id}/files"), body).await;
        assert_eq!(answer.status().as_u16(), status, "{name}");
        let problem: Value = answer.json().await.expect("JSON");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(words)), "{name}: {problem}");
    }
    let answer = server.send(Method::POST, "/batches/01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e/files", "x").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    // Nothing of them is there, and what was stored of them goes.
    assert_eq!(server.get(&format!("/batches/{id}/files")).await["files"], json!([]));
    let completed = server.complete(&id).await;
    let report = server.final_report(&id, completed["epoch"].as_u64().expect("an epoch")).await;
    assert_eq!((&report["total_files"], &report["total_errors"]), (&json!(0), &json!(0)));
    server.stop();
}

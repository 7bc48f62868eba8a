//! The commands, as someone at a terminal uses them.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::proxy::{Fault, Proxy};
use common::{Deadline, RealLogs, Server, VIN, analyze, argus, counts, files, gzip};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

#[test]
fn real_logs_have_the_same_counts_with_any_number_of_workers_and_any_block_size() {
    let Some(logs) = RealLogs::find() else { return };
    for (workers, block_bytes) in [("1", "64"), ("4", "4096"), ("1", "1048576"), ("4", "262144")] {
        let report = analyze(&["--workers", workers, "--block-bytes", block_bytes, text(logs.folder())], b"");
        let file = |name: &str| {
            let full = format!("{}/{name}", text(logs.folder()));
            let files = report["files"].as_array().expect("files");
            files.iter().find(|file| file["name"] == full.as_str()).expect("the file is in the report").clone()
        };
        for (name, _, golden) in logs.each() {
            for key in ["bytes", "lines", "codes"] {
                assert_eq!(file(name)[key], golden[key], "{key} of {name}");
            }
        }
    }
}

#[test]
fn files_folders_and_standard_input_are_named_as_they_were_given() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sub = folder.path().join("sub/deeper");
    std::fs::create_dir_all(&sub).expect("makes folders");
    std::fs::write(folder.path().join("sub/a.log"), "E_FAIL\n").expect("writes");
    std::fs::write(sub.join("b.log.gz"), gzip(b"E_ABORT\nE_FAIL\n")).expect("writes");
    std::fs::write(folder.path().join("c.log"), "\u{feff}E_TIMEOUT\r\n").expect("writes");
    let (dir, file) = (folder.path().join("sub/"), folder.path().join("c.log"));
    let report = analyze(&[text(&dir), text(&file), "-"], b"E_FAIL");
    let names: Vec<String> = report["files"]
        .as_array()
        .expect("files")
        .iter()
        .map(|f| f["name"].as_str().expect("text").to_owned())
        .collect();
    let base = text(folder.path());
    let mut expected = vec![
        "-".to_owned(),
        format!("{base}/c.log"),
        format!("{base}/sub/a.log"),
        format!("{base}/sub/deeper/b.log.gz"),
    ];
    expected.sort();
    assert_eq!(names, expected);
    assert_eq!(counts(&report), json!({"E_FAIL": 3, "E_ABORT": 1, "E_TIMEOUT": 1}));
    assert_eq!((&report["total_lines"], &report["final"]), (&json!(5), &json!(true)));
    assert!(report.get("batch_id").is_none() && report.get("status").is_none() && report.get("epoch").is_none());
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_are_counted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("good.log"), "E_FAIL\n").expect("writes");
    let mut damaged = gzip(&b"E_ABORT\n".repeat(1000));
    damaged.truncate(damaged.len() - 4);
    std::fs::write(folder.path().join("bad.gz"), damaged).expect("writes");
    let missing = folder.path().join("missing.log");
    let output = argus(&["analyze", "--format", "json", text(folder.path()), text(&missing)], b"");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report all the same");
    assert_eq!(counts(&report), json!({"E_FAIL": 1}));
    assert_eq!(report["total_files"], json!(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines.len(), 2, "{errors}");
    assert!(lines.iter().any(|line| line.contains("bad.gz: ")), "{errors}");
    assert!(lines.iter().any(|line| line.ends_with("missing.log: No such file or directory")), "{errors}");
}

#[test]
fn compressed_files_are_read_and_an_archive_fails_with_advice() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name);
    for (tool, end) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz"), ("zstd", "zst"), ("lz4", "lz4")] {
        let log = file(&format!("{tool}.log"));
        std::fs::write(&log, "E_FAIL\n".repeat(1000)).expect("writes");
        let packed = std::process::Command::new(tool).args(["-c", text(&log)]).output();
        let packed = packed.unwrap_or_else(|error| panic!("{tool} is installed by check.sh: {error}"));
        let file = file(&format!("{tool}.log.{end}"));
        std::fs::write(&file, packed.stdout).expect("writes");
        assert_eq!(counts(&analyze(&[text(&file)], b"")), json!({"E_FAIL": 1000}), "{tool}");
    }
    std::fs::write(file("logs.zip"), b"PK\x03\x04E_FAIL\n").expect("writes");
    let output = argus(&["analyze", "--format", "json", text(&file("gzip.log")), text(&file("logs.zip"))], b"");
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report all the same");
    assert_eq!((counts(&report), &report["total_files"]), (json!({"E_FAIL": 1000}), &json!(1)));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.ends_with("logs.zip: this is a zip archive; unpack it and upload each file by itself\n"),
        "{errors}"
    );
}

#[test]
fn binary_content_is_reported() {
    let input = b"\x7fELF\0\0E_FAIL\n";
    let report = analyze(&["-"], input);
    assert_eq!((counts(&report), &report["files"][0]["binary"]), (json!({"E_FAIL": 1}), &json!(true)));
    let table = argus(&["analyze", "--format", "table", "-"], input);
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.ends_with("\n- is binary: it contains bytes that are not text\n"), "{table}");
    assert_eq!(analyze(&["-"], b"E_FAIL\n")["files"][0].get("binary"), None);
}

#[test]
fn a_report_is_a_table_json_or_csv() {
    let input = b"E_FAIL\nE_FAIL, and SIGSEGV\n";
    let table = argus(&["analyze", "--format", "table", "-"], input);
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("        2  error     E_FAIL   -:1  »E_FAIL«\n"), "{table}");
    assert!(table.ends_with("2 codes, 3 occurrences, in 2 lines of 2 of 1 file (27 bytes)\n"), "{table}");
    let csv = argus(&["analyze", "--format", "csv", "-"], input);
    let csv = String::from_utf8(csv.stdout).expect("text");
    assert_eq!(csv, "file,code,count,rule,severity\n-,E_FAIL,2,err_symbol,error\n-,SIGSEGV,1,signal,error\n");
    let empty = analyze(&["-"], b"");
    assert_eq!((&empty["total_lines"], &empty["files"][0]["lines"]), (&json!(0), &json!(0)));
}

#[test]
fn rules_of_a_file_replace_the_built_in_ones_or_come_before_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rules = folder.path().join("rules.toml");
    let rule = "[[rule]]\nname = \"acme\"\nseverity = \"critical\"\nform = \"ACME-{unit}-{code}\"\n\
                patterns = [{ pattern = 'unit (?P<unit>[A-Z]+) code (?P<code>[0-9]+)' }]\n";
    std::fs::write(&rules, rule).expect("writes");
    let input = b"unit BMS code 17: E_FAIL\n";
    assert_eq!(counts(&analyze(&["--rules", text(&rules), "-"], input)), json!({"ACME-BMS-17": 1}));
    let before = format!("+{}", text(&rules));
    assert_eq!(counts(&analyze(&["--rules", &before, "-"], input)), json!({"ACME-BMS-17": 1, "E_FAIL": 1}));
    std::fs::write(&rules, rule.replace("(?P<code>", "(?P<kode>")).expect("writes");
    let refused = argus(&["analyze", "--rules", text(&rules), "-"], input);
    assert_eq!(refused.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(
        errors.contains("rules.toml") && errors.contains("\"acme\"") && errors.contains("no group named \"code\""),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        &["analyze"][..],
        &["nonsense"],
        &["analyze", "--workers", "0", "-"],
        &["--config", "/nowhere", "serve"],
        &["serve", "--listen", "nonsense"],
        &["serve", "--pg", "localhost:postgres"],
        &["serve", "--maintain-every", "999ms"],
        &["serve", "--maintain-every", "often"],
    ] {
        assert_eq!(argus(arguments, b"").status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(argus(&["--help"], b"").status.code(), Some(0));
}

#[test]
fn help_is_wrapped_to_the_width_of_the_terminal() {
    for width in [72, 100] {
        let help = Command::new(common::ARGUS).args(["serve", "--help"]).env("COLUMNS", width.to_string()).output();
        let help = String::from_utf8(help.expect("argus starts").stdout).expect("text");
        let longest = help.lines().map(|line| line.chars().count()).max();
        assert!(longest.is_some_and(|longest| longest <= width), "{width}: {help}");
    }
}

#[test]
fn analyze_writes_its_tables_as_parquet_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (out, temporary) = (folder.path().join("tables"), folder.path().join("tmp"));
    std::fs::create_dir(&temporary).expect("makes a folder");
    let log = folder.path().join("a.log");
    std::fs::write(&log, "2026-03-01 10:15:30 ERROR ota: E_FAIL\n".repeat(50_000)).expect("writes");
    let output = std::process::Command::new(common::ARGUS)
        .args(["analyze", "--format", "json", "--parquet", text(&out), text(&log)])
        .env("TMPDIR", &temporary)
        .output()
        .expect("argus runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut rows = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(&out).expect("the folder is there") {
        let path = entry.expect("an entry").path();
        let file = std::fs::File::open(&path).expect("opens");
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).expect("is Parquet");
        let count = reader.metadata().file_metadata().num_rows();
        rows.insert(path.file_name().expect("a name").to_string_lossy().into_owned(), count);
    }
    let expected = [("error_counts.parquet", 1), ("errors.parquet", 50_000), ("files.parquet", 1)];
    assert_eq!(rows, expected.map(|(name, count)| (name.to_owned(), count)).into());
    assert_eq!(std::fs::read_dir(&temporary).expect("lists").count(), 0);
}

#[tokio::test]
async fn sql_reads_the_data_directory_of_a_stopped_server() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\nE_FAIL\nE_ABORT\n").await;
    server.put(&id, "a.log", "E_FAIL\nE_ABORT\n").await;
    server.complete(&id).await;
    server.stop();
    let ask = |format: &str, sql: &str| argus(&["sql", "--data", text(data.path()), "--format", format, sql], b"");
    let sql = "SELECT code, sum(count) AS n FROM error_counts GROUP BY code ORDER BY code";
    assert_eq!(String::from_utf8_lossy(&ask("csv", sql).stdout), "code,n\nE_ABORT,1\nE_FAIL,1\n");
    let json: Value = serde_json::from_slice(&ask("json", sql).stdout).expect("JSON");
    assert_eq!(json, json!([{"code": "E_ABORT", "n": 1}, {"code": "E_FAIL", "n": 1}]));
    assert!(ask("parquet", sql).stdout.starts_with(b"PAR1"));
    assert!(ask("arrow", sql).stdout.starts_with(&[0xff, 0xff, 0xff, 0xff]));
    assert!(String::from_utf8_lossy(&ask("table", sql).stdout).contains("| E_ABORT | 1 |"));
    let refused = ask("csv", "DROP TABLE files");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&refused.stderr).lines().count(), 1);
    let nowhere = argus(&["sql", "--data", "/nowhere", "SELECT 1"], b"");
    assert_eq!(
        String::from_utf8_lossy(&nowhere.stderr),
        "argus: /nowhere is not a data directory: it has no folder `lake`\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_uploaded_and_its_report_asked_for() {
    let (data, logs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    std::fs::create_dir(logs.path().join("sub")).expect("makes a folder");
    std::fs::write(logs.path().join("ota.log"), "ERROR ota: E_FAIL\n".repeat(1000)).expect("writes");
    std::fs::write(logs.path().join("sub/bms.log"), gzip(b"ERROR bms: DTC P0A1F-87 stored\n")).expect("writes");
    let server = Server::start(data.path());
    let url = server.root_url("");
    let ask = |arguments: &[&str]| {
        let arguments = [arguments, &["--server", &url]].concat();
        let output = argus(&arguments, b"");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let folder = text(logs.path());
    let vehicle = ["--vehicle", "veh-1", "--vin", common::VIN, "--firmware", "7.2.1", "--label", "site=a=b"];
    let (code, report, error) = ask(&[&["upload", folder], &vehicle[..]].concat());
    assert_eq!(code, Some(0), "{error}");
    let report: Value = serde_json::from_str(&report).expect("a report");
    assert_eq!((&report["final"], counts(&report)), (&json!(true), json!({"E_FAIL": 1000, "P0A1F-87": 1})));
    let batch = report["batch_id"].as_str().expect("an id");
    let files = server.get(&format!("/batches/{batch}/files")).await;
    let names: Vec<&str> =
        files["files"].as_array().expect("files").iter().filter_map(|file| file["name"].as_str()).collect();
    assert_eq!(names, ["ota.log", "sub_bms.log"]);
    assert_eq!(server.get(&format!("/batches/{batch}")).await["labels"], json!({"site": "a=b"}));

    // The same again changes nothing; a completed batch takes no other files.
    let (code, again, error) = ask(&["upload", folder, "--batch", batch]);
    assert_eq!((code, counts(&serde_json::from_str(&again).expect("a report"))), (Some(0), counts(&report)), "{error}");
    std::fs::write(logs.path().join("late.log"), "E_ABORT\n").expect("writes");
    let (code, _, error) = ask(&["upload", folder, "--batch", batch]);
    assert!(code == Some(1) && error.contains("late.log") && error.contains("completed"), "{code:?} {error}");
    std::fs::remove_file(logs.path().join("late.log")).expect("removes");
    // Another batch fails on a severity.
    let open =
        server.new_batch_of(json!({"vehicle_id": "veh-2", "vin": "WVWZZZ1JZXW000002", "firmware": "7.2.0"})).await;
    server.put(&open, "ota.log", "ERROR ota: E_FAIL\n".repeat(1000)).await;
    let (code, table, _) = ask(&["upload", folder, "--batch", &open, "--fail-on", "error", "--format", "table"]);
    assert_eq!(code, Some(3), "{table}");
    assert!(table.contains("2 codes, 1001 occurrences, in 1001 lines of 2 files; completed"), "{table}");
    let (code, _, _) = ask(&["upload", folder, "--batch", &open, "--fail-on", "critical"]);
    assert_eq!(code, Some(0), "no code is critical");
    // What the server had was not sent again.
    let files = server.get(&format!("/batches/{open}/files")).await;
    assert_eq!(files["files"][0]["generation"], json!(1));

    let (code, again, _) = ask(&["report", batch, "--top", "1", "--format", "csv"]);
    assert_eq!(code, Some(0));
    assert!(again.starts_with("code,rule,severity,count,") && again.contains("\r\nE_FAIL,"), "{again}");
    let (_, codes, _) = ask(&["codes", "--firmware", "7.2.1", "--format", "table"]);
    assert!(codes.starts_with("CODE ") && codes.contains("P0A1F-87") && !codes.contains("7.2.0"), "{codes}");
    let (_, compared, _) = ask(&["compare", "7.2.1", "7.2.0"]);
    let compared: Value = serde_json::from_str(&compared).expect("JSON");
    assert_eq!(compared["codes"].as_array().map(Vec::len), Some(2));
    for (arguments, words) in [
        (&["report", "01997c3e-8c1a-7c3e-8c1a-7c3e8c1a7c3e"][..], "there is no batch"),
        (&["compare", "9", "7.2.0"], "no vehicle has sent lines"),
        (&["upload", "/nowhere.log", "--vehicle", "v", "--vin", common::VIN], "/nowhere.log"),
        (&["upload", folder, "--vehicle", "v", "--vin", "short"], "17 characters"),
    ] {
        let (code, _, error) = ask(arguments);
        assert!(code == Some(1) && error.contains(words) && error.lines().count() <= 2, "{code:?} {error}");
    }
    assert_eq!(argus(&["report", "no-id"], b"").status.code(), Some(2));
    assert_eq!(argus(&["upload", folder], b"").status.code(), Some(2));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_survives_a_broken_link_and_counts_once() {
    let (data, logs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let log = logs.path().join("ota.log");
    std::fs::write(&log, "ERROR ota: E_FAIL\n".repeat(100_000)).expect("writes");
    let server = Server::start(data.path());
    let port = server.root_url("").rsplit_once(':').expect("a port").1.parse().expect("a number");
    let proxy = Proxy::start(port).await;
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let batch = server.new_batch().await;
    // Connections are closed at once, then before the answer, when the server may have the whole file.
    proxy.set(Fault::Drop);
    let arguments = [text(&log).to_owned(), batch.clone(), url];
    let upload = tokio::task::spawn_blocking(move || {
        let [log, batch, url] = &arguments;
        argus(&["upload", log, "--batch", batch, "--server", url], b"")
    });
    for fault in [Fault::Drop, Fault::Truncate(0), Fault::Truncate(20), Fault::None] {
        proxy.set(fault);
        let before = proxy.connections();
        let deadline = Deadline::new(format!("another attempt with {fault:?}"));
        while proxy.connections() < before + 2 && !upload.is_finished() {
            deadline.check();
            tokio::task::yield_now().await;
        }
        assert!(fault == Fault::None || !upload.is_finished(), "{fault:?} breaks the link");
    }
    let output = upload.await.expect("no panic");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!((counts(&report), &report["status"]), (json!({"E_FAIL": 100_000}), &json!("completed")));
    assert_eq!(server.get(&format!("/batches/{batch}/files")).await["files"][0]["generation"], json!(1));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_command_continues_an_upload_that_was_killed() {
    let (data, logs) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let log = logs.path().join("ota.log");
    // Lines that hardly compress.
    let hashes =
        (0..60_000_u32).map(|line| format!("ERROR ota: E_FAIL {}\n", hex::encode(Sha256::digest(line.to_le_bytes()))));
    let lines: String = hashes.collect();
    std::fs::write(&log, &lines).expect("writes");
    let server = Server::start(data.path());
    let port = server.root_url("").rsplit_once(':').expect("a port").1.parse().expect("a number");
    let proxy = Proxy::start(port).await;
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let state = logs.path().join("state");
    let command = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_argus"));
        command
            .args(["upload", text(&log), "--server", &url, "--vehicle", "v", "--vin", VIN])
            .env("XDG_STATE_HOME", &state);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    };
    // The link breaks again and again, and the file continues; then the client is killed.
    let mut child = command().spawn().expect("argus starts");
    proxy.set(Fault::CutRequests(400_000));
    let arrived = || {
        let unfinished = files(&data.path().join("resumable"))
            .into_iter()
            .filter(|path| path.extension().is_some_and(|kind| kind == "bytes"));
        unfinished.filter_map(|path| path.metadata().ok()).map(|found| found.len()).sum::<u64>()
    };
    let deadline = Deadline::new("a part of the file to arrive");
    while arrived() < 500_000 {
        deadline.check();
        assert!(child.try_wait().expect("a child").is_none(), "it still uploads");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    proxy.set(Fault::None);
    let mut again = command();
    let output = tokio::task::spawn_blocking(move || again.output().expect("argus runs")).await.expect("no panic");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.contains("continued"), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert_eq!(counts(&report), json!({"E_FAIL": 60_000}));
    let batches = server.get("/batches").await["batches"].clone();
    assert_eq!(batches.as_array().map(Vec::len), Some(1), "the batch is the same");
    let listed = server.get(&format!("/batches/{}/files", batches[0]["id"].as_str().expect("an id"))).await;
    assert_eq!(listed["files"][0]["sha256"], json!(hex::encode(Sha256::digest(&lines))));
    assert_eq!((arrived(), files(&state).len()), (0, 0), "nothing is left");
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tail_prints_lines_as_they_arrive_until_the_batch_is_completed() {
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start(data.path());
    let batch = server.new_batch().await;
    let append = async |lines: &str| {
        let appended =
            server.send(reqwest::Method::POST, &format!("/batches/{batch}/files/a.log/lines"), lines.to_owned()).await;
        assert!(appended.status().is_success());
    };
    append("one\ntwo ERROR E_FAIL\nthree\n").await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_argus"))
        .args(["tail", &batch, "-n", "2", "--server", &server.root_url("")])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("argus starts");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("piped")));
    let mut next = || tokio::task::block_in_place(|| lines.next().transpose().expect("text"));
    assert_eq!(next().as_deref(), Some("a.log:2: [E_FAIL] two ERROR E_FAIL"));
    assert_eq!(next().as_deref(), Some("a.log:3: three"));
    // The printed lines are the event that it follows.
    append("four E_ABORT E_FAIL\n").await;
    assert_eq!(next().as_deref(), Some("a.log:4: [E_ABORT E_FAIL] four E_ABORT E_FAIL"));
    server.put(&batch, "b.log", "first\n").await;
    assert_eq!(next().as_deref(), Some("b.log:1: first"));
    server.complete(&batch).await;
    assert_eq!(next(), None);
    assert!(child.wait().expect("it ends").success());
    let url = server.root_url("");
    let output = tokio::task::block_in_place(|| {
        argus(&["tail", &batch, "--codes-only", "--format", "json", "--server", &url], b"")
    });
    let lines: Vec<Value> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], json!({"file": "a.log", "line": 2, "codes": ["E_FAIL"], "text": "two ERROR E_FAIL"}));
    let unknown =
        tokio::task::block_in_place(|| argus(&["tail", &uuid::Uuid::nil().to_string(), "--server", &url], b""));
    assert_eq!(unknown.status.code(), Some(1), "{}", String::from_utf8_lossy(&unknown.stderr));
    server.stop();
}

#[test]
fn shells_and_man_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = argus(&["completions", shell], b"");
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && ["serve", "upload", "compare"].iter().all(|name| script.contains(name)),
            "{shell}"
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    assert!(argus(&["man", text(&folder.path().join("man1"))], b"").status.success());
    for page in ["argus.1", "argus-serve.1", "argus-upload.1"] {
        let page = std::fs::read_to_string(folder.path().join("man1").join(page)).expect(page);
        assert!(page.contains(".TH argus"), "{page}");
    }
}

//! Escape sequences in logs, names and results never reach a terminal.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{Server, argus};
use reqwest::Method;

/// Sequences that a terminal would execute: clear the screen, in 7 and in 8 bits, and reverse the text direction.
const HOSTILE: &str = "\u{1b}[2J\u{9b}2J\u{202e}";

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

fn is_harmless(shown: &str) -> bool {
    !shown.contains(|c: char| (c.is_control() && !"\r\n\t".contains(c)) || ('\u{202a}'..='\u{202e}').contains(&c))
}

/// Standard output of the binary when it is a terminal.
fn on_terminal(arguments: &[&str]) -> String {
    let script = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let output = Command::new("python3")
        .args(["-c", script, "sh", "-c", "exec \"$0\" \"$@\" 2>/dev/null", common::ARGUS])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn analyze_escapes_terminal_sequences() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = folder.path().join(format!("a{HOSTILE}.log"));
    std::fs::write(&log, format!("E_FAIL {HOSTILE} in the text\n")).expect("writes");
    for (format, escape) in [("table", "\\x1b[2J"), ("csv", "\\x1b[2J"), ("json", "\\u001b[2J")] {
        let shown = on_terminal(&["analyze", "--format", format, text(&log)]);
        assert!(is_harmless(&shown) && shown.contains(escape), "{format}: {shown:?}");
    }
    // A pipe gets JSON and CSV unescaped.
    let csv = argus(&["analyze", "--format", "csv", text(&log)], b"");
    assert!(String::from_utf8_lossy(&csv.stdout).contains(HOSTILE));
    let missing = format!("{}{HOSTILE}\n", text(&folder.path().join("missing")));
    for arguments in [&["analyze", &missing][..], &["maintain", "--data", &missing], &["analyze", "--workers", HOSTILE]]
    {
        let errors = String::from_utf8(argus(arguments, b"").stderr).expect("text");
        assert!(!errors.is_empty() && is_harmless(&errors), "{errors:?}");
    }
    let errors = argus(&["analyze", &missing], b"").stderr;
    assert_eq!(String::from_utf8_lossy(&errors).lines().count(), 1);
}

#[tokio::test]
async fn sql_escapes_terminal_sequences() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let body = format!("E_FAIL {HOSTILE} in the text\n");
    server.send(Method::PUT, &format!("/batches/{id}/files/a.log"), body).await;
    server.complete(&id).await;
    server.stop();
    let sql = format!("SELECT text AS \"a{HOSTILE}\" FROM errors");
    for (format, escape) in [("table", "\\x1b[2J"), ("csv", "\\x1b[2J"), ("json", "\\u001b[2J")] {
        let shown = on_terminal(&["sql", "--data", text(data.path()), "--format", format, &sql]);
        assert!(is_harmless(&shown) && shown.contains(escape), "{format}: {shown:?}");
    }
    let failing = format!("SELECT \"{HOSTILE}\" FROM errors");
    let errors = String::from_utf8(argus(&["sql", "--data", text(data.path()), &failing], b"").stderr).expect("text");
    assert!(errors.contains("\\x1b[2J") && is_harmless(&errors), "{errors:?}");
}

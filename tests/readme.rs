//! The README's commands, run as they are written, one block after another in an empty folder.

mod common;

use std::net::TcpListener;
use std::process::{Command, Stdio};

const README: &str = include_str!("../README.md");
/// Precedes a block that is not run, with the reason.
const NOT_RUN: &str = "<!-- not run by the test:";
/// Blocks that build or measure.
const LONG: [&str; 2] = ["cargo ", "./check.sh"];

/// A block that is run, and the output that the README shows.
struct Block {
    commands: String,
    shown: Option<String>,
}

fn blocks() -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut parts = README.split("```");
    let mut before = parts.next().unwrap_or_default();
    while let (Some(block), after) = (parts.next(), parts.next().unwrap_or_default()) {
        let (kind, text) = block.split_once('\n').unwrap_or((block, ""));
        let is_run = !before.trim_end().ends_with("-->") || !before.contains(NOT_RUN);
        match kind {
            "sh" if is_run && !LONG.iter().any(|long| text.starts_with(long)) => {
                blocks.push(Block { commands: text.to_owned(), shown: None });
            }
            // The output of the block right before it.
            "text" if before.trim().is_empty() => {
                if let Some(last) = blocks.last_mut() {
                    last.shown = Some(text.to_owned());
                }
            }
            _ => {}
        }
        before = after;
    }
    blocks
}

/// The blocks as one script, with a line after each that marks its end; ports are replaced by free ones.
fn script(blocks: &[Block]) -> String {
    let free = || TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("it has an address");
    // All are bound until all are known, so that they differ.
    let ports = [free(), free(), free()].map(|address| address.port().to_string());
    let mut script = format!("set -eu -o pipefail\nexport ARGUS_LISTEN=127.0.0.1:{}\n", ports[0]);
    for (index, block) in blocks.iter().enumerate() {
        let mut commands = block.commands.clone();
        for (port, free) in ["8080", "5432", "5433"].into_iter().zip(&ports) {
            commands = commands.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{free}"));
        }
        commands = commands.replace("psql -h 127.0.0.1", &format!("psql -h 127.0.0.1 -p {}", ports[1]));
        script.push_str(&format!("{commands}\necho '=== {index} is done'\n"));
    }
    script
}

#[test]
fn every_block_runs_and_prints_what_it_shows() {
    let blocks = blocks();
    assert!(blocks.len() >= 8, "the blocks are found");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_argus"));
    let path = format!("{}:{}", program.parent().expect("a folder").display(), std::env::var("PATH").expect("a path"));
    let output = Command::new("bash")
        .args(["-c", &script(&blocks)])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("ARGUS_LOG", "warn")
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{errors}");
    let mut rest = &*text;
    for (index, block) in blocks.iter().enumerate() {
        let end = format!("=== {index} is done\n");
        let (printed, after) =
            rest.split_once(&*end).unwrap_or_else(|| panic!("block {index} does not end: {text}\n{errors}"));
        assert!(!printed.contains("urn:argus:problem"), "{}: {printed}", block.commands);
        if let Some(shown) = &block.shown {
            assert_eq!(printed, shown, "{}", block.commands);
        }
        rest = after;
    }
}

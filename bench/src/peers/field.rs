//! Who competes, how each is started, and what its answer must be.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::python::PACKAGES;
use super::trial::{self, Limits, Trial, TrialError};
use crate::generate::Logs;
use crate::server::argus_binary;
use crate::simple::PATTERN;
use crate::truth::{Truth, report_codes, same};

/// Argus with its built-in rules.
pub const ARGUS: &str = "argus analyze, built-in rules";
/// Argus with what peers search for.
const ARGUS_SIMPLE: &str = "argus analyze, simple rule";
/// A peer that Argus has a target against.
pub const DUCKDB: &str = "DuckDB";
/// A peer that Argus has a target against.
pub const CHDB: &str = "ClickHouse (chdb)";
/// A peer that Argus has a target against.
pub const RG: &str = "rg | awk";

/// Counts lines that are alike.
const AWK: &str = r#"awk '{ n[$0]++ } END { for (code in n) print n[code] "\t" code }'"#;

/// A tool with its files.
#[derive(Debug)]
pub struct Peer {
    /// What it is called in the results.
    pub name: String,
    /// Whether it is Argus.
    pub ours: bool,
    /// Whether it gets a part of the files only.
    pub slow: bool,
    /// The bytes of its files.
    pub bytes: u64,
    answer: Answer,
    command: Vec<OsString>,
    truth: Truth,
}

/// How a tool says its answer.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// Not at all.
    Nothing,
    /// The lines of each file, and of all in the last line.
    Lines,
    /// A count and a code in each line.
    Counts,
    /// An object with `codes`.
    Codes,
    /// A report by the built-in rules.
    Report,
    /// A report by the simple rule.
    SimpleReport,
}

/// Those that are installed, and the names of those that are not. Slow ones get `some` of the files only.
pub fn field(peers_dir: &Path, rules: &Path, all: &Logs, some: &Logs) -> Result<(Vec<Peer>, Vec<String>)> {
    let mut field = Vec::new();
    let mut missing = Vec::new();
    let mut add = |name: &str, answer: Answer, slow: bool, command: Vec<OsString>| {
        let logs = if slow { some } else { all };
        let mut command = command;
        command.extend(logs.paths().map(|path| path.as_os_str().to_owned()));
        let (truth, ours) = (logs.truth(), matches!(answer, Answer::Report | Answer::SimpleReport));
        field.push(Peer { name: name.to_owned(), ours, slow, bytes: truth.bytes, answer, command, truth });
    };
    add("wc -l", Answer::Lines, false, words(&["wc", "-l"]));
    add("cat", Answer::Nothing, false, shell("cat \"$@\" >/dev/null"));
    // With Unicode's word boundaries, rg would take ten times as long.
    let pipes = [
        (RG, "rg", format!("rg --no-config --no-unicode -aoIN -e \"$PATTERN\" \"$@\" | {AWK}")),
        ("grep | awk", "grep", format!("grep -aohE -e \"$PATTERN\" \"$@\" | {AWK}")),
    ];
    for (name, program, script) in pipes {
        if [program, "awk"].iter().all(|program| installed(program)) {
            add(name, Answer::Counts, false, shell(&script));
        } else {
            missing.push(name.to_owned());
        }
    }
    for package in &PACKAGES {
        match package.python(peers_dir) {
            Some(python) => {
                let command = vec![python.into(), "-c".into(), package.script.into(), PATTERN.into()];
                add(package.name, Answer::Codes, package.slow, command);
            }
            None => missing.push(package.name.to_owned()),
        }
    }
    let mut argus = vec![argus_binary()?.into_os_string()];
    argus.extend(words(&["analyze", "--format", "json"]));
    add(ARGUS, Answer::Report, false, argus.clone());
    argus.extend(["--rules".into(), rules.into()]);
    add(ARGUS_SIMPLE, Answer::SimpleReport, false, argus);
    Ok((field, missing))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A script that has the pattern as PATTERN and files as its parameters.
fn shell(script: &str) -> Vec<OsString> {
    let mut command = words(&["env"]);
    command.push(format!("PATTERN={PATTERN}").into());
    command.extend(words(&["sh", "-c", script, "sh"]));
    command
}

fn installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}

impl Peer {
    /// Runs it once and checks its answer.
    pub fn run(&self, limits: &Limits) -> Result<Trial, TrialError> {
        let mut trial = trial::run(&self.command, limits)?;
        trial.start_seconds = self.check(&trial.output).map_err(|error| TrialError::Wrong(format!("{error:#}")))?;
        Ok(trial)
    }

    /// Fails unless the answer is the truth; says how long the tool took to start, if it told.
    fn check(&self, output: &[u8]) -> Result<Option<f64>> {
        match self.answer {
            Answer::Nothing => {}
            Answer::Lines => {
                let text = std::str::from_utf8(output)?;
                let last = text.lines().last().and_then(|line| line.split_whitespace().next()).context("no answer")?;
                ensure!(last.parse::<u64>()? == self.truth.lines, "{last} lines of {}", self.truth.lines);
            }
            Answer::Counts => same(&counts(std::str::from_utf8(output)?)?, &self.truth.simple)?,
            Answer::Codes => {
                // Libraries may print their greetings before it.
                let text = String::from_utf8_lossy(output);
                let answer: Value = serde_json::from_str(text.lines().last().context("no answer")?)?;
                same(&serde_json::from_value(answer["codes"].clone())?, &self.truth.simple)?;
                return Ok(answer["start_seconds"].as_f64());
            }
            Answer::Report => self.truth.check_report(&serde_json::from_slice(output)?)?,
            Answer::SimpleReport => same(&report_codes(&serde_json::from_slice(output)?)?, &self.truth.simple)?,
        }
        Ok(None)
    }
}

/// What [`AWK`] prints.
fn counts(text: &str) -> Result<BTreeMap<String, u64>> {
    let count = |line: &str| {
        let (count, code) = line.split_once('\t').context("a line has a count and a code")?;
        Ok((code.to_owned(), count.parse()?))
    };
    text.lines().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_of_every_system_find_what_the_truth_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = Logs::write(folder.path(), 2, 200_000).expect("writes");
        let files: Vec<OsString> = logs.paths().map(OsString::from).collect();
        let limits = Limits { seconds: 60, one_core: false };
        let script = format!("grep -aohE -e \"$PATTERN\" \"$@\" | {AWK}");
        for (answer, mut command) in [(Answer::Lines, words(&["wc", "-l"])), (Answer::Counts, shell(&script))] {
            command.extend_from_slice(&files);
            let mut truth = logs.truth();
            let mut peer = Peer {
                name: String::new(),
                ours: false,
                slow: false,
                bytes: truth.bytes,
                answer,
                command,
                truth: truth.clone(),
            };
            peer.run(&limits).expect("the answer is right");
            truth.lines += 1;
            truth.simple.values_mut().for_each(|count| *count += 1);
            peer.truth = truth;
            assert!(matches!(peer.run(&limits), Err(TrialError::Wrong(_))));
        }
    }
}

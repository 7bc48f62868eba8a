//! The compared tools: how each is started, and its expected result.

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
/// Argus with the pattern of the other tools.
const ARGUS_SIMPLE: &str = "argus analyze, simple rule";
/// A tool that Argus has a target against.
pub const RG: &str = "rg | awk";

/// Counts equal lines.
const AWK: &str = r#"awk '{ n[$0]++ } END { for (code in n) print n[code] "\t" code }'"#;

/// A tool with its files.
#[derive(Debug)]
pub struct Peer {
    /// Its name in the results.
    pub name: String,
    /// Whether it is Argus.
    pub ours: bool,
    /// Whether it gets only a part of the files.
    pub slow: bool,
    /// The bytes of its files.
    pub bytes: u64,
    format: OutputFormat,
    command: Vec<OsString>,
    truth: Truth,
}

/// The output format of a tool.
#[derive(Debug, Clone, Copy)]
enum OutputFormat {
    /// No output.
    Nothing,
    /// The line count of each file, and the total in the last line.
    Lines,
    /// A count and a code per line.
    Counts,
    /// An object with `codes`.
    Codes,
    /// A report by the built-in rules.
    Report,
    /// A report by the simple rule.
    SimpleReport,
}

/// The installed tools, and the names of those not installed. Slow tools get only the files `some`.
pub fn field(peers_dir: &Path, rules: &Path, all: &Logs, some: &Logs) -> Result<(Vec<Peer>, Vec<String>)> {
    let mut field = Vec::new();
    let mut missing = Vec::new();
    let mut add = |name: &str, format: OutputFormat, slow: bool, command: Vec<OsString>| {
        let logs = if slow { some } else { all };
        let mut command = command;
        command.extend(logs.paths().map(|path| path.as_os_str().to_owned()));
        let (truth, ours) = (logs.truth(), matches!(format, OutputFormat::Report | OutputFormat::SimpleReport));
        field.push(Peer { name: name.to_owned(), ours, slow, bytes: truth.bytes, format, command, truth });
    };
    add("wc -l", OutputFormat::Lines, false, words(&["wc", "-l"]));
    add("cat", OutputFormat::Nothing, false, shell("cat \"$@\" >/dev/null"));
    // Unicode word boundaries would make rg ten times slower.
    let pipes = [
        (RG, "rg", format!("rg --no-config --no-unicode -aoIN -e \"$PATTERN\" \"$@\" | {AWK}")),
        ("grep | awk", "grep", format!("grep -aohE -e \"$PATTERN\" \"$@\" | {AWK}")),
    ];
    for (name, program, script) in pipes {
        if [program, "awk"].iter().all(|program| installed(program)) {
            add(name, OutputFormat::Counts, false, shell(&script));
        } else {
            missing.push(name.to_owned());
        }
    }
    for package in &PACKAGES {
        match package.python(peers_dir) {
            Some(python) => {
                let command = vec![python.into(), "-c".into(), package.script.into(), PATTERN.into()];
                add(package.name, OutputFormat::Codes, package.slow, command);
            }
            None => missing.push(package.name.to_owned()),
        }
    }
    let mut argus = vec![argus_binary()?.into_os_string()];
    argus.extend(words(&["analyze", "--format", "json"]));
    add(ARGUS, OutputFormat::Report, false, argus.clone());
    argus.extend(["--rules".into(), rules.into()]);
    add(ARGUS_SIMPLE, OutputFormat::SimpleReport, false, argus);
    Ok((field, missing))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A script with the pattern in the variable PATTERN and the files as parameters.
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
    /// Runs it once and checks its result.
    pub fn run(&self, limits: &Limits) -> Result<Trial, TrialError> {
        let mut trial = trial::run(&self.command, limits)?;
        trial.start_seconds = self.check(&trial.output).map_err(|error| TrialError::Wrong(format!("{error:#}")))?;
        Ok(trial)
    }

    /// Fails unless the result is correct; returns the start-up time if the tool reports it.
    fn check(&self, output: &[u8]) -> Result<Option<f64>> {
        match self.format {
            OutputFormat::Nothing => {}
            OutputFormat::Lines => {
                let text = std::str::from_utf8(output)?;
                let last = text.lines().last().and_then(|line| line.split_whitespace().next()).context("no output")?;
                ensure!(last.parse::<u64>()? == self.truth.lines, "{last} lines, expected {}", self.truth.lines);
            }
            OutputFormat::Counts => same(&counts(std::str::from_utf8(output)?)?, &self.truth.simple)?,
            OutputFormat::Codes => {
                // Libraries may print other lines before it.
                let text = String::from_utf8_lossy(output);
                let answer: Value = serde_json::from_str(text.lines().last().context("no output")?)?;
                same(&serde_json::from_value(answer["codes"].clone())?, &self.truth.simple)?;
                return Ok(answer["start_seconds"].as_f64());
            }
            OutputFormat::Report => self.truth.check_report(&serde_json::from_slice(output)?)?,
            OutputFormat::SimpleReport => same(&report_codes(&serde_json::from_slice(output)?)?, &self.truth.simple)?,
        }
        Ok(None)
    }
}

/// Parses the output of [`AWK`].
fn counts(text: &str) -> Result<BTreeMap<String, u64>> {
    let count = |line: &str| {
        let (count, code) =
            line.split_once('\t').with_context(|| format!("{line:?} is not a count, a tab and a code"))?;
        Ok((code.to_owned(), count.parse()?))
    };
    text.lines().map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_tools_find_the_expected_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let logs = Logs::write(folder.path(), 2, 200_000).expect("writes");
        let files: Vec<OsString> = logs.paths().map(OsString::from).collect();
        let limits = Limits { seconds: 60, one_core: false };
        let script = format!("grep -aohE -e \"$PATTERN\" \"$@\" | {AWK}");
        for (format, mut command) in
            [(OutputFormat::Lines, words(&["wc", "-l"])), (OutputFormat::Counts, shell(&script))]
        {
            command.extend_from_slice(&files);
            let mut truth = logs.truth();
            let mut peer = Peer {
                name: String::new(),
                ours: false,
                slow: false,
                bytes: truth.bytes,
                format,
                command,
                truth: truth.clone(),
            };
            peer.run(&limits).expect("the result is correct");
            truth.lines += 1;
            truth.simple.values_mut().for_each(|count| *count += 1);
            peer.truth = truth;
            assert!(matches!(peer.run(&limits), Err(TrialError::Wrong(_))));
        }
    }
}

//! One run of one tool: its time, memory and output.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::spawn;
use std::time::Instant;

use crate::peak::Peak;

/// The exit code of `timeout` when the time limit is reached.
const TIMED_OUT: i32 = 124;

/// Resource limits of a tool.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock seconds.
    pub seconds: u64,
    /// Whether it is pinned to the first core.
    pub one_core: bool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Trial {
    /// From the start of the process to its end.
    pub seconds: f64,
    /// The sum of the peak memory of all its processes.
    pub peak_bytes: u64,
    /// The start-up time that the tool reported, included in `seconds`.
    pub start_seconds: Option<f64>,
    /// Its standard output.
    pub output: Vec<u8>,
}

/// Why a run does not count.
#[derive(Debug)]
pub enum TrialError {
    /// The time limit was reached.
    TooSlow,
    /// It failed; contains the last line of its standard error.
    Failed(String),
    /// Its result is wrong.
    Wrong(String),
}

impl std::fmt::Display for TrialError {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            TrialError::TooSlow => write!(out, "time limit reached"),
            TrialError::Failed(why) => write!(out, "failed: {why}"),
            TrialError::Wrong(what) => write!(out, "wrong result: {what}"),
        }
    }
}

/// Runs a command to its end.
pub fn run(command: &[OsString], limits: &Limits) -> Result<Trial, TrialError> {
    let failed = |error: std::io::Error| TrialError::Failed(error.to_string());
    let mut line: Vec<OsString> = Vec::new();
    if limits.one_core {
        line.extend(["taskset", "-c", "0"].map(OsString::from));
    }
    line.extend(["timeout", "--kill-after=2", &limits.seconds.to_string()].map(OsString::from));
    line.extend_from_slice(command);
    let begun = Instant::now();
    let mut child = Command::new(&line[0])
        .args(&line[1..])
        // Compare bytes, not characters: faster, and equal to the expected counts.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let peak = Peak::of_children(child.id());
    // Read both pipes concurrently: a tool blocks when either is full.
    let errors = child.stderr.take().map(|mut pipe| {
        spawn(move || {
            let mut text = Vec::new();
            pipe.read_to_end(&mut text).map(|_| text)
        })
    });
    let mut output = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut output).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak_bytes = peak.stop();
    let stderr = errors.and_then(|reader| reader.join().ok()).transpose().map_err(failed)?.unwrap_or_default();
    match status.code() {
        Some(0) => Ok(Trial { seconds, peak_bytes, start_seconds: None, output }),
        Some(TIMED_OUT) => Err(TrialError::TooSlow),
        _ => Err(TrialError::Failed(format!("{status}: {}", last_line(&stderr)))),
    }
}

/// The last line that is not blank.
fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no error output").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, seconds: u64) -> Result<Trial, TrialError> {
        let command = ["sh", "-c", script].map(OsString::from);
        run(&command, &Limits { seconds, one_core: false })
    }

    #[test]
    fn a_run_returns_its_output_or_its_error() {
        assert_eq!(shell("echo 7", 60).expect("succeeds").output, b"7\n");
        let error = shell("echo bad >&2; exit 3", 60).expect_err("fails");
        assert!(error.to_string().ends_with("bad"), "{error}");
        assert!(matches!(shell("sleep 60", 1), Err(TrialError::TooSlow)));
    }
}

//! One run of one tool: its time, its memory and its answer.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::spawn;
use std::time::Instant;

use crate::peak::Peak;

/// What `timeout` exits with when time was up.
const TIME_IS_UP: i32 = 124;

/// What a tool may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock seconds.
    pub seconds: u64,
    /// Only the first core.
    pub one_core: bool,
}

/// What a run took and gave.
#[derive(Debug)]
pub struct Trial {
    /// From the start of the process to its end.
    pub seconds: f64,
    /// The sum of the peaks of all its processes.
    pub peak_bytes: u64,
    /// How long it said it took before it began its work, of `seconds`.
    pub start_seconds: Option<f64>,
    /// Its standard output.
    pub output: Vec<u8>,
}

/// Why a run does not count.
#[derive(Debug)]
pub enum TrialError {
    /// Time was up.
    TooSlow,
    /// It failed, with the end of what it said.
    Failed(String),
    /// Its answer is not the truth.
    Wrong(String),
}

impl std::fmt::Display for TrialError {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            TrialError::TooSlow => write!(out, "too slow"),
            TrialError::Failed(why) => write!(out, "failed: {why}"),
            TrialError::Wrong(what) => write!(out, "WRONG: {what}"),
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
        // Bytes, not letters: that is faster, and what the truth counts.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let peak = Peak::of_children(child.id());
    // Whoever says much on one of them must not wait for a reader of the other.
    let errors = child.stderr.take().map(|mut pipe| {
        spawn(move || {
            let mut said = Vec::new();
            pipe.read_to_end(&mut said).map(|_| said)
        })
    });
    let mut output = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_end(&mut output).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    let seconds = begun.elapsed().as_secs_f64();
    let peak_bytes = peak.stop();
    let said = errors.and_then(|reader| reader.join().ok()).transpose().map_err(failed)?.unwrap_or_default();
    match status.code() {
        Some(0) => Ok(Trial { seconds, peak_bytes, start_seconds: None, output }),
        Some(TIME_IS_UP) => Err(TrialError::TooSlow),
        _ => Err(TrialError::Failed(format!("{status}: {}", last_words(&said)))),
    }
}

/// The last line that says anything.
fn last_words(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, seconds: u64) -> Result<Trial, TrialError> {
        let command = ["sh", "-c", script].map(OsString::from);
        run(&command, &Limits { seconds, one_core: false })
    }

    #[test]
    fn a_run_tells_what_came_out_of_it() {
        assert_eq!(shell("echo 7", 60).expect("succeeds").output, b"7\n");
        let error = shell("echo bad >&2; exit 3", 60).expect_err("fails");
        assert!(error.to_string().ends_with("bad"), "{error}");
        assert!(matches!(shell("sleep 60", 1), Err(TrialError::TooSlow)));
    }
}

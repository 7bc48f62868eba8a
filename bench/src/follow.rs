//! The latency of the simplest tool, as a reference: `tail -F` piped into `rg`, which count and store nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::latency::Latencies;

/// Two processes, killed on drop.
struct Pipe {
    tail: Child,
    rg: Child,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for child in [&mut self.tail, &mut self.rg] {
            // Errors mean that the process has already exited.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The latency from writing a line to a file to reading it from `rg`, for up to `lines` lines within
/// `time`; `None` if `rg` is not installed.
pub fn measure(line: &[u8], code: &str, lines: u32, time: Duration) -> Result<Option<Latencies>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("live.log");
    let mut file = File::create(&path)?;
    let mut tail = Command::new("tail").args(["-n", "+1", "-F"]).arg(&path).stdout(Stdio::piped()).spawn()?;
    let from = tail.stdout.take().context("standard output is not piped")?;
    let rg = Command::new("rg")
        .args(["--no-config", "--no-unicode", "-a", "--line-buffered", "-o", code])
        .stdin(from)
        .stdout(Stdio::piped())
        .spawn();
    let rg = match rg {
        Ok(rg) => rg,
        Err(error) => {
            tail.kill()?;
            tail.wait()?;
            return if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error.into()) };
        }
    };
    let mut pipe = Pipe { tail, rg };
    let mut output = BufReader::new(pipe.rg.stdout.take().context("standard output is not piped")?);
    let (begun, mut times, mut found) = (Instant::now(), Vec::new(), String::new());
    while times.len() < lines as usize && begun.elapsed() < time {
        let sent = Instant::now();
        file.write_all(line)?;
        found.clear();
        output.read_line(&mut found)?;
        if found.trim() != code {
            bail!("rg printed {found:?}, expected {code:?}");
        }
        times.push(sent.elapsed());
    }
    // The first time includes the start of both processes.
    Ok(Some(Latencies::new(times.split_off(1.min(times.len())))))
}

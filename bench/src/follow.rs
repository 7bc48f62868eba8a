//! How fresh the plainest tool is: `tail -F` piped into `rg`, which count nothing and keep nothing.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::latency::Latencies;

/// Two processes, killed when dropped.
struct Pipe {
    tail: Child,
    rg: Child,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for child in [&mut self.tail, &mut self.rg] {
            // One that has ended by itself needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The time from writing a line to a file to reading it from `rg`, of as many lines as told, or as
/// come in time; `None` when `rg` is not installed.
pub fn measure(line: &[u8], code: &str, lines: u32, time: Duration) -> Result<Option<Latencies>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("live.log");
    let mut file = File::create(&path)?;
    let mut tail = Command::new("tail").args(["-n", "+1", "-F"]).arg(&path).stdout(Stdio::piped()).spawn()?;
    let from = tail.stdout.take().context("the output is piped")?;
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
    let mut output = BufReader::new(pipe.rg.stdout.take().context("the output is piped")?);
    let (begun, mut times, mut found) = (Instant::now(), Vec::new(), String::new());
    while times.len() < lines as usize && begun.elapsed() < time {
        let sent = Instant::now();
        file.write_all(line)?;
        found.clear();
        output.read_line(&mut found)?;
        if found.trim() != code {
            bail!("rg found {found:?}");
        }
        times.push(sent.elapsed());
    }
    // The first waits for both to start.
    Ok(Some(Latencies::new(times.split_off(1.min(times.len())))))
}

//! The server process: start, kill, and termination with SIGTERM.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Time limit for the server to start listening.
pub const START_MAX: Duration = Duration::from_secs(120);
/// Time limit for the server to exit after SIGTERM.
pub const STOP_MAX: Duration = Duration::from_secs(60);
/// Time limit for `argus maintain`.
pub const MAINTAIN_MAX: Duration = Duration::from_secs(600);
const POLL_EVERY: Duration = Duration::from_millis(100);

/// The configuration of the server.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The binary.
    pub binary: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// The file for its log.
    pub log: PathBuf,
    /// `--maintain-every`.
    pub maintain_every: String,
    /// `--retention`.
    pub retention: String,
    /// Timely workers.
    pub workers: Option<u16>,
}

/// A running server; killed on drop.
pub struct Process {
    child: Child,
    /// Host and port.
    pub address: String,
    /// The time until it listened.
    pub start: Duration,
}

impl Setup {
    fn command(&self, subcommand: &str) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command.args([subcommand, "--retention", &self.retention, "--data"]).arg(&self.data);
        let log = File::options().create(true).append(true).open(&self.log)?;
        command.env("ARGUS_LOG", "warn").stderr(log);
        if let Some(workers) = self.workers {
            command.args(["--workers", &workers.to_string()]);
        }
        Ok(command)
    }

    /// Starts the server; returns when it listens.
    pub async fn start(&self) -> Result<Process> {
        let mut command = self.command("serve")?;
        command.args(["--listen", "127.0.0.1:0", "--maintain-every", &self.maintain_every]).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?;
        let output = child.stdout.take().context("standard output is not piped")?;
        // From here on, drop kills it after any error.
        let mut process = Process { child, address: String::new(), start: Duration::ZERO };
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = match tokio::time::timeout(START_MAX, first).await {
            Ok(line) => line??,
            Err(_) => {
                // Ends the task that reads its output.
                process.child.kill()?;
                bail!("argus did not listen within {} s", START_MAX.as_secs());
            }
        };
        let address = line.trim().strip_prefix("argus listening on http://");
        process.address =
            address.with_context(|| format!("argus did not start; see {}", self.log.display()))?.to_owned();
        process.start = begun.elapsed();
        Ok(process)
    }

    /// Runs `argus maintain`; returns its output.
    pub async fn maintain(&self) -> Result<String> {
        let mut child = self.command("maintain")?.stdout(Stdio::piped()).spawn()?;
        let status = ended(&mut child, MAINTAIN_MAX).await?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("standard output is not piped")?).read_line(&mut line)?;
        if !status.success() {
            bail!("argus maintain exited with {status}; see {}", self.log.display());
        }
        Ok(line.trim().to_owned())
    }
}

impl Process {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has exited.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends SIGTERM, after which it must exit with 0; returns how long that took.
    pub async fn terminate(mut self) -> Result<Duration> {
        let begun = Instant::now();
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        if !sent.success() {
            bail!("cannot send SIGTERM to process {}: kill exited with {sent}", self.child.id());
        }
        let status = ended(&mut self.child, STOP_MAX).await.context("after SIGTERM")?;
        if !status.success() {
            bail!("the server exited with {status} after SIGTERM");
        }
        Ok(begun.elapsed())
    }
}

async fn ended(child: &mut Child, within: Duration) -> Result<ExitStatus> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > within {
            child.kill()?;
            child.wait()?;
            bail!("the process did not exit within {} s", within.as_secs());
        }
        tokio::time::sleep(POLL_EVERY).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of panics, and the lines with errors, in the server's log.
pub fn logged_errors(log: &Path) -> Result<(u64, Vec<String>)> {
    let mut panics = 0;
    let mut errors = Vec::new();
    for line in BufReader::new(File::open(log)?).lines() {
        // File names in messages may not be UTF-8.
        let Ok(line) = line else { continue };
        panics += u64::from(line.contains("panicked at"));
        if line.contains("ERROR") || line.contains("panicked at") {
            errors.push(line);
        }
    }
    Ok((panics, errors))
}

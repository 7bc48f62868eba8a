//! The server as a process: started, killed, and ended as an operator ends it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A server that does not listen by then has failed to start.
pub const START_MAX: Duration = Duration::from_secs(120);
/// A server that has not ended by then after SIGTERM has failed to stop.
pub const STOP_MAX: Duration = Duration::from_secs(60);
/// `argus maintain` has failed when it takes longer.
pub const MAINTAIN_MAX: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How the server is run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The binary.
    pub binary: PathBuf,
    /// The data directory.
    pub data: PathBuf,
    /// Where its log goes.
    pub log: PathBuf,
    /// How often it maintains its data.
    pub maintain_every: String,
    /// For how long the past can be read.
    pub retention: String,
    /// Timely workers.
    pub workers: Option<u16>,
}

/// A running server; killed when dropped.
pub struct Process {
    child: Child,
    /// Host and port.
    pub address: String,
    /// How long it took until it listened.
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
        let output = child.stdout.take().context("the output is piped")?;
        // From here on it is killed whatever goes wrong.
        let mut process = Process { child, address: String::new(), start: Duration::ZERO };
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let line = match tokio::time::timeout(START_MAX, first).await {
            Ok(line) => line??,
            Err(_) => {
                // What still reads its output must come to an end, too.
                process.child.kill()?;
                bail!("argus did not listen within {} s", START_MAX.as_secs());
            }
        };
        let address = line.trim().strip_prefix("argus listening on http://");
        process.address =
            address.with_context(|| format!("argus did not start, see {}", self.log.display()))?.to_owned();
        process.start = begun.elapsed();
        Ok(process)
    }

    /// Runs `argus maintain`; says what it printed.
    pub async fn maintain(&self) -> Result<String> {
        let mut child = self.command("maintain")?.stdout(Stdio::piped()).spawn()?;
        let status = ended(&mut child, MAINTAIN_MAX).await?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("the output is piped")?).read_line(&mut line)?;
        if !status.success() {
            bail!("argus maintain ended with {status}, see {}", self.log.display());
        }
        Ok(line.trim().to_owned())
    }
}

impl Process {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, after which it must end with 0; says how long that took.
    pub async fn terminate(mut self) -> Result<Duration> {
        let begun = Instant::now();
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        if !asked.success() {
            bail!("SIGTERM could not be sent: {asked}");
        }
        let status = ended(&mut self.child, STOP_MAX).await.context("after SIGTERM")?;
        if !status.success() {
            bail!("the server ended with {status} after SIGTERM");
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
            bail!("the process did not end within {} s", within.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended by itself needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Panics and errors in the server's log.
pub fn complaints(log: &Path) -> Result<(u64, Vec<String>)> {
    let mut panics = 0;
    let mut errors = Vec::new();
    for line in BufReader::new(File::open(log)?).lines() {
        // Names of files in messages need not be UTF-8.
        let Ok(line) = line else { continue };
        panics += u64::from(line.contains("panicked at"));
        if line.contains("ERROR") || line.contains("panicked at") {
            errors.push(line);
        }
    }
    Ok((panics, errors))
}

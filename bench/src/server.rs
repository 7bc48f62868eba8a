//! The `argus` that was built beside this program, started on a free port.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::peak::Peak;

/// The `argus` that was built beside this program.
pub fn argus_binary() -> Result<PathBuf> {
    let beside = std::env::current_exe()?.with_file_name("argus");
    if !beside.is_file() {
        bail!("build argus first, with the same profile: cargo build --release --workspace");
    }
    Ok(beside)
}

/// A running server, whose memory is watched; killed when dropped.
pub struct Server {
    child: Child,
    address: String,
    peak: Option<Peak>,
}

impl Server {
    /// Starts on a data directory; returns when it listens. It has as many workers as there are cores when not told.
    pub fn start(data: &Path, workers: Option<u16>) -> Result<Server> {
        Server::spawn(Command::new(argus_binary()?), data, workers)
    }

    /// Starts on one core, which it takes for the only one.
    pub fn start_on_core(data: &Path, core: usize) -> Result<Server> {
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).arg(argus_binary()?);
        Server::spawn(command, data, None)
    }

    fn spawn(mut command: Command, data: &Path, workers: Option<u16>) -> Result<Server> {
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        if let Some(workers) = workers {
            command.args(["--workers", &workers.to_string()]);
        }
        // What it says of each step would only stand between the figures.
        command.env("ARGUS_LOG", "warn").stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take();
        // From here on it is killed whatever goes wrong.
        let mut server = Server { peak: Some(Peak::of(child.id())), child, address: String::new() };
        let mut first = String::new();
        BufReader::new(output.context("the output is piped")?).read_line(&mut first)?;
        let address = first.trim().strip_prefix("argus listening on http://").context("argus did not start")?;
        server.address = address.to_owned();
        Ok(server)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Kills it; says its peak memory in bytes.
    pub fn stop(mut self) -> u64 {
        self.peak.take().map_or(0, Peak::stop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended by itself needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(peak) = self.peak.take() {
            peak.stop();
        }
    }
}

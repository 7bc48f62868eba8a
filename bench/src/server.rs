//! Starts the `argus` binary from the folder of this program, on a free port.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::peak::Peak;

/// The `argus` binary in the folder of this program.
pub fn argus_binary() -> Result<PathBuf> {
    let binary = std::env::current_exe()?.with_file_name("argus");
    if !binary.is_file() {
        bail!("{} does not exist; build it with the same profile: cargo build --release --workspace", binary.display());
    }
    Ok(binary)
}

/// A running server whose peak memory is measured; killed on drop.
pub struct Server {
    child: Child,
    address: String,
    peak: Option<Peak>,
}

impl Server {
    /// Starts on a data directory; returns when it listens. Default for `workers`: one per core.
    pub fn start(data: &Path, workers: Option<u16>) -> Result<Server> {
        Server::spawn(Command::new(argus_binary()?), data, workers, &[])
    }

    /// Starts with further arguments.
    pub fn start_with(data: &Path, arguments: &[&str]) -> Result<Server> {
        Server::spawn(Command::new(argus_binary()?), data, None, arguments)
    }

    /// Starts with further arguments, and on the embedded stores even if the environment names servers.
    #[cfg(feature = "kafka")]
    pub fn start_embedded(data: &Path, workers: Option<u16>, arguments: &[&str]) -> Result<Server> {
        let mut command = Command::new(argus_binary()?);
        for name in crate::servers::SERVERS {
            command.env_remove(name);
        }
        Server::spawn(command, data, workers, arguments)
    }

    /// Starts pinned to one core; its defaults are those of a one-core machine.
    pub fn start_on_core(data: &Path, core: usize) -> Result<Server> {
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]).arg(argus_binary()?);
        Server::spawn(command, data, None, &[])
    }

    fn spawn(mut command: Command, data: &Path, workers: Option<u16>, arguments: &[&str]) -> Result<Server> {
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).args(arguments);
        if let Some(workers) = workers {
            command.args(["--workers", &workers.to_string()]);
        }
        // Informational log lines would mix with the results.
        command.env("ARGUS_LOG", "warn").stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = child.stdout.take();
        // From here on, drop kills it after any error.
        let mut server = Server { peak: Some(Peak::of(child.id())), child, address: String::new() };
        let mut first = String::new();
        BufReader::new(output.context("standard output is not piped")?).read_line(&mut first)?;
        let address = first.trim().strip_prefix("argus listening on http://").context("argus did not start")?;
        server.address = address.to_owned();
        Ok(server)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Kills it; returns its peak memory in bytes.
    pub fn stop(mut self) -> u64 {
        self.peak.take().map_or(0, Peak::stop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors mean that the process has already exited.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(peak) = self.peak.take() {
            peak.stop();
        }
    }
}

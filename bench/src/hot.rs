//! One frequently read report, compared with nginx serving the same bytes from a file.
//!
//! The server is pinned to one core, and `wrk` with a hundred connections to another.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::client::Connection;
use crate::results::{Measurement, Run};
use crate::server::Server;

/// How long nginx may take to listen.
const START_WAIT: Duration = Duration::from_secs(10);

/// Flags of `argus-bench hot`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Concurrent connections.
    #[arg(long, default_value_t = 100)]
    connections: u16,
    /// Duration for each server, in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

/// Measures both servers.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start_on_core(&folder.path().join("data"), 0)?;
    let mut connection = Connection::open(server.address())?;
    let batch = connection.new_batch(1, "7.2.1")?;
    // Six codes make a report of about 2 KiB.
    let log: String = (0..6).map(|code| format!("2026-03-01 10:15:30 ERROR ota: E_FAIL_{code}\n")).collect();
    connection.send("PUT", &format!("/api/v1/batches/{batch}/files/vehicle.log"), log.as_bytes())?;
    let epoch = connection.complete(&batch)?;
    connection.report_at(&batch, epoch)?;
    // A commit of the tables would use the server's core during the measurement.
    connection.wait_committed(epoch)?;
    let path = format!("/api/v1/batches/{batch}/report");
    let report = connection.send("GET", &path, b"")?.body;
    let ours = load(&format!("http://{}{path}", server.address()), args)?;
    server.stop();
    let nginx = Nginx::start(folder.path(), &report)?;
    let theirs = load(&format!("http://{}/report.json", nginx.address), args)?;
    drop(nginx);
    let name = format!("a report of {} bytes", report.len());
    let rate = Measurement::higher("hot", &name, ours.rate, "requests/s");
    run.add(rate.against("nginx", theirs.rate).target_ratio(1.0));
    let p99 = Measurement::lower("hot", &name, ours.p99_ms, "p99 ms");
    run.add(p99.against("nginx", theirs.p99_ms).target_ratio(1.0));
    run.add(Measurement::higher("hot", "nginx, a file of the same", theirs.rate, "requests/s").peer());
    run.add(Measurement::lower("hot", "nginx, a file of the same", theirs.p99_ms, "p99 ms").peer());
    Ok(())
}

struct LoadResult {
    rate: f64,
    p99_ms: f64,
}

/// Runs `wrk` on the second core.
fn load(url: &str, args: &Args) -> Result<LoadResult> {
    let output = Command::new("taskset")
        .args(["-c", "1", "wrk", "--threads", "1", "--latency", "--connections", &args.connections.to_string()])
        .args(["--duration", &format!("{}s", args.seconds), url])
        .output()
        .context("wrk and taskset are needed (apt-get install wrk util-linux)")?;
    ensure!(output.status.success(), "wrk: {}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout)?;
    ensure!(!printed.contains("Non-2xx"), "some responses were not 2xx: {printed}");
    let after = |name: &str| {
        let line = printed.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(str::trim).with_context(|| format!("the output of wrk has no {name}: {printed}"))
    };
    Ok(LoadResult { rate: after("Requests/sec:")?.parse()?, p99_ms: millis(after("99%")?)? })
}

/// A time as `wrk` writes it, in ms.
fn millis(text: &str) -> Result<f64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let times = match &text[digits.len()..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        unit => bail!("wrk printed a time in the unknown unit {unit:?}"),
    };
    Ok(digits.parse::<f64>()? * times)
}

/// An nginx on the first core; killed on drop.
struct Nginx {
    child: Child,
    address: String,
}

impl Nginx {
    fn start(folder: &Path, report: &[u8]) -> Result<Nginx> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        drop(listener);
        std::fs::write(folder.join("report.json"), report)?;
        let at = |name: &str| -> PathBuf { folder.join(name) };
        let mut config = std::fs::File::create(at("nginx.conf"))?;
        write!(
            config,
            "user root; worker_processes 1; daemon off; pid {pid}; error_log {log};\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; default_type application/json;\n\
             open_file_cache max=10; sendfile on; server {{ listen {address}; root {root}; }} }}\n",
            pid = at("nginx.pid").display(),
            log = at("nginx.log").display(),
            root = folder.display(),
        )?;
        let child = Command::new("taskset")
            .args(["-c", "0", "nginx", "-c"])
            .arg(at("nginx.conf"))
            .stderr(Stdio::null())
            .spawn()
            .context("nginx is needed (apt-get install nginx-light)")?;
        let nginx = Nginx { child, address };
        let begun = Instant::now();
        while TcpStream::connect(&nginx.address).is_err() {
            ensure!(begun.elapsed() < START_WAIT, "nginx did not listen within {} s", START_WAIT.as_secs());
            std::thread::yield_now();
        }
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // On SIGTERM the master process ends its worker.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_in_every_unit() {
        let read = |text| millis(text).expect("a valid time");
        assert_eq!([read("812.00us"), read("1.56ms"), read("2.00s")], [0.812, 1.56, 2000.0]);
        assert!(millis("2.00m").is_err());
    }
}

//! Peak memory for a large file: `argus analyze` and an upload.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::client::Connection;
use crate::generate::default_log;
use crate::peak::Peak;
use crate::results::{Measurement, Run};
use crate::server::{Server, argus_binary};
use crate::truth::Truth;

/// Flags of `argus-bench memory`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Approximate bytes of the file.
    #[arg(long, default_value_t = 2 << 30)]
    bytes: u64,
    /// Timely workers.
    #[arg(long, default_value_t = 2)]
    workers: u16,
}

/// Generates a log, runs both on it, and checks the counts.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("large.log");
    let truth = default_log(&log, args.bytes, 1)?;
    let (peak, seconds) = analyze(&log, args.workers, &truth)?;
    add(run, "argus analyze", peak, seconds, truth.bytes);
    let (peak, seconds) = upload(&log, folder.path(), args.workers, &truth)?;
    add(run, "one upload to final", peak, seconds, truth.bytes);
    Ok(())
}

fn add(run: &mut Run, name: &str, peak: u64, seconds: f64, bytes: u64) {
    run.add(Measurement::lower("memory", name, (peak >> 20) as f64, "MiB"));
    run.add(Measurement::info("memory", name, seconds, "s"));
    run.add(Measurement::higher("memory", name, bytes as f64 / 1e6 / seconds, "MB/s"));
}

fn analyze(log: &Path, workers: u16, truth: &Truth) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let mut child = Command::new(argus_binary()?)
        .args(["analyze", "--format", "json", "--workers", &workers.to_string()])
        .arg(log)
        .stdout(Stdio::piped())
        .spawn()?;
    let peak = Peak::of(child.id());
    let report: Value = serde_json::from_reader(child.stdout.take().context("standard output is not piped")?)?;
    let seconds = begun.elapsed().as_secs_f64();
    child.wait()?;
    truth.check_report(&report)?;
    Ok((peak.stop(), seconds))
}

fn upload(log: &Path, folder: &Path, workers: u16, truth: &Truth) -> Result<(u64, f64)> {
    let server = Server::start(&folder.join("data"), Some(workers))?;
    let mut connection = Connection::open(server.address())?;
    let begun = Instant::now();
    let batch = connection.new_batch(1, "7.2.1")?;
    connection.put_file(&format!("/api/v1/batches/{batch}/files/large.log"), log)?;
    let epoch = connection.complete(&batch)?;
    let report = connection.report_at(&batch, epoch)?;
    let seconds = begun.elapsed().as_secs_f64();
    truth.check_report(&report)?;
    // A sorted read of all occurrences is the most expensive read.
    connection.get(&format!("/api/v1/batches/{batch}/errors?limit=1000"))?;
    Ok((server.stop(), seconds))
}

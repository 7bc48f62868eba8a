//! Concurrent uploads over HTTP, to durable and to final, compared with the disk's write rate.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::Connection;
use crate::generate::Logs;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::truth::Truth;

/// Flags of `argus-bench ingest`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Concurrent uploads, each to its own batch.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    uploads: u16,
    /// Approximate bytes of each upload.
    #[arg(long, default_value_t = 128 << 20)]
    bytes: u64,
    /// Timely workers; default: one per core.
    #[arg(long)]
    workers: Option<u16>,
    /// A folder on the disk to measure; default: the system's temporary folder.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
}

/// Times of an upload since the common start: durable, and final.
struct Times {
    durable: Duration,
    last: Duration,
}

/// Starts a server, uploads generated logs, and checks every report.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let logs = Logs::write(folder.path(), usize::from(args.uploads), args.bytes)?;
    let bytes = logs.truth().bytes;
    // The performance of cloud disks varies, so dd runs before and after, and the better time counts.
    let before = dd(&logs, folder.path())?;
    let server = Server::start(&folder.path().join("data"), args.workers)?;
    let times = upload_all(server.address(), &logs)?;
    let peak = server.stop();
    let after = dd(&logs, folder.path())?;

    let rate = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    let disk = rate(before.min(after));
    let latest = |of: fn(&Times) -> Duration| times.iter().map(of).max().unwrap_or_default();
    let (durable, last) = (rate(latest(|times| times.durable)), rate(latest(|times| times.last)));
    let name = format!("{} uploads at once", args.uploads);
    let (to_durable, to_final) = (format!("{name}, to durable"), format!("{name}, to final"));
    run.add(Measurement::higher("ingest", DD, disk, "MB/s").peer());
    run.add(Measurement::higher("ingest", to_durable, durable, "MB/s").against(DD, disk).target_ratio(4.0));
    run.add(Measurement::higher("ingest", to_final, last, "MB/s").against(DD, disk).target_ratio(4.0));
    run.add(Measurement::lower("ingest", name, (peak >> 20) as f64, "MiB").target(300.0));
    run.remark(format!("ingest: {} MiB together, from the page cache; all reports checked", bytes >> 20));
    Ok(())
}

/// The name of the reference for rates.
const DD: &str = "dd conv=fdatasync";

/// The time to write the same bytes to the disk, one file after the other.
fn dd(logs: &Logs, folder: &Path) -> Result<Duration> {
    let mut taken = Duration::ZERO;
    for path in logs.paths() {
        let copy = folder.join("copy");
        let mut command = Command::new("dd");
        for (name, file) in [("if=", path), ("of=", &copy)] {
            let mut parameter = std::ffi::OsString::from(name);
            parameter.push(file);
            command.arg(parameter);
        }
        let begun = Instant::now();
        let status =
            command.args(["bs=1M", "conv=fdatasync"]).stderr(Stdio::null()).status().context("cannot run dd")?;
        taken += begun.elapsed();
        ensure!(status.success(), "dd could not write to {}", folder.display());
        std::fs::remove_file(&copy)?;
    }
    Ok(taken)
}

/// Uploads each log on its own thread and connection.
fn upload_all(address: &str, logs: &Logs) -> Result<Vec<Times>> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let uploads = logs
            .files
            .iter()
            .enumerate()
            .map(|(number, (path, truth))| scope.spawn(move || upload(address, number, path, truth, begun)));
        // Start all before waiting for the first.
        let uploads: Vec<_> = uploads.collect();
        let ended =
            uploads.into_iter().map(|upload| upload.join().map_err(|_| anyhow::anyhow!("an upload panicked"))?);
        ended.collect()
    })
}

fn upload(address: &str, number: usize, log: &Path, truth: &Truth, begun: Instant) -> Result<Times> {
    let mut connection = Connection::open(address)?;
    let batch = connection.new_batch(number, "7.2.1")?;
    connection.put_file(&format!("/api/v1/batches/{batch}/files/vehicle.log"), log)?;
    let durable = begun.elapsed();
    let epoch = connection.complete(&batch)?;
    let mut report = connection.report_at(&batch, epoch)?;
    // A batch is final a moment after its last epoch has closed.
    while report["final"] != true {
        std::thread::sleep(Duration::from_millis(1));
        report = connection.report_at(&batch, epoch)?;
    }
    let last = begun.elapsed();
    truth.check_report(&report)?;
    Ok(Times { durable, last })
}

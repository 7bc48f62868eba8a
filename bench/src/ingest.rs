//! Uploads at once over HTTP, to durable and to final, beside what the disk takes.

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
    /// How many uploads at once, each of a batch of its own.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    uploads: u16,
    /// About how many bytes each has.
    #[arg(long, default_value_t = 128 << 20)]
    bytes: u64,
    /// Timely workers; as many as there are cores when not given.
    #[arg(long)]
    workers: Option<u16>,
    /// A folder on the disk that is measured; the system's for temporary files when not given.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
}

/// When, since the start of all, an upload had come how far.
struct Times {
    durable: Duration,
    last: Duration,
}

/// Uploads generated logs to a server that it starts, and checks every report.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let logs = Logs::write(folder.path(), usize::from(args.uploads), args.bytes)?;
    let bytes = logs.truth().bytes;
    // A disk in the clouds has good and bad minutes, so dd has a try before and one after, and the better counts.
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

/// The name of what rates are compared with.
const DD: &str = "dd conv=fdatasync";

/// The time in which the disk takes the very same bytes, one file after the other.
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
            command.args(["bs=1M", "conv=fdatasync"]).stderr(Stdio::null()).status().context("dd is needed")?;
        taken += begun.elapsed();
        ensure!(status.success(), "dd could not write to {}", folder.display());
        std::fs::remove_file(&copy)?;
    }
    Ok(taken)
}

/// A thread with a connection for each log.
fn upload_all(address: &str, logs: &Logs) -> Result<Vec<Times>> {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let uploads = logs
            .files
            .iter()
            .enumerate()
            .map(|(number, (path, truth))| scope.spawn(move || upload(address, number, path, truth, begun)));
        // All are started before the first is waited for.
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

//! Freshness: the latency from sending a line to reading it in the report.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::client::Connection;
use crate::follow;
use crate::latency::Latencies;
use crate::load::Load;
use crate::results::Run;
use crate::server::Server;

/// Flags of `argus-bench fresh`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of lines, sent one after the other.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// Time limit of a round in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Rate of other uploads in the second round, in MB/s; 0 skips that round.
    #[arg(long, default_value_t = 50)]
    load: u32,
    /// Timely workers; default: one per core.
    #[arg(long)]
    workers: Option<u16>,
}

/// A line that is not in the report after this time is lost.
const LOST_AFTER: Duration = Duration::from_secs(30);
const LINE: &[u8] = b"2026-03-01 10:15:30,123 ERROR [main] bms.Monitor - DTC P0A1F-87 stored\n";
const CODE: &str = "P0A1F-87";
/// Lines sent before the measurement, to fill connections, caches and pages.
const WARM_UP: u32 = 100;

/// Measures on an idle server, and on one with concurrent uploads.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), args.workers)?;
    let time = Duration::from_secs(u64::from(args.seconds));
    if let Some(times) = follow::measure(LINE, CODE, args.lines, time)? {
        let measurements = times.measurements("fresh", "tail -F | rg", [None, None]);
        measurements.into_iter().for_each(|measurement| run.add(measurement.peer()));
    }
    let round = |run: &mut Run, name: &str, targets| round(run, server.address(), name, args.lines, time, targets);
    round(run, "idle", [Some(1.0), Some(5.0)])?;
    if args.load > 0 {
        let load = Load::start(server.address(), f64::from(args.load) * 1e6)?;
        let name = format!("at {} MB/s of uploads", args.load);
        round(run, &name, [None, Some(50.0)])?;
        run.remark(format!("fresh: {:.1} MB/s of uploads in the round with load", load.stop()? / 1e6));
    }
    Ok(())
}

/// Sends lines to a new batch, and waits until each is in the report.
fn round(
    run: &mut Run,
    address: &str,
    name: &str,
    lines: u32,
    time: Duration,
    targets: [Option<f64>; 2],
) -> Result<()> {
    let (mut sender, mut reader) = (Connection::open(address)?, Connection::open(address)?);
    let batch = sender.new_batch(1, "7.2.1")?;
    let to = format!("/api/v1/batches/{batch}/files/live.log/lines");
    let from = format!("/api/v1/batches/{batch}/report");
    let [mut total, mut sent, mut read] = [const { Vec::new() }; 3];
    let mut start = Instant::now();
    for count in 1..=u64::from(WARM_UP + lines) {
        let begun = Instant::now();
        if total.is_empty() {
            start = begun;
        } else if begun - start > time {
            break;
        }
        sender.send("POST", &to, LINE)?;
        let answered = begun.elapsed();
        let first = loop {
            let requested = Instant::now();
            let report = reader.get(&from)?;
            let taken = requested.elapsed();
            if counted(&report) == count {
                break taken;
            }
            if begun.elapsed() > LOST_AFTER {
                bail!("line {count} is not in the report after {} s: {report}", LOST_AFTER.as_secs());
            }
        };
        if count > u64::from(WARM_UP) {
            total.push(begun.elapsed());
            sent.push(answered);
            read.push(first);
        }
    }
    run.remark(format!("fresh: {name}, {} lines, one after the other", total.len()));
    Latencies::new(total).report(run, "fresh", name, targets);
    Latencies::new(sent).report(run, "fresh", &format!("{name}: response to the line"), [None, None]);
    Latencies::new(read).report(run, "fresh", &format!("{name}: response of the report"), [None, None]);
    Ok(())
}

/// The count of the code in the report.
fn counted(report: &Value) -> u64 {
    let codes = report["codes"].as_array().into_iter().flatten();
    codes.filter(|code| code["code"] == CODE).filter_map(|code| code["count"].as_u64()).sum()
}

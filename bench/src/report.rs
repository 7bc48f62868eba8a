//! Reports that are read: how soon one comes, and how many a second.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::client::Connection;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::vehicles::{FleetArgs, Vehicles};

/// Flags of `argus-bench report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Readers at once, where many read.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    readers: u16,
    /// Seconds for which each is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

/// Reads the report of one batch again and again, and of all batches in turn.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), args.fleet.workers)?;
    let vehicles = Vehicles::upload(server.address(), &args.fleet)?;
    let path = |batch: &str| format!("/api/v1/batches/{batch}/report");
    let all: Vec<String> = vehicles.batches.iter().map(|(batch, _)| path(batch)).collect();
    let time = Duration::from_secs(u64::from(args.seconds));
    for (which, paths) in [("one batch", &all[..1]), ("all batches in turn", &all[..])] {
        for readers in [1, usize::from(args.readers)] {
            let begun = Instant::now();
            let times = read(server.address(), paths, readers, time)?;
            let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
            let name = format!("{which}, {readers} reading");
            run.add(Measurement::higher("report", &name, rate, "reports/s"));
            Latencies::new(times).report(run, "report", &name, [None, None]);
        }
    }
    run.add(Measurement::lower("report", "server", (server.stop() >> 20) as f64, "MiB"));
    run.remark(format!("report: {} batches, {} MiB of logs together", all.len(), vehicles.truth().bytes >> 20));
    Ok(())
}

/// How long each report took, of several readers that each ask for the next as soon as they have one.
fn read(address: &str, paths: &[String], readers: usize, time: Duration) -> Result<Vec<Duration>> {
    let begun = Instant::now();
    let reader = |first: usize| {
        let mut connection = Connection::open(address)?;
        let mut times = Vec::new();
        for path in paths.iter().cycle().skip(first * paths.len() / readers) {
            let asked = Instant::now();
            connection.send("GET", path, b"")?;
            times.push(asked.elapsed());
            if begun.elapsed() >= time {
                break;
            }
        }
        Ok::<_, anyhow::Error>(times)
    };
    let ended = std::thread::scope(|scope| {
        let reader = &reader;
        let threads: Vec<_> = (0..readers).map(|first| scope.spawn(move || reader(first))).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut times = Vec::new();
    for one in ended {
        times.extend(one.map_err(|_| anyhow!("a reader panicked"))??);
    }
    Ok(times)
}

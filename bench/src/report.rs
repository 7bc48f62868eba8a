//! Latency and throughput of reports.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::json;

use crate::client::Connection;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::vehicles::{FleetArgs, Vehicles};

/// Occupies all query threads for some seconds.
const HEAVY: &str = "SELECT value % 100003 AS part, count(*) FROM generate_series(1, 20000000) \
                     GROUP BY part ORDER BY 2 DESC, 1 LIMIT 1";
/// Rounds of reading alone and during a query.
const ROUNDS: u32 = 5;

/// Flags of `argus-bench report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Concurrent readers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    readers: u16,
    /// Duration of each measurement in seconds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

/// Reads the report of one batch repeatedly, and of all batches in turn.
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
            let name = format!("{which}, {readers} readers");
            run.add(Measurement::higher("report", &name, rate, "reports/s"));
            Latencies::new(times).report(run, "report", &name, [None, None]);
        }
    }
    during_a_query(run, server.address(), &all, args)?;
    run.add(Measurement::lower("report", "server", (server.stop() >> 20) as f64, "MiB"));
    run.remark(format!("report: {} batches, {} MiB of logs in total", all.len(), vehicles.truth().bytes >> 20));
    Ok(())
}

/// Reads all reports with one reader, alone and during a heavy query, in alternating rounds: machines are noisy.
fn during_a_query(run: &mut Run, address: &str, paths: &[String], args: &Args) -> Result<()> {
    let round = Duration::from_secs(u64::from(args.seconds)) / ROUNDS;
    let (mut alone, mut during) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.extend(read(address, paths, 1, round)?);
        let done = AtomicBool::new(false);
        let (read, queried) = std::thread::scope(|scope| {
            let querying = scope.spawn(|| query_until(address, &done));
            let read = read(address, paths, 1, round);
            done.store(true, Ordering::Relaxed);
            (read, querying.join())
        });
        queried.map_err(|_| anyhow!("the thread with the heavy query panicked"))??;
        during.extend(read?);
    }
    let alone = Latencies::new(alone).millis(0.99);
    let during =
        Measurement::lower("report", "1 reader during a heavy query", Latencies::new(during).millis(0.99), "p99 ms");
    run.add(during.against("alone", alone));
    Ok(())
}

/// Runs the heavy query repeatedly, each time with a different text, so that it is not cached.
fn query_until(address: &str, done: &AtomicBool) -> Result<()> {
    let mut connection = Connection::open(address)?;
    while !done.load(Ordering::Relaxed) {
        connection.post("/api/v1/query", &json!({ "sql": format!("{HEAVY} -- {:?}", Instant::now()) }))?;
    }
    Ok(())
}

/// The response times of reports, with several readers that each send one request after the other.
fn read(address: &str, paths: &[String], readers: usize, time: Duration) -> Result<Vec<Duration>> {
    let begun = Instant::now();
    let reader = |first: usize| {
        let mut connection = Connection::open(address)?;
        let mut times = Vec::new();
        for path in paths.iter().cycle().skip(first * paths.len() / readers) {
            let sent = Instant::now();
            connection.send("GET", path, b"")?;
            times.push(sent.elapsed());
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

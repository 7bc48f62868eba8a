//! Reports that are read: how soon one comes, and how many a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::json;

use crate::client::Connection;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::vehicles::{FleetArgs, Vehicles};

/// Keeps all threads that queries have busy for some seconds.
const HEAVY: &str = "SELECT value % 100003 AS part, count(*) FROM generate_series(1, 20000000) \
                     GROUP BY part ORDER BY 2 DESC, 1 LIMIT 1";
/// Turns of reading alone and beside a query.
const TURNS: u32 = 5;

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
    beside_a_query(run, server.address(), &all, args)?;
    run.add(Measurement::lower("report", "server", (server.stop() >> 20) as f64, "MiB"));
    run.remark(format!("report: {} batches, {} MiB of logs together", all.len(), vehicles.truth().bytes >> 20));
    Ok(())
}

/// Reads all reports with one reader, alone and beside a heavy query, in turns: a machine has moods.
fn beside_a_query(run: &mut Run, address: &str, paths: &[String], args: &Args) -> Result<()> {
    let turn = Duration::from_secs(u64::from(args.seconds)) / TURNS;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        alone.extend(read(address, paths, 1, turn)?);
        let done = AtomicBool::new(false);
        let (read, asked) = std::thread::scope(|scope| {
            let asker = scope.spawn(|| ask_until(address, &done));
            let read = read(address, paths, 1, turn);
            done.store(true, Ordering::Relaxed);
            (read, asker.join())
        });
        asked.map_err(|_| anyhow!("the asker panicked"))??;
        beside.extend(read?);
    }
    let alone = Latencies::new(alone).millis(0.99);
    let beside =
        Measurement::lower("report", "1 reading beside a heavy query", Latencies::new(beside).millis(0.99), "p99 ms");
    run.add(beside.against("alone", alone));
    Ok(())
}

/// Asks the heavy query again and again, each time another one.
fn ask_until(address: &str, done: &AtomicBool) -> Result<()> {
    let mut connection = Connection::open(address)?;
    while !done.load(Ordering::Relaxed) {
        connection.post("/api/v1/query", &json!({ "sql": format!("{HEAVY} -- {:?}", Instant::now()) }))?;
    }
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

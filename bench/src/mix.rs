//! The cache hit rate for reports that many people read while batches change.
//!
//! The popularity of batches follows Zipf's law, and one batch changes each second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::client::Connection;
use crate::generate::Random;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::vehicles::{FleetArgs, Vehicles};

/// Flags of `argus-bench mix`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Concurrent readers.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    readers: u16,
    /// Duration in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

/// Reads and changes batches, and calculates the hit rate from the server's metrics.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), args.fleet.workers)?;
    let vehicles = Vehicles::upload(server.address(), &args.fleet)?;
    let batches: Vec<&str> = vehicles.batches.iter().map(|(batch, _)| &**batch).collect();
    let address = server.address();
    let mut connection = Connection::open(address)?;
    // Read every report once, so that the cache is full as after a day of operation.
    for batch in &batches {
        connection.get(&format!("/api/v1/batches/{batch}/report"))?;
    }
    let before = cache_requests(&mut connection)?;
    let until = Instant::now() + Duration::from_secs(u64::from(args.seconds));
    let done = AtomicBool::new(false);
    let ended = std::thread::scope(|scope| {
        let change = || change(address, &batches, &done);
        let changing = scope.spawn(change);
        let batches = &batches;
        let readers: Vec<_> =
            (0..args.readers).map(|reader| scope.spawn(move || read(address, batches, reader, until))).collect();
        let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        done.store(true, Ordering::Relaxed);
        (ended, changing.join())
    });
    let mut times = Vec::new();
    for one in ended.0 {
        times.extend(one.map_err(|_| anyhow!("a reader panicked"))??);
    }
    let changes = ended.1.map_err(|_| anyhow!("the writer panicked"))??;
    let after = cache_requests(&mut connection)?;
    let [hits, others] = [after[0] - before[0], after[1] - before[1]];
    let rate = 100.0 * hits / (hits + others);
    let name = format!("{} batches, {changes} changes", batches.len());
    run.add(Measurement { target: Some(99.0), ..Measurement::higher("mix", &name, rate, "% hits") });
    run.add(Measurement::higher("mix", &name, times.len() as f64 / f64::from(args.seconds), "reports/s"));
    Latencies::new(times).report(run, "mix", &name, [None, None]);
    Ok(())
}

/// The number of cache hits, and of all other requests.
fn cache_requests(connection: &mut Connection) -> Result<[f64; 2]> {
    let mut of = |outcome: &str| {
        connection.metric(&format!("argus_cache_requests_total{{tier=\"memory\",outcome=\"{outcome}\"}}"))
    };
    Ok([of("hit")?, of("miss")? + of("shared")?])
}

fn read(address: &str, batches: &[&str], reader: u16, until: Instant) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(address)?;
    let mut random = Random::new(u64::from(reader) + 1);
    // Zipf's law: the probability of the batch with rank n is proportional to 1 / n.
    let mut sum = 0.0;
    let upto: Vec<f64> = (1..=batches.len())
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    let mut times = Vec::new();
    while Instant::now() < until {
        let chance = random.below(1 << 53) as f64 / (1_u64 << 53) as f64 * sum;
        let index = upto.partition_point(|&upto| upto < chance).min(batches.len() - 1);
        let sent = Instant::now();
        connection.send("GET", &format!("/api/v1/batches/{}/report", batches[index]), b"")?;
        times.push(sent.elapsed());
    }
    Ok(times)
}

/// Each second, reopens a batch, appends a line and completes it; returns how often.
fn change(address: &str, batches: &[&str], done: &AtomicBool) -> Result<usize> {
    let mut connection = Connection::open(address)?;
    let mut random = Random::new(0);
    let mut changes = 0;
    while !done.load(Ordering::Relaxed) {
        let batch = batches[random.below(batches.len() as u64) as usize];
        connection.send("POST", &format!("/api/v1/batches/{batch}/reopen"), b"")?;
        connection.send("POST", &format!("/api/v1/batches/{batch}/files/more.log/lines"), b"E_FAIL\n")?;
        connection.complete(batch)?;
        changes += 1;
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(changes)
}

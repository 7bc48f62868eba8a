//! How long the server takes for each web page over a fleet, while one batch changes each second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::client::Connection;
use crate::latency::Latencies;
use crate::results::Run;
use crate::server::Server;
use crate::vehicles::{FleetArgs, Vehicles};

/// The target of each page (p99), in ms.
const TARGET_MS: f64 = 20.0;

/// Flags of `argus-bench pages`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetArgs,
    /// How often each page is read.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    reads: u32,
}

/// Uploads a fleet, and reads each page.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), args.fleet.workers)?;
    let fleet = Vehicles::upload(server.address(), &args.fleet)?;
    let batches: Vec<&str> = fleet.batches.iter().map(|(batch, _)| &**batch).collect();
    let mut connection = Connection::open(server.address())?;
    let batch = batches[batches.len() / 2];
    let described = connection.get(&format!("/api/v1/batches/{batch}"))?;
    let vin = described["vin"].as_str().unwrap_or_default().to_owned();
    let codes = connection.get("/api/v1/fleet/codes?limit=1")?;
    let code = codes["codes"][0]["code"].as_str().unwrap_or_default().to_owned();
    let done = AtomicBool::new(false);
    let (address, last) = (server.address(), batches[batches.len() - 1]);
    let measured = std::thread::scope(|scope| {
        let changing = scope.spawn(|| change(address, last, &done));
        let mut read = || {
            let mut pages = Vec::new();
            for (name, path) in [
                ("overview", "/".to_owned()),
                ("batches", "/batches".to_owned()),
                ("batch", format!("/batches/{batch}")),
                ("firmware", "/firmware".to_owned()),
                ("codes", "/codes".to_owned()),
                ("code", format!("/codes/{code}")),
                ("vehicles", "/vehicles".to_owned()),
                ("vehicle", format!("/vehicles/{vin}")),
                ("upload", "/upload".to_owned()),
            ] {
                pages.push((name, read_page(&mut connection, &path, args.reads)?));
            }
            Ok::<_, anyhow::Error>(pages)
        };
        let pages = read();
        done.store(true, Ordering::Relaxed);
        (pages, changing.join())
    });
    measured.1.map_err(|_| anyhow!("the writer panicked"))??;
    for (name, (first, times)) in measured.0? {
        let name = format!("{name}, {} batches", batches.len());
        run.add(crate::results::Measurement::info("pages", &name, first.as_secs_f64() * 1e3, "first ms"));
        Latencies::new(times).report(run, "pages", &name, [None, Some(TARGET_MS)]);
    }
    Ok(())
}

/// The time of the first read, and of the others.
fn read_page(connection: &mut Connection, path: &str, reads: u32) -> Result<(Duration, Vec<Duration>)> {
    let mut times = Vec::new();
    for _ in 0..=reads {
        let sent = Instant::now();
        let page = connection.send("GET", path, b"")?;
        times.push(sent.elapsed());
        ensure!(page.body.ends_with(b"</html>"), "{path} is no page");
        // As a few people read.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((times.remove(0), times))
}

/// Appends a line to a batch each second.
fn change(address: &str, batch: &str, done: &AtomicBool) -> Result<()> {
    let mut connection = Connection::open(address)?;
    connection.send("POST", &format!("/api/v1/batches/{batch}/reopen"), b"")?;
    while !done.load(Ordering::Relaxed) {
        connection.send("POST", &format!("/api/v1/batches/{batch}/files/more.log/lines"), b"E_FAIL\n")?;
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

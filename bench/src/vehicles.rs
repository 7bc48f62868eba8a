//! Uploads the batches of a fleet over HTTP, for later queries.

use anyhow::{Result, anyhow};

use crate::client::Connection;
use crate::generate::{ALL_KINDS, Random, write_log};
use crate::truth::Truth;

/// Concurrent uploads.
const AT_ONCE: usize = 4;
const VEHICLES: usize = 50;
const FIRMWARES: [&str; 4] = ["7.1.9", "7.2.0", "7.2.1", "7.3.0-rc1"];

/// Flags of benchmarks that query a fleet.
#[derive(Debug, Clone, clap::Args)]
pub struct FleetArgs {
    /// Number of batches to upload first.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batches: u32,
    /// Approximate log bytes of each batch.
    #[arg(long, default_value_t = 64 << 10)]
    bytes: u64,
    /// Timely workers; default: one per core.
    #[arg(long)]
    pub workers: Option<u16>,
}

/// An uploaded fleet, with all batches completed and counted.
pub struct Vehicles {
    /// The ids of the batches and their expected counts.
    pub batches: Vec<(String, Truth)>,
}

impl Vehicles {
    /// Uploads a fleet with the same logs each time.
    pub fn upload(address: &str, args: &FleetArgs) -> Result<Vehicles> {
        let ended = std::thread::scope(|scope| {
            let share = |first: usize| scope.spawn(move || upload_share(address, args, first));
            // Start all before waiting for the first.
            let threads: Vec<_> = (0..AT_ONCE).map(share).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let mut batches = Vec::new();
        for share in ended {
            batches.extend(share.map_err(|_| anyhow!("an upload panicked"))??);
        }
        Ok(Vehicles { batches })
    }

    /// The expected counts of all batches.
    pub fn truth(&self) -> Truth {
        self.batches.iter().map(|(_, truth)| truth).sum()
    }
}

/// Uploads every batch whose number modulo [`AT_ONCE`] is `first`.
fn upload_share(address: &str, args: &FleetArgs, first: usize) -> Result<Vec<(String, Truth)>> {
    let mut connection = Connection::open(address)?;
    let numbers = (first..args.batches as usize).step_by(AT_ONCE);
    numbers.map(|number| upload(&mut connection, number, args.bytes)).collect()
}

fn upload(connection: &mut Connection, number: usize, bytes: u64) -> Result<(String, Truth)> {
    let batch = connection.new_batch(number % VEHICLES, FIRMWARES[number / VEHICLES % FIRMWARES.len()])?;
    let mut log = Vec::new();
    let truth = write_log(&mut log, bytes, &mut Random::new(number as u64), 50, &ALL_KINDS)?;
    connection.send("PUT", &format!("/api/v1/batches/{batch}/files/vehicle.log"), &log)?;
    let epoch = connection.complete(&batch)?;
    truth.check_report(&connection.report_at(&batch, epoch)?)?;
    Ok((batch, truth))
}

//! A fleet whose batches are uploaded over HTTP, for what is asked afterwards.

use anyhow::{Result, anyhow};

use crate::client::Connection;
use crate::generate::{ALL_KINDS, Random, write_log};
use crate::truth::Truth;

/// Vehicles upload this many at once.
const AT_ONCE: usize = 4;
const VEHICLES: usize = 50;
const FIRMWARES: [&str; 4] = ["7.1.9", "7.2.0", "7.2.1", "7.3.0-rc1"];

/// Flags of what asks a fleet.
#[derive(Debug, Clone, clap::Args)]
pub struct FleetArgs {
    /// How many batches are uploaded first.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    batches: u32,
    /// About how many bytes of log each has.
    #[arg(long, default_value_t = 64 << 10)]
    bytes: u64,
    /// Timely workers; as many as there are cores when not given.
    #[arg(long)]
    pub workers: Option<u16>,
}

/// A fleet that was uploaded, with all batches completed and counted.
pub struct Vehicles {
    /// The ids of the batches, with what each says.
    pub batches: Vec<(String, Truth)>,
}

impl Vehicles {
    /// Uploads a fleet, the same each time.
    pub fn upload(address: &str, args: &FleetArgs) -> Result<Vehicles> {
        let ended = std::thread::scope(|scope| {
            let share = |first: usize| scope.spawn(move || upload_share(address, args, first));
            // All are started before the first is waited for.
            let threads: Vec<_> = (0..AT_ONCE).map(share).collect();
            threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        let mut batches = Vec::new();
        for share in ended {
            batches.extend(share.map_err(|_| anyhow!("an upload panicked"))??);
        }
        Ok(Vehicles { batches })
    }

    /// What they say together.
    pub fn truth(&self) -> Truth {
        self.batches.iter().map(|(_, truth)| truth).sum()
    }
}

/// Uploads every batch of which the number leaves `first` when divided by the threads.
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

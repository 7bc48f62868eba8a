//! The comparison of two firmwares in a fleet as large as is compared vehicle by vehicle, from the cells that the dataflow keeps for each vehicle.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use argus_dataflow::{CellRow, ClosedEpoch, Output, Recorded, Row, SeenRange, Subject, Vehicle};
use argus_query::{ComparisonRequest, Engine, EngineConfig, FleetFilter};
use argus_sinks::{Lake, LakeConfig};
use object_store::local::LocalFileSystem;
use url::Url;
use uuid::Uuid;

use crate::generate::Random;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};

const FIRMWARES: [&str; 2] = ["7.1.0", "7.2.0"];
const PLATFORMS: [&str; 3] = ["mk2", "mk3", "mk4"];
const CODES: usize = 20;
/// The share of vehicles with a code, in percent.
const SHARE: u64 = 30;
/// Vehicles in one closed epoch.
const VEHICLES_PER_EPOCH: usize = 2_000;
const REPEATED: usize = 5;

/// Flags of `argus-bench comparison`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Vehicles, each seen with both firmwares.
    #[arg(long, default_value_t = 40_000)]
    vehicles: usize,
}

/// Writes the cells, and compares the firmwares.
pub async fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(LocalFileSystem::new());
    let root = Url::from_directory_path(folder.path())
        .map_err(|()| anyhow::anyhow!("{} is not an absolute path", folder.path().display()))?;
    write(Lake::open(store.clone(), &root, LakeConfig::default(), None).await?, args.vehicles).await?;
    let snapshot = Arc::new(Lake::read(store.clone(), &root).await?);
    let engine = Engine::new(store, &root, &EngineConfig::default())?;
    let request = ComparisonRequest {
        firmware: FIRMWARES[1].to_owned(),
        against: FIRMWARES[0].to_owned(),
        inactive: false,
        filter: FleetFilter::default(),
    };
    let mut times = Vec::new();
    for _ in 0..REPEATED {
        let begun = Instant::now();
        let compared = request.read(&engine, &snapshot).await?;
        times.push(begun.elapsed());
        ensure!(
            compared.both_vehicles == Some(args.vehicles as u64) && compared.codes.len() == CODES,
            "a wrong comparison"
        );
    }
    let name = format!("{} vehicles, {CODES} codes", args.vehicles);
    let median = Latencies::new(times).millis(0.5);
    run.add(Measurement::lower("comparison", &name, median, "p50 ms"));
    Ok(())
}

async fn write(lake: Lake, vehicles: usize) -> Result<()> {
    let (to, outputs) = tokio::sync::mpsc::unbounded_channel();
    let snapshots = lake.snapshots();
    let writing = tokio::spawn(lake.run(outputs, |_| {}));
    let mut random = Random::new(7);
    for (epoch, first) in (1..).zip((0..vehicles).step_by(VEHICLES_PER_EPOCH)) {
        let some = first..(first + VEHICLES_PER_EPOCH).min(vehicles);
        let rows = some.flat_map(|vehicle| cells(vehicle, &mut random)).map(|cell| (Row::Cell(cell), 1)).collect();
        to.send(Output::Closed(ClosedEpoch { epoch, rows })).ok().context("the lake has stopped")?;
        // At most four epochs are queued.
        let mut seen = snapshots.clone();
        seen.wait_for(|snapshot| snapshot.epoch + 4 >= epoch).await?;
    }
    drop(to);
    Ok(writing.await??)
}

fn cells(number: usize, random: &mut Random) -> Vec<CellRow> {
    let mut cells = Vec::new();
    for firmware in FIRMWARES {
        let vehicle = Vehicle {
            firmware: Some(firmware.to_owned()),
            platform: Some(PLATFORMS[number % PLATFORMS.len()].to_owned()),
            vehicle_id: format!("veh-{number}"),
            vin: format!("WVWZZZ1JZX{number:07}"),
        };
        let first_batch = Some(Recorded { at: number as i64, batch_id: Uuid::now_v7() });
        let seen = SeenRange { first: Some(number as i64), last: Some(number as i64), first_batch };
        let mut add = |subject, count| {
            let vehicle = vehicle.clone();
            cells.push(CellRow { vehicle, subject, count, inactive: 0, batches: 1, seen });
        };
        add(Subject::Lines, 1000);
        for code in 0..CODES {
            if random.below(100) < SHARE {
                let code = format!("ERR_STEP_{code}");
                add(Subject::Code(code.clone()), 3);
                add(Subject::CodeOf { component: Some("ota".to_owned()), code }, 3);
            }
        }
    }
    cells
}

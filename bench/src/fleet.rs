//! The cost of the incrementally maintained fleet view as batches close: memory, the
//! latency from completing a batch to its appearance in the view, and the time to read
//! the top codes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use argus_dataflow::{
    BatchRow, Change, CodeLimits, Config, Dataflow, FileRow, Origin, Output, Row, RuleSet, TextBlock, VersionId,
};
use argus_query::{Engine, EngineConfig, FleetFilter, FleetRequest, GroupBy};
use argus_sinks::{FleetView, LastChanges, RecentView, Snapshot};
use tokio::sync::mpsc::UnboundedReceiver;
use url::Url;
use uuid::Uuid;

use crate::generate::UPLOADED_AT;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};

/// The vehicles of the fleet; each rotates through all firmware versions.
const VEHICLES: u64 = 200;
const FIRMWARES: u64 = 4;
/// The codes of the batches; each batch has five.
const CODES: [&str; 12] = [
    "E_FAIL",
    "E_ABORT",
    "E_TIMEOUT",
    "SIGSEGV",
    "SIGBUS",
    "EIO",
    "ENOSPC",
    "DTC P0301-07",
    "DTC P0A1F-87",
    "errno: 5",
    "rc=-110",
    "DTC U0100-00",
];
/// Batches that close in one epoch between milestones.
const BATCHES_PER_EPOCH: u64 = 200;
/// Batches that are measured one by one at a milestone.
const MEASURED_BATCHES: usize = 200;

struct Fleet {
    dataflow: Dataflow,
    outputs: UnboundedReceiver<Output>,
    view: FleetView,
    epoch: u64,
    closed: u64,
}

/// Flags of `argus-bench fleet`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many batches.
    #[arg(long, default_value_t = 1_000_000)]
    batches: u64,
    /// Timely workers.
    #[arg(long, default_value_t = 2)]
    workers: u16,
}

/// Closes batches, and measures the cost of the view at each power of ten.
pub async fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let rules = RuleSet::built_in()?;
    let in_flight_bytes = Config::IN_FLIGHT_BYTES_DEFAULT;
    let config = Config {
        workers: usize::from(args.workers),
        rules,
        first_epoch: 1,
        in_flight_bytes,
        occurrences: false,
        limits: CodeLimits::default(),
        scans_only: false,
    };
    let (dataflow, outputs) = Dataflow::start(config).map_err(anyhow::Error::msg)?;
    let mut fleet = Fleet { dataflow, outputs, view: FleetView::default(), epoch: 0, closed: 0 };
    let engine = Engine::new(Arc::new(object_store()), &Url::parse("file:///")?, &EngineConfig::default())?;
    let mut milestone = 1_000;
    while milestone <= args.batches {
        while fleet.closed < milestone - MEASURED_BATCHES as u64 {
            fleet.close(BATCHES_PER_EPOCH.min(milestone - fleet.closed)).await?;
        }
        let mut times = Vec::with_capacity(MEASURED_BATCHES);
        for _ in 0..MEASURED_BATCHES {
            let begun = Instant::now();
            fleet.close(1).await?;
            times.push(begun.elapsed());
        }
        let read = fleet.read(&engine).await?;
        let name = format!("{} closed batches", fleet.closed);
        run.add(Measurement::lower("fleet", &name, (memory()? >> 20) as f64, "MiB"));
        Latencies::new(times).report(run, "fleet", &name, [None, None]);
        run.add(Measurement::lower("fleet", &name, read.as_secs_f64() * 1e3, "read ms"));
        milestone *= 10;
    }
    run.remark(
        "fleet: quantiles are from completing one batch to its appearance in the view; a read is the top 20 codes",
    );
    Ok(())
}

fn object_store() -> impl object_store::ObjectStore {
    object_store::memory::InMemory::new()
}

impl Fleet {
    /// Creates, fills and completes batches in one epoch; returns when the view contains them.
    async fn close(&mut self, batches: u64) -> Result<()> {
        let mut changes = Vec::new();
        for _ in 0..batches {
            let number = self.closed;
            self.closed += 1;
            let (vehicle, firmware) = (number % VEHICLES, number / VEHICLES % FIRMWARES);
            let batch = BatchRow {
                batch_id: Uuid::now_v7(),
                vehicle_id: format!("veh-{vehicle}"),
                vin: format!("WVWZZZ1JZXW{vehicle:06}"),
                platform: Some(format!("p{}", vehicle % 3)),
                firmware: Some(format!("7.2.{firmware}")),
                labels: None,
                created_at: 0,
                live: 1,
                completed: 0,
            };
            let file = self.file(&batch, number).await?;
            changes.push(Change::Batch(batch.clone()));
            changes.push(Change::Admit(file));
            changes.push(Change::Batch(BatchRow { live: 0, completed: 1, ..batch }));
        }
        self.epoch += 1;
        self.dataflow.advance(self.epoch, changes)?;
        while let Some(output) = self.outputs.recv().await {
            let Output::Closed(closed) = output else { continue };
            self.view.apply(
                closed.epoch,
                closed.rows.iter().filter_map(|(row, count)| match row {
                    Row::Fleet(row) => Some((row, *count)),
                    _ => None,
                }),
            );
            if closed.epoch == self.epoch {
                return Ok(());
            }
        }
        bail!("the dataflow has stopped")
    }

    async fn file(&self, batch: &BatchRow, number: u64) -> Result<FileRow> {
        let lines = (0..5).map(|line| {
            let code = CODES[((number + line * 3) % CODES.len() as u64) as usize];
            // Times increase as in a real fleet: the latest time changes with every batch.
            let (hour, minute, second) = (number / 3600 % 24, number / 60 % 60, number % 60);
            let day = 1 + number / 86_400 % 28;
            format!("2026-03-{day:02} {hour:02}:{minute:02}:{second:02} ERROR ota: {code}\n")
        });
        let text = lines.collect::<String>().into_bytes();
        let (version, bytes) = (VersionId::new(), text.len() as u64);
        let origin = Origin { batch_id: batch.batch_id, file: "a.log".to_owned(), version, uploaded_at: UPLOADED_AT };
        self.dataflow.insert(&Arc::new(origin), TextBlock { text: text.into(), first_line: 1, offset: 0 }).await?;
        Ok(FileRow {
            batch_id: batch.batch_id,
            file_id: version.0,
            version,
            name: "a.log".to_owned(),
            generation: 1,
            live: 1,
            erased: 0,
            open_line: false,
            bytes,
            lines: 5,
            long_lines: 0,
            last_line: 5,
            error_lines: 0,
            occurrences: 0,
            uploaded_at: 0,
            failure: None,
            binary: false,
            sha256: None,
            first_ts: None,
            last_ts: None,
            rules: None,
        })
    }

    /// Reads the top codes by firmware and checks the sum of all codes; returns the time of the read.
    async fn read(&self, engine: &Engine) -> Result<Duration> {
        let snapshot = Arc::new(Snapshot::new(self.epoch, Default::default()).with_views(
            self.view.clone(),
            RecentView::default(),
            LastChanges::default(),
        ));
        let request = FleetRequest { group_by: GroupBy::Firmware, filter: FleetFilter::default(), limit: 20 };
        let begun = Instant::now();
        request.read(engine, &snapshot).await?;
        let taken = begun.elapsed();
        let all = FleetRequest { limit: 1_000, ..request }.read(engine, &snapshot).await?.codes;
        let counted: u64 = all.iter().map(|code| code.count.0).sum();
        if counted != 5 * self.closed {
            bail!("the view has {counted} occurrences, expected {}", 5 * self.closed);
        }
        Ok(taken)
    }
}

/// Resident memory of this process in bytes.
fn memory() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("cannot read /proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("/proc/self/statm has no resident size")?.parse()?;
    Ok(pages * 4096)
}

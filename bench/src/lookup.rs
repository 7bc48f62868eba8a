//! Reports of closed batches among a million, none of them in memory, compared with
//! DuckDB on the same Parquet files.
//!
//! The lake writes its tables from closed epochs like those of the dataflow. Then
//! random batches are looked up, each for the first time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use argus_dataflow::{BatchRow, ClosedEpoch, CountRow, FileRow, Output, Row, Severity, VersionId};
use argus_query::{Engine, EngineConfig, Report};
use argus_sinks::{Lake, LakeConfig};
use object_store::local::LocalFileSystem;
use url::Url;
use uuid::Uuid;

use crate::generate::Random;
use crate::latency::Latencies;
use crate::peers::python::PACKAGES;
use crate::results::Run;

/// Batches in one closed epoch.
const BATCHES_PER_EPOCH: usize = 2_000;
/// The codes of each batch.
const CODES: [&str; 5] = ["E_FAIL", "E_TIMEOUT", "SIGSEGV", "P0A1F-87", "errno:5"];

/// Flags of `argus-bench lookup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of batches in the lake.
    #[arg(long, default_value_t = 1_000_000)]
    batches: usize,
    /// Number of look-ups.
    #[arg(long, default_value_t = 2_000)]
    lookups: usize,
    /// The folder of `peers --install`.
    #[arg(long, default_value = "./argus-peers", value_name = "DIR")]
    peers_dir: PathBuf,
}

/// Writes the lake, and looks up batches in it.
pub async fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(LocalFileSystem::new());
    let root = Url::from_directory_path(folder.path())
        .map_err(|()| anyhow::anyhow!("{} is not an absolute path", folder.path().display()))?;
    let lake = Lake::open(store.clone(), &root, LakeConfig::default(), None).await?;
    let ids = write(lake, args.batches).await?;
    let snapshot = Lake::read(store.clone(), &root).await?;
    let engine = Engine::new(store, &root, &EngineConfig::default())?;
    let mut random = Random::new(7);
    let chosen: Vec<Uuid> = (0..args.lookups).map(|_| ids[random.below(ids.len() as u64) as usize]).collect();
    let mut times = Vec::with_capacity(chosen.len());
    for id in &chosen {
        let begun = Instant::now();
        let report = Report::of_batch(&engine, &snapshot, *id).await?;
        times.push(begun.elapsed());
        ensure!(
            report.codes.len() == CODES.len() && report.total_lines == 100,
            "the report of batch {id} differs from the written rows"
        );
    }
    let name = format!("one of {} closed batches", args.batches);
    Latencies::new(times).report(run, "lookup", &name, [Some(3.0), Some(10.0)]);
    match duckdb(folder.path(), &chosen, &args.peers_dir)? {
        Some(times) => {
            for measurement in Latencies::new(times).measurements("lookup", "DuckDB, the same files", [None, None]) {
                run.add(measurement.peer());
            }
        }
        None => run.remark("lookup: DuckDB is not installed; run argus-bench peers --install"),
    }
    run.remark("lookup: in one process, without HTTP and without the metadata store; each batch for the first time");
    Ok(())
}

/// Writes batches to the lake; returns their ids.
async fn write(lake: Lake, batches: usize) -> Result<Vec<Uuid>> {
    let (to, outputs) = tokio::sync::mpsc::unbounded_channel();
    let snapshots = lake.snapshots();
    let writing = tokio::spawn(lake.run(outputs, |_| {}));
    let mut ids = Vec::with_capacity(batches);
    let mut epoch = 0;
    while ids.len() < batches {
        epoch += 1;
        let mut rows = Vec::new();
        for _ in 0..BATCHES_PER_EPOCH.min(batches - ids.len()) {
            let id = Uuid::now_v7();
            rows.extend(rows_of(id, ids.len()));
            ids.push(id);
        }
        to.send(Output::Closed(ClosedEpoch { epoch, rows })).ok().context("the lake has stopped")?;
        // At most four epochs are queued.
        let mut seen = snapshots.clone();
        seen.wait_for(|snapshot| snapshot.epoch + 4 >= epoch).await?;
    }
    drop(to);
    writing.await??;
    Ok(ids)
}

fn rows_of(batch_id: Uuid, number: usize) -> Vec<(Row, i64)> {
    let version = VersionId::new();
    let vehicle = number % 10_000;
    let batch = BatchRow {
        batch_id,
        vehicle_id: format!("veh-{vehicle}"),
        vin: format!("WVWZZZ1JZXW{vehicle:06}"),
        platform: Some("p1".to_owned()),
        firmware: Some("7.2.1".to_owned()),
        labels: None,
        created_at: 0,
        live: 1,
        completed: 1,
    };
    let file = FileRow {
        batch_id,
        file_id: version.0,
        version,
        name: "vehicle.log".to_owned(),
        generation: 1,
        live: 1,
        erased: 0,
        open_line: false,
        bytes: 9_000,
        lines: 100,
        long_lines: 0,
        last_line: 100,
        error_lines: 10,
        occurrences: 10,
        uploaded_at: 0,
        failure: None,
        binary: false,
        sha256: None,
        first_ts: None,
        last_ts: None,
        rules: None,
    };
    let count = |(index, code): (usize, &&str)| CountRow {
        active: true,
        batch_id,
        version,
        file: "vehicle.log".to_owned(),
        component: Some("ota".to_owned()),
        code: (*code).to_owned(),
        rule: "rule".to_owned(),
        severity: Severity::Error,
        first_seen: Some(number as i64),
        last_seen: Some(number as i64 + 1),
        example_line: index as u64 + 1,
        example_text: format!(
            "2026-03-01 10:15:30 ERROR ota: step {number} failed with {code} at address {:x}",
            number * 7919
        ),
    };
    let mut rows = vec![(Row::Batch(batch), 1), (Row::File(file), 1)];
    rows.extend(CODES.iter().enumerate().map(count).map(|count| (Row::Count(count), 2)));
    rows
}

/// The times of DuckDB for the same look-ups; `None` if it is not installed.
fn duckdb(lake: &Path, chosen: &[Uuid], peers: &Path) -> Result<Option<Vec<Duration>>> {
    let Some(python) = PACKAGES.iter().find(|peer| peer.package == "duckdb").and_then(|peer| peer.python(peers)) else {
        return Ok(None);
    };
    let ids = tempfile::NamedTempFile::new()?;
    std::fs::write(ids.path(), chosen.iter().map(|id| format!("{id}\n")).collect::<String>())?;
    let script = include_str!("../peers/duckdb_lookup.py");
    let output = Command::new(python).args(["-c", script]).args([lake, ids.path()]).output()?;
    ensure!(output.status.success(), "DuckDB: {}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout)?;
    let times: Result<Vec<f64>, _> = lines.lines().map(str::parse).collect();
    Ok(Some(times?.into_iter().map(|millis| Duration::from_secs_f64(millis / 1e3)).collect()))
}

//! Samples of the server's resources: memory, file descriptors, and files on the disk.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{MissedTickBehavior, interval};

use crate::soak::model::Alive;
use crate::soak::state::State;

const SAMPLE_EVERY: Duration = Duration::from_secs(10);
const MIB: f64 = (1 << 20) as f64;

/// One sample. Values that a stopped server cannot report are `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Resident memory of the process and its peak, in MiB.
    pub memory: Option<(f64, f64)>,
    /// Open file descriptors.
    pub descriptors: Option<f64>,
    /// Accepted epochs that are not committed.
    pub behind: Option<f64>,
    /// Disk usage.
    pub disk: Disk,
    /// The live data.
    pub alive: Alive,
}

/// The disk usage of a data directory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Disk {
    /// MiB below `raw/`.
    pub raw: f64,
    /// Files below `raw/`.
    pub raw_files: f64,
    /// MiB below `lake/`.
    pub lake: f64,
    /// MiB of the metadata database with its log.
    pub metadata: f64,
    /// Temporary files of writes in progress.
    pub unfinished: f64,
}

/// Reads a metric of a sample, if it was measured.
pub type Metric = fn(&Sample) -> Option<f64>;

/// The metrics of a sample, with their names.
pub const METRICS: [(&str, Metric); 12] = [
    ("memory, MiB", |sample| sample.memory.map(|(now, _)| now)),
    ("peak memory of the process, MiB", |sample| sample.memory.map(|(_, peak)| peak)),
    ("descriptors", |sample| sample.descriptors),
    ("epochs not committed", |sample| sample.behind),
    ("raw, MiB", |sample| Some(sample.disk.raw)),
    ("raw files", |sample| Some(sample.disk.raw_files)),
    ("unfinished files", |sample| Some(sample.disk.unfinished)),
    ("lake, MiB", |sample| Some(sample.disk.lake)),
    ("metadata, MiB", |sample| Some(sample.disk.metadata)),
    ("live batches", |sample| Some(sample.alive.batches as f64)),
    ("live files", |sample| Some(sample.alive.files as f64)),
    ("live text, MiB", |sample| Some(sample.alive.text as f64 / MIB)),
];

/// Samples the running server.
pub struct Watch {
    data: PathBuf,
    /// The process id; 0 while there is no process.
    pub process: AtomicU32,
    samples: Mutex<Vec<Sample>>,
}

impl Watch {
    /// No samples yet.
    pub fn new(data: PathBuf) -> Arc<Watch> {
        Arc::new(Watch { data, process: AtomicU32::new(0), samples: Mutex::default() })
    }

    /// Takes samples until the load ends.
    pub async fn run(self: Arc<Watch>, state: Arc<State>) {
        let mut ticks = interval(SAMPLE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !state.stops() {
            ticks.tick().await;
            let sample = self.sample(&state).await;
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        }
    }

    async fn sample(&self, state: &State) -> Sample {
        let process = self.process.load(Ordering::Relaxed);
        let behind = async {
            let address = state.address().await;
            Some(metric(&address, "argus_epoch").await? - metric(&address, "argus_committed_epoch").await?)
        };
        // A restarting server has no address.
        let behind = tokio::time::timeout(Duration::from_secs(5), behind).await.ok().flatten();
        Sample {
            memory: memory(process),
            descriptors: read_dir(format!("/proc/{process}/fd")).ok().map(|list| list.count() as f64),
            behind: behind.map(|behind| behind.max(0.0)),
            disk: Disk::look(&self.data),
            alive: state.model().alive(),
        }
    }

    /// All samples, in order.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Disk {
    /// Measures a data directory.
    pub fn look(data: &Path) -> Disk {
        let mut disk = Disk::default();
        let (raw, lake) = (data.join("raw"), data.join("lake"));
        let mut folders = vec![data.to_owned()];
        while let Some(folder) = folders.pop() {
            // A folder may have been deleted meanwhile.
            let Ok(entries) = read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let Ok(facts) = entry.metadata() else { continue };
                let path = entry.path();
                if facts.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mib = facts.len() as f64 / MIB;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if path.starts_with(&raw) {
                    disk.raw += mib;
                    disk.raw_files += 1.0;
                } else if path.starts_with(&lake) {
                    disk.lake += mib;
                } else if name.starts_with("argus.db") {
                    disk.metadata += mib;
                }
                disk.unfinished += f64::from(u8::from(name.contains('#')));
            }
        }
        disk
    }
}

/// Memory of a process and its peak, in MiB.
fn memory(process: u32) -> Option<(f64, f64)> {
    let status = read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// Reads a metric from the server.
pub async fn metric(address: &str, name: &str) -> Option<f64> {
    let text = reqwest::get(format!("http://{address}/metrics")).await.ok()?.text().await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Minimum, median and maximum of a metric; `None` if it was never measured.
pub fn spread(samples: &[Sample], metric: Metric) -> Option<[f64; 3]> {
    let mut values: Vec<f64> = samples.iter().filter_map(metric).collect();
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, values[values.len() / 2], *values.last()?])
}

/// The last sample as text, for the status line.
pub fn line(samples: &[Sample]) -> Result<String> {
    let last = samples.last().context("no sample was taken yet")?;
    let memory = last.memory.map_or_else(|| "-".to_owned(), |(now, _)| format!("{now:.0}"));
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    Ok(format!(
        "live {} batches, {} files, {:.0} MiB; memory {memory} MiB, {} descriptors, raw {:.0} MiB in {} files \
         ({} unfinished), lake {:.0} MiB, metadata {:.0} MiB, {} epochs behind",
        last.alive.batches,
        last.alive.files,
        last.alive.text as f64 / MIB,
        number(last.descriptors),
        last.disk.raw,
        last.disk.raw_files,
        last.disk.unfinished,
        last.disk.lake,
        last.disk.metadata,
        number(last.behind),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_ignores_samples_without_the_metric() {
        let sample = |descriptors| Sample { descriptors, ..Sample::default() };
        let samples = [sample(Some(3.0)), sample(None), sample(Some(1.0)), sample(Some(2.0))];
        assert_eq!(spread(&samples, |sample| sample.descriptors), Some([1.0, 2.0, 3.0]));
        assert_eq!(spread(&samples, |sample| sample.behind), None);
    }

    #[test]
    fn the_disk_usage_includes_all_files_of_a_data_directory() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(folder.path().join("raw/batch")).expect("makes a folder");
        for name in ["raw/batch/1", "raw/batch/2#1", "argus.db", "argus.db-wal"] {
            std::fs::write(folder.path().join(name), vec![0; 1 << 20]).expect("writes");
        }
        let disk = Disk::look(folder.path());
        assert_eq!(disk, Disk { raw: 2.0, raw_files: 2.0, lake: 0.0, metadata: 2.0, unfinished: 1.0 });
    }
}

//! Limits for the server's resources, relative to the live data. Exceeding one fails the run.

use crate::soak::model::Alive;
use crate::soak::state::State;
use crate::soak::watch::{Disk, Metric, Sample, spread};

/// Memory of the server at any time (1.5 GiB): its queues, caches and queries are bounded independently of the data.
const MEMORY_MIB_MAX: f64 = 1536.0;
/// Memory may grow from the first to the last third of a run by this factor plus a constant, because caches fill.
const MEMORY_GROWTH_MAX: f64 = 1.5;
const MEMORY_GROWTH_MIB: f64 = 256.0;
/// Open file descriptors: several hundred connections, and the open files of queries and uploads.
const DESCRIPTORS_MAX: f64 = 1000.0;
/// Files being written: one per concurrent upload, plus those that kills left since the last start.
const UNFINISHED_MAX: f64 = 200.0;
/// The metadata database: its journal and free pages, a record per file, and appended text (once in the table of
/// parts and once in the journal, until there is enough for an object).
const METADATA_MIB: f64 = 64.0;
const METADATA_BYTES_PER_FILE: f64 = 4096.0;
const METADATA_PER_APPENDED_BYTE: f64 = 2.0;
/// Raw bytes after the last maintenance, per stored byte of live files, plus a constant.
const RAW_PER_STORED_BYTE: f64 = 1.5;
const RAW_MIB: f64 = 64.0;
/// Raw files after the last maintenance: one per file, plus parts of appended files.
const RAW_FILES_PER_FILE: f64 = 1.5;
const RAW_FILES: f64 = 200.0;
/// The tables after the last maintenance: one row per occurrence, with its line, and counts.
const LAKE_PER_TEXT_BYTE: f64 = 0.5;
const LAKE_MIB: f64 = 64.0;
/// Share of uploads rejected because too many others are in progress: slow clients must not block others.
const REFUSED_SHARE_MAX: f64 = 0.02;

const MIB: f64 = (1 << 20) as f64;

/// Checks the measurements taken under load.
pub fn check_load(state: &State, samples: &[Sample]) {
    let most = |metric: Metric| samples.iter().filter_map(metric).fold(0.0, f64::max);
    check(state, "memory in MiB", most(|sample| sample.memory.map(|(_, peak)| peak)), MEMORY_MIB_MAX);
    check(state, "descriptors", most(|sample| sample.descriptors), DESCRIPTORS_MAX);
    check(state, "unfinished files", most(|sample| Some(sample.disk.unfinished)), UNFINISHED_MAX);
    check(state, "metadata in MiB", most(|sample| Some(sample.disk.metadata)), metadata_max(most_live(samples)));
    let third = samples.len() / 3;
    let memory = |samples: &[Sample]| spread(samples, |sample| sample.memory.map(|(now, _)| now));
    if let (Some([_, first, _]), Some([_, last, _])) =
        (memory(&samples[..third]), memory(&samples[samples.len() - third..]))
    {
        let bound = first * MEMORY_GROWTH_MAX + MEMORY_GROWTH_MIB;
        check(state, "memory in MiB in the last third, relative to the first third", last, bound);
    }
}

/// Checks the data directory after maintenance, with the server stopped.
pub fn check_maintained(state: &State, disk: &Disk, samples: &[Sample]) {
    let alive = state.model().alive();
    let (stored, text) = (alive.stored as f64 / MIB, alive.text as f64 / MIB);
    check(state, "raw MiB after maintenance", disk.raw, stored * RAW_PER_STORED_BYTE + RAW_MIB);
    check(state, "raw files after maintenance", disk.raw_files, alive.files as f64 * RAW_FILES_PER_FILE + RAW_FILES);
    check(state, "lake MiB after maintenance", disk.lake, text * LAKE_PER_TEXT_BYTE + LAKE_MIB);
    // SQLite does not return free pages to the file system.
    check(state, "metadata MiB after maintenance", disk.metadata, metadata_max(most_live(samples)));
    check(state, "unfinished files after maintenance", disk.unfinished, 0.0);
}

/// Checks that well-behaved clients were served despite the others.
pub fn check_refusals(state: &State) {
    let (mut all, mut refused) = (0, 0);
    for ((kind, status), count) in &state.observations().requests {
        if ["put", "append", "form"].contains(kind) {
            all += count;
            refused += if status == "503" { *count } else { 0 };
        }
    }
    if all > 0 {
        check(state, "share of uploads rejected with 503", refused as f64 / all as f64, REFUSED_SHARE_MAX);
    }
}

fn most_live(samples: &[Sample]) -> Alive {
    let most = |metric: fn(&Sample) -> u64| samples.iter().map(metric).max().unwrap_or(0);
    Alive {
        files: most(|sample| sample.alive.files),
        appended: most(|sample| sample.alive.appended),
        ..Alive::default()
    }
}

fn metadata_max(alive: Alive) -> f64 {
    let bytes = alive.files as f64 * METADATA_BYTES_PER_FILE + alive.appended as f64 * METADATA_PER_APPENDED_BYTE;
    METADATA_MIB + bytes / MIB
}

fn check(state: &State, what: &str, is: f64, bound: f64) {
    if is > bound {
        state.fail(format!("{what}: {is:.2}, limit {bound:.2}"));
    }
}

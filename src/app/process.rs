//! Metrics of the process, with the names that Prometheus' client libraries use.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Unit, describe_gauge, gauge};

/// Describes the metrics, and sets those that do not change.
pub(super) fn describe() {
    describe_gauge!("argus_build_info", "The version that runs; the value is 1.");
    describe_gauge!("process_start_time_seconds", Unit::Seconds, "When the process started, since 1970.");
    describe_gauge!("process_resident_memory_bytes", Unit::Bytes, "Memory of the process that is in RAM.");
    describe_gauge!("process_open_fds", "Open file descriptors.");
    describe_gauge!("process_max_fds", "The limit of open file descriptors.");
    gauge!("argus_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!("process_start_time_seconds").set(now.as_secs_f64());
}

/// Measures memory and descriptors. What the system does not report is left out.
pub fn measure() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
    if let Some(kib) = kib {
        gauge!("process_resident_memory_bytes").set(kib * 1024.0);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        gauge!("process_open_fds").set(descriptors.count() as f64);
    }
    if let Ok((limit, _)) = rlimit::Resource::NOFILE.get() {
        gauge!("process_max_fds").set(limit as f64);
    }
}

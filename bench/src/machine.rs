//! The machine and the Argus version of a run.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Facts that are needed to interpret a measurement. Unknown facts are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor model as the kernel reports it.
    pub cpu: String,
    /// The cores that this process may use.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The version of the kernel.
    pub kernel: String,
    /// Date and time in UTC, RFC 3339.
    pub date: String,
    /// The version of Argus, and the commit if known.
    pub argus: String,
}

impl Machine {
    /// Describes the machine that this process runs on.
    pub fn look() -> Machine {
        let field = |path: &str, name: &str| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).trim().to_owned()
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let version = env!("CARGO_PKG_VERSION");
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or_default() >> 10,
            kernel: field("/proc/sys/kernel/osrelease", ""),
            date: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            argus: commit().map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})")),
        }
    }
}

/// The commit of the checkout that this program is run from, with `-dirty` if there are uncommitted changes.
fn commit() -> Option<String> {
    // Cargo sets the package folder; without Cargo, only the root of a checkout is recognised.
    let folder = std::env::var_os("CARGO_MANIFEST_DIR")
        .or_else(|| Path::new("bench/Cargo.toml").exists().then(|| ".".into()))?;
    let output =
        Command::new("git").arg("-C").arg(folder).args(["describe", "--always", "--dirty", "--exclude=*"]).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

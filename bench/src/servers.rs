//! The cost of the real servers: freshness, ingest and reports on PostgreSQL, S3, Kafka and Redis, compared with the
//! embedded stores in the same run.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::results::{Better, Measurement, Run};

/// Flags of `argus-bench servers`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Lines sent one after the other.
    #[arg(long, default_value_t = 1000)]
    lines: u32,
    /// Approximate bytes of each of the eight uploads.
    #[arg(long, default_value_t = 128 << 20)]
    bytes: u64,
}

/// The variables that make Argus use other servers.
pub const SERVERS: [&str; 5] = ["ARGUS_METADATA", "ARGUS_STORE", "ARGUS_KAFKA", "ARGUS_REDIS", "ARGUS_LINES_TOPIC"];

/// Variables of `docker/local` that the measured servers do not take: each has its own folder and port.
const OTHERS: [&str; 2] = ["ARGUS_DATA", "ARGUS_LISTEN"];

/// Runs each benchmark on the embedded stores, and on the servers of the environment.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let missing: Vec<_> = SERVERS[..4].iter().filter(|name| std::env::var_os(name).is_none()).collect();
    ensure!(
        missing.is_empty(),
        "{missing:?} are not set; start the servers with docker/local DIR argus-bench servers, or set the variables"
    );
    let (lines, bytes) = (args.lines.to_string(), args.bytes.to_string());
    let benchmarks: [&[&str]; 3] =
        [&["fresh", "--load", "0", "--lines", &lines], &["ingest", "--bytes", &bytes], &["report"]];
    for arguments in benchmarks {
        let embedded = separately(arguments, false)?;
        let servers = separately(arguments, true)?;
        for measured in servers.measurements {
            let is_same = |other: &&Measurement| other.name == measured.name && other.unit == measured.unit;
            let reference = embedded.measurements.iter().find(is_same);
            let (Some(reference), false) = (reference, measured.peer || measured.better == Better::Info) else {
                continue;
            };
            run.add(with_targets(measured, reference.value));
        }
        for failure in embedded.failures.into_iter().chain(servers.failures) {
            run.fail(failure);
        }
    }
    Ok(())
}

/// The measurement on the servers, compared with the embedded value, and what is expected of it.
fn with_targets(measured: Measurement, embedded: f64) -> Measurement {
    let (is_rate, group) = (measured.better == Better::Higher, measured.group.clone());
    let is_fresh = group == "fresh" && measured.name == "idle" && measured.unit == "p50 ms";
    let plain = Measurement { target: None, ratios: Vec::new(), note: None, ..measured };
    let plain = Measurement { name: format!("{group}: {}", plain.name), group: "servers".to_owned(), ..plain };
    let compared = plain.against("embedded", embedded);
    match group.as_str() {
        "ingest" if is_rate => compared.target_ratio(0.7),
        // The same within the noise of a machine.
        "report" if is_rate => compared.target_ratio(0.9),
        _ if is_fresh => compared.target(10.0),
        _ => compared,
    }
}

/// Runs a benchmark in a process of its own, with or without the servers.
fn separately(arguments: &[&str], with_servers: bool) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("run.json");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).arg("--json").arg(&json).stdout(Stdio::null());
    // Lines from Kafka are measured by `argus-bench kafka`.
    let removed = OTHERS.iter().chain(if with_servers { &SERVERS[4..] } else { &SERVERS });
    for name in removed {
        command.env_remove(name);
    }
    // A missed target is a failure of that run only.
    command.status().with_context(|| format!("cannot run argus-bench {}", arguments[0]))?;
    Run::read(&json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_compared_with_the_embedded_ones_of_the_same_run() {
        let measured =
            Measurement::higher("ingest", "to durable", 300.0, "MB/s").against("dd", 100.0).target_ratio(4.0);
        let compared = with_targets(measured, 400.0);
        assert_eq!((compared.group.as_str(), compared.name.as_str()), ("servers", "ingest: to durable"));
        assert_eq!(compared.ratios.len(), 1);
        assert_eq!((compared.ratios[0].ratio, compared.ratios[0].target), (0.75, Some(0.7)));
        let fresh = with_targets(Measurement::lower("fresh", "idle", 4.0, "p50 ms").target(1.0), 2.0);
        assert_eq!(fresh.target, Some(10.0));
    }
}

//! Argus and other tools on the same files in one run, with every result checked.
//!
//! Files are in the page cache. A tool is measured as a whole process, from its
//! start to its last byte of output. The best of several runs counts. The runs of
//! the tools alternate, so that noise of the machine affects all tools.

mod field;
pub mod python;
mod trial;

pub use field::{Peer, RG};
pub use trial::Limits;

use std::collections::HashMap;
use std::fs::File;
use std::io::{copy, sink};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::generate::Logs;
use crate::results::{Measurement, Run};
use crate::simple;
use trial::{Trial, TrialError};

/// The reference for rates.
pub const REFERENCE: &str = "wc -l";

/// The tools that Argus is compared with, and the target speed-up at lower memory.
const TO_BEAT: [(&str, Option<f64>); 3] = [(python::DUCKDB, Some(8.0)), (python::CHDB, Some(4.0)), (field::RG, None)];

/// Flags of `argus-bench peers`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// First install the tools that are Python packages (3 GB).
    #[arg(long)]
    install: bool,
    /// The folder where they are installed.
    #[arg(long, default_value = "./argus-peers")]
    peers_dir: PathBuf,
    /// Run only tools whose name contains one of these strings, and wc.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Number of files.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    files: u16,
    /// Approximate bytes of a file.
    #[arg(long, default_value_t = 128 << 20)]
    bytes: u64,
    /// Slow tools get only as many files as have about this many bytes.
    #[arg(long, default_value_t = 128 << 20)]
    slow_bytes: u64,
    /// Number of runs; slow tools run once.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Time limit of a run in seconds.
    #[arg(long, default_value_t = 120)]
    limit: u64,
    /// Pin each tool to one core.
    #[arg(long)]
    one_core: bool,
}

/// Runs all installed tools.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|part| name.contains(part.as_str()));
    if args.install {
        python::install(&args.peers_dir, wanted)?;
    }
    let folder = tempfile::tempdir()?;
    let rules = folder.path().join("simple.toml");
    std::fs::write(&rules, simple::rule_file())?;
    let all = Logs::write(folder.path(), usize::from(args.files), args.bytes)?;
    let few = usize::try_from(args.slow_bytes.div_ceil(args.bytes.max(1)))?.clamp(1, all.files.len());
    let some = Logs { files: all.files[..few].to_vec() };
    // Read all files into the page cache.
    all.paths().try_for_each(|path| copy(&mut File::open(path)?, &mut sink()).map(|_| ()))?;

    let (mut field, mut missing) = field::field(&args.peers_dir, &rules, &all, &some)?;
    field.retain(|peer| peer.name == REFERENCE || wanted(&peer.name));
    missing.retain(|name| wanted(name));
    let best = compete(run, args, &field);
    record(run, args, &field, &best)?;
    if !missing.is_empty() {
        run.remark(format!("not installed: {}", missing.join(", ")));
    }
    Ok(())
}

/// `wc -l` and, if installed, `rg | awk`, with these files.
pub fn of_system(logs: &Logs) -> Result<Vec<Peer>> {
    // Neither rules nor packages are needed.
    let nowhere = std::path::Path::new("");
    let (field, _) = field::field(nowhere, nowhere, logs, logs)?;
    Ok(field.into_iter().filter(|peer| peer.name == REFERENCE || peer.name == RG).collect())
}

/// The best trial of each peer that has one, by its index in the field.
fn compete(run: &mut Run, args: &Args, field: &[Peer]) -> HashMap<usize, Trial> {
    let limits = Limits { seconds: args.limit, one_core: args.one_core };
    let mut best: HashMap<usize, Trial> = HashMap::new();
    let mut failed = Vec::new();
    for round in 0..args.runs {
        for (number, peer) in field.iter().enumerate() {
            if failed.contains(&number) || peer.slow && round > 0 {
                continue;
            }
            match peer.run(&limits) {
                Ok(trial) if best.get(&number).is_none_or(|before| trial.seconds < before.seconds) => {
                    best.insert(number, trial);
                }
                Ok(_) => {}
                Err(error) => {
                    failed.push(number);
                    best.remove(&number);
                    match error {
                        TrialError::TooSlow => run.remark(format!("{}: stopped after {} s", peer.name, args.limit)),
                        error => run.fail(format!("{}: {error}", peer.name)),
                    }
                }
            }
        }
    }
    best
}

fn record(run: &mut Run, args: &Args, field: &[Peer], best: &HashMap<usize, Trial>) -> Result<()> {
    let rate = |number: usize| best.get(&number).map(|trial| field[number].bytes as f64 / 1e9 / trial.seconds);
    let memory = |number: usize| best.get(&number).map(|trial| trial.peak_bytes as f64 / 1048576.0);
    let named = |name: &str| field.iter().position(|peer| peer.name == name);
    let reference = named(REFERENCE).and_then(rate).context("wc -l, the reference for rates, has failed")?;
    let cores = if args.one_core { 1 } else { run.machine.cores };
    for (number, peer) in field.iter().enumerate() {
        let (Some(trial), Some(rate_is), Some(memory_is)) = (best.get(&number), rate(number), memory(number)) else {
            continue;
        };
        let of = |measured: Measurement| if peer.ours { measured } else { measured.peer() };
        let mut measured = of(Measurement::higher("peers", &peer.name, rate_is, "GB/s"));
        let mut taken = of(Measurement::lower("peers", &peer.name, memory_is, "MiB"));
        if peer.name != REFERENCE {
            measured = measured.against(REFERENCE, reference);
        }
        let bounded = peer.name == field::ARGUS;
        if bounded {
            measured = measured.target_ratio(0.25);
        }
        for (other, faster) in TO_BEAT {
            let Some(other_number) = named(other).filter(|_| peer.ours) else { continue };
            if let (Some(other_rate), Some(other_memory)) = (rate(other_number), memory(other_number)) {
                measured = measured.against(other, other_rate);
                if let Some(faster) = faster.filter(|_| bounded) {
                    measured = measured.target_ratio(faster);
                    taken = taken.against(other, other_memory).target_ratio(1.0);
                }
            }
        }
        let mut note = Vec::new();
        if peer.slow {
            note.push(format!("{} MiB of the files", peer.bytes >> 20));
        }
        if let Some(start) = trial.start_seconds {
            note.push(format!("including {start:.1} s to start"));
        }
        run.add(if note.is_empty() { measured } else { measured.note(note.join(", ")) });
        run.add(of(Measurement::info("peers", &peer.name, trial.seconds, "s")));
        run.add(taken);
        run.add(of(Measurement::info("peers", &peer.name, cores as f64, "cores")));
    }
    let all = field.iter().map(|peer| peer.bytes).max().unwrap_or_default();
    run.remark(format!(
        "peers: {} files, {} MiB in total, in the page cache; whole processes; all results checked",
        args.files,
        all >> 20
    ));
    Ok(())
}

//! The bare scan, compared with `wc -l` and `rg | awk`, on one core and on two, and
//! the overhead of the dataflow.

use std::ffi::OsString;
use std::fs::File;
use std::io::{copy, sink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use argus_dataflow::counts::partial::OpenCounts;
use argus_dataflow::scan::Scanner;
use argus_dataflow::{BLOCK_BYTES_DEFAULT, BlockReader, RuleSet, text};

use crate::alone::Counted;
use crate::generate::{Logs, UPLOADED_AT};
use crate::peers::{self, Limits, Peer};
use crate::results::{Measurement, Run};
use crate::simple;
use crate::truth::same;

/// Flags of `argus-bench scan` and `argus-bench dataflow`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of files.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    files: u16,
    /// Approximate bytes of a file.
    #[arg(long, default_value_t = 256 << 20)]
    bytes: u64,
    /// Number of runs; the best counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// A folder with folders of real logs; one worker scans each log, repeated in memory.
    #[arg(long)]
    real: Option<PathBuf>,
}

/// A real log is scanned repeatedly, about this many bytes in total.
const REAL_BYTES: usize = 64 << 20;

/// A shorter log is first concatenated with itself to at least this many bytes.
const REAL_PIECE_BYTES: usize = 4 << 20;

/// The target rate for every log, in MB/s.
const REAL_RATE_MIN: f64 = 150.0;

/// The shortest time of several runs.
struct Best {
    seconds: f64,
}

impl Best {
    fn new() -> Best {
        Best { seconds: f64::INFINITY }
    }

    fn take(&mut self, seconds: f64) {
        self.seconds = self.seconds.min(seconds);
    }

    fn rate(&self, bytes: u64) -> f64 {
        bytes as f64 / 1e9 / self.seconds
    }
}

/// A run of the Argus scan, and its number of cores.
struct Ours {
    flags: Vec<OsString>,
    cores: usize,
    simple: bool,
    best: Best,
}

impl Ours {
    fn new(flags: &[&str], cores: usize) -> Ours {
        let flags = flags.iter().map(OsString::from).collect();
        Ours { flags, cores, simple: false, best: Best::new() }
    }

    fn by_simple_rule(mut self, rules: &Path) -> Ours {
        self.flags.extend(["--rules".into(), rules.into()]);
        Ours { simple: true, ..self }
    }

    /// Runs it once, and fails unless the counts are correct.
    fn run(&mut self, logs: &Logs) -> Result<()> {
        let cores = if self.cores == 1 { "0" } else { "0,1" };
        let output = Command::new("taskset")
            .args(["-c", cores])
            .arg(std::env::current_exe()?)
            .arg("scan-alone")
            .args(&self.flags)
            .args(logs.paths())
            .output()
            .context("cannot run taskset; install util-linux")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let counted: Counted = serde_json::from_slice(&output.stdout)?;
        let truth = logs.truth();
        ensure!(counted.lines == truth.lines, "{} lines, expected {}", counted.lines, truth.lines);
        same(&counted.codes, if self.simple { &truth.simple } else { &truth.codes })?;
        self.best.take(counted.seconds);
        Ok(())
    }
}

/// Measures the scan.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let rules = folder.path().join("simple.toml");
    std::fs::write(&rules, simple::rule_file())?;
    let logs = cached_logs(folder.path(), args)?;
    let bytes = logs.truth().bytes;
    let peers = peers::of_system(&logs)?;
    let mut peers: Vec<(Peer, Best)> = peers.into_iter().map(|peer| (peer, Best::new())).collect();
    let one = "one worker, built-in rules";
    let mut ours = [
        (one, Ours::new(&[], 1)),
        ("one worker, simple rule", Ours::new(&[], 1).by_simple_rule(&rules)),
        ("two workers, built-in rules", Ours::new(&["--workers", "2"], 2)),
    ];
    let limits = Limits { seconds: 120, one_core: true };
    for _ in 0..args.runs {
        for (peer, best) in &mut peers {
            best.take(peer.run(&limits).map_err(|error| anyhow::anyhow!("{}: {error}", peer.name))?.seconds);
        }
        ours.iter_mut().try_for_each(|(_, ours)| ours.run(&logs))?;
    }
    let rate_of = |name: &str| peers.iter().find(|(peer, _)| peer.name == name).map(|(_, best)| best.rate(bytes));
    let wc = rate_of(peers::REFERENCE).context("wc -l has no result")?;
    for (peer, best) in &peers {
        run.add(Measurement::higher("scan", &peer.name, best.rate(bytes), "GB/s").peer().against(peers::REFERENCE, wc));
    }
    let one_rate = ours[0].1.best.rate(bytes);
    for (name, ours) in &ours {
        let mut measured = Measurement::higher("scan", *name, ours.best.rate(bytes), "GB/s").against("wc -l", wc);
        measured = match (ours.cores, ours.simple) {
            (1, false) => measured.target_ratio(0.35),
            (1, true) => measured.target_ratio(0.5),
            _ => measured.against(one, one_rate).target_ratio(1.7),
        };
        if let Some(rg) = rate_of(peers::RG).filter(|_| ours.cores == 1) {
            measured = measured.against(peers::RG, rg);
            measured = if ours.simple { measured } else { measured.target_ratio(5.0) };
        }
        run.add(measured);
    }
    run.remark(format!(
        "scan: {} MiB in the page cache; one core, except for two workers; all results checked",
        bytes >> 20
    ));
    if let Some(folder) = &args.real {
        real(run, folder)?;
    }
    Ok(())
}

/// Measures the overhead of the dataflow around the scan.
pub fn measure_dataflow(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let logs = cached_logs(folder.path(), args)?;
    let bytes = logs.truth().bytes;
    let mut ours = [Ours::new(&[], 1), Ours::new(&["--dataflow"], 1)];
    for _ in 0..args.runs {
        ours.iter_mut().try_for_each(|ours| ours.run(&logs))?;
    }
    let [bare, through] = ours.map(|ours| ours.best.rate(bytes));
    let name = "bare scan";
    run.add(Measurement::higher("dataflow", name, bare, "GB/s"));
    let whole = Measurement::higher("dataflow", "through the dataflow, to closed epochs", through, "GB/s");
    run.add(whole.against(name, bare).target_ratio(0.85));
    run.remark(format!("dataflow: {} MiB in the page cache, one worker, all on one core", bytes >> 20));
    Ok(())
}

fn cached_logs(folder: &Path, args: &Args) -> Result<Logs> {
    let logs = Logs::write(folder, usize::from(args.files), args.bytes)?;
    logs.paths().try_for_each(|path| copy(&mut File::open(path)?, &mut sink()).map(|_| ()))?;
    Ok(logs)
}

/// Scans each real log, repeated in memory, and reports the slowest.
fn real(run: &mut Run, folder: &Path) -> Result<()> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            paths.extend(std::fs::read_dir(path)?.filter_map(|entry| entry.ok().map(|entry| entry.path())));
        }
    }
    paths.sort();
    let mut scanner = Scanner::new(RuleSet::built_in()?);
    let mut rates = Vec::new();
    for path in paths {
        let mut once = Vec::new();
        std::io::Read::read_to_end(&mut text::text(File::open(&path)?)?, &mut once)?;
        if once.is_empty() {
            continue;
        }
        if once.last() != Some(&b'\n') {
            once.push(b'\n');
        }
        // Small files are concatenated, so that the scan dominates the measured time.
        let once = once.repeat(REAL_PIECE_BYTES.div_ceil(once.len()));
        let repeats = REAL_BYTES.div_ceil(once.len());
        let begun = Instant::now();
        let mut partial = OpenCounts::default();
        for _ in 0..repeats {
            let mut blocks = BlockReader::new(&once[..], BLOCK_BYTES_DEFAULT);
            while let Some(block) = blocks.next_block()? {
                scanner.scan_into(&block, UPLOADED_AT, &mut partial, None);
            }
        }
        let rate = (once.len() * repeats) as f64 / 1e6 / begun.elapsed().as_secs_f64();
        rates.push((rate, path));
    }
    rates.sort_by(|one, other| one.0.total_cmp(&other.0));
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let (Some((slowest, path)), Some((median, _))) = (rates.first(), rates.get(rates.len() / 2)) {
        let worst = Measurement::higher("real logs", format!("the slowest, {}", name(path)), *slowest, "MB/s");
        run.add(worst.target(REAL_RATE_MIN));
        run.add(Measurement::higher("real logs", format!("the median of {}", rates.len()), *median, "MB/s"));
    }
    for (rate, path) in rates.iter().take(8) {
        run.remark(format!("real logs: {} at {rate:.0} MB/s", name(path)));
    }
    Ok(())
}

//! The scan and nothing else, as a process of its own, so that it can be kept on one core.
//!
//! Its clock begins when the rules are read and ends with the last line; it
//! prints what it counted, so that whoever started it can check.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use argus_dataflow::fold::{CodeLimits, Fold, OpenFold};
use argus_dataflow::plan::Plan;
use argus_dataflow::scan::Scanner;
use argus_dataflow::{
    BLOCK_BYTES_DEFAULT, BlockReader, Change, Config, Dataflow, FileRow, Origin, Output, Row, RuleSet, VersionId,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// The year of times that name none.
/// 2026-11-26T12:00:00Z.
const UPLOADED_AT: i64 = 1_795_694_400_000_000;

/// Flags of the hidden `argus-bench scan-alone`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Threads that scan, each a file at a time.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// A rule file in place of the built-in rules.
    #[arg(long)]
    rules: Option<PathBuf>,
    /// Through the dataflow, from blocks to closed epochs.
    #[arg(long)]
    dataflow: bool,
    files: Vec<PathBuf>,
}

/// What was counted, and how long that took.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// Seconds.
    pub seconds: f64,
    /// Lines.
    pub lines: u64,
    /// Lines with at least one code.
    pub error_lines: u64,
    /// Lines with each code.
    pub codes: BTreeMap<String, u64>,
}

/// Scans and prints a [`Counted`] as JSON.
pub fn run(args: &Args, runtime: &Runtime) -> Result<()> {
    let rules = match &args.rules {
        Some(file) => RuleSet::parse(&[&std::fs::read_to_string(file)?])?,
        None => RuleSet::built_in()?,
    };
    let counted = if args.dataflow { through_dataflow(args, rules, runtime)? } else { bare(args, rules)? };
    serde_json::to_writer(std::io::stdout(), &counted)?;
    Ok(())
}

fn bare(args: &Args, rules: RuleSet) -> Result<Counted> {
    let plan = Plan::new(rules);
    let next = AtomicUsize::new(0);
    let scan_files = || -> Result<(u64, Fold)> {
        let mut scanner = Scanner::of(Arc::clone(&plan));
        let (mut lines, mut fold) = (0, OpenFold::default());
        while let Some(path) = args.files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut blocks = BlockReader::new(File::open(path)?, BLOCK_BYTES_DEFAULT);
            while let Some(block) = blocks.next_block()? {
                scanner.scan_into(&block, UPLOADED_AT, &mut fold, None);
            }
            lines += blocks.lines();
        }
        Ok((lines, fold.close()))
    };
    let begun = Instant::now();
    let mut counted = Counted::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.workers.max(1)).map(|_| scope.spawn(scan_files)).collect();
        for worker in workers {
            let (lines, fold) = worker.join().map_err(|_| anyhow!("a worker has died"))??;
            counted.lines += lines;
            counted.error_lines += fold.error_lines;
            fold.codes.into_iter().for_each(|(key, seen)| *counted.codes.entry(key.code).or_default() += seen.count);
        }
        anyhow::Ok(())
    })?;
    counted.seconds = begun.elapsed().as_secs_f64();
    Ok(counted)
}

fn through_dataflow(args: &Args, rules: RuleSet, runtime: &Runtime) -> Result<Counted> {
    let in_flight_bytes = Config::IN_FLIGHT_BYTES_DEFAULT;
    let config = Config {
        workers: args.workers,
        rules,
        first_epoch: 1,
        in_flight_bytes,
        sightings: false,
        limits: CodeLimits::default(),
    };
    let (dataflow, mut outputs) = Dataflow::start(config).map_err(anyhow::Error::msg)?;
    let begun = Instant::now();
    let mut counted = Counted::default();
    for (path, epoch) in args.files.iter().zip(1..) {
        let file = path.to_string_lossy().into_owned();
        let origin =
            Arc::new(Origin { batch_id: Uuid::nil(), file, version: VersionId::new(), uploaded_at: UPLOADED_AT });
        let mut blocks = BlockReader::new(File::open(path)?, BLOCK_BYTES_DEFAULT);
        while let Some(block) = blocks.next_block()? {
            runtime.block_on(dataflow.feed(&origin, block))?;
        }
        counted.lines += blocks.lines();
        dataflow.advance(epoch, vec![Change::Admit(row(&origin, blocks.lines()))])?;
    }
    let last = args.files.len() as u64;
    loop {
        let Output::Closed(closed) = runtime.block_on(outputs.recv()).context("the dataflow has stopped")? else {
            continue;
        };
        for (row, count) in closed.rows {
            match row {
                Row::File(file) => counted.error_lines += file.error_lines,
                Row::Count(code) => *counted.codes.entry(code.code).or_default() += count.unsigned_abs(),
                _ => {}
            }
        }
        if closed.epoch == last {
            counted.seconds = begun.elapsed().as_secs_f64();
            return Ok(counted);
        }
    }
}

/// What admits a file.
fn row(origin: &Origin, lines: u64) -> FileRow {
    FileRow {
        batch_id: origin.batch_id,
        file_id: Uuid::nil(),
        version: origin.version,
        name: origin.file.clone(),
        generation: 1,
        live: 1,
        erased: 0,
        open_line: false,
        bytes: 0,
        lines,
        long_lines: 0,
        last_line: lines,
        error_lines: 0,
        sightings: 0,
        uploaded_at: 0,
        failure: None,
        binary: false,
        sha256: None,
        first_ts: None,
        last_ts: None,
        rules: None,
    }
}

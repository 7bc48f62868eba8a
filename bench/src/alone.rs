//! The scan alone as a separate process, so that it can be pinned to one core.
//!
//! The time is measured from the loaded rules to the last line. The process
//! prints its counts, so that its parent can check them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use argus_dataflow::counts::partial::{CodeLimits, OpenCounts, PartialCounts};
use argus_dataflow::scan::Scanner;
use argus_dataflow::scan::plan::Plan;
use argus_dataflow::{
    BLOCK_BYTES_DEFAULT, BlockReader, Change, Config, Dataflow, FileRow, Origin, Output, Row, RuleSet, VersionId,
};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::generate::UPLOADED_AT;

/// Flags of the hidden `argus-bench scan-alone`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scanning threads, each with one file at a time.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// A rule file instead of the built-in rules.
    #[arg(long)]
    rules: Option<PathBuf>,
    /// Run the dataflow, from blocks to closed epochs.
    #[arg(long)]
    dataflow: bool,
    files: Vec<PathBuf>,
}

/// The counts and the duration.
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
    let scan_files = || -> Result<(u64, PartialCounts)> {
        let mut scanner = Scanner::of(Arc::clone(&plan));
        let (mut lines, mut partial) = (0, OpenCounts::default());
        while let Some(path) = args.files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut blocks = BlockReader::new(File::open(path)?, BLOCK_BYTES_DEFAULT);
            while let Some(block) = blocks.next_block()? {
                scanner.scan_into(&block, UPLOADED_AT, &mut partial, None);
            }
            lines += blocks.lines();
        }
        Ok((lines, partial.close()))
    };
    let begun = Instant::now();
    let mut counted = Counted::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.workers.max(1)).map(|_| scope.spawn(scan_files)).collect();
        for worker in workers {
            let (lines, partial) = worker.join().map_err(|_| anyhow!("a worker panicked"))??;
            counted.lines += lines;
            counted.error_lines += partial.error_lines;
            partial.codes.into_iter().for_each(|(key, seen)| *counted.codes.entry(key.code).or_default() += seen.count);
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
        occurrences: false,
        limits: CodeLimits::default(),
        scans_only: false,
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
            runtime.block_on(dataflow.insert(&origin, block))?;
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

/// The row that admits a file.
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
        occurrences: 0,
        uploaded_at: 0,
        failure: None,
        binary: false,
        sha256: None,
        first_ts: None,
        last_ts: None,
        rules: None,
    }
}

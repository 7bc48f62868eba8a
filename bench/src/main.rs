//! Measures Argus and shows it at work.
//!
//! What is measured becomes a [`results::Run`]: printed as a [`table`], drawn as
//! a [`picture`], written as JSON and [`compare`]d. The measurements:
//!
//! - [`scan`]: the bare scan beside `wc -l` and `rg | awk`, and the dataflow around it;
//! - [`peers`]: other tools on the same files;
//! - [`ingest`]: uploads at once, to durable and final, beside what the disk takes;
//! - [`fresh`]: from sending a line to reading it in the report;
//! - [`report`]: reports that are read, one after the other and at once;
//! - [`hot`]: one report with a hundred connections, beside nginx;
//! - [`mix`]: how often the cache has the answer; [`lookup`]: reports that are not in memory;
//! - [`sql`]: questions in SQL over a fleet;
//! - [`fleet`]: what the fleet's view costs as batches close;
//! - [`memory`]: how much memory the largest file takes;
//! - [`soak`]: hours of mixed load with kills, checked against a model.
//!
//! What they stand on: the scan as a process of its own ([`alone`]), logs that are [`generate`]d with a known [`truth`], a
//! [`server`] whose memory is watched ([`peak`]), a [`client`] that costs next to
//! nothing, [`vehicles`] and their steady [`load`], and many times as [`latency`].

mod alone;
mod client;
mod compare;
mod demo;
mod fleet;
mod follow;
mod fresh;
mod generate;
mod hot;
mod ingest;
mod latency;
mod load;
mod lookup;
mod machine;
mod memory;
mod mix;
mod output;
mod peak;
mod peers;
mod picture;
mod report;
mod results;
mod scan;
mod server;
mod simple;
mod soak;
mod sql;
mod table;
mod truth;
mod vehicles;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::output::Output;

#[derive(Parser)]
#[command(name = "argus-bench", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

#[derive(Subcommand)]
enum Command {
    /// Start Argus, upload the logs of a small fleet, and show what they say.
    Demo(demo::Args),
    /// Write a log with known counts: FILE, and the truth about it in FILE.truth.json.
    Generate(generate::Args),
    /// Say what became slower from one run to another.
    Compare(compare::Args),
    /// The bare scan on one core and on two, beside `wc -l` and `rg | awk`.
    Scan(scan::Args),
    /// What the dataflow costs around the scan.
    Dataflow(scan::Args),
    /// The scan alone, for `scan` and `dataflow`.
    #[command(hide = true)]
    ScanAlone(alone::Args),
    /// Run other tools on the same files, check all answers, and compare.
    Peers(peers::Args),
    /// Upload files at once, to durable and to final, beside what the disk takes of the same bytes.
    Ingest(ingest::Args),
    /// The time from sending a line to reading it in the report, idle and under load.
    Fresh(fresh::Args),
    /// Read reports of one batch and of many: how soon one comes, and how many a second.
    Report(report::Args),
    /// Read one report with a hundred connections, beside nginx with a file of the same bytes.
    Hot(hot::Args),
    /// Read reports of many batches while some change: how often the cache has the answer.
    Mix(mix::Args),
    /// Look closed batches up among a million, beside DuckDB on the same files.
    Lookup(lookup::Args),
    /// Ask a fleet in SQL.
    Sql(sql::Args),
    /// Close many batches: what the fleet's view costs in memory, updates and reads.
    Fleet(fleet::Args),
    /// The peak memory of `argus analyze` and of an upload on one large file.
    Memory(memory::Args),
    /// Mixed load for minutes or hours, with kills: compare every count with a model, and what is used with bounds.
    Soak(soak::Args),
}

fn main() -> Result<ExitCode> {
    let Cli { command, output } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Demo(args) => runtime.block_on(demo::run(&args)).map(|()| ExitCode::SUCCESS),
        Command::Generate(args) => generate::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Compare(args) => compare::run(&args),
        Command::Scan(args) => output.of(|run| scan::measure(run, &args)),
        Command::Dataflow(args) => output.of(|run| scan::measure_dataflow(run, &args)),
        Command::ScanAlone(args) => alone::run(&args, &runtime).map(|()| ExitCode::SUCCESS),
        Command::Peers(args) => output.of(|run| peers::measure(run, &args)),
        Command::Ingest(args) => output.of(|run| ingest::measure(run, &args)),
        Command::Fresh(args) => output.of(|run| fresh::measure(run, &args)),
        Command::Report(args) => output.of(|run| report::measure(run, &args)),
        Command::Hot(args) => output.of(|run| hot::measure(run, &args)),
        Command::Mix(args) => output.of(|run| mix::measure(run, &args)),
        Command::Lookup(args) => output.of(|run| runtime.block_on(lookup::measure(run, &args))),
        Command::Sql(args) => output.of(|run| sql::measure(run, &args)),
        Command::Fleet(args) => output.of(|run| runtime.block_on(fleet::measure(run, &args))),
        Command::Memory(args) => output.of(|run| memory::measure(run, &args)),
        Command::Soak(args) => output.of(|run| runtime.block_on(soak::measure(run, &args))),
    }
}

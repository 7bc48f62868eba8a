//! Benchmarks, soak test and demo of Argus.
//!
//! Measurements are collected in a [`results::Run`]: printed as a [`table`], drawn
//! as a [`picture`], written as JSON and [`compare`]d. The benchmarks:
//!
//! - [`scan`]: the bare scan, compared with `wc -l` and `rg | awk`, and the overhead of the dataflow;
//! - [`peers`]: other tools on the same files;
//! - [`ingest`]: concurrent uploads, to durable and final, compared with the disk's write rate;
//! - [`fresh`]: the latency from sending a line to reading it in the report;
//! - [`report`]: latency and throughput of reports, sequential and concurrent;
//! - [`hot`]: one report over a hundred connections, compared with nginx;
//! - [`pages`]: the web pages over a fleet;
//! - [`mix`]: the cache hit rate; [`lookup`]: reports that are not in memory;
//! - [`sql`]: SQL queries over a fleet;
//! - [`fleet`]: the cost of the fleet view as batches close;
//! - [`comparison`]: two firmwares of a large fleet; [`diagnosis`]: diagnoses of a fleet with planted faults;
//! - [`assistant`]: explanations by a language model, also by a [`scripted_model`];
//! - [`memory`]: peak memory for a large file;
//! - [`servers`]: freshness, ingest and reports on PostgreSQL, S3, Kafka and Redis; `kafka`: lines from a topic;
//! - [`screenshots`]: pictures of the web pages, for people to look at;
//! - [`soak`]: hours of mixed load with kills, checked against a model.
//!
//! Shared parts: the scan as a separate process ([`alone`]), [`generate`]d logs with a known [`truth`], a [`server`]
//! with its [`peak`] memory, a low-overhead [`client`], [`vehicles`] and their steady [`load`], and [`latency`]
//! quantiles.

mod alone;
mod assistant;
mod client;
mod compare;
mod comparison;
mod demo;
mod diagnosis;
mod fleet;
mod follow;
mod fresh;
mod generate;
mod hot;
mod ingest;
#[cfg(feature = "kafka")]
mod kafka;
mod latency;
mod load;
mod lookup;
mod machine;
mod memory;
mod mix;
mod output;
mod pages;
mod peak;
mod peers;
mod picture;
mod report;
mod results;
mod scan;
mod screenshots;
mod scripted_model;
mod server;
mod servers;
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
    /// Start Argus, upload the logs of a small fleet, and show the reports.
    Demo(demo::Args),
    /// Take pictures of the web pages of the demo's fleet: light, dark, and on a phone.
    Screenshots(screenshots::Args),
    /// Write a log with known counts to FILE, and the expected counts to FILE.truth.json.
    Generate(generate::Args),
    /// Compare two runs and list what became slower.
    Compare(compare::Args),
    /// The bare scan on one core and on two, compared with `wc -l` and `rg | awk`.
    Scan(scan::Args),
    /// The overhead of the dataflow around the scan.
    Dataflow(scan::Args),
    /// The scan alone, for `scan` and `dataflow`.
    #[command(hide = true)]
    ScanAlone(alone::Args),
    /// Run other tools on the same files, check all results, and compare.
    Peers(peers::Args),
    /// Concurrent uploads, to durable and to final, compared with the disk's write rate for the same bytes.
    Ingest(ingest::Args),
    /// The latency from sending a line to reading it in the report, idle and under load.
    Fresh(fresh::Args),
    /// Latency and throughput of reports of one batch and of many.
    Report(report::Args),
    /// Read one report over a hundred connections, compared with nginx serving a file of the same bytes.
    Hot(hot::Args),
    /// Read reports of many batches while some change: the cache hit rate.
    Mix(mix::Args),
    /// Read each web page over a fleet while it changes.
    Pages(pages::Args),
    /// Look up closed batches among a million, compared with DuckDB on the same files.
    Lookup(lookup::Args),
    /// SQL queries over a fleet.
    Sql(sql::Args),
    /// Close many batches: the cost of the fleet view in memory, updates and reads.
    Fleet(fleet::Args),
    /// Compare two firmwares of a large fleet.
    Comparison(comparison::Args),
    /// Diagnose a fleet with planted faults, and compare with what was planted.
    Diagnosis(diagnosis::Args),
    /// Explain an ill fleet with a scripted language model, and with a real one if the environment names one.
    Assistant(assistant::Args),
    /// The peak memory of `argus analyze` and of an upload for one large file.
    Memory(memory::Args),
    /// Freshness, ingest and reports on PostgreSQL, S3, Kafka and Redis, compared with the embedded stores.
    Servers(servers::Args),
    /// Lines from a topic of Kafka: the rate at which they are counted.
    #[cfg(feature = "kafka")]
    Kafka(kafka::Args),
    /// Mixed load for minutes or hours, with kills: compare every count with a model and resource usage with bounds.
    Soak(soak::Args),
}

fn main() -> Result<ExitCode> {
    let Cli { command, output } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::Screenshots(args) => runtime.block_on(screenshots::run(&args)).map(|()| ExitCode::SUCCESS),
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
        Command::Pages(args) => output.of(|run| pages::measure(run, &args)),
        Command::Lookup(args) => output.of(|run| runtime.block_on(lookup::measure(run, &args))),
        Command::Sql(args) => output.of(|run| sql::measure(run, &args)),
        Command::Fleet(args) => output.of(|run| runtime.block_on(fleet::measure(run, &args))),
        Command::Comparison(args) => output.of(|run| runtime.block_on(comparison::measure(run, &args))),
        Command::Diagnosis(args) => output.of(|run| diagnosis::measure(run, &args)),
        Command::Assistant(args) => output.of(|run| assistant::measure(run, &args, &runtime)),
        Command::Memory(args) => output.of(|run| memory::measure(run, &args)),
        Command::Servers(args) => output.of(|run| servers::measure(run, &args)),
        #[cfg(feature = "kafka")]
        Command::Kafka(args) => output.of(|run| runtime.block_on(kafka::measure(run, &args))),
        Command::Soak(args) => output.of(|run| runtime.block_on(soak::measure(run, &args))),
    }
}

//! Measures Argus and shows it at work.
//!
//! - [`demo`]: a small fleet, uploaded and reported;
//! - [`fleet`]: what the fleet's view costs as batches close;
//! - [`generate`]: logs of any size with known counts;
//! - [`memory`]: how much memory the largest file takes.

mod demo;
mod fleet;
mod generate;
mod memory;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "argus-bench", about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start Argus, upload the logs of a small fleet, and show what they say.
    Demo {
        /// The address to listen on.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
        /// Stop when the report is shown.
        #[arg(long)]
        once: bool,
    },
    /// Write a log with known counts: FILE, and the truth about it in FILE.truth.json.
    Generate {
        /// Where to.
        file: PathBuf,
        /// About how many bytes.
        #[arg(long, default_value_t = 64 << 20)]
        bytes: u64,
        /// The same seed gives the same log.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Close many batches and print what the fleet's view costs: memory, updates, reads.
    Fleet {
        /// How many batches.
        #[arg(long, default_value_t = 1_000_000)]
        batches: u64,
        /// Timely workers.
        #[arg(long, default_value_t = 2)]
        workers: u16,
    },
    /// Print the peak memory of `argus analyze` and of an upload on one large file.
    Memory {
        /// About how many bytes the file has.
        #[arg(long, default_value_t = 2 << 30)]
        bytes: u64,
        /// Timely workers.
        #[arg(long, default_value_t = 2)]
        workers: u16,
    },
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Cli::parse().command {
        Command::Demo { listen, once } => runtime.block_on(demo::run(&listen, once)),
        Command::Fleet { batches, workers } => runtime.block_on(fleet::run(batches, workers)),
        Command::Generate { file, bytes, seed } => generate::run(&file, bytes, seed),
        Command::Memory { bytes, workers } => runtime.block_on(memory::run(bytes, workers)),
    }
}

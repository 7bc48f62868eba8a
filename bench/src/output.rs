//! Prints and writes the results of a run.

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::results::Run;
use crate::{picture, table};

/// Flags of all benchmarks.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Also write the results to this file, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the results to this file, as SVG.
    #[arg(long, global = true, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Output {
    /// Runs a benchmark and prints its results, also those from before a failure.
    pub fn of(&self, measure: impl FnOnce(&mut Run) -> Result<()>) -> Result<ExitCode> {
        let mut run = Run::begin();
        if let Err(error) = measure(&mut run) {
            run.fail(format!("{error:#}"));
        }
        table::print(&mut stdout(), &run)?;
        if let Some(path) = &self.json {
            run.write(path)?;
        }
        if let Some(path) = &self.svg {
            std::fs::write(path, picture::draw(&run)).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(if run.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

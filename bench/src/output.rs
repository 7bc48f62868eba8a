//! Where the results of a run go.

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::results::Run;
use crate::{picture, table};

/// Flags of all that measures.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Also write the results there, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the results there, as an SVG picture.
    #[arg(long, global = true, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Output {
    /// Measures, and says what came out. What was measured before something failed is not lost.
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

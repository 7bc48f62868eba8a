//! `argus recount`: rebuilds the lake from the stored files.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::RecountArgs;
use crate::data_dir::{lock, metadata_path};
use crate::maintenance::recount::{Recounted, recount};

/// Runs `argus recount`.
pub fn run(args: &RecountArgs) -> Result<ExitCode> {
    if !metadata_path(&args.data).is_file() {
        bail!("{} is not a data directory: it has no argus.db", args.data.display());
    }
    // It says why files could not be counted.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let data = std::path::absolute(&args.data)?;
    let _lock = lock(&data)?;
    let done = runtime.block_on(recount(&data, args.counting.rules()?, args.counting.workers()))?;
    let Recounted { batches, files, failed } = done;
    writeln!(stdout(), "{batches} batches and {files} files counted again, {failed} of them failed")?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

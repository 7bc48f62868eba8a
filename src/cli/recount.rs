//! `argus recount`: rebuilds the lake from the stored files.

use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::{RecountArgs, StorageArgs};
use crate::data_dir::{lock, metadata_path};
use crate::maintenance::recount::{Recounted, recount};

/// Runs `argus recount`.
pub fn run(args: &RecountArgs) -> Result<ExitCode> {
    let StorageArgs { data, metadata, store } = &args.storage;
    if metadata.is_some() || store.is_some() {
        bail!("recount works on a data directory alone; on a server, use POST /api/v1/batches/ID/recount");
    }
    if !metadata_path(data).is_file() || !data.join("raw").is_dir() {
        bail!("{} is not a data directory: it has no argus.db, or no folder `raw`", data.display());
    }
    // It says why files could not be counted.
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let data = std::path::absolute(data)?;
    let _lock = lock(&data)?;
    let done = runtime.block_on(recount(&data, args.counting.rules()?, args.counting.workers()))?;
    let Recounted { batches, files, failed } = done;
    writeln!(stdout(), "{batches} batches and {files} files counted again, {failed} of them failed")?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

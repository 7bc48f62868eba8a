//! `argus maintain`: runs all maintenance of a data directory once.

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::app::{Service, ServiceConfig};
use crate::cli::MaintainArgs;
use crate::data_dir::metadata_path;
use crate::maintenance::{Done, Thoroughness};
use crate::metadata;

/// Runs `argus maintain`.
pub fn run(args: &MaintainArgs) -> Result<ExitCode> {
    if !args.data.join("lake").is_dir() {
        bail!("{} is not a data directory: it has no folder `lake`", args.data.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut config = ServiceConfig::new(args.data.clone(), args.counting.rules()?, args.counting.workers());
        config.retention = args.retention.retention.into();
        let Service { mut maintainer, metadata, pipeline, work, .. } = Service::open(config).await?;
        let mut done = maintainer.run(Thoroughness::Full).await;
        // The pipeline runs as long as a sender exists.
        drop(pipeline);
        work.finish().await?;
        metadata.close().await;
        done.note("the metadata could not be compacted", metadata::vacuum(&metadata_path(&args.data)).await);
        anyhow::Ok(done)
    })?;
    let Done { files_replaced, files_deleted, files_skipped, failures } = done;
    writeln!(stdout(), "{files_replaced} table files rewritten, {files_deleted} files deleted")?;
    if !failures.is_empty() {
        bail!("maintenance is incomplete, {files_skipped} files skipped:\n  {}", failures.join("\n  "));
    }
    Ok(ExitCode::SUCCESS)
}

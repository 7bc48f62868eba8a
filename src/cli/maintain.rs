//! `argus maintain`: runs all maintenance of a data directory once.

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::app::{Service, ServiceConfig};
use crate::cli::{MaintainArgs, StorageArgs};
use crate::data_dir::metadata_path;
use crate::maintenance::{Done, Thoroughness};
use crate::metadata::{self, Location};
use crate::storage::Storage;

/// Runs `argus maintain`.
pub fn run(args: &MaintainArgs) -> Result<ExitCode> {
    let StorageArgs { data, store, .. } = &args.storage;
    let location = args.storage.location()?;
    if store.is_none() && !data.join("lake").is_dir() {
        bail!("{} is not a data directory: it has no folder `lake`", data.display());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let mut config = ServiceConfig::new(data.clone(), args.counting.rules()?, args.counting.workers());
        config.retention = args.retention.retention.into();
        config.metadata.clone_from(&location);
        if let Some(store) = store {
            config.storage = Some(Storage::open(store).await?);
        }
        let Service { maintainer, metadata, pipeline, work, .. } = Service::open(config).await?;
        let mut maintainer = maintainer.context("this process does not maintain the data")?;
        let mut done = maintainer.run(Thoroughness::Full).await;
        // The pipeline runs as long as a sender exists.
        drop(pipeline);
        work.finish().await?;
        metadata.close().await;
        match location.unwrap_or_else(|| Location::File(metadata_path(data))) {
            Location::File(path) => {
                done.note("the metadata could not be compacted", metadata::vacuum(&path).await);
            }
            // The server reuses the space of deleted rows by itself.
            Location::Postgres(_) => {}
        }
        anyhow::Ok(done)
    })?;
    let Done { files_replaced, files_deleted, files_skipped, failures } = done;
    writeln!(stdout(), "{files_replaced} table files rewritten, {files_deleted} files deleted")?;
    if !failures.is_empty() {
        bail!("maintenance is incomplete, {files_skipped} files skipped:\n  {}", failures.join("\n  "));
    }
    Ok(ExitCode::SUCCESS)
}

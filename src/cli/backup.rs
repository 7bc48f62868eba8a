//! `argus backup` and `argus restore`.

use std::io::{Write, stdout};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use crate::backup;
use crate::backup::manifest::Manifest;
use crate::cli::StorageArgs;
use crate::data_dir::metadata_path;
use crate::metadata::Location;
use crate::storage::Storage;

/// Flags of `argus backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where the backup is made, a place without files: a folder, or s3://BUCKET/PREFIX with the AWS_… variables.
    #[arg(value_name = "DIR|URL")]
    to: String,
    /// What is copied; a server may have it open.
    #[command(flatten)]
    storage: StorageArgs,
}

/// Flags of `argus restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup: a folder, or s3://BUCKET/PREFIX with the AWS_… variables.
    #[arg(value_name = "DIR|URL")]
    from: String,
    /// Where it is restored, a place without data.
    #[command(flatten)]
    storage: StorageArgs,
}

/// Runs `argus backup`.
pub fn backup(args: &BackupArgs) -> Result<ExitCode> {
    let StorageArgs { data, store, .. } = &args.storage;
    let metadata = args.storage.location()?.unwrap_or_else(|| Location::File(metadata_path(data)));
    let storage = match store {
        Some(store) => Storage::open_read_only(store)?,
        None => Storage::directory(data)?,
    };
    let made = runtime()?.block_on(backup::create::create(data, &metadata, storage, &args.to))?;
    print(&made, "are in", &args.to)
}

/// Runs `argus restore`.
pub fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let StorageArgs { data, store, .. } = &args.storage;
    if args.storage.location()?.is_some() {
        bail!("a backup is restored with its metadata in the data directory; leave --metadata out");
    }
    let restored = runtime()?.block_on(async {
        let storage = match store {
            Some(store) => Storage::open(store).await?,
            None => Storage::directory(data)?,
        };
        backup::restore::restore(&args.from, data, &storage).await
    })?;
    print(&restored, "were restored to", &data.display().to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn print(manifest: &Manifest, what: &str, place: &str) -> Result<ExitCode> {
    let bytes: u64 = manifest.entries.iter().map(|entry| entry.bytes).sum();
    let (files, epoch) = (manifest.entries.len(), manifest.head.epoch);
    writeln!(stdout(), "epoch {epoch}: {files} files with {bytes} bytes {what} {place}")?;
    Ok(ExitCode::SUCCESS)
}

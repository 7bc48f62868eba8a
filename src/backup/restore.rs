//! Makes a data directory of a backup.

use std::fs::{self, File};
use std::path::Path as FsPath;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;

use super::manifest::{Entry, METADATA, Manifest, NAME};
use super::{COPIES_AT_ONCE, below, copy, place, root_of};
use crate::audit;
use crate::data_dir::{self, metadata_path};
use crate::storage::Storage;

/// Restores a backup into a data directory without data, and the raw files and the lake into `storage`, which has none.
pub async fn restore(location: &str, data: &FsPath, storage: &Storage) -> Result<Manifest> {
    let from = place(location)?;
    let root = root_of(&from);
    let list = from.store.get(&below(&root, NAME)).await;
    let list = list.with_context(|| format!("{location} is no backup, or not whole: it has no {NAME}"))?;
    let list = list.bytes().await.with_context(|| format!("cannot read {location}"))?;
    let manifest = Manifest::of_text(&list).with_context(|| format!("{location} cannot be restored"))?;
    ensure!(manifest.entries.iter().any(|entry| entry.path == METADATA), "{location} has no metadata");

    data_dir::create(data, &[]).with_context(|| format!("cannot create the data directory {}", data.display()))?;
    let _lock = data_dir::lock(data)?;
    if metadata_path(data).exists() || audit::folder(data).exists() || has_files(storage).await? {
        bail!("{} has data; restore into an empty directory", data.display());
    }
    // A server refuses the directory until this is gone.
    let marker = data_dir::restoring_marker(data);
    File::create(&marker).and_then(|file| file.sync_all()).context("cannot write to the data directory")?;
    if let Some(directory) = &storage.directory {
        directory.create().context("cannot create the folders of the data directory")?;
    }
    let local = Storage::directory(data)?;
    let copies = manifest.entries.iter().map(|entry| {
        let is_of_store = entry.path.starts_with("lake/") || entry.path.starts_with("raw/");
        restore_file(&from, entry, if is_of_store { storage } else { &local })
    });
    let copies: Vec<_> = copies.collect();
    stream::iter(copies).buffer_unordered(COPIES_AT_ONCE).try_collect::<Vec<()>>().await?;
    fs::remove_file(&marker).and_then(|()| File::open(data)?.sync_all()).context("cannot finish the restore")?;
    Ok(manifest)
}

/// Whether the lake or the raw store has files.
async fn has_files(storage: &Storage) -> Result<bool> {
    for folder in ["lake", "raw"] {
        let first = storage.store.list(Some(&below(&root_of(storage), folder))).next().await;
        if first.transpose().context("cannot list the place to restore to")?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Copies a file, and verifies it.
async fn restore_file(from: &Storage, entry: &Entry, to: &Storage) -> Result<()> {
    let (source, target) = (below(&root_of(from), &entry.path), below(&root_of(to), &entry.path));
    let found = copy(&from.store, &source, &Arc::clone(&to.store), &target, &entry.path).await;
    let found = found.with_context(|| format!("cannot restore {}; the backup may not be whole", entry.path))?;
    ensure!(
        found == *entry,
        "{} has {} bytes with the SHA-256 {}, and the backup's list says {} and {}: the backup is damaged",
        entry.path,
        found.bytes,
        found.sha256,
        entry.bytes,
        entry.sha256
    );
    Ok(())
}

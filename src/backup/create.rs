//! Makes a backup.

use std::collections::{BTreeMap, HashSet};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_dataflow::VersionId;
use argus_sinks::{Lake, Table};
use chrono::{SecondsFormat, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::manifest::{Entry, FORMAT, Head, METADATA, Manifest, NAME};
use super::{COPIES_AT_ONCE, below, copy, place, root_of, write};
use crate::audit;
use crate::data_dir::{self, metadata_path};
use crate::ingest::raw_store::RawStore;
use crate::metadata::{Location, MetadataCopy};
use crate::storage::Storage;

/// How often the metadata are copied again, because files were deleted that were about to be deleted when the backup began.
const ATTEMPTS: usize = 10;

/// Between two attempts.
const ATTEMPT_WAIT: Duration = Duration::from_millis(200);

/// How often the backup says that it goes on.
const HOLD_EVERY: Duration = Duration::from_secs(5);

/// What is copied, and where to.
struct Job {
    from: Storage,
    to: Storage,
    /// What is copied already, by its name. Files never change, so it serves the next attempt too; only appended parts are copied
    /// again, because a part that a crash left is overwritten.
    copied: BTreeMap<String, Entry>,
}

/// Copies the data of `data`, whose raw files and lake are in `storage`, to a place that has no backup yet.
pub async fn create(data: &FsPath, metadata: &Location, storage: Storage, location: &str) -> Result<Manifest> {
    let Location::File(database) = metadata else {
        bail!(
            "the metadata are in {metadata}, which argus backup does not copy: stop the server, and use pg_dump and the copy \
             of the store"
        );
    };
    if !database.is_file() {
        bail!("there is no data in {}: {} does not exist", data.display(), metadata_path(data).display());
    }
    let to = place(location)?;
    if let Some(directory) = &to.directory {
        if std::path::absolute(&directory.path)?.starts_with(std::path::absolute(data)?) {
            bail!("{location} is in the data directory; a backup belongs on another disk");
        }
        directory.create().with_context(|| format!("cannot create {location}"))?;
    }
    let root = root_of(&to);
    if to.store.list(Some(&root)).next().await.transpose().with_context(|| format!("cannot read {location}"))?.is_some()
    {
        bail!("{location} is not empty; use another place for each backup");
    }
    let mut job = Job { from: storage, to, copied: BTreeMap::new() };
    // In the data directory, where there is space for the copy of the metadata, and where a server sees it.
    let folder = data_dir::backup_folder(data).context("cannot write to the data directory")?;
    let making = async {
        for attempt in 1..=ATTEMPTS {
            if let Some(manifest) = job.attempt(data, database, folder.path(), attempt).await? {
                return Ok(manifest);
            }
            tokio::time::sleep(ATTEMPT_WAIT).await;
        }
        bail!(
            "files were missing in each of {ATTEMPTS} attempts: is another argus maintaining the same store, or is it damaged? \
             try argus sql --data DIR"
        )
    };
    let manifest = tokio::select! {
        made = making => made?,
        held = hold(folder.path()) => return Err(held).context("cannot write to the data directory"),
    };
    job.to.store.put(&below(&root, NAME), manifest.to_text()?.into()).await.context("cannot write the list")?;
    Ok(manifest)
}

/// Says again and again that the backup is being made; returns if it cannot.
async fn hold(folder: &FsPath) -> std::io::Error {
    loop {
        tokio::time::sleep(HOLD_EVERY).await;
        if let Err(error) = data_dir::hold(folder) {
            return error;
        }
    }
}

impl Job {
    /// Copies the metadata, and what they name; `None` if some of it was deleted meanwhile.
    async fn attempt(
        &mut self,
        data: &FsPath,
        database: &FsPath,
        folder: &FsPath,
        attempt: usize,
    ) -> Result<Option<Manifest>> {
        let file = folder.join(format!("{attempt}.db"));
        let copy = MetadataCopy::make(database, &file).await.context("cannot copy the metadata")?;
        let at = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
        let head = Head { format: FORMAT, argus: env!("CARGO_PKG_VERSION").to_owned(), at, epoch: copy.epoch().await? };
        let copied = self.copy_named(&copy).await?;
        // Before its file is read: then all of it is in that file.
        copy.close().await.context("cannot close the copy of the metadata")?;
        let Some(names) = copied else {
            tracing::info!(attempt, "files were deleted while they were copied; copying the metadata again");
            std::fs::remove_file(&file).context("cannot delete the copy of the metadata")?;
            return Ok(None);
        };
        let target = below(&root_of(&self.to), METADATA);
        let database = write(chunks_of(&file).await?, &self.to.store, &target, METADATA).await;
        let mut entries = vec![database.context("cannot write the metadata")?];
        entries.extend(names.iter().filter_map(|name| self.copied.get(name).cloned()));
        entries.extend(self.copy_audit(data).await?);
        self.delete_others(&entries).await?;
        Ok(Some(Manifest { head, entries }))
    }

    /// Copies what the metadata name; `None` if some of it was deleted meanwhile.
    async fn copy_named(&mut self, metadata: &MetadataCopy) -> Result<Option<Vec<String>>> {
        let Some(mut names) = self.copy_lake(metadata).await? else { return Ok(None) };
        let Some(raw) = self.copy_raw(metadata).await? else { return Ok(None) };
        names.extend(raw);
        Ok(Some(names))
    }

    /// Deletes what an earlier attempt copied and the last one does not need.
    async fn delete_others(&self, entries: &[Entry]) -> Result<()> {
        let needed: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        for name in self.copied.keys().filter(|name| !needed.contains(name.as_str())) {
            self.to
                .store
                .delete(&below(&root_of(&self.to), name))
                .await
                .context("cannot delete a file of the backup")?;
        }
        Ok(())
    }

    /// Copies the tables at the versions that the metadata name; before the first commit of the lake there are none.
    async fn copy_lake(&mut self, metadata: &MetadataCopy) -> Result<Option<Vec<String>>> {
        let Some(state) = metadata.lake().await? else { return Ok(Some(Vec::new())) };
        let mut names = Vec::new();
        for (table, version) in Table::ALL.into_iter().zip(state.versions) {
            let folder = format!("lake/{}/_delta_log", table.name());
            let log = below(&root_of(&self.from), &folder);
            let found: Vec<_> = self.from.store.list(Some(&log)).try_collect().await.context("cannot list the lake")?;
            for object in found {
                let Some(file) = object.location.filename() else { continue };
                // `_last_checkpoint` may be of a later version; without it, readers look for checkpoints.
                let is_wanted =
                    file.get(..20).and_then(|digits| digits.parse::<u64>().ok()).is_some_and(|of| of <= version);
                if is_wanted {
                    names.push(format!("{folder}/{file}"));
                }
            }
        }
        let last_entry =
            |(table, version): (Table, u64)| format!("lake/{}/_delta_log/{version:020}.json", table.name());
        let are_listed = Table::ALL.into_iter().zip(state.versions).map(last_entry).all(|name| names.contains(&name));
        if !are_listed || !self.copy_names(&names).await? {
            return Ok(None);
        }
        // The log says which files there are.
        let snapshot = match Lake::read(Arc::clone(&self.to.store), &self.to.lake).await {
            Ok(snapshot) => snapshot,
            // The beginning of a log was deleted before the server saw that a backup is made.
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the copied tables");
                return Ok(None);
            }
        };
        let root = root_of(&self.to);
        let mut files = Vec::new();
        for table in Table::ALL {
            for file in snapshot.table(table).committed.iter() {
                let name = relative(&file.path, &root).context("a file of the lake is not in its folder")?;
                files.push(name);
            }
        }
        if !self.copy_names(&files).await? {
            return Ok(None);
        }
        names.extend(files);
        Ok(Some(names))
    }

    /// Copies the objects of the raw store that the metadata name.
    async fn copy_raw(&mut self, metadata: &MetadataCopy) -> Result<Option<Vec<String>>> {
        let root = root_of(&self.from);
        let (mut names, mut found) = (Vec::new(), HashSet::new());
        let mut objects = self.from.store.list(Some(&self.from.raw));
        let mut known: Option<(uuid::Uuid, HashSet<VersionId>)> = None;
        while let Some(object) = objects.try_next().await.context("cannot list the raw files")? {
            let Some((batch_id, version)) = RawStore::named(&object.location) else { continue };
            if known.as_ref().is_none_or(|(of, _)| *of != batch_id) {
                known = Some((batch_id, metadata.versions(batch_id).await?));
            }
            if known.as_ref().is_some_and(|(_, versions)| versions.contains(&version)) {
                names.push(relative(&object.location, &root).context("a raw file is not in its folder")?);
                found.insert((version, RawStore::start_of_part(&object.location)));
            }
        }
        drop(objects);
        let is_whole = self.copy_names(&names).await? && metadata.names_only(&found).await?;
        Ok(is_whole.then_some(names))
    }

    /// Copies files by their names; false if one does not exist any more.
    async fn copy_names(&mut self, names: &[String]) -> Result<bool> {
        let (from, to) = (root_of(&self.from), root_of(&self.to));
        let is_part = |name: &str| name.starts_with("raw/") && RawStore::start_of_part(&below(&from, name)).is_some();
        let missing = names.iter().filter(|name| !self.copied.contains_key(*name) || is_part(name));
        let copies = missing.map(|name| {
            let (source, target) = (below(&from, name), below(&to, name));
            let (from, to) = (Arc::clone(&self.from.store), Arc::clone(&self.to.store));
            async move { copy(&from, &source, &to, &target, name).await }
        });
        let copies: Vec<_> = copies.collect();
        let mut copied = stream::iter(copies).buffer_unordered(COPIES_AT_ONCE);
        let mut is_whole = true;
        let mut done = Vec::new();
        while let Some(result) = copied.next().await {
            match result {
                Ok(entry) => done.push(entry),
                Err(object_store::Error::NotFound { .. }) => is_whole = false,
                Err(error) => return Err(error).context("cannot copy a file"),
            }
        }
        drop(copied);
        self.copied.extend(done.into_iter().map(|entry| (entry.path.clone(), entry)));
        Ok(is_whole)
    }

    /// Copies the audit log up to its last whole record.
    async fn copy_audit(&self, data: &FsPath) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let files = match audit::chain::files(&audit::folder(data)) {
            // No server has been started with this data.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            files => files.context("cannot read the audit log")?,
        };
        for file in files {
            let mut text = tokio::fs::read(&file).await.context("cannot read the audit log")?;
            text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
            let name = format!("audit/{}", file.file_name().and_then(|name| name.to_str()).unwrap_or_default());
            let chunks = stream::iter([Ok::<_, object_store::Error>(text.into())]);
            let target = below(&root_of(&self.to), &name);
            entries.push(write(chunks, &self.to.store, &target, &name).await.context("cannot copy the audit log")?);
        }
        Ok(entries)
    }
}

/// The name in a backup of a path below its folder.
fn relative(path: &Path, root: &Path) -> Option<String> {
    let parts: Vec<String> = path.prefix_match(root)?.map(|part| part.as_ref().to_owned()).collect();
    Some(parts.join("/"))
}

/// The chunks of a file on a local disk.
async fn chunks_of(
    file: &FsPath,
) -> Result<impl futures::Stream<Item = Result<bytes::Bytes, object_store::Error>> + Unpin> {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::local::LocalFileSystem::new());
    let path = Path::from_absolute_path(file)?;
    Ok(store.get(&path).await?.into_stream())
}

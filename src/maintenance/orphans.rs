//! Deletes orphans: unused files that a crash or a failure left in the data directory.
//!
//! Whether a file is in use is never guessed from times. An object of the raw store is
//! in use if the metadata reference its version, or an upload has a claim on it. A file
//! of the lake is an orphan if no table referenced it when this process opened the lake,
//! before it wrote any file. So a wrong clock cannot delete a file that is in use.
//!
//! Where another process can take over, it has uploads of which this process knows
//! nothing. There, an object of the raw store must be old, and this process must still
//! be the writer after it has found the orphans: those that it found then were nobody's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::time::Instant;

use crate::ingest::Claims;
use crate::ingest::raw_store::RawStore;
use crate::metadata::Metadata;
use crate::storage::{Directory, UnfinishedUpload, UnfinishedUploads};

/// The interval at which a server searches for orphans.
const SEARCH_INTERVAL: Duration = Duration::from_secs(3600);

/// Unused files that this process or another may be writing must also have this age.
const AGE_MIN: Duration = Duration::from_secs(3600);

/// Finds and deletes orphans.
pub struct Orphans {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// If the store is on a local disk: may contain temporary files of interrupted writers.
    pub(crate) directory: Option<Directory>,
    pub(crate) raw: RawStore,
    pub(crate) claims: Claims,
    pub(crate) metadata: Metadata,
    /// The writer's term; 0 if no other process can take over.
    pub(crate) term: u64,
    /// Files of the lake that no table referenced when it was opened.
    pub(crate) unnamed: Vec<Path>,
    /// When these may be deleted: replicas of an earlier leader may read them for a while.
    pub(crate) unnamed_from: Instant,
    /// The multipart uploads of a bucket.
    pub(crate) uploads: Option<UnfinishedUploads>,
    /// Those that were unfinished before this process wrote: the processes that began them have ended or were replaced.
    pub(crate) unfinished: Vec<UnfinishedUpload>,
    pub(crate) looked: Option<Instant>,
}

impl Orphans {
    /// Deletes orphans, and returns their number. In the first search none can be from this process, so their age does
    /// not matter if there is no other. Later searches run once an hour.
    pub async fn delete_when_due(&mut self) -> Result<usize> {
        let age = match self.looked {
            None if self.term == 0 => Duration::ZERO,
            None => AGE_MIN,
            Some(looked) if looked.elapsed() >= SEARCH_INTERVAL => AGE_MIN,
            Some(_) if !self.unnamed.is_empty() && Instant::now() >= self.unnamed_from => AGE_MIN,
            Some(_) => return Ok(0),
        };
        let mut deleted = 0;
        if let Some(Directory { files, path }) = self.directory.clone() {
            let unfinished = tokio::task::spawn_blocking(move || files.delete_unfinished(&path, age)).await?;
            deleted += unfinished.context("could not delete unfinished files")?;
        }
        let unnamed_is_due = Instant::now() >= self.unnamed_from;
        let mut orphans = if unnamed_is_due { self.unnamed.clone() } else { Vec::new() };
        orphans.extend(self.raw_orphans(age).await?);
        if self.term > 0 && self.metadata.term().await? != self.term {
            bail!("another process has taken over the metadata database");
        }
        // Another process may have handed over an upload meanwhile.
        orphans.retain(|path| RawStore::named(path).is_none_or(|(_, version)| !self.claims.is_open(version)));
        deleted += orphans.len();
        let paths = futures::stream::iter(orphans.into_iter().map(Ok)).boxed();
        let results = self.store.delete_stream(paths).filter(|deleted| {
            let is_missing = matches!(deleted, Err(object_store::Error::NotFound { .. }));
            std::future::ready(!is_missing)
        });
        results.try_for_each(|_| std::future::ready(Ok(()))).await?;
        if unnamed_is_due {
            self.unnamed.clear();
        }
        if let Some(uploads) = &self.uploads {
            while let Some(upload) = self.unfinished.last() {
                uploads.abort(upload).await.context("could not abort an unfinished multipart upload")?;
                self.unfinished.pop();
                deleted += 1;
            }
        }
        self.looked = Some(Instant::now());
        Ok(deleted)
    }

    /// Objects of the raw store that belong to no file and no upload.
    async fn raw_orphans(&self, age: Duration) -> Result<Vec<Path>> {
        let mut orphans = Vec::new();
        let mut objects = self.raw.list();
        let mut batch = None;
        let mut known = HashSet::new();
        while let Some(object) = objects.try_next().await? {
            let Some((batch_id, version)) = RawStore::named(&object.location) else { continue };
            // Claims are checked first: an upload has one until it is in the metadata.
            if self.claims.is_open(version) {
                continue;
            }
            if batch != Some(batch_id) || !known.contains(&version) {
                known = self.metadata.versions(batch_id).await?;
                batch = Some(batch_id);
            }
            let is_old = Utc::now() - object.last_modified >= chrono::TimeDelta::from_std(age)?;
            if !known.contains(&version) && (age.is_zero() || is_old) {
                orphans.push(object.location);
            }
        }
        Ok(orphans)
    }
}

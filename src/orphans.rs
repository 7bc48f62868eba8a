//! What a crash or a failure left in the data directory and nobody needs.
//!
//! What is in use is known, never guessed from times: an object of the raw store
//! belongs to a file that the metadata name or to an upload that has a claim; a
//! file of the lake that no table named when this process opened it, and before
//! it wrote any, was left by another. A clock that was wrong deletes nothing.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use argus_sinks::durable::DurableFileSystem;
use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio::time::Instant;

use crate::ingest::Claims;
use crate::metadata::Metadata;
use crate::raw::RawStore;

/// How often a server looks.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// What this process may have begun itself is left alone for so long, beside being in no use.
const AGE_MIN: Duration = Duration::from_secs(3600);

/// Finds and deletes orphans.
pub struct Orphans {
    pub(crate) store: DurableFileSystem,
    pub(crate) data: PathBuf,
    pub(crate) raw: RawStore,
    pub(crate) claims: Claims,
    pub(crate) metadata: Metadata,
    /// Files of the lake that no table named when it was opened.
    pub(crate) unnamed: Vec<Path>,
    pub(crate) looked: Option<Instant>,
}

impl Orphans {
    /// Deletes what there is; says how many files it were. The first time, nothing of it can be this process's own, so
    /// its age does not matter. After that, a look is due every hour.
    pub async fn delete_when_due(&mut self) -> Result<usize> {
        let age = match self.looked {
            None => Duration::ZERO,
            Some(looked) if looked.elapsed() >= LOOK_EVERY => AGE_MIN,
            Some(_) => return Ok(0),
        };
        let (store, folder) = (self.store.clone(), self.data.clone());
        let unfinished = tokio::task::spawn_blocking(move || store.delete_unfinished(&folder, age)).await?;
        let mut deleted = unfinished.context("cannot delete unfinished files")?;
        let mut orphans = self.unnamed.clone();
        orphans.extend(self.raw_orphans(age).await?);
        deleted += orphans.len();
        let paths = futures::stream::iter(orphans.into_iter().map(Ok)).boxed();
        let gone = self.store.delete_stream(paths).filter(|deleted| {
            let is_error = !matches!(deleted, Err(object_store::Error::NotFound { .. }));
            std::future::ready(is_error)
        });
        gone.try_for_each(|_| std::future::ready(Ok(()))).await?;
        self.unnamed.clear();
        self.looked = Some(Instant::now());
        Ok(deleted)
    }

    /// Objects of the raw store that no file has and no upload.
    async fn raw_orphans(&self, age: Duration) -> Result<Vec<Path>> {
        let mut orphans = Vec::new();
        let mut objects = self.raw.list();
        let mut batch = None;
        let mut known = HashSet::new();
        while let Some(object) = objects.try_next().await? {
            let Some((batch_id, version)) = RawStore::named(&object.location) else { continue };
            // The claim first: an upload has one until the metadata know it.
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

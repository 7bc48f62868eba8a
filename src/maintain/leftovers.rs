//! Files that nothing names any more are deleted: replaced ones when the last
//! reader has gone who may name them, and what a crash or a failure left.

use std::collections::{HashSet, VecDeque};
use std::sync::Weak;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::maintain::Maintainer;
use crate::raw::RawStore;

/// Files to delete.
#[derive(Default)]
pub struct Leftovers {
    /// Whether what a crash left has been looked for.
    looked: bool,
    /// Replaced files, oldest first, with what the readers hold who may still name them.
    replaced: VecDeque<(Weak<()>, HashSet<Path>)>,
    /// New files of which a commit may or may not have made a part of their table.
    uncertain: HashSet<Path>,
}

impl Leftovers {
    /// Files that were replaced; they may go when nobody holds `lease`.
    pub(super) fn replaced(&mut self, lease: Weak<()>, files: HashSet<Path>) {
        self.replaced.push_back((lease, files));
    }

    /// Files whose commit failed, which does not say that it did not happen.
    pub(super) fn uncertain(&mut self, files: impl IntoIterator<Item = Path>) {
        self.uncertain.extend(files);
    }
}

impl Maintainer {
    /// Deletes the replaced files that nobody can name any more.
    pub(super) async fn delete_replaced(&mut self) -> Result<usize> {
        let mut deleted = 0;
        while let Some((lease, files)) = self.leftovers.replaced.front()
            && lease.strong_count() == 0
        {
            argus_sinks::crash::point("vacuuming");
            self.delete(files).await?;
            deleted += files.len();
            self.leftovers.replaced.pop_front();
        }
        Ok(deleted)
    }

    /// Deletes what was written before the start and is named by nothing, once, and what a failed commit left.
    pub(super) async fn delete_leftovers(&mut self) -> Result<usize> {
        if self.leftovers.looked && self.leftovers.uncertain.is_empty() {
            return Ok(0);
        }
        let files = self.upkeep.unnamed_files(&*self.store).await?.into_iter();
        let is_left = |file: &object_store::ObjectMeta| {
            let is_old = !self.leftovers.looked && file.last_modified < self.started;
            is_old || self.leftovers.uncertain.contains(&file.location)
        };
        let mut unnamed: HashSet<Path> = files.filter(is_left).map(|file| file.location).collect();
        if !self.leftovers.looked {
            unnamed.extend(self.raw_objects_without_use().await?);
        }
        self.delete(&unnamed).await?;
        self.leftovers.uncertain.clear();
        self.leftovers.looked = true;
        Ok(unnamed.len())
    }

    /// Objects of the raw store from before the start that no file has.
    async fn raw_objects_without_use(&self) -> Result<HashSet<Path>> {
        let mut unnamed = HashSet::new();
        let mut objects = self.raw.list();
        let mut batch = None;
        let mut known = HashSet::new();
        while let Some(object) = objects.try_next().await? {
            let Some((batch_id, version)) = RawStore::named(&object.location) else { continue };
            if batch != Some(batch_id) {
                known = self.metadata.versions(batch_id).await?;
                batch = Some(batch_id);
            }
            if !known.contains(&version) && object.last_modified < self.started {
                unnamed.insert(object.location);
            }
        }
        Ok(unnamed)
    }

    async fn delete(&self, files: &HashSet<Path>) -> Result<()> {
        let paths: Vec<_> = files.iter().cloned().map(Ok).collect();
        let deleted = self.store.delete_stream(futures::stream::iter(paths).boxed()).filter(|deleted| {
            let kept = !matches!(deleted, Err(object_store::Error::NotFound { .. }));
            std::future::ready(kept)
        });
        deleted.try_for_each(|_| std::future::ready(Ok(()))).await?;
        Ok(())
    }
}

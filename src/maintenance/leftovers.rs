//! Deletes table files that are no longer referenced: replaced files, after the last
//! reader that may use them, and the files of failed commits.

use std::collections::{HashSet, VecDeque};
use std::sync::Weak;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::maintenance::Maintainer;

/// Files to delete.
#[derive(Default)]
pub struct Leftovers {
    /// Replaced files, oldest first, each with the lease of the readers that may still use them.
    replaced: VecDeque<(Weak<()>, HashSet<Path>)>,
    /// New files that a failed commit may or may not have added to their table.
    uncertain: HashSet<Path>,
}

impl Leftovers {
    /// Adds replaced files; they can be deleted when no reader holds `lease`.
    pub(super) fn replaced(&mut self, lease: Weak<()>, files: HashSet<Path>) {
        self.replaced.push_back((lease, files));
    }

    /// Adds files whose commit failed but may have happened.
    pub(super) fn uncertain(&mut self, files: impl IntoIterator<Item = Path>) {
        self.uncertain.extend(files);
    }
}

impl Maintainer {
    /// Deletes the replaced files that no reader can use any more.
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

    /// Deletes the files of failed commits that no table references.
    pub(super) async fn delete_uncertain(&mut self) -> Result<usize> {
        if self.leftovers.uncertain.is_empty() {
            return Ok(0);
        }
        let unnamed = self.maintenance.unreferenced_files(&*self.store).await?.into_iter().map(|file| file.location);
        let unnamed: HashSet<Path> = unnamed.filter(|file| self.leftovers.uncertain.contains(file)).collect();
        self.delete(&unnamed).await?;
        self.leftovers.uncertain.clear();
        Ok(unnamed.len())
    }

    async fn delete(&self, files: &HashSet<Path>) -> Result<()> {
        let paths: Vec<_> = files.iter().cloned().map(Ok).collect();
        let deleted = self.store.delete_stream(futures::stream::iter(paths).boxed()).filter(|deleted| {
            let is_missing = matches!(deleted, Err(object_store::Error::NotFound { .. }));
            std::future::ready(!is_missing)
        });
        deleted.try_for_each(|_| std::future::ready(Ok(()))).await?;
        Ok(())
    }
}

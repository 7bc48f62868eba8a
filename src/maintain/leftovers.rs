//! Files that nothing names any more are deleted: replaced ones when the last
//! reader has gone who may name them, and what a failed commit left.

use std::collections::{HashSet, VecDeque};
use std::sync::Weak;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::maintain::Maintainer;

/// Files to delete.
#[derive(Default)]
pub struct Leftovers {
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

    /// Deletes what failed commits left, where no table names it.
    pub(super) async fn delete_uncertain(&mut self) -> Result<usize> {
        if self.leftovers.uncertain.is_empty() {
            return Ok(0);
        }
        let unnamed = self.upkeep.unnamed_files(&*self.store).await?.into_iter().map(|file| file.location);
        let unnamed: HashSet<Path> = unnamed.filter(|file| self.leftovers.uncertain.contains(file)).collect();
        self.delete(&unnamed).await?;
        self.leftovers.uncertain.clear();
        Ok(unnamed.len())
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

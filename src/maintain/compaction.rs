//! Which files of the tables are compacted, and in which order.
//!
//! Files with rows of something gone are written anew without them; small files
//! are merged when there are many. What says what is gone, `files` and `batches`,
//! comes last, and keeps saying it in this run where a file of the tables before
//! was skipped that may still have such rows: a later run would not find them again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use anyhow::Result;
use argus_sinks::compaction::{self, CompactionError, FAN_IN, FOUND_MAX, Gone};
use argus_sinks::{DataFile, Snapshot, Table};
use object_store::path::Path;

use crate::maintain::{Done, Maintainer, Thoroughness};

/// A file smaller than this (16 MiB) is merged with others of its size. New files are twice as large, so
/// merging ends.
const SMALL_FILE_BYTES: u64 = 16 << 20;
/// A server merges when so many files are of like size.
const LIKE_FILES: usize = 8;
/// Files are of like size when the same power of this is below them, from [`LEAST_CLASS_BYTES`] on.
const CLASS_FACTOR: u64 = 8;
/// Files up to this (64 KiB) are of one class.
const LEAST_CLASS_BYTES: u64 = 64 << 10;

/// The tables in the order of their compaction.
const ORDER: [Table; 5] = [Table::Errors, Table::ErrorCounts, Table::Fleet, Table::Files, Table::Batches];

/// One run over the tables.
struct Run<'d> {
    thoroughness: Thoroughness,
    /// The last epoch that is not told apart.
    since: u64,
    /// Whether the tables say so.
    is_closed: bool,
    /// Files that could not be read or written anew.
    skipped: HashSet<Path>,
    /// Whether a table that was skipped in part may have rows of what is gone.
    keeps_gone: bool,
    done: &'d mut Done,
}

/// A file that is written anew.
struct Chosen {
    file: DataFile,
    /// Whether it has rows of something gone: then also by itself.
    has_gone: bool,
}

impl Maintainer {
    /// Compacts the tables, with nothing told apart up to the epoch `since`.
    pub(super) async fn compact(
        &mut self,
        thoroughness: Thoroughness,
        since: u64,
        committed: u64,
        done: &mut Done,
    ) -> Result<()> {
        let known = self.snapshot().horizon;
        // Readers may see more by now than is committed.
        let since = since.clamp(known, committed.max(known));
        let skipped = HashSet::new();
        let mut run = Run { thoroughness, since, is_closed: known >= since, skipped, keeps_gone: false, done };
        loop {
            let mut gone = Gone::find(&self.store, &self.snapshot(), committed, since, FOUND_MAX).await?;
            run.keeps_gone |= !gone.unread.is_empty();
            for (table, error) in std::mem::take(&mut gone.unread) {
                run.skip_unread(table, error);
            }
            for table in ORDER {
                self.compact_table(&mut run, table, &gone).await?;
            }
            if !gone.is_partial {
                return Ok(());
            }
            // What was skipped may be all that is left.
            if thoroughness == Thoroughness::Scheduled || run.keeps_gone {
                tracing::warn!(
                    limit = FOUND_MAX,
                    "more was deleted than one run of maintenance erases; the next goes on"
                );
                return Ok(());
            }
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    async fn compact_table(&mut self, run: &mut Run<'_>, table: Table, gone: &Gone) -> Result<()> {
        let nothing = Gone::default();
        let says_what_is_gone = matches!(table, Table::Files | Table::Batches);
        let leaving = if says_what_is_gone && run.keeps_gone { &nothing } else { gone };
        let mut chosen = self.choose(run, table, leaving).await?;
        let mut small = usize::MAX;
        while !chosen.is_empty() {
            let groups = chosen.len().div_ceil(FAN_IN);
            for group in chosen.chunks(chosen.len().div_ceil(groups)) {
                self.compact_group(run, table, group, leaving).await?;
            }
            if run.thoroughness == Thoroughness::Scheduled {
                break;
            }
            // What became of several groups may be small still.
            chosen = small_files(&self.snapshot(), run, table).map(|file| Chosen { file, has_gone: false }).collect();
            if chosen.len() < 2 || chosen.len() >= small {
                break;
            }
            small = chosen.len();
        }
        Ok(())
    }

    /// The files to write anew: those with rows of something gone, and small ones when there are many.
    async fn choose(&self, run: &mut Run<'_>, table: Table, gone: &Gone) -> Result<Vec<Chosen>> {
        let snapshot = self.snapshot();
        let mut chosen = Vec::new();
        let mut gone_in = HashSet::new();
        for file in snapshot.table(table).committed.iter().cloned() {
            if run.skipped.contains(&file.path) {
                continue;
            }
            match gone.is_in(&self.store, table, &file).await {
                Ok(false) => {}
                Ok(true) => {
                    gone_in.insert(file.path.clone());
                    chosen.push(Chosen { file, has_gone: true });
                }
                Err(error) => run.skip(table, &[file], gone, error),
            }
        }
        let mut classes: BTreeMap<u32, Vec<DataFile>> = BTreeMap::new();
        for file in small_files(&snapshot, run, table).filter(|file| !gone_in.contains(&file.path)) {
            let class = if run.thoroughness == Thoroughness::Full { 0 } else { size_class(file.bytes) };
            classes.entry(class).or_default().push(file);
        }
        let enough = if run.thoroughness == Thoroughness::Full { 2 } else { LIKE_FILES };
        let many = classes.into_values().filter(|files| files.len() >= enough).flatten();
        chosen.extend(many.map(|file| Chosen { file, has_gone: false }));
        // Neighbours come together, so that what becomes of a group overlaps few others.
        let key = |chosen: &Chosen| chosen.file.keys.as_ref().map(|keys| Arc::clone(keys.start()));
        chosen.sort_by_cached_key(key);
        Ok(chosen)
    }

    /// Puts what a group of files becomes in their place. A file that cannot be read is left out.
    async fn compact_group(&mut self, run: &mut Run<'_>, table: Table, group: &[Chosen], gone: &Gone) -> Result<()> {
        if !run.is_closed {
            self.upkeep.close_past(run.since).await?;
            run.is_closed = true;
        }
        let mut group: Vec<&Chosen> = group.iter().collect();
        while group.len() > 1 || group.iter().any(|chosen| chosen.has_gone) {
            let files: Vec<DataFile> = group.iter().map(|chosen| chosen.file.clone()).collect();
            match compaction::compact(&self.store, &self.upkeep, table, &files, gone, run.since).await {
                Ok(added) => {
                    argus_sinks::crash::point("compacting");
                    let removed: HashSet<Path> = files.into_iter().map(|file| file.path).collect();
                    let paths: Vec<Path> = added.iter().map(|file| self.upkeep.path_of(table, file)).collect();
                    match self.upkeep.replace(table, removed.clone(), added).await {
                        Ok(lease) => {
                            run.done.files_replaced += removed.len();
                            self.leftovers.replaced(lease, removed);
                        }
                        Err(error) => {
                            self.leftovers.uncertain(paths);
                            run.keeps_gone = true;
                            run.done.files_skipped += removed.len();
                            run.skipped.extend(removed);
                            let failure = format!("compacted files cannot be put into the table {}", table.name());
                            run.done.note::<(), _>(&failure, Err(error));
                        }
                    }
                    return Ok(());
                }
                Err(error) => {
                    let unread: Vec<DataFile> = match error.path() {
                        Some(path) => files.into_iter().filter(|file| file.path == *path).collect(),
                        None => files,
                    };
                    group.retain(|chosen| !unread.contains(&chosen.file));
                    run.skip(table, &unread, gone, error);
                }
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Files stay as they are.
    fn skip(&mut self, table: Table, files: &[DataFile], gone: &Gone, error: CompactionError) {
        self.keeps_gone |= files.iter().any(|file| gone.may_be_in(table, file));
        self.skipped.extend(files.iter().map(|file| file.path.clone()));
        self.done.files_skipped += files.len();
        let names: Vec<&str> = files.iter().filter_map(|file| file.path.filename()).collect();
        self.note(table, &names.join(", "), error);
    }

    /// A file of `files` or `batches` could not be read when what is gone was looked for.
    fn skip_unread(&mut self, table: Table, error: CompactionError) {
        let Some(path) = error.path().cloned() else { return };
        if self.skipped.insert(path.clone()) {
            self.done.files_skipped += 1;
            self.note(table, path.filename().unwrap_or_default(), error);
        }
    }

    fn note(&mut self, table: Table, names: &str, error: CompactionError) {
        let failure = format!("files of the table {} were skipped in compaction ({names})", table.name());
        self.done.note::<(), _>(&failure, Err(error));
    }
}

fn small_files(snapshot: &Snapshot, run: &Run<'_>, table: Table) -> impl Iterator<Item = DataFile> {
    let is_small = |file: &&DataFile| file.bytes < SMALL_FILE_BYTES && !run.skipped.contains(&file.path);
    snapshot.table(table).committed.iter().filter(is_small).cloned().collect::<Vec<_>>().into_iter()
}

fn size_class(bytes: u64) -> u32 {
    (bytes / LEAST_CLASS_BYTES).max(1).ilog(CLASS_FACTOR)
}

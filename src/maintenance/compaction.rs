//! Selects the table files to compact, and their order.
//!
//! Files that contain deleted rows are rewritten without them; small files are
//! merged when there are many. `files` and `batches` record what is deleted, so they
//! are compacted last. If a file of an earlier table was skipped and may still contain
//! deleted rows, these records stay, so that a later run finds the rows again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use anyhow::Result;
use argus_sinks::compaction::{self, CompactionError, DeletedRows, FAN_IN, FOUND_MAX};
use argus_sinks::{DataFile, Snapshot, Table};
use object_store::path::Path;

use crate::maintenance::{Done, Maintainer, Thoroughness};

/// A file smaller than this (16 MiB) is merged with others of similar size. New files are twice as large, so
/// merging ends.
const SMALL_FILE_BYTES: u64 = 16 << 20;
/// A server merges when this many files have a similar size.
const SIMILAR_FILES_MIN: usize = 8;
/// Size classes grow by this factor, from [`SMALLEST_CLASS_BYTES`] on.
const CLASS_FACTOR: u64 = 8;
/// The unit of size classes (64 KiB); smaller files are in the first class.
const SMALLEST_CLASS_BYTES: u64 = 64 << 10;

/// The tables in the order of their compaction.
const ORDER: [Table; 5] = [Table::Errors, Table::ErrorCounts, Table::Fleet, Table::Files, Table::Batches];

/// One run over the tables.
struct Run<'d> {
    thoroughness: Thoroughness,
    /// The compaction frontier: rows of epochs up to this one are consolidated.
    since: u64,
    /// Whether the tables record this frontier.
    is_closed: bool,
    /// Files that could not be read or rewritten.
    skipped: HashSet<Path>,
    /// Whether a skipped file may contain deleted rows.
    deleted_rows_remain: bool,
    done: &'d mut Done,
}

/// A file to rewrite.
struct Chosen {
    file: DataFile,
    /// Whether it contains deleted rows. If so, it is rewritten even alone.
    has_deleted_rows: bool,
}

impl Maintainer {
    /// Compacts the tables, and consolidates epochs up to `since`.
    pub(super) async fn compact(
        &mut self,
        thoroughness: Thoroughness,
        since: u64,
        committed: u64,
        done: &mut Done,
    ) -> Result<()> {
        let known = self.snapshot().since;
        // `since` may be newer than the last commit.
        let since = since.clamp(known, committed.max(known));
        let skipped = HashSet::new();
        let mut run = Run { thoroughness, since, is_closed: known >= since, skipped, deleted_rows_remain: false, done };
        loop {
            let mut gone = DeletedRows::find(&self.store, &self.snapshot(), committed, since, FOUND_MAX).await?;
            run.deleted_rows_remain |= !gone.unread.is_empty();
            for (table, error) in std::mem::take(&mut gone.unread) {
                run.skip_unread(table, error);
            }
            for table in ORDER {
                self.compact_table(&mut run, table, &gone).await?;
            }
            if !gone.is_partial {
                return Ok(());
            }
            // Only skipped files may be left.
            if thoroughness == Thoroughness::Scheduled || run.deleted_rows_remain {
                tracing::warn!(
                    limit = FOUND_MAX,
                    "the limit of deletions per maintenance run is reached; the next run continues"
                );
                return Ok(());
            }
        }
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    async fn compact_table(&mut self, run: &mut Run<'_>, table: Table, gone: &DeletedRows) -> Result<()> {
        let nothing = DeletedRows::default();
        let records_deletions = matches!(table, Table::Files | Table::Batches);
        let to_remove = if records_deletions && run.deleted_rows_remain { &nothing } else { gone };
        let mut chosen = self.choose(run, table, to_remove).await?;
        let mut small = usize::MAX;
        while !chosen.is_empty() {
            let groups = chosen.len().div_ceil(FAN_IN);
            for group in chosen.chunks(chosen.len().div_ceil(groups)) {
                self.compact_group(run, table, group, to_remove).await?;
            }
            if run.thoroughness == Thoroughness::Scheduled {
                break;
            }
            // The outputs of several groups may still be small.
            chosen = small_files(&self.snapshot(), run, table)
                .map(|file| Chosen { file, has_deleted_rows: false })
                .collect();
            if chosen.len() < 2 || chosen.len() >= small {
                break;
            }
            small = chosen.len();
        }
        Ok(())
    }

    /// The files to rewrite: those that contain deleted rows, and small ones if there are many.
    async fn choose(&self, run: &mut Run<'_>, table: Table, gone: &DeletedRows) -> Result<Vec<Chosen>> {
        let snapshot = self.snapshot();
        let mut chosen = Vec::new();
        let mut with_deleted_rows = HashSet::new();
        for file in snapshot.table(table).committed.iter().cloned() {
            if run.skipped.contains(&file.path) {
                continue;
            }
            match gone.is_in(&self.store, table, &file).await {
                Ok(false) => {}
                Ok(true) => {
                    with_deleted_rows.insert(file.path.clone());
                    chosen.push(Chosen { file, has_deleted_rows: true });
                }
                Err(error) => run.skip(table, &[file], gone, error),
            }
        }
        let mut classes: BTreeMap<u32, Vec<DataFile>> = BTreeMap::new();
        for file in small_files(&snapshot, run, table).filter(|file| !with_deleted_rows.contains(&file.path)) {
            let class = if run.thoroughness == Thoroughness::Full { 0 } else { size_class(file.bytes) };
            classes.entry(class).or_default().push(file);
        }
        let enough = if run.thoroughness == Thoroughness::Full { 2 } else { SIMILAR_FILES_MIN };
        let many = classes.into_values().filter(|files| files.len() >= enough).flatten();
        chosen.extend(many.map(|file| Chosen { file, has_deleted_rows: false }));
        // Files with adjacent keys are grouped, so that few outputs overlap.
        let key = |chosen: &Chosen| chosen.file.keys.as_ref().map(|keys| Arc::clone(keys.start()));
        chosen.sort_by_cached_key(key);
        Ok(chosen)
    }

    /// Replaces a group of files with their compacted rows. Files that cannot be read are skipped.
    async fn compact_group(
        &mut self,
        run: &mut Run<'_>,
        table: Table,
        group: &[Chosen],
        gone: &DeletedRows,
    ) -> Result<()> {
        if !run.is_closed {
            self.maintenance.advance_since(run.since).await?;
            run.is_closed = true;
        }
        let mut group: Vec<&Chosen> = group.iter().collect();
        while group.len() > 1 || group.iter().any(|chosen| chosen.has_deleted_rows) {
            let files: Vec<DataFile> = group.iter().map(|chosen| chosen.file.clone()).collect();
            match compaction::compact(&self.store, &self.maintenance, table, &files, gone, run.since).await {
                Ok(added) => {
                    argus_sinks::crash::point("compacting");
                    let removed: HashSet<Path> = files.into_iter().map(|file| file.path).collect();
                    let paths: Vec<Path> = added.iter().map(|file| self.maintenance.path_of(table, file)).collect();
                    match self.maintenance.replace(table, removed.clone(), added).await {
                        Ok(lease) => {
                            run.done.files_replaced += removed.len();
                            self.leftovers.replaced(lease, removed);
                        }
                        Err(error) => {
                            self.leftovers.uncertain(paths);
                            run.deleted_rows_remain = true;
                            run.done.files_skipped += removed.len();
                            run.skipped.extend(removed);
                            let failure = format!("could not replace files of the table {}", table.name());
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
    /// Skips files.
    fn skip(&mut self, table: Table, files: &[DataFile], gone: &DeletedRows, error: CompactionError) {
        self.deleted_rows_remain |= files.iter().any(|file| gone.may_be_in(table, file));
        self.skipped.extend(files.iter().map(|file| file.path.clone()));
        self.done.files_skipped += files.len();
        let names: Vec<&str> = files.iter().filter_map(|file| file.path.filename()).collect();
        self.note(table, &names.join(", "), error);
    }

    /// Skips a file of `files` or `batches` that could not be read in the search for deletions.
    fn skip_unread(&mut self, table: Table, error: CompactionError) {
        let Some(path) = error.path().cloned() else { return };
        if self.skipped.insert(path.clone()) {
            self.done.files_skipped += 1;
            self.note(table, path.filename().unwrap_or_default(), error);
        }
    }

    fn note(&mut self, table: Table, names: &str, error: CompactionError) {
        let failure = format!("could not compact files of the table {} ({names})", table.name());
        self.done.note::<(), _>(&failure, Err(error));
    }
}

fn small_files(snapshot: &Snapshot, run: &Run<'_>, table: Table) -> impl Iterator<Item = DataFile> {
    let is_small = |file: &&DataFile| file.bytes < SMALL_FILE_BYTES && !run.skipped.contains(&file.path);
    snapshot.table(table).committed.iter().filter(is_small).cloned().collect::<Vec<_>>().into_iter()
}

fn size_class(bytes: u64) -> u32 {
    (bytes / SMALLEST_CLASS_BYTES).max(1).ilog(CLASS_FACTOR)
}

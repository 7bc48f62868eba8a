//! The rows of one or more batches, looked up in the tables' files without a query.
//!
//! Files are sorted by batch, and batch ids are ordered by creation time. So a batch's rows are in
//! one or two files: those whose range of ids contains it. A file's footer is cached in memory. Its
//! statistics select the row groups, its page index selects the pages, and only those pages are read:
//! first the ids, then the other columns of the rows that match. In a remote store, one request reads
//! all columns of the pages.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use argus_dataflow::VersionId;
use argus_sinks::{DataFile, ParquetFile, Prefetched, RecentBatch, Snapshot, Table, TableSnapshot, decode};
use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::cmp;
use datafusion::error::DataFusionError;
use futures::TryStreamExt;
use moka::sync::Cache;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{
    ArrowPredicate, ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, RowFilter, RowSelection,
};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use uuid::Uuid;

use crate::error::QueryError;

/// Memory for cached footers, approximately (32 MiB); the least recently used are evicted first.
const FOOTER_BYTES_MAX: u64 = 32 << 20;

/// The longest range of a remote file that is read at once (8 MiB): about the bytes that a server sends in the time that a
/// request takes.
const REMOTE_SPAN_MAX: u64 = 8 << 20;

/// The column that all tables looked up here are sorted by.
const KEY: &str = "batch_id";

/// Looks up batches. Clones share the cached footers.
#[derive(Clone)]
pub struct Lookup {
    store: Arc<dyn ObjectStore>,
    footers: Cache<Path, ArrowReaderMetadata>,
    /// The maximum length of a range that is read in one request with all columns.
    span_max: u64,
}

impl Lookup {
    /// Looks up in the files of a store; `is_remote` if requests to it take long.
    pub fn new(store: Arc<dyn ObjectStore>, is_remote: bool) -> Lookup {
        let weight =
            |_: &Path, footer: &ArrowReaderMetadata| u32::try_from(footer.metadata().memory_size()).unwrap_or(u32::MAX);
        let footers = Cache::builder().max_capacity(FOOTER_BYTES_MAX).weigher(weight).build();
        Lookup { store, footers, span_max: if is_remote { REMOTE_SPAN_MAX } else { 0 } }
    }

    /// The files and counts of a batch at the snapshot's epoch; empty if there is no such batch.
    pub async fn batch(&self, snapshot: &Snapshot, id: Uuid) -> Result<RecentBatch, QueryError> {
        self.batches(snapshot, &BatchIds::new([id])).await
    }

    /// The same, without reading files if the batch is in memory.
    pub(crate) async fn batch_or_recent(&self, snapshot: &Snapshot, id: Uuid) -> Result<RecentBatch, QueryError> {
        match snapshot.recent.batch(id) {
            Some(batch) => Ok(batch.clone()),
            None => self.batch(snapshot, id).await,
        }
    }

    /// The files and counts of several batches.
    pub(crate) async fn batches(&self, snapshot: &Snapshot, wanted: &BatchIds) -> Result<RecentBatch, QueryError> {
        let (files, counts) = futures::try_join!(
            self.rows(snapshot.table(Table::Files), wanted),
            self.rows(snapshot.table(Table::ErrorCounts), wanted)
        )?;
        let deleted = if snapshot.is_past { versions_of_deleted(&files) } else { HashSet::new() };
        let files = files.iter().flat_map(|rows| decode::files(rows, snapshot.epoch));
        let counts = counts.iter().flat_map(|rows| decode::counts(rows, snapshot.epoch));
        let files = files.filter(|row| !deleted.contains(&row.version));
        Ok(RecentBatch::of_rows(files, counts.filter(|(row, _)| !deleted.contains(&row.version))))
    }

    /// The rows of the wanted batches in a table, of every epoch.
    async fn rows(&self, table: &TableSnapshot, wanted: &BatchIds) -> Result<Vec<RecordBatch>, QueryError> {
        self.rows_that(table, wanted, None).await
    }

    /// Those of the rows that also meet a condition, which is decided before their other columns are read.
    pub(crate) async fn rows_that(
        &self,
        table: &TableSnapshot,
        wanted: &BatchIds,
        condition: Option<&Condition>,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        let may_contain =
            |file: &&DataFile| file.keys.as_ref().is_none_or(|keys| wanted.any_in(keys.start(), keys.end()));
        let mut found = Vec::new();
        for file in table.committed.iter().chain(&table.spilled).filter(may_contain) {
            found.extend(self.rows_of_file(file, wanted, condition).await.map_err(failed)?);
        }
        for rows in &table.batches {
            let of_batch = wanted.rows(rows).and_then(|wanted| filter_record_batch(rows, &wanted));
            let that = of_batch.and_then(|rows| match condition {
                Some(condition) => filter_record_batch(&rows, &(condition.is_met)(&rows)),
                None => Ok(rows),
            });
            found.push(that.map_err(|error| failed(error.into()))?);
        }
        Ok(found)
    }

    async fn rows_of_file(
        &self,
        file: &DataFile,
        wanted: &BatchIds,
        condition: Option<&Condition>,
    ) -> Result<Vec<RecordBatch>, ParquetError> {
        let footer = self.footer(file).await?;
        let (row_groups, pages) = selection(&footer, wanted)?;
        if row_groups.is_empty() {
            return Ok(Vec::new());
        }
        let file = ParquetFile::new(Arc::clone(&self.store), file);
        let span = span(footer.metadata(), &row_groups, &pages);
        let reader = match span.filter(|span| span.end - span.start <= self.span_max) {
            Some(span) => Prefetched::range(file, span).await?,
            None => Prefetched::nothing(file),
        };
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, footer);
        let key = ProjectionMask::columns(builder.parquet_schema(), [KEY]);
        let wanted = wanted.clone();
        let is_wanted = ArrowPredicateFn::new(key, move |rows| wanted.rows(&rows));
        let mut conditions: Vec<Box<dyn ArrowPredicate>> = vec![Box::new(is_wanted)];
        if let Some(Condition { columns, is_met }) = condition {
            let (columns, is_met) =
                (ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()), Arc::clone(is_met));
            conditions.push(Box::new(ArrowPredicateFn::new(columns, move |rows| Ok(is_met(&rows)))));
        }
        let rows = builder
            .with_row_groups(row_groups)
            .with_row_selection(pages)
            .with_row_filter(RowFilter::new(conditions))
            .build()?;
        rows.try_collect().await
    }

    async fn footer(&self, file: &DataFile) -> Result<ArrowReaderMetadata, ParquetError> {
        if let Some(footer) = self.footers.get(&file.path) {
            return Ok(footer);
        }
        let mut reader = ParquetFile::new(Arc::clone(&self.store), file);
        let footer = reader.get_metadata(None).await?;
        let footer = ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new())?;
        self.footers.insert(file.path.clone(), footer.clone());
        Ok(footer)
    }
}

/// A condition of rows, by a few of their columns.
pub(crate) struct Condition {
    pub(crate) columns: &'static [&'static str],
    /// Which rows meet it.
    pub(crate) is_met: Arc<dyn Fn(&RecordBatch) -> BooleanArray + Send + Sync>,
}

/// All versions of files that were deleted at any epoch.
fn versions_of_deleted(files: &[RecordBatch]) -> HashSet<VersionId> {
    let all = || files.iter().flat_map(|rows| decode::files(rows, u64::MAX));
    let deleted: HashSet<Uuid> = all().filter(|row| row.erased > 0).map(|row| row.file_id).collect();
    all().filter(|row| deleted.contains(&row.file_id)).map(|row| row.version).collect()
}

fn failed(error: ParquetError) -> QueryError {
    QueryError::Failed(Box::new(DataFusionError::ParquetError(Box::new(error))))
}

/// The batches whose rows are looked up.
#[derive(Debug, Clone)]
pub(crate) struct BatchIds {
    /// Sorted.
    ids: Arc<[String]>,
}

impl BatchIds {
    pub(crate) fn new(ids: impl IntoIterator<Item = Uuid>) -> BatchIds {
        let mut ids: Vec<String> = ids.into_iter().map(|id| id.to_string()).collect();
        ids.sort_unstable();
        BatchIds { ids: ids.into() }
    }

    /// Whether any of them is in `least..=greatest`.
    fn any_in(&self, least: &str, greatest: &str) -> bool {
        let first = self.ids.partition_point(|id| id.as_str() < least);
        self.ids.get(first).is_some_and(|id| id.as_str() <= greatest)
    }

    /// Which rows belong to one of them.
    fn rows(&self, rows: &RecordBatch) -> Result<BooleanArray, arrow::error::ArrowError> {
        match (rows.column_by_name(KEY), &*self.ids) {
            (Some(ids), [one]) => cmp::eq(ids, &StringArray::new_scalar(one)),
            (Some(ids), wanted) => {
                let is_wanted = |id: Option<&str>| {
                    id.is_some_and(|id| wanted.binary_search_by(|wanted| wanted.as_str().cmp(id)).is_ok())
                };
                Ok(ids.as_string::<i32>().iter().map(|id| Some(is_wanted(id))).collect())
            }
            (None, _) => Ok(BooleanArray::new_null(rows.num_rows())),
        }
    }
}

/// The row groups that may contain rows of the wanted batches, and a selection of whole pages in them.
fn selection(footer: &ArrowReaderMetadata, wanted: &BatchIds) -> Result<(Vec<usize>, RowSelection), ParquetError> {
    let metadata = footer.metadata();
    let keys = StatisticsConverter::try_new(KEY, footer.schema(), footer.parquet_schema())?;
    let all = metadata.row_groups();
    let within = KeyRanges { least: keys.row_group_mins(all)?, greatest: keys.row_group_maxes(all)? };
    let groups: Vec<usize> = (0..all.len()).filter(|&group| within.may_contain(group, wanted)).collect();
    let rows_of = |group: usize| usize::try_from(all[group].num_rows()).unwrap_or(0);
    let total = groups.iter().map(|&group| rows_of(group)).sum();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for &group in &groups {
        match pages(metadata, &keys, all, group)? {
            Some((within, counts)) => {
                let mut first = start;
                for (page, count) in counts.values().iter().enumerate() {
                    let end = first + *count as usize;
                    if within.may_contain(page, wanted) {
                        ranges.push(first..end);
                    }
                    first = end;
                }
            }
            None => ranges.push(start..start + rows_of(group)),
        }
        start += rows_of(group);
    }
    Ok((groups, RowSelection::from_consecutive_ranges(ranges.into_iter(), total)))
}

/// The bytes from the first to the last selected page, with the dictionaries of all columns; `None` without a page index.
fn span(metadata: &ParquetMetaData, groups: &[usize], pages: &RowSelection) -> Option<Range<u64>> {
    let offsets = metadata.offset_index()?;
    let mut selected = pages.clone();
    let mut span: Option<Range<u64>> = None;
    for &group in groups {
        let rows = usize::try_from(metadata.row_group(group).num_rows()).ok()?;
        let of_group = selected.split_off(rows);
        for (column, index) in metadata.row_group(group).columns().iter().zip(offsets.get(group)?) {
            let mut ranges = of_group.scan_ranges(index.page_locations());
            if let (Some(dictionary), false) = (column.dictionary_page_offset(), ranges.is_empty()) {
                let start = u64::try_from(dictionary).ok()?;
                ranges.push(start..u64::try_from(column.data_page_offset()).ok()?);
            }
            for range in ranges {
                span = Some(span.map_or(range.clone(), |span| span.start.min(range.start)..span.end.max(range.end)));
            }
        }
    }
    span
}

/// The least and greatest keys of a row group's pages, and their row counts; `None` without a page index.
fn pages<'m>(
    metadata: &'m ParquetMetaData,
    keys: &StatisticsConverter<'m>,
    all: &'m [RowGroupMetaData],
    group: usize,
) -> Result<Option<(KeyRanges, UInt64Array)>, ParquetError> {
    let (Some(columns), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else { return Ok(None) };
    let Some(counts) = keys.data_page_row_counts(offsets, all, [&group])? else { return Ok(None) };
    let least = keys.data_page_mins(columns, offsets, [&group])?;
    let greatest = keys.data_page_maxes(columns, offsets, [&group])?;
    Ok((least.len() == counts.len()).then_some((KeyRanges { least, greatest }, counts)))
}

/// The least and greatest keys of row groups or pages. An unknown bound matches any key.
struct KeyRanges {
    least: arrow::array::ArrayRef,
    greatest: arrow::array::ArrayRef,
}

impl KeyRanges {
    fn may_contain(&self, part: usize, wanted: &BatchIds) -> bool {
        fn bound(keys: &dyn Array, part: usize) -> Option<&str> {
            keys.as_string_opt::<i32>().filter(|keys| keys.is_valid(part)).map(|keys| keys.value(part))
        }
        match (bound(&self.least, part), bound(&self.greatest, part)) {
            (Some(least), Some(greatest)) => wanted.any_in(least, greatest),
            _ => true,
        }
    }
}

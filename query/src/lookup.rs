//! One batch's rows, looked up in the tables' files without a query.
//!
//! Files are sorted by batch and their ids are in order of their making, so a
//! batch's rows lie in one or two files: those whose range of ids has it. A
//! file's footer is kept in memory; its statistics say the row groups, its page
//! index the pages, and only those pages are read.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use argus_dataflow::VersionId;
use argus_sinks::{DataFile, ParquetFile, RecentBatch, Snapshot, Table, TableSnapshot, decode};
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
    ArrowPredicateFn, ArrowReaderMetadata, ArrowReaderOptions, RowFilter, RowSelection,
};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use uuid::Uuid;

use crate::query_error::QueryError;

/// Footers of files are kept up to about this much memory (32 MiB), those asked for longest ago go first.
const FOOTER_BYTES_MAX: u64 = 32 << 20;

/// The column that all tables looked up here are sorted by.
const KEY: &str = "batch_id";

/// Looks batches up. Clones share what is kept.
#[derive(Clone)]
pub struct Lookup {
    store: Arc<dyn ObjectStore>,
    footers: Cache<Path, ArrowReaderMetadata>,
}

impl Lookup {
    /// Looks up in the files of a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> Lookup {
        let weight =
            |_: &Path, footer: &ArrowReaderMetadata| u32::try_from(footer.metadata().memory_size()).unwrap_or(u32::MAX);
        let footers = Cache::builder().max_capacity(FOOTER_BYTES_MAX).weigher(weight).build();
        Lookup { store, footers }
    }

    /// What a batch comes to at the snapshot's epoch; empty where there is none.
    pub async fn batch(&self, snapshot: &Snapshot, id: Uuid) -> Result<RecentBatch, QueryError> {
        let (files, counts) = futures::try_join!(
            self.rows(snapshot.table(Table::Files), id),
            self.rows(snapshot.table(Table::ErrorCounts), id)
        )?;
        let gone = if snapshot.is_past { versions_of_deleted(&files) } else { HashSet::new() };
        let files = files.iter().flat_map(|rows| decode::files(rows, snapshot.epoch));
        let counts = counts.iter().flat_map(|rows| decode::counts(rows, snapshot.epoch));
        let files = files.filter(|row| !gone.contains(&row.version));
        Ok(RecentBatch::of_rows(files, counts.filter(|(row, _)| !gone.contains(&row.version))))
    }

    /// A batch's rows of a table, of every epoch.
    async fn rows(&self, table: &TableSnapshot, id: Uuid) -> Result<Vec<RecordBatch>, QueryError> {
        let id = id.to_string();
        let mut found = Vec::new();
        for file in table.committed.iter().chain(&table.spilled).filter(|file| file.may_hold(&id)) {
            found.extend(self.rows_of_file(file, &id).await.map_err(failed)?);
        }
        for rows in &table.batches {
            let wanted = equals(rows, &id).and_then(|wanted| filter_record_batch(rows, &wanted));
            found.push(wanted.map_err(|error| failed(error.into()))?);
        }
        Ok(found)
    }

    async fn rows_of_file(&self, file: &DataFile, id: &str) -> Result<Vec<RecordBatch>, ParquetError> {
        let footer = self.footer(file).await?;
        let (row_groups, pages) = places(&footer, id)?;
        if row_groups.is_empty() {
            return Ok(Vec::new());
        }
        let reader = ParquetFile::new(Arc::clone(&self.store), file);
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, footer);
        let key = ProjectionMask::columns(builder.parquet_schema(), [KEY]);
        let id = id.to_owned();
        let is_wanted = ArrowPredicateFn::new(key, move |rows| equals(&rows, &id));
        let rows = builder
            .with_row_groups(row_groups)
            .with_row_selection(pages)
            .with_row_filter(RowFilter::new(vec![Box::new(is_wanted)]))
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

/// All versions of the files that were deleted at any epoch.
fn versions_of_deleted(files: &[RecordBatch]) -> HashSet<VersionId> {
    let all = || files.iter().flat_map(|rows| decode::files(rows, u64::MAX));
    let deleted: HashSet<Uuid> = all().filter(|row| row.erased > 0).map(|row| row.file_id).collect();
    all().filter(|row| deleted.contains(&row.file_id)).map(|row| row.version).collect()
}

fn failed(error: ParquetError) -> QueryError {
    QueryError::Failed(Box::new(DataFusionError::ParquetError(Box::new(error))))
}

fn equals(rows: &RecordBatch, id: &str) -> Result<BooleanArray, arrow::error::ArrowError> {
    match rows.column_by_name(KEY) {
        Some(ids) => cmp::eq(ids, &StringArray::new_scalar(id)),
        None => Ok(BooleanArray::new_null(rows.num_rows())),
    }
}

/// The row groups that may have rows of a batch, and the rows in them by whole pages.
fn places(footer: &ArrowReaderMetadata, id: &str) -> Result<(Vec<usize>, RowSelection), ParquetError> {
    let metadata = footer.metadata();
    let keys = StatisticsConverter::try_new(KEY, footer.schema(), footer.parquet_schema())?;
    let all = metadata.row_groups();
    let within = Within { least: keys.row_group_mins(all)?, greatest: keys.row_group_maxes(all)? };
    let groups: Vec<usize> = (0..all.len()).filter(|&group| within.may_hold(group, id)).collect();
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
                    if within.may_hold(page, id) {
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

/// The least and greatest keys of a row group's pages, and their rows; `None` without a page index.
fn pages<'m>(
    metadata: &'m ParquetMetaData,
    keys: &StatisticsConverter<'m>,
    all: &'m [RowGroupMetaData],
    group: usize,
) -> Result<Option<(Within, UInt64Array)>, ParquetError> {
    let (Some(columns), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else { return Ok(None) };
    let Some(counts) = keys.data_page_row_counts(offsets, all, [&group])? else { return Ok(None) };
    let least = keys.data_page_mins(columns, offsets, [&group])?;
    let greatest = keys.data_page_maxes(columns, offsets, [&group])?;
    Ok((least.len() == counts.len()).then_some((Within { least, greatest }, counts)))
}

/// The least and greatest keys of some parts. What is not known may be anything.
struct Within {
    least: arrow::array::ArrayRef,
    greatest: arrow::array::ArrayRef,
}

impl Within {
    fn may_hold(&self, part: usize, id: &str) -> bool {
        let bound = |keys: &dyn Array, holds: fn(&str, &str) -> bool| match keys.as_string_opt::<i32>() {
            Some(keys) if keys.is_valid(part) => holds(keys.value(part), id),
            _ => true,
        };
        bound(&self.least, |least, id| least <= id) && bound(&self.greatest, |greatest, id| id <= greatest)
    }
}

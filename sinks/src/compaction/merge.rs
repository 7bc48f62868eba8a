//! Merges sorted files into one sorted stream.
//!
//! One chunk of each input is in memory. Rows are taken from the input with the
//! least key until another input has a lesser key, so files that do not overlap
//! cost one comparison per row. Rows are copied once, by `interleave`.
//!
//! If an input is sorted only by a prefix of the columns (a spilled file of
//! `errors` has the lines of a file in the order they were scanned), the output
//! is sorted by that prefix: the input with the least key also has the least
//! prefix.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::compaction::CompactionError;
use crate::compaction::read::FileRows;
use crate::schema::Table;
use crate::snapshot::DataFile;

/// Rows of an input in memory: one page of our files.
const CHUNK_ROWS: usize = 2048;

/// The most rows returned at once.
const OUTPUT_ROWS: usize = 2048;

/// The merged rows of some files of a table.
pub struct Merge {
    table: Table,
    keys: RowConverter,
    inputs: Vec<Input>,
}

struct Input {
    path: Path,
    rows: FileRows,
    chunk: RecordBatch,
    keys: Rows,
    /// The first row of the chunk that was not returned yet.
    next: usize,
}

impl Merge {
    /// Opens the files and reads the first rows of each.
    pub async fn open(
        store: &Arc<dyn ObjectStore>,
        table: Table,
        files: &[DataFile],
    ) -> Result<Merge, CompactionError> {
        let schema = table.schema();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let sorted = table.sort_columns().iter().filter_map(|name| schema.column_with_name(name));
        let keys = RowConverter::new(sorted.map(|(_, field)| SortField::new(field.data_type().clone())).collect())?;
        let mut merge = Merge { table, keys, inputs: Vec::new() };
        for file in files {
            let rows = FileRows::open(Arc::clone(store), table, file, &columns, CHUNK_ROWS).await;
            let rows = rows.map_err(|source| CompactionError::read(&file.path, source))?;
            let keys = merge.keys.empty_rows(0, 0);
            let chunk = RecordBatch::new_empty(table.schema());
            let mut input = Input { path: file.path.clone(), rows, chunk, keys, next: 0 };
            if input.fill(table, &merge.keys).await? {
                merge.inputs.push(input);
            }
        }
        Ok(merge)
    }

    /// The next rows in order, at least one; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, CompactionError> {
        if self.inputs.is_empty() {
            return Ok(None);
        }
        let mut taken = Vec::with_capacity(OUTPUT_ROWS);
        let mut ended = None;
        while ended.is_none() && taken.len() < OUTPUT_ROWS {
            let (least, bound) = self.least();
            let Input { keys, next, .. } = &self.inputs[least];
            let within = |row: usize| bound.is_none_or(|other| keys.row(row) <= self.inputs[other].key());
            let (first, last) = (*next, keys.num_rows().min(next + OUTPUT_ROWS - taken.len()));
            let end = (first + 1..last).find(|row| !within(*row)).unwrap_or(last);
            taken.extend((first..end).map(|row| (least, row)));
            ended = (end == keys.num_rows()).then_some(least);
            self.inputs[least].next = end;
        }
        let chunks: Vec<&RecordBatch> = self.inputs.iter().map(|input| &input.chunk).collect();
        let rows = interleave_record_batch(&chunks, &taken)?;
        // The taken rows are copied, so the chunk can be dropped.
        if let Some(ended) = ended
            && !self.inputs[ended].fill(self.table, &self.keys).await?
        {
            self.inputs.swap_remove(ended);
        }
        Ok(Some(rows))
    }

    /// The inputs with the least and the second least key.
    fn least(&self) -> (usize, Option<usize>) {
        let mut least = 0;
        let mut second = None;
        for input in 1..self.inputs.len() {
            let key = self.inputs[input].key();
            if key < self.inputs[least].key() {
                second = Some(std::mem::replace(&mut least, input));
            } else if second.is_none_or(|second: usize| key < self.inputs[second].key()) {
                second = Some(input);
            }
        }
        (least, second)
    }
}

impl Input {
    fn key(&self) -> arrow::row::Row<'_> {
        self.keys.row(self.next)
    }

    /// Reads the next chunk; returns whether there was one.
    async fn fill(&mut self, table: Table, converter: &RowConverter) -> Result<bool, CompactionError> {
        // Drop the chunk before the next one is read.
        self.chunk = RecordBatch::new_empty(table.schema());
        self.next = 0;
        loop {
            let chunk = self.rows.next().await.map_err(|source| CompactionError::read(&self.path, source))?;
            let Some(chunk) = chunk else { return Ok(false) };
            if chunk.num_rows() > 0 {
                self.keys = converter.convert_columns(&sort_columns(table, &chunk)?)?;
                self.chunk = chunk;
                return Ok(true);
            }
        }
    }
}

fn sort_columns(table: Table, rows: &RecordBatch) -> Result<Vec<ArrayRef>, ArrowError> {
    let schema = rows.schema();
    table.sort_columns().iter().map(|name| Ok(Arc::clone(rows.column(schema.index_of(name)?)))).collect()
}

//! Reads the rows of one Parquet file in order, a few thousand at a time.
//!
//! The Parquet crate's reader fetches all pages of a row group before it decodes
//! the first row. So each chunk is read separately, as a row selection within one
//! row group: the offset index limits the read to the pages with these rows.
//! Memory depends on the chunk, not on the row group. A page with rows of two
//! chunks is read twice, and a dictionary once per chunk.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use futures::TryStreamExt;
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;

use crate::schema::Table;
use crate::snapshot::DataFile;
use crate::store::parquet_file::ParquetFile;

/// Reads the rows of one file.
pub struct FileRows {
    file: ParquetFile,
    footer: ArrowReaderMetadata,
    columns: ProjectionMask,
    /// The schema of returned rows, which may differ from that of the file.
    schema: SchemaRef,
    chunk_rows: usize,
    /// Remaining row groups and their row counts.
    groups: VecDeque<(usize, usize)>,
    /// Rows already read of the first remaining row group.
    read: usize,
}

impl FileRows {
    /// Reads the footer of a file of `table`. Rows are returned with these columns, at most `chunk_rows` at a time.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        table: Table,
        file: &DataFile,
        columns: &[&str],
        chunk_rows: usize,
    ) -> Result<FileRows, ParquetError> {
        let mut file = ParquetFile::new(store, file);
        let footer = ArrowReaderMetadata::try_new(file.get_metadata(None).await?, ArrowReaderOptions::new())?;
        let fields: Vec<_> =
            table.schema().fields().iter().filter(|field| columns.contains(&field.name().as_str())).cloned().collect();
        let groups = footer.metadata().row_groups().iter().map(|group| group.num_rows().max(0) as usize);
        Ok(FileRows {
            columns: ProjectionMask::columns(footer.parquet_schema(), columns.iter().copied()),
            schema: Arc::new(Schema::new(fields)),
            groups: groups.enumerate().collect(),
            file,
            footer,
            chunk_rows,
            read: 0,
        })
    }

    /// Skips row groups by their statistics.
    pub fn retain_groups(&mut self, mut wanted: impl FnMut(&RowGroupMetaData) -> bool) {
        let groups = self.footer.metadata().row_groups();
        self.groups.retain(|(group, _)| wanted(&groups[*group]));
    }

    /// The next rows; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, ParquetError> {
        let Some((group, rows)) = self.groups.front().copied() else { return Ok(None) };
        let count = self.chunk_rows.min(rows - self.read);
        let selection = RowSelection::from(vec![RowSelector::skip(self.read), RowSelector::select(count)]);
        self.read += count;
        if self.read == rows {
            self.groups.pop_front();
            self.read = 0;
        }
        let found: Vec<RecordBatch> =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), self.footer.clone())
                .with_projection(self.columns.clone())
                .with_row_groups(vec![group])
                .with_row_selection(selection)
                .with_batch_size(count.max(1))
                .build()?
                .try_collect()
                .await?;
        let found = found.iter().map(|rows| conform(rows, &self.schema)).collect::<Result<Vec<_>, _>>()?;
        Ok(Some(match &found[..] {
            [one] => one.clone(),
            several => concat_batches(&self.schema, several)?,
        }))
    }
}

/// The columns of `schema`; a column missing from an older file is null or zero.
fn conform(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ParquetError> {
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match (rows.column_by_name(field.name()), field.data_type(), field.is_nullable()) {
            (Some(column), ..) => Arc::clone(column),
            (None, DataType::Int32, false) => Arc::new(Int32Array::from(vec![0; rows.num_rows()])),
            (None, DataType::Int64, false) => Arc::new(Int64Array::from(vec![0; rows.num_rows()])),
            (None, kind, _) => new_null_array(kind, rows.num_rows()),
        }
    });
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect())?)
}

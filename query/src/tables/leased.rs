//! Parquet readers that own the snapshot whose files they read.
//!
//! Compaction deletes a replaced file when no snapshot refers to it. A stream of rows opens its files one after
//! another; if the client reads slowly, that is long after its query was planned. So the readers of the files own the
//! snapshot, not the query that created them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use argus_sinks::Snapshot;
use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::DefaultParquetFileReaderFactory;
use datafusion::error::Result;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::future::BoxFuture;
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::ParquetMetaData;

/// Opens files of one snapshot, which lives as long as this factory and every reader made by it.
pub(crate) struct LeasedReaders {
    readers: DefaultParquetFileReaderFactory,
    snapshot: Arc<Snapshot>,
}

impl LeasedReaders {
    /// Opens files of `snapshot` in `store`.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, snapshot: Arc<Snapshot>) -> LeasedReaders {
        LeasedReaders { readers: DefaultParquetFileReaderFactory::new(store), snapshot }
    }
}

impl fmt::Debug for LeasedReaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedReaders").field("epoch", &self.snapshot.epoch).finish_non_exhaustive()
    }
}

impl ParquetFileReaderFactory for LeasedReaders {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let reader = self.readers.create_reader(partition_index, file, metadata_size_hint, metrics)?;
        Ok(Box::new(LeasedReader { reader, _snapshot: Arc::clone(&self.snapshot) }))
    }
}

/// A reader of one file. Its snapshot is dropped after it.
struct LeasedReader {
    reader: Box<dyn AsyncFileReader + Send>,
    _snapshot: Arc<Snapshot>,
}

impl AsyncFileReader for LeasedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.reader.get_bytes(range)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        self.reader.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        self.reader.get_metadata(options)
    }
}

//! A Parquet file in an object store, for the readers of the `parquet` crate.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::snapshot::DataFile;

/// Reads byte ranges of one file, and its footer with the page index.
#[derive(Debug, Clone)]
pub struct ParquetFile {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

impl ParquetFile {
    /// A file of `store`; nothing is read yet.
    pub fn new(store: Arc<dyn ObjectStore>, file: &DataFile) -> ParquetFile {
        ParquetFile { store, path: file.path.clone(), bytes: file.bytes }
    }
}

fn failed(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for ParquetFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        self.store.get_range(&self.path, range).map_err(failed).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { self.store.get_ranges(&self.path, &ranges).await.map_err(failed) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let bytes = self.bytes;
            let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
            reader.load_and_finish(self, bytes).await.map(Arc::new)
        }
        .boxed()
    }
}

/// A file of which one range is in memory.
#[derive(Debug, Clone)]
pub struct Prefetched {
    file: ParquetFile,
    start: u64,
    bytes: Bytes,
}

impl Prefetched {
    /// A file of which nothing is in memory.
    pub fn nothing(file: ParquetFile) -> Prefetched {
        Prefetched { file, start: 0, bytes: Bytes::new() }
    }

    /// Reads a range in one request.
    pub async fn range(mut file: ParquetFile, range: Range<u64>) -> Result<Prefetched, ParquetError> {
        let bytes = file.get_bytes(range.clone()).await?;
        Ok(Prefetched { file, start: range.start, bytes })
    }

    /// The bytes of a range, if all of it is in memory.
    fn in_memory(&self, range: &Range<u64>) -> Option<Bytes> {
        let start = usize::try_from(range.start.checked_sub(self.start)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.start)?).ok()?;
        (start <= end && end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }
}

impl AsyncFileReader for Prefetched {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        match self.in_memory(&range) {
            Some(bytes) => futures::future::ready(Ok(bytes)).boxed(),
            None => self.file.get_bytes(range),
        }
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        match ranges.iter().map(|range| self.in_memory(range)).collect() {
            Some(all) => futures::future::ready(Ok(all)).boxed(),
            None => self.file.get_byte_ranges(ranges),
        }
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        self.file.get_metadata(options)
    }
}

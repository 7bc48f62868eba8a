//! The raw store: the bytes of every accepted file, as one object each.
//!
//! An object is written in parts while its upload arrives. It exists, complete
//! and durable, only when [`RawWriter::finish`] returns.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use argus_dataflow::VersionId;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::storage::Storage;

/// Objects are read in ranges of this size (4 MiB), so that a slow reader does not keep one request open.
const RANGE_BYTES: u64 = 4 << 20;

/// The level at which plain bytes are compressed: the fastest.
pub const ZSTD_LEVEL: i32 = 1;

/// Reads and writes the raw bytes.
#[derive(Debug, Clone)]
pub struct RawStore {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    /// A smaller object is put in one request, a larger one in parts of this size.
    part_bytes: usize,
}

impl RawStore {
    /// The raw bytes of a storage.
    pub fn new(storage: &Storage) -> RawStore {
        RawStore { store: Arc::clone(&storage.store), folder: storage.raw.clone(), part_bytes: storage.part_bytes }
    }

    pub(super) fn path(&self, batch_id: Uuid, version: VersionId) -> Path {
        self.folder.clone().join(batch_id.to_string()).join(version.0.to_string())
    }

    /// The path of the bytes that were appended to a version at `start`.
    fn part_path(&self, batch_id: Uuid, version: VersionId, start: u64) -> Path {
        self.folder.clone().join(batch_id.to_string()).join(format!("{}.{start:016}", version.0))
    }

    /// Stores bytes that were appended to a version, which are compressed with zstd. They are durable when this returns. With
    /// `PutMode::Create`, fails if there are such bytes already.
    pub async fn put_part(
        &self,
        batch_id: Uuid,
        version: VersionId,
        start: u64,
        compressed: Bytes,
        mode: PutMode,
    ) -> object_store::Result<()> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.store.put_opts(&self.part_path(batch_id, version, start), compressed.into(), options).await.map(drop)
    }

    /// Deletes bytes that were appended to a version; no error if they do not exist.
    pub async fn delete_part(&self, batch_id: Uuid, version: VersionId, start: u64) -> object_store::Result<()> {
        self.delete_path(&self.part_path(batch_id, version, start)).await
    }

    /// All objects, grouped by batch.
    pub fn list(&self) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(Some(&self.folder))
    }

    /// The batch and the version of an object.
    pub fn named(path: &Path) -> Option<(Uuid, VersionId)> {
        let mut parts: Vec<_> = path.parts().collect();
        let name = parts.pop()?;
        let version = name.as_ref().split('.').next()?.parse().ok()?;
        Some((parts.pop()?.as_ref().parse().ok()?, VersionId(version)))
    }

    /// Where the bytes of an object were appended to its version; `None` if it has the whole upload.
    pub fn start_of_part(path: &Path) -> Option<u64> {
        path.filename()?.split_once('.')?.1.parse().ok()
    }

    /// A writer for the bytes of a version, to be used on a blocking thread.
    pub fn writer(&self, runtime: &Handle, batch_id: Uuid, version: VersionId) -> RawWriter {
        RawWriter {
            store: Arc::clone(&self.store),
            path: self.path(batch_id, version),
            runtime: runtime.clone(),
            part_bytes: self.part_bytes,
            part: Vec::new(),
            upload: None,
        }
    }

    /// Reads the bytes of a version, on a blocking thread.
    pub fn reader(&self, runtime: &Handle, batch_id: Uuid, version: VersionId) -> io::Result<RawReader> {
        self.read(runtime, self.path(batch_id, version))
    }

    /// Reads bytes that were appended to a version, as they are stored: compressed with zstd.
    pub fn part_reader(
        &self,
        runtime: &Handle,
        batch_id: Uuid,
        version: VersionId,
        start: u64,
    ) -> io::Result<RawReader> {
        self.read(runtime, self.part_path(batch_id, version, start))
    }

    fn read(&self, runtime: &Handle, path: Path) -> io::Result<RawReader> {
        let end = runtime.block_on(self.store.head(&path))?.size;
        let (store, runtime) = (Arc::clone(&self.store), runtime.clone());
        Ok(RawReader { store, path, runtime, start: 0, end, chunk: Bytes::new(), failed: Arc::default() })
    }

    /// Whether the bytes of a version are there.
    pub async fn exists(&self, batch_id: Uuid, version: VersionId) -> object_store::Result<bool> {
        match self.store.head(&self.path(batch_id, version)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the bytes of a version; no error if they do not exist.
    pub async fn delete(&self, batch_id: Uuid, version: VersionId) -> object_store::Result<()> {
        self.delete_path(&self.path(batch_id, version)).await
    }

    async fn delete_path(&self, path: &Path) -> object_store::Result<()> {
        match self.store.delete(path).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

/// Writes one object.
pub struct RawWriter {
    store: Arc<dyn ObjectStore>,
    path: Path,
    runtime: Handle,
    part_bytes: usize,
    part: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl RawWriter {
    /// Makes the object durable.
    pub fn finish(self) -> io::Result<()> {
        self.put_rest()?;
        argus_sinks::crash::point("raw written");
        Ok(())
    }

    fn put_rest(mut self) -> io::Result<()> {
        let rest = PutPayload::from(std::mem::take(&mut self.part));
        let Some(upload) = &mut self.upload else {
            self.runtime.block_on(self.store.put(&self.path, rest))?;
            return Ok(());
        };
        self.runtime.block_on(async {
            upload.put_part(rest).await?;
            upload.complete().await
        })?;
        // Until here, a failure aborts it.
        self.upload = None;
        Ok(())
    }

    fn put_part(&mut self) -> io::Result<()> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.runtime.block_on(self.store.put_multipart(&self.path))?),
        };
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(self.part_bytes));
        Ok(self.runtime.block_on(upload.put_part(PutPayload::from(part)))?)
    }
}

impl Write for RawWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= self.part_bytes {
            self.put_part()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for RawWriter {
    /// Aborts an unfinished upload.
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take() {
            // Parts that remain only take space.
            let _ = self.runtime.block_on(upload.abort());
        }
    }
}

/// Reads one object.
pub struct RawReader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    runtime: Handle,
    /// The bytes that are not read yet.
    start: u64,
    end: u64,
    chunk: Bytes,
    failed: Arc<AtomicBool>,
}

impl RawReader {
    /// A flag that is set when the store fails: the readers between here and the text hide the cause.
    pub fn failed(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.failed)
    }
}

impl io::Read for RawReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() && self.start < self.end {
            let range = self.start..self.end.min(self.start + RANGE_BYTES);
            self.start = range.end;
            let read = self.runtime.block_on(self.store.get_range(&self.path, range));
            self.chunk = read.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

//! A directory as an object store whose writes survive power loss.
//!
//! `object_store`'s own directory store does not sync what it writes. This one
//! returns from `put` and from completing a multipart upload only when the file
//! and its place in the directory are on the disk. A conditional put appears
//! whole or not at all: the commit log of a Delta table depends on it.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use uuid::Uuid;

/// The local file system, synced. Paths are absolute.
#[derive(Debug, Clone)]
pub struct DurableFileSystem {
    inner: Arc<LocalFileSystem>,
}

impl DurableFileSystem {
    /// A store over the whole file system.
    pub fn new() -> DurableFileSystem {
        DurableFileSystem { inner: Arc::new(LocalFileSystem::new()) }
    }
}

impl Default for DurableFileSystem {
    fn default() -> Self {
        DurableFileSystem::new()
    }
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableFileSystem")
    }
}

fn failed(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Generic { store: "DurableFileSystem", source: Box::new(source) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}

/// Syncs a file's place: its directory, and the directory's own place.
fn sync_place(path: &FsPath) -> Result<()> {
    for directory in path.ancestors().skip(1).take(2) {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// Writes `payload` beside `target` and moves it there: for `create`, only where nothing is.
fn put(target: &FsPath, payload: &PutPayload, create: bool) -> Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // Listings leave out names of this form, so a crash leaves nothing that could be read.
    let staged = target.with_file_name(format!("{name}#{}", Uuid::new_v4().as_u128()));
    let written = write_synced(&staged, payload)
        .and_then(|()| if create { fs::hard_link(&staged, target) } else { fs::rename(&staged, target) });
    if create || written.is_err() {
        // A staged file that is left behind costs its space only.
        let _ = fs::remove_file(&staged);
    }
    match written {
        Ok(()) => sync_place(target),
        Err(source) if source.kind() == ErrorKind::AlreadyExists => {
            Err(Error::AlreadyExists { path: target.display().to_string(), source: Box::new(source) })
        }
        Err(source) => Err(failed(source)),
    }
}

fn write_synced(path: &FsPath, payload: &PutPayload) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::create_new(path)?;
    for chunk in payload.iter() {
        file.write_all(chunk)?;
    }
    file.sync_all()
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return self.inner.put_opts(location, payload, options).await,
        };
        let target = self.inner.path_to_filesystem(location)?;
        blocking(move || put(&target, &payload, create)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.inner.path_to_filesystem(location)?;
        let inner = self.inner.put_multipart_opts(location, options).await?;
        Ok(Box::new(SyncedUpload { inner, target }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload in parts whose file is on the disk when it is complete.
#[derive(Debug)]
struct SyncedUpload {
    inner: Box<dyn MultipartUpload>,
    target: PathBuf,
}

#[async_trait]
impl MultipartUpload for SyncedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let target = self.target.clone();
        blocking(move || {
            File::open(&target).and_then(|file| file.sync_all()).map_err(failed)?;
            sync_place(&target)
        })
        .await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn a_conditional_put_happens_once_and_leaves_no_staged_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = DurableFileSystem::new();
        let path = Path::from_absolute_path(folder.path().join("log/0.json")).expect("a path");
        let create = || PutOptions { mode: PutMode::Create, ..Default::default() };
        store.put_opts(&path, "first".into(), create()).await.expect("the first put succeeds");
        let second = store.put_opts(&path, "second".into(), create()).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
        let read = store.get(&path).await.expect("reads").bytes().await.expect("reads");
        assert_eq!(&read[..], b"first");
        store.put(&path, "third".into()).await.expect("an overwrite succeeds");
        assert_eq!(fs::read_dir(folder.path().join("log")).expect("lists").count(), 1);
    }
}

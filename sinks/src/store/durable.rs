//! A directory as an object store whose writes survive power loss.
//!
//! `object_store`'s local store does not sync its writes. In this store, `put` and
//! the completion of a multipart upload return only when the file and its
//! directory entry are on the disk. A conditional put is atomic: the commit log of
//! a Delta table depends on it.
//!
//! A file is written under a temporary name in the same directory, hidden from
//! listings, and renamed when it is complete. A crash can leave temporary files;
//! [`DurableFileSystem::delete_unfinished`] deletes those that this process is not
//! writing.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use uuid::Uuid;

/// The local file system with durable writes. Paths are absolute.
#[derive(Debug, Clone)]
pub struct DurableFileSystem {
    inner: Arc<LocalFileSystem>,
    unfinished: Unfinished,
}

/// The files that this process is writing. Clones share one set.
type Unfinished = Arc<Mutex<HashSet<PathBuf>>>;

impl DurableFileSystem {
    /// A store over the whole file system.
    pub fn new() -> DurableFileSystem {
        DurableFileSystem { inner: Arc::new(LocalFileSystem::new()), unfinished: Arc::default() }
    }

    /// Deletes temporary files of other processes below a folder that were last modified more than `age` ago. Returns
    /// the number of deleted files. Blocks the thread.
    pub fn delete_unfinished(&self, folder: &FsPath, age: Duration) -> std::io::Result<usize> {
        let mut deleted = 0;
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let path = entry?.path();
                let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
                if metadata.is_dir() {
                    folders.push(path);
                    continue;
                }
                if !is_unfinished(&path) || lock(&self.unfinished).contains(&path) {
                    continue;
                }
                // A modification time in the future counts as old: this process is not writing the file.
                let is_old = |modified: SystemTime| modified.elapsed().map_or(true, |since| since >= age);
                if age.is_zero() || metadata.modified().is_ok_and(is_old) {
                    match fs::remove_file(&path) {
                        Ok(()) => deleted += 1,
                        // Its writer has renamed it meanwhile.
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(deleted)
    }
}

/// Whether a path is a temporary file, by its name.
fn is_unfinished(path: &FsPath) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.rsplit_once('#').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_digit()))
}

fn lock(unfinished: &Unfinished) -> MutexGuard<'_, HashSet<PathBuf>> {
    // Nothing panics while holding the lock.
    unfinished.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary file next to its target. It is deleted on drop unless it was renamed.
#[derive(Debug)]
struct TemporaryFile {
    path: PathBuf,
    unfinished: Unfinished,
}

impl TemporaryFile {
    fn for_target(target: &FsPath, unfinished: &Unfinished) -> TemporaryFile {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // `LocalFileSystem` hides names of this form from listings, so readers never see an incomplete file.
        let path = target.with_file_name(format!("{name}#{}", Uuid::new_v4().as_u128()));
        lock(unfinished).insert(path.clone());
        TemporaryFile { path, unfinished: Arc::clone(unfinished) }
    }

    fn create(&self) -> std::io::Result<File> {
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        File::create_new(&self.path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // Usually the file was renamed and does not exist. If the removal fails, `delete_unfinished` deletes it later.
        let _ = fs::remove_file(&self.path);
        lock(&self.unfinished).remove(&self.path);
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

/// Syncs the directory of a file, and the parent of that directory.
fn sync_directories(path: &FsPath) -> Result<()> {
    for directory in path.ancestors().skip(1).take(2) {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// Writes `payload` to a temporary file and renames it to `target`; with `create`, fails if `target` exists.
fn put(target: &FsPath, payload: &PutPayload, create: bool, unfinished: &Unfinished) -> Result<()> {
    let temporary = TemporaryFile::for_target(target, unfinished);
    let written = write_synced(&temporary, payload).and_then(|()| {
        if create { fs::hard_link(&temporary.path, target) } else { fs::rename(&temporary.path, target) }
    });
    match written {
        Ok(()) => sync_directories(target),
        Err(source) if source.kind() == ErrorKind::AlreadyExists => {
            Err(Error::AlreadyExists { path: target.display().to_string(), source: Box::new(source) })
        }
        Err(source) => Err(failed(source)),
    }
}

fn write_synced(temporary: &TemporaryFile, payload: &PutPayload) -> std::io::Result<()> {
    let mut file = temporary.create()?;
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
        let unfinished = Arc::clone(&self.unfinished);
        blocking(move || put(&target, &payload, create, &unfinished)).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let target = self.inner.path_to_filesystem(location)?;
        let temporary = TemporaryFile::for_target(&target, &self.unfinished);
        let (temporary, file) = blocking(move || {
            let file = temporary.create().map_err(failed)?;
            Ok((temporary, file))
        })
        .await?;
        Ok(Box::new(SyncedUpload { temporary: Some(temporary), file: Arc::new(file), end: 0, target }))
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

/// A multipart upload. The file is durable when the upload is complete, and deleted if it is dropped before.
#[derive(Debug)]
struct SyncedUpload {
    temporary: Option<TemporaryFile>,
    file: Arc<File>,
    /// Where the next part begins.
    end: u64,
    target: PathBuf,
}

#[async_trait]
impl MultipartUpload for SyncedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (file, mut at) = (Arc::clone(&self.file), self.end);
        self.end += data.content_length() as u64;
        Box::pin(blocking(move || {
            for chunk in data.iter() {
                file.write_all_at(chunk, at).map_err(failed)?;
                at += chunk.len() as u64;
            }
            Ok(())
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let temporary = self.temporary.take().ok_or_else(|| failed(std::io::Error::from(ErrorKind::NotFound)))?;
        let (file, target) = (Arc::clone(&self.file), self.target.clone());
        blocking(move || {
            file.sync_all().and_then(|()| fs::rename(&temporary.path, &target)).map_err(failed)?;
            sync_directories(&target)
        })
        .await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        self.temporary = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;

    #[tokio::test]
    async fn a_conditional_put_happens_once_and_leaves_no_temporary_file() {
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

    #[tokio::test]
    async fn a_multipart_upload_is_readable_when_complete_and_deleted_when_dropped() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = DurableFileSystem::new();
        let path = Path::from_absolute_path(folder.path().join("raw/1")).expect("a path");
        let files = || fs::read_dir(folder.path().join("raw")).expect("lists").count();
        let mut upload = store.put_multipart(&path).await.expect("begins");
        let parts = [upload.put_part("ab".into()), upload.put_part("cd".into())];
        for part in parts.into_iter().rev() {
            part.await.expect("is written");
        }
        assert!(store.get(&path).await.is_err(), "an incomplete upload is readable");
        assert_eq!(
            store.delete_unfinished(folder.path(), Duration::ZERO).expect("scans the folder"),
            0,
            "a file being written was deleted"
        );
        upload.complete().await.expect("completes");
        assert_eq!(&store.get(&path).await.expect("reads").bytes().await.expect("reads")[..], b"abcd");
        drop(store.put_multipart(&path).await.expect("begins"));
        assert_eq!(files(), 1, "the file of a dropped upload remains");
    }

    #[tokio::test]
    async fn temporary_files_of_another_process_are_deleted_even_with_a_time_in_the_future() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = DurableFileSystem::new();
        let left = folder.path().join("lake/errors/part-0.parquet#17");
        fs::create_dir_all(left.parent().expect("a folder")).expect("makes it");
        for (age, deleted) in [(Duration::from_secs(3600), 0), (Duration::ZERO, 1)] {
            File::create(&left).expect("writes");
            assert_eq!(store.delete_unfinished(folder.path(), age).expect("scans the folder"), deleted);
        }
        let future = File::create(&left).expect("writes");
        future.set_modified(SystemTime::now() + Duration::from_secs(7200)).expect("sets its time");
        assert_eq!(store.delete_unfinished(folder.path(), Duration::from_secs(3600)).expect("scans the folder"), 1);
        assert!(!is_unfinished(FsPath::new("a/b#c")) && !is_unfinished(FsPath::new("a#1/b")));
    }
}

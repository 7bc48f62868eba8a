//! Where the raw files and the lake are: an object store, and the places in it.
//!
//! - [`s3`]: a bucket; [`counted`]: metrics of the requests to it; [`unfinished`]: multipart uploads left in it;
//! - `argus_sinks::store::durable`: a directory on a local disk.

pub mod counted;
mod s3;
mod unfinished;

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_sinks::store::durable::DurableFileSystem;
use object_store::ObjectStore;
use object_store::path::Path;
use url::Url;

use self::counted::CountedStore;
pub use self::unfinished::{UnfinishedUpload, UnfinishedUploads};
use crate::data_dir::{self, lake_url};

/// The parts in which a directory stores a large object (1 MiB).
const PART_BYTES: usize = 1 << 20;

/// The object store of a service. Clones share it.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The raw files and the lake. Paths begin at the root of the lake's scheme and host.
    pub store: Arc<dyn ObjectStore>,
    /// The folder of the lake.
    pub lake: Url,
    /// The folder of the raw files.
    pub raw: Path,
    /// A smaller object is written by one request, a larger one in parts of this many bytes.
    pub part_bytes: usize,
    /// The directory on a local disk that contains both, if they are on one.
    pub directory: Option<Directory>,
    /// The unfinished multipart uploads, if the store is a bucket.
    pub unfinished: Option<UnfinishedUploads>,
}

/// A directory on a local disk. Writers that were interrupted leave temporary files in it.
#[derive(Debug, Clone)]
pub struct Directory {
    /// Writes the files.
    pub files: DurableFileSystem,
    /// Its path.
    pub path: PathBuf,
}

impl Directory {
    /// Creates its folders, durably.
    pub fn create(&self) -> std::io::Result<()> {
        data_dir::create(&self.path, &["raw", "lake"])
    }
}

impl Storage {
    /// The folders `raw` and `lake` of a directory.
    pub fn directory(path: &FsPath) -> Result<Storage> {
        let path = std::path::absolute(path)?;
        let files = DurableFileSystem::new();
        Ok(Storage {
            store: Arc::new(files.clone()),
            lake: lake_url(&path)?,
            raw: Path::from_absolute_path(path.join("raw"))?,
            part_bytes: PART_BYTES,
            directory: Some(Directory { files, path }),
            unfinished: None,
        })
    }

    /// The folders `raw` and `lake` at a location: a directory, `file:` and a directory, or `s3://BUCKET/PREFIX`.
    /// Tries out a bucket.
    pub async fn open(location: &str) -> Result<Storage> {
        let storage = Storage::at(location, s3::RETRY_TIME)?;
        if storage.directory.is_none() {
            Storage::at(location, s3::START_RETRY_TIME)?.try_out().await?;
        }
        Ok(storage)
    }

    /// The store at a location and the path in it, to list and read objects; whether it is a folder on a local disk.
    pub fn inbox(location: &str) -> Result<(Arc<dyn ObjectStore>, Path, bool)> {
        match Url::parse(location) {
            Ok(url) if url.scheme() == "s3" => {
                let (bucket, _) = s3::open(&url, s3::START_RETRY_TIME)?;
                let prefix = Path::from_url_path(url.path());
                let prefix = prefix.with_context(|| format!("{location} has an invalid path"))?;
                Ok((Arc::new(CountedStore(Arc::new(bucket) as Arc<dyn ObjectStore>)), prefix, false))
            }
            _ => {
                let storage = Storage::at(location, s3::START_RETRY_TIME)?;
                let folder = storage
                    .directory
                    .map(|directory| directory.path)
                    .with_context(|| format!("{location} is no folder"))?;
                let folder =
                    std::fs::canonicalize(&folder).with_context(|| format!("cannot open the inbox {location}"))?;
                Ok((storage.store, Path::from_absolute_path(folder)?, true))
            }
        }
    }

    /// The same, to read only: nothing is written, and nothing is tried.
    pub fn open_read_only(location: &str) -> Result<Storage> {
        Storage::at(location, s3::START_RETRY_TIME)
    }

    fn at(location: &str, retry_time: Duration) -> Result<Storage> {
        let mut url = match Url::parse(location) {
            Ok(url) if url.scheme() == "s3" => url,
            Ok(url) if url.scheme() == "file" => {
                let path = url.to_file_path();
                let path = path.map_err(|()| anyhow::anyhow!("{location} is not the path of a directory"))?;
                return Storage::directory(&path);
            }
            Ok(url) if location.contains("://") => {
                bail!("{location}: there is no store for {}; use a directory, or s3://BUCKET/PREFIX", url.scheme())
            }
            // A path, also one like `a:b`.
            _ => return Storage::directory(FsPath::new(location)),
        };
        let (bucket, region) = s3::open(&url, retry_time)?;
        let bucket = Arc::new(bucket);
        let store = Arc::new(CountedStore(Arc::clone(&bucket) as Arc<dyn ObjectStore>));
        let folder = Path::from_url_path(url.path()).with_context(|| format!("{location} has an invalid path"))?;
        let raw = folder.clone().join("raw");
        url.set_path(&format!("/{}", folder.clone().join("lake")));
        let unfinished = Some(UnfinishedUploads { bucket, region, folder });
        Ok(Storage { store, lake: url, raw, part_bytes: s3::PART_BYTES, directory: None, unfinished })
    }

    /// Tries everything that Argus needs. Each failure names its cause.
    pub async fn try_out(&self) -> Result<()> {
        if let Some(directory) = &self.directory {
            directory.create().with_context(|| format!("cannot write to {}", directory.path.display()))?;
        }
        s3::try_out(&*self.store, &self.lake, &self.raw).await
    }
}

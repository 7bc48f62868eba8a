//! The data directory: its layout and its lock.
//!
//! ```text
//!  argus.lock   the lock: one process at a time opens the directory
//!  argus.db     batches, files, and the journal of accepted changes (SQLite)
//!  raw/         the bytes of uploaded files
//!  lake/        the Delta Lake tables
//!  resumable/   uploads that are not whole yet
//!  audit/       the audit log
//! ```

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use url::Url;

/// The URL of the lake of a data directory.
pub fn lake_url(data: &Path) -> Result<Url> {
    let folder = std::path::absolute(data.join("lake"))?;
    // Object stores and table formats disagree on the meaning of '%' in a path.
    if folder.to_string_lossy().contains('%') {
        bail!("the path of a data directory must not contain '%': {}", data.display());
    }
    Url::from_directory_path(&folder)
        .map_err(|()| anyhow::anyhow!("{} is not a valid path for the lake", folder.display()))
}

/// The path of the metadata of a data directory.
pub fn metadata_path(data: &Path) -> PathBuf {
    data.join("argus.db")
}

/// Creates a data directory with some folders, durably.
pub fn create(data: &Path, folders: &[&str]) -> std::io::Result<()> {
    std::fs::create_dir_all(data)?;
    for folder in folders {
        std::fs::create_dir_all(data.join(folder))?;
    }
    for folder in data.ancestors().take(2) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Locks a data directory, or the directory of a store. The lock lasts as long as the file is open.
pub fn lock(data: &Path) -> Result<File> {
    lock_file(&data.join("argus.lock"), data)
}

/// Locks what is at `locked`, by a file that is created. The lock lasts as long as that file is open.
pub fn lock_file(path: &Path, locked: &Path) -> Result<File> {
    let lock = File::create(path).with_context(|| format!("cannot create the lock {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another argus has {} open; stop it first", locked.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

//! The data directory: its layout, its lock, and the backups that are made of it.
//!
//! ```text
//!  argus.lock   the lock: one process at a time opens the directory
//!  argus.db     batches, files, and the journal of accepted changes (SQLite)
//!  raw/         the bytes of uploaded files
//!  lake/        the Delta Lake tables
//!  resumable/   uploads that are not whole yet
//!  audit/       the audit log
//!  backup-…/    a backup that is being made
//! ```

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    // The folder of a bare name has none.
    let data = &std::path::absolute(data)?;
    std::fs::create_dir_all(data)?;
    for folder in folders {
        std::fs::create_dir_all(data.join(folder))?;
    }
    for folder in data.ancestors().take(2) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// A file that is in a data directory while a backup is restored into it.
pub fn restoring_marker(data: &Path) -> PathBuf {
    data.join("restoring")
}

/// Locks a data directory, or the directory of a store. The lock lasts as long as the file is open.
pub fn lock(data: &Path) -> Result<File> {
    if restoring_marker(data).exists() {
        bail!("a restore into {} was interrupted; empty the directory, and restore again", data.display());
    }
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

/// What the folder of a backup that is being made begins with.
const BACKUP_PREFIX: &str = "backup-";

/// The file in it that is written again and again while the backup is being made.
const HOLD: &str = "hold";

/// A backup whose hold is older was interrupted.
const HOLD_AGE_MAX: Duration = Duration::from_secs(60);

/// Creates the folder of a backup in a data directory. Until it is deleted, and [`hold`] is called again and again, no file that
/// the backup may need is deleted.
pub fn backup_folder(data: &Path) -> std::io::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix(BACKUP_PREFIX).tempdir_in(data)?;
    hold(folder.path())?;
    Ok(folder)
}

/// Says that a backup is still being made in its folder.
pub fn hold(folder: &Path) -> std::io::Result<()> {
    std::fs::write(folder.join(HOLD), b"")
}

/// Whether a backup of a data directory is being made.
pub fn is_held(data: &Path) -> bool {
    backup_folders(data).any(|folder| is_fresh(&folder))
}

/// Deletes the folders of backups that were interrupted.
pub fn remove_interrupted_backups(data: &Path) -> std::io::Result<()> {
    // A folder without a hold is somebody's own.
    let is_interrupted = |folder: &PathBuf| folder.join(HOLD).exists() && !is_fresh(folder);
    backup_folders(data).filter(is_interrupted).try_for_each(std::fs::remove_dir_all)
}

fn backup_folders(data: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(data).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(BACKUP_PREFIX)).map(|entry| entry.path())
}

fn is_fresh(folder: &Path) -> bool {
    let held = std::fs::metadata(folder.join(HOLD)).and_then(|hold| hold.modified());
    // A time in the future is of a clock that was set back.
    held.is_ok_and(|held| held.elapsed().is_ok_and(|age| age <= HOLD_AGE_MAX))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_backup_holds_files_until_it_ends_or_stands_still() {
        let data = tempfile::tempdir().expect("a folder");
        assert!(!is_held(data.path()));
        let folder = backup_folder(data.path()).expect("creates");
        assert!(is_held(data.path()));
        remove_interrupted_backups(data.path()).expect("nothing to delete");
        let hold = File::options().write(true).open(folder.path().join(HOLD)).expect("opens");
        hold.set_modified(SystemTime::now() - 2 * HOLD_AGE_MAX).expect("sets its time");
        assert!(!is_held(data.path()));
        remove_interrupted_backups(data.path()).expect("deletes");
        assert!(!folder.path().exists());
        drop(backup_folder(data.path()).expect("creates"));
        assert!(!is_held(data.path()));
        let own = data.path().join("backup-of-mine");
        std::fs::create_dir(&own).expect("creates");
        remove_interrupted_backups(data.path()).expect("nothing to delete");
        assert!(own.exists());
    }
}

//! Uploads that continue after a broken connection, as tus 1.0 describes them.
//!
//! The bytes of an unfinished upload are in a file of the data directory, beside a small
//! file that says what they are. When all bytes have arrived, they are stored and counted
//! like those of any other upload, and are deleted; what they were stays for an hour, so
//! that a client that lost the last answer learns that it is finished.
//!
//! ```text
//!  resumable/ID.json    the batch, the name, the length
//!  resumable/ID.bytes   what has arrived
//! ```

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::fs::{self, File};
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedMutexGuard, watch};
use uuid::Uuid;

use crate::domain::batch::Encoding;

/// An upload expires this long after its last byte arrived (24 h).
const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 3600);

/// A finished upload is remembered for this long (1 h), for a client that lost the last answer.
const FINISHED_AFTER: Duration = Duration::from_secs(3600);

/// The limit of unfinished uploads.
const UPLOADS_MAX: usize = 10_000;

/// How long a request waits for an earlier one of the same upload, which is interrupted.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// What is uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Described {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub name: String,
    /// The encoding of its bytes.
    pub encoding: Encoding,
    /// The number of bytes; `None` while the client has not said it.
    pub length: Option<u64>,
    /// `Upload-Metadata` as the client gave it.
    pub metadata: String,
    /// Whether the file was accepted.
    pub is_finished: bool,
}

/// Why an upload cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResumableError {
    /// It does not exist.
    #[error("there is no such upload; it may have expired or been deleted: create another one")]
    NotFound,
    /// The limit is reached.
    #[error("there are {UPLOADS_MAX} unfinished uploads; finish or delete some, or retry later")]
    TooMany,
    /// An earlier request uses it.
    #[error("another request for this upload does not end; retry later")]
    Locked,
    /// The disk failed.
    #[error("the bytes of an upload could not be read or written")]
    Io(#[from] io::Error),
}

/// Makes requests for one upload take turns.
#[derive(Debug)]
struct Turn {
    lock: Arc<tokio::sync::Mutex<()>>,
    /// The number of requests so far: a new one interrupts those before it.
    requests: watch::Sender<u64>,
}

/// The uploads of a data directory. Clones share them.
#[derive(Debug, Clone)]
pub struct ResumableUploads {
    folder: PathBuf,
    turns: Arc<Mutex<HashMap<Uuid, Weak<Turn>>>>,
}

/// An upload, which no other request uses meanwhile.
#[derive(Debug)]
pub struct Resumable {
    /// Its id.
    pub id: Uuid,
    /// What it is.
    pub described: Described,
    /// The number of bytes that have arrived.
    pub offset: u64,
    /// When it expires.
    pub expires_at: SystemTime,
    /// Changes when another request wants the upload: this one should end.
    pub interrupted: watch::Receiver<u64>,
    folder: PathBuf,
    _turn: Arc<Turn>,
    _lock: OwnedMutexGuard<()>,
}

impl ResumableUploads {
    /// The uploads in a data directory.
    pub fn open(data: &Path) -> io::Result<ResumableUploads> {
        let folder = data.join("resumable");
        std::fs::create_dir_all(&folder)?;
        Ok(ResumableUploads { folder, turns: Arc::default() })
    }

    /// Creates an upload, durably.
    pub async fn create(&self, described: Described) -> Result<Resumable, ResumableError> {
        let mut entries = fs::read_dir(&self.folder).await?;
        let mut count = 0;
        while let Some(entry) = entries.next_entry().await? {
            count += usize::from(entry.path().extension().is_some_and(|kind| kind == "bytes"));
        }
        if count >= UPLOADS_MAX {
            return Err(ResumableError::TooMany);
        }
        let id = Uuid::now_v7();
        write_durably(&bytes_path(&self.folder, id), b"").await?;
        save(&self.folder, id, &described).await?;
        File::open(&self.folder).await?.sync_all().await?;
        self.take(id).await
    }

    /// Takes an upload: an earlier request for it is interrupted.
    pub async fn take(&self, id: Uuid) -> Result<Resumable, ResumableError> {
        let turn = self.turn(id);
        turn.requests.send_modify(|requests| *requests += 1);
        let interrupted = turn.requests.subscribe();
        let locked = tokio::time::timeout(LOCK_WAIT, Arc::clone(&turn.lock).lock_owned());
        let lock = locked.await.map_err(|_| ResumableError::Locked)?;
        let missing = |error: io::Error| match error.kind() {
            ErrorKind::NotFound => ResumableError::NotFound,
            _ => ResumableError::Io(error),
        };
        let json = fs::read(described_path(&self.folder, id)).await.map_err(missing)?;
        let described: Described =
            serde_json::from_slice(&json).map_err(|error| io::Error::other(error.to_string()))?;
        let (offset, path) = match described.is_finished {
            true => (described.length.unwrap_or(0), described_path(&self.folder, id)),
            false => {
                let path = bytes_path(&self.folder, id);
                // What is not durable is not acknowledged.
                let file = File::open(&path).await.map_err(missing)?;
                file.sync_all().await?;
                (file.metadata().await?.len(), path)
            }
        };
        let after = if described.is_finished { FINISHED_AFTER } else { EXPIRES_AFTER };
        let expires_at = fs::metadata(&path).await?.modified()? + after;
        if expires_at < SystemTime::now() {
            delete(&self.folder, id).await?;
            return Err(ResumableError::NotFound);
        }
        let folder = self.folder.clone();
        Ok(Resumable { id, described, offset, expires_at, interrupted, folder, _turn: turn, _lock: lock })
    }

    /// Deletes the uploads that have expired. Returns their number.
    pub async fn delete_expired(&self) -> io::Result<usize> {
        let (mut entries, mut deleted) = (fs::read_dir(&self.folder).await?, 0);
        while let Some(entry) = entries.next_entry().await? {
            let path = entry.path();
            let part = |part: Option<&OsStr>| part.and_then(OsStr::to_str).unwrap_or_default().to_owned();
            let (id, kind) = (part(path.file_stem()).parse::<Uuid>(), part(path.extension()));
            let modified = match entry.metadata().await.and_then(|metadata| metadata.modified()) {
                Ok(modified) => modified,
                // Deleted meanwhile, with the other file of its upload.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let is_older = |age: Duration| modified.elapsed().is_ok_and(|since| since > age);
            let Ok(id) = id else { continue };
            let is_gone = match kind.as_str() {
                // Only what no request has touched for long is taken: taking interrupts.
                "bytes" if is_older(EXPIRES_AFTER) => matches!(self.take(id).await, Err(ResumableError::NotFound)),
                "json" if is_older(FINISHED_AFTER) => {
                    let described = fs::read(&path).await.ok().and_then(|json| serde_json::from_slice(&json).ok());
                    described.is_none_or(|described: Described| described.is_finished)
                }
                // A crash left it.
                "new" if is_older(FINISHED_AFTER) => {
                    remove(&path).await?;
                    continue;
                }
                _ => continue,
            };
            if is_gone {
                delete(&self.folder, id).await?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    fn turn(&self, id: Uuid) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&id).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn { lock: Arc::default(), requests: watch::Sender::new(0) });
        turns.insert(id, Arc::downgrade(&turn));
        turn
    }
}

impl Resumable {
    /// Whether all bytes have arrived.
    pub fn is_whole(&self) -> bool {
        self.described.length == Some(self.offset)
    }

    /// Sets the length that the client has not said before.
    pub async fn set_length(&mut self, length: u64) -> io::Result<()> {
        self.described.length = Some(length);
        save(&self.folder, self.id, &self.described).await
    }

    /// A writer that appends.
    pub async fn writer(&self) -> io::Result<ResumableWriter> {
        let file = File::options().append(true).open(bytes_path(&self.folder, self.id)).await?;
        Ok(ResumableWriter { file, written: 0 })
    }

    /// The bytes that have arrived, as a stream of chunks.
    pub async fn reader(&self) -> io::Result<File> {
        File::open(bytes_path(&self.folder, self.id)).await
    }

    /// Records the bytes that a writer has made durable.
    pub fn written(&mut self, writer: &ResumableWriter) {
        self.offset += writer.written;
        self.expires_at = SystemTime::now() + EXPIRES_AFTER;
    }

    /// Records that the file was accepted, and deletes the bytes.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.described.is_finished = true;
        save(&self.folder, self.id, &self.described).await?;
        remove(&bytes_path(&self.folder, self.id)).await
    }

    /// Deletes the upload.
    pub async fn delete(&self) -> io::Result<()> {
        delete(&self.folder, self.id).await
    }
}

/// Appends bytes to an upload.
#[derive(Debug)]
pub struct ResumableWriter {
    file: File,
    written: u64,
}

impl ResumableWriter {
    /// The number of bytes written.
    pub fn bytes(&self) -> u64 {
        self.written
    }

    /// Appends bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes what was written durable.
    pub async fn sync(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.sync_all().await
    }

    /// Removes what was written.
    pub async fn undo(&mut self, offset: u64) -> io::Result<()> {
        // What cannot be written is removed all the same.
        let _ = self.file.flush().await;
        self.file.set_len(offset).await?;
        self.written = 0;
        self.file.sync_all().await
    }
}

fn described_path(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("{id}.json"))
}

fn bytes_path(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("{id}.bytes"))
}

/// Writes a description so that a crash leaves the old or the new one.
async fn save(folder: &Path, id: Uuid, described: &Described) -> io::Result<()> {
    let path = described_path(folder, id);
    let new = path.with_extension("new");
    write_durably(&new, serde_json::to_string(described)?.as_bytes()).await?;
    fs::rename(&new, &path).await?;
    File::open(folder).await?.sync_all().await
}

async fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path).await?;
    file.write_all(bytes).await?;
    file.flush().await?;
    file.sync_all().await
}

async fn delete(folder: &Path, id: Uuid) -> io::Result<()> {
    remove(&described_path(folder, id)).await?;
    remove(&bytes_path(folder, id)).await
}

/// Deletes a file; no error if it does not exist.
async fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(length: u64) -> Described {
        let (batch_id, name) = (Uuid::now_v7(), "a.log".to_owned());
        Described {
            batch_id,
            name,
            encoding: Encoding::Identity,
            length: Some(length),
            metadata: String::new(),
            is_finished: false,
        }
    }

    async fn append(upload: &mut Resumable, bytes: &[u8]) {
        let mut writer = upload.writer().await.expect("the file");
        writer.write(bytes).await.expect("space");
        writer.sync().await.expect("a disk");
        upload.written(&writer);
    }

    #[tokio::test]
    async fn an_upload_continues_after_a_restart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let uploads = ResumableUploads::open(folder.path()).expect("a folder");
        let mut upload = uploads.create(described(4)).await.expect("space");
        append(&mut upload, b"abc").await;
        let id = upload.id;
        drop(upload);
        let uploads = ResumableUploads::open(folder.path()).expect("a folder");
        let mut upload = uploads.take(id).await.expect("it exists");
        assert_eq!((upload.offset, upload.is_whole()), (3, false));
        append(&mut upload, b"d").await;
        assert!(upload.is_whole());
        upload.finish().await.expect("a disk");
        drop(upload);
        let upload = uploads.take(id).await.expect("it exists");
        assert_eq!((upload.offset, upload.described.is_finished), (4, true));
        upload.delete().await.expect("a disk");
        drop(upload);
        assert!(matches!(uploads.take(id).await, Err(ResumableError::NotFound)));
        assert_eq!(std::fs::read_dir(folder.path().join("resumable")).expect("a folder").count(), 0);
    }

    #[tokio::test]
    async fn a_request_interrupts_the_one_before_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let uploads = ResumableUploads::open(folder.path()).expect("a folder");
        let upload = uploads.create(described(4)).await.expect("space");
        let id = upload.id;
        let first = tokio::spawn(async move {
            let changed = upload.interrupted.clone().changed().await;
            drop(upload);
            changed
        });
        uploads.take(id).await.expect("the first request ends");
        first.await.expect("no panic").expect("it was interrupted");
    }

    #[tokio::test]
    async fn expired_uploads_are_deleted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let uploads = ResumableUploads::open(folder.path()).expect("a folder");
        let (old, new) = (uploads.create(described(4)).await, uploads.create(described(4)).await);
        let (old, new) = (old.expect("space").id, new.expect("space").id);
        let past = SystemTime::now() - EXPIRES_AFTER - Duration::from_secs(60);
        for path in [
            described_path(&uploads.folder, old),
            bytes_path(&uploads.folder, old),
            described_path(&uploads.folder, new),
        ] {
            std::fs::File::options().append(true).open(path).and_then(|file| file.set_modified(past)).expect("a file");
        }
        assert!(uploads.delete_expired().await.expect("a folder") >= 1);
        assert!(matches!(uploads.take(old).await, Err(ResumableError::NotFound)));
        assert_eq!(uploads.take(new).await.expect("its bytes are new").offset, 0);
    }
}

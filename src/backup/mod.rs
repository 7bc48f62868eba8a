//! Backups: a copy of the data at one epoch, of a server that runs or of a data directory that none has open.
//!
//! ```text
//!  argus.db       the metadata, copied in one transaction: they say what the rest has to be
//!  lake/          the tables, up to the versions that the metadata names, and the files of those versions
//!  raw/           the objects that the metadata names
//!  audit/         the audit log
//!  backup.jsonl   written last: each file with its size and SHA-256
//! ```
//!
//! All but the metadata are never changed once they are written, so they are copied while the
//! server goes on. A server deletes nothing meanwhile: it sees the folder of the backup in its data
//! directory. What the lake lacks is in the journal of the metadata, so a
//! restored server starts as after a crash at that epoch.
//!
//! - [`create`]: makes one; [`restore`]: makes a data directory of one; [`manifest`]: what it consists of

pub mod create;
pub mod manifest;
pub mod restore;

use std::sync::Arc;

use anyhow::{Context, Result};
use futures::{Stream, TryStreamExt};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use self::manifest::Entry;
use crate::storage::Storage;

/// Files that are copied at once.
const COPIES_AT_ONCE: usize = 8;

/// The folder that contains `lake` and `raw`.
fn root_of(storage: &Storage) -> Path {
    let parts: Vec<_> = storage.raw.parts().collect();
    Path::from_iter(parts[..parts.len().saturating_sub(1)].iter().cloned())
}

/// A path below a folder, by its name in a backup.
fn below(root: &Path, name: &str) -> Path {
    name.split('/').fold(root.clone(), |path, part| path.join(part))
}

/// Copies an object; returns what a backup says of it.
async fn copy(
    from: &Arc<dyn ObjectStore>,
    source: &Path,
    to: &Arc<dyn ObjectStore>,
    target: &Path,
    name: &str,
) -> Result<Entry, object_store::Error> {
    let chunks = from.get(source).await?.into_stream();
    write(chunks, to, target, name).await
}

/// Writes an object of chunks.
async fn write<E>(
    mut chunks: impl Stream<Item = Result<bytes::Bytes, E>> + Unpin,
    to: &Arc<dyn ObjectStore>,
    target: &Path,
    name: &str,
) -> Result<Entry, object_store::Error>
where
    object_store::Error: From<E>,
{
    let generic = |source: std::io::Error| object_store::Error::Generic { store: "backup", source: Box::new(source) };
    let mut writer = BufWriter::new(Arc::clone(to), target.clone());
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = chunks.try_next().await? {
        hash.update(&chunk);
        bytes += chunk.len() as u64;
        writer.write_all(&chunk).await.map_err(generic)?;
    }
    writer.shutdown().await.map_err(generic)?;
    Ok(Entry { path: name.to_owned(), bytes, sha256: hex::encode(hash.finalize()) })
}

/// Opens the place of a backup: a folder, or `s3://BUCKET/PREFIX`.
fn place(location: &str) -> Result<Storage> {
    Storage::open_read_only(location).with_context(|| format!("cannot use {location} for a backup"))
}

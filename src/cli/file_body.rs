//! A file as the body of a request: compressed while it is sent, unless it is compressed already.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use argus_dataflow::text::{Archive, Compression};
use bytes::Bytes;
use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use tokio::sync::mpsc;

use crate::domain::digest::Digest;

/// First bytes of a text that tell an archive.
const ARCHIVE_SNIFF_BYTES: u64 = 512;

/// The length of the chunks that are sent.
const CHUNK_BYTES: usize = 64 << 10;

/// A body that is read and compressed on a thread while it is sent.
pub struct FileBody {
    /// The encoding of its bytes.
    pub encoding: Option<&'static str>,
    /// Its bytes.
    pub chunks: stream::BoxStream<'static, io::Result<Bytes>>,
}

/// The encoding in which a file is sent: content that is not compressed is compressed with zstd.
pub fn encoding_of(path: &Path) -> Result<Option<&'static str>> {
    let mut first = Vec::with_capacity(Compression::SNIFF_BYTES);
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(Compression::SNIFF_BYTES as u64).read_to_end(&mut first)?;
    Ok((Compression::sniff(&first) == Compression::Identity).then_some("zstd"))
}

/// Opens the first `limit` bytes of a file, to be sent in its encoding.
pub fn open(path: &Path, bar: ProgressBar, limit: u64) -> Result<FileBody> {
    let encoding = encoding_of(path)?;
    let is_plain = encoding.is_some();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = BufReader::with_capacity(CHUNK_BYTES, bar.wrap_read(file.take(limit)));
    let (to, chunks) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let compressed: io::Result<Box<dyn Read>> = match is_plain {
            true => {
                zstd::stream::read::Encoder::with_buffer(whole, 0).and_then(|mut encoder| {
                    // The server checks it: a continuation of another content is refused.
                    encoder.include_checksum(true)?;
                    Ok(Box::new(encoder) as Box<dyn Read>)
                })
            }
            false => Ok(Box::new(whole)),
        };
        let sent = compressed.and_then(|mut body| {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let length = body.read(&mut chunk)?;
                chunk.truncate(length);
                // The request may have ended.
                if length == 0 || to.blocking_send(Ok(Bytes::from(chunk))).is_err() {
                    return Ok(());
                }
            }
        });
        if let Err(error) = sent {
            let _ = to.blocking_send(Err(error));
        }
    });
    let chunks = stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) });
    Ok(FileBody { encoding, chunks: chunks.boxed() })
}

/// The SHA-256 of a file.
pub async fn hash_of(path: &Path) -> Result<String> {
    let path = path.to_owned();
    let hash = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path)?;
        let (mut digest, mut chunk) = (Digest::default(), vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok::<_, io::Error>(digest.hex()),
                length => digest.update(&chunk[..length]),
            }
        }
    });
    Ok(hash.await??)
}

/// Whether a file is an archive, whose files the server takes one by one.
pub fn is_archive(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    File::open(path)?.take(Compression::SNIFF_BYTES as u64).read_to_end(&mut first)?;
    let mut text = Vec::new();
    let decoded = Compression::sniff(&first).reader(File::open(path)?);
    // A damaged file is refused by the server.
    let _ = decoded.and_then(|decoded| decoded.take(ARCHIVE_SNIFF_BYTES).read_to_end(&mut text));
    Ok(Archive::sniff(&text).is_some_and(|archive| matches!(archive.kind, "tar" | "zip")))
}

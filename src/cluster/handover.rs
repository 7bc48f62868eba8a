//! An upload that a process which follows has stored and scanned, as it is handed to the leader: a header in JSON with its
//! length, and frames of occurrences.

use std::io::Read;

use argus_dataflow::counts::partial::{CodeCounts, CountKey, Times};
use argus_dataflow::{PartialCounts, VersionId};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::scans::Scan;
use crate::domain::batch::{Encoding, OpenLine, StoredUpload};
use crate::domain::digest::Digest;
use crate::metadata::UploadKey;

/// The header of an upload may have this many bytes (256 MiB): its codes are limited.
pub const HEADER_BYTES_MAX: usize = 256 << 20;

/// Files are read in pieces of this size (256 KiB).
const PIECE_BYTES: usize = 256 << 10;

/// By whom an upload was scanned: the leader takes only what it would have found itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// The version of the protocol.
    pub protocol: u32,
    /// The version of Argus.
    pub version: String,
    /// The fingerprint of the rules.
    pub rules: String,
    /// The term of the leader that the process follows.
    pub term: u64,
}

/// An upload without its occurrences.
#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    /// By whom it was scanned.
    pub by: By,
    batch_id: Uuid,
    name: String,
    version: VersionId,
    encoding: Encoding,
    bytes: u64,
    lines: u64,
    long_lines: u64,
    open_line: Option<(VersionId, Vec<u8>, u64)>,
    binary: bool,
    digest: Vec<u8>,
    uploaded_at: i64,
    /// The idempotency key, and the request that it is of.
    key: Option<(String, String)>,
    counts: Vec<(VersionId, Counts)>,
}

/// Partial counts: JSON has no maps with keys of several fields.
#[derive(Debug, Serialize, Deserialize)]
struct Counts {
    error_lines: u64,
    codes: Vec<(CountKey, CodeCounts)>,
    failed_line: Option<u64>,
    times: Times,
}

impl From<PartialCounts> for Counts {
    fn from(counts: PartialCounts) -> Counts {
        let PartialCounts { error_lines, codes, failed_line, times } = counts;
        Counts { error_lines, codes: codes.into_iter().collect(), failed_line, times }
    }
}

impl From<Counts> for PartialCounts {
    fn from(counts: Counts) -> PartialCounts {
        let Counts { error_lines, codes, failed_line, times } = counts;
        PartialCounts { error_lines, codes: codes.into_iter().collect(), failed_line, times }
    }
}

/// What the leader gets of an upload, but for its occurrences.
pub struct HandedOver {
    /// The upload.
    pub upload: StoredUpload,
    /// Its idempotency key.
    pub key: Option<UploadKey>,
    /// The counts of its versions.
    pub counts: Vec<(VersionId, PartialCounts)>,
}

impl Header {
    fn new(by: By, upload: &StoredUpload, key: Option<UploadKey>, counts: Vec<(VersionId, Counts)>) -> Header {
        let open_line = upload.open_line.as_ref().map(|(version, line)| (*version, line.text.clone(), line.bytes));
        Header {
            by,
            batch_id: upload.batch_id,
            name: upload.name.clone(),
            version: upload.version,
            encoding: upload.encoding,
            bytes: upload.bytes,
            lines: upload.lines,
            long_lines: upload.long_lines,
            open_line,
            binary: upload.binary,
            digest: upload.digest.to_bytes(),
            uploaded_at: upload.uploaded_at,
            key: key.map(|UploadKey { key, request }| (key, request)),
            counts,
        }
    }

    /// What the leader gets; `None` if the digest is none.
    pub fn into_handed_over(self) -> Option<HandedOver> {
        let open_line = self.open_line.map(|(version, text, bytes)| (version, OpenLine { text, bytes }));
        let upload = StoredUpload {
            batch_id: self.batch_id,
            name: self.name,
            version: self.version,
            encoding: self.encoding,
            bytes: self.bytes,
            lines: self.lines,
            long_lines: self.long_lines,
            open_line,
            binary: self.binary,
            digest: Digest::from_bytes(&self.digest)?,
            uploaded_at: self.uploaded_at,
        };
        let key = self.key.map(|(key, request)| UploadKey { key, request });
        let counts = self.counts.into_iter().map(|(version, counts)| (version, counts.into())).collect();
        Some(HandedOver { upload, key, counts })
    }
}

/// The body of the request that hands an upload to the leader.
pub fn body(
    by: By,
    upload: &StoredUpload,
    key: Option<UploadKey>,
    scans: [(VersionId, Scan); 2],
) -> std::io::Result<impl Stream<Item = std::io::Result<Bytes>> + Send + use<>> {
    let (mut counts, mut pieces) = (Vec::new(), Vec::new());
    for (version, mut scan) in scans {
        pieces.push((scan.rewound()?, std::mem::take(&mut scan.frames)));
        counts.push((version, scan.counts.into()));
    }
    let json = serde_json::to_vec(&Header::new(by, upload, key, counts))?;
    let mut head = BytesMut::with_capacity(json.len() + 4);
    head.put_u32(json.len() as u32);
    head.put_slice(&json);
    let frames = stream::iter(pieces).flat_map(|(file, rest)| {
        let rest = (!rest.is_empty()).then(|| Ok(Bytes::from(rest)));
        read_in_pieces(file).chain(stream::iter(rest))
    });
    Ok(stream::iter([Ok(head.freeze())]).chain(frames))
}

/// The content of a temporary file.
fn read_in_pieces(file: Option<std::fs::File>) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    stream::unfold(file, |file| async move {
        let mut file = file?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE_BYTES];
            let count = file.read(&mut piece)?;
            piece.truncate(count);
            Ok((Bytes::from(piece), file))
        });
        match read.await.map_err(std::io::Error::other).flatten() {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, file)) => Some((Ok(piece), Some(file))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

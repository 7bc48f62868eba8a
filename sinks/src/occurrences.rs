//! Occurrences on their way from the process that scanned them to the writer of the lake: frames, each with the version, the
//! length, and the rows as an Arrow IPC stream.

use argus_dataflow::{ScannedBlock, VersionId};
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use uuid::Uuid;

use crate::convert::encode;
use crate::schema::Table;

/// A frame may have this many bytes (256 MiB): it has the occurrences of one block.
const FRAME_BYTES_MAX: usize = 256 << 20;

/// The version and the length before the rows.
const HEAD_BYTES: usize = 16 + 4;

/// Why a frame cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain each variant")]
pub enum OccurrencesError {
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error("the rows of occurrences have other columns than this version of argus")]
    OtherColumns,
    #[error("a frame of occurrences has {0} bytes, which is more than any block has")]
    TooLong(usize),
}

/// The occurrences of a block as a frame.
pub fn frame(block: &ScannedBlock) -> Result<Vec<u8>, OccurrencesError> {
    let rows = encode::errors(block)?;
    let mut content = Vec::new();
    let mut writer = StreamWriter::try_new(&mut content, &rows.schema())?;
    writer.write(&rows)?;
    writer.finish()?;
    drop(writer);
    let mut frame = Vec::with_capacity(HEAD_BYTES + content.len());
    frame.put_slice(block.origin.version.0.as_bytes());
    frame.put_u32(content.len() as u32);
    frame.put_slice(&content);
    Ok(frame)
}

/// Takes the first frame from a buffer; `None` if its end has not arrived.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<(VersionId, Vec<RecordBatch>)>, OccurrencesError> {
    let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(OccurrencesError::TooLong(length));
    }
    if buffer.len() < HEAD_BYTES + length {
        return Ok(None);
    }
    let mut head = buffer.split_to(HEAD_BYTES);
    let version = VersionId(Uuid::from_u128(head.get_u128()));
    let content: Bytes = buffer.split_to(length).freeze();
    let rows: Vec<RecordBatch> = StreamReader::try_new(content.reader(), None)?.collect::<Result<_, _>>()?;
    if rows.iter().any(|rows| rows.schema() != Table::Errors.schema()) {
        return Err(OccurrencesError::OtherColumns);
    }
    Ok(Some((version, rows)))
}

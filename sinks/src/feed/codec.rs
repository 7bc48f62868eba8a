//! Steps as bytes: JSON, followed by the occurrences of an epoch as an Arrow IPC stream.

use std::borrow::Cow;
use std::sync::Arc;

use argus_dataflow::{ClosedEpoch, Row};
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::{Base, Closed, Step};
use crate::snapshot::DataFile;

/// Why bytes are not a step.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages explain each variant")]
pub enum FrameError {
    #[error("a step of the lake is cut off")]
    CutOff,
    #[error("a step of the lake has {0} bytes, which is more than a frame may have")]
    TooLong(usize),
    #[error("a step of the lake cannot be read")]
    Json(#[from] serde_json::Error),
    #[error("the occurrences of an epoch cannot be read")]
    Arrow(#[from] ArrowError),
}

#[derive(Serialize, Deserialize)]
enum Header<'r> {
    Closed { epoch: u64, rows: Cow<'r, [(Row, i64)]>, files: Vec<File>, present: [bool; 5] },
    Frozen,
    Committed { base: Base, replaced: bool },
}

#[derive(Serialize, Deserialize)]
struct File {
    path: String,
    bytes: u64,
    /// The least and the greatest key.
    keys: Option<(Arc<str>, Arc<str>)>,
}

impl From<&DataFile> for File {
    fn from(file: &DataFile) -> File {
        let keys = file.keys.as_ref().map(|keys| (Arc::clone(keys.start()), Arc::clone(keys.end())));
        File { path: file.path.to_string(), bytes: file.bytes, keys }
    }
}

impl From<File> for DataFile {
    fn from(file: File) -> DataFile {
        let keys = file.keys.map(|(least, greatest)| least..=greatest);
        DataFile { path: Path::from(file.path), bytes: file.bytes, keys }
    }
}

/// The bytes of a step.
pub fn encode(step: &Step) -> Result<Bytes, FrameError> {
    let (header, occurrences) = match step {
        Step::Frozen => (Header::Frozen, &[][..]),
        Step::Committed { base, replaced } => (Header::Committed { base: *base, replaced: *replaced }, &[][..]),
        Step::Closed(Closed { epoch, occurrences, files, present }) => {
            let (rows, files) = (Cow::Borrowed(&epoch.rows[..]), files.iter().map(File::from).collect());
            (Header::Closed { epoch: epoch.epoch, rows, files, present: *present }, &occurrences[..])
        }
    };
    let json = serde_json::to_vec(&header)?;
    let mut bytes = BytesMut::with_capacity(json.len() + 4);
    bytes.put_u32(json.len() as u32);
    bytes.put_slice(&json);
    if let Some(first) = occurrences.first() {
        let mut writer = StreamWriter::try_new((&mut bytes).writer(), &first.schema())?;
        occurrences.iter().try_for_each(|rows| writer.write(rows))?;
        writer.finish()?;
    }
    Ok(bytes.freeze())
}

/// The step that [`encode`] wrote.
pub fn decode(mut bytes: Bytes) -> Result<Step, FrameError> {
    let length = bytes.try_get_u32().map_err(|_| FrameError::CutOff)? as usize;
    if bytes.len() < length {
        return Err(FrameError::CutOff);
    }
    let header: Header<'static> = serde_json::from_slice(&bytes.split_to(length))?;
    Ok(match header {
        Header::Frozen => Step::Frozen,
        Header::Committed { base, replaced } => Step::Committed { base, replaced },
        Header::Closed { epoch, rows, files, present } => {
            let occurrences: Vec<RecordBatch> = match bytes.is_empty() {
                true => Vec::new(),
                false => StreamReader::try_new(bytes.reader(), None)?.collect::<Result<_, _>>()?,
            };
            let epoch = ClosedEpoch { epoch, rows: rows.into_owned() };
            let files = files.into_iter().map(DataFile::from).collect();
            Step::Closed(Closed { epoch, occurrences, files, present })
        }
    })
}

#[cfg(test)]
mod tests {
    use argus_dataflow::VersionId;
    use arrow::array::new_null_array;

    use super::*;
    use crate::schema::Table;

    #[test]
    fn a_step_is_read_as_it_was_written() {
        let path = Path::from("lake/errors/part-1.parquet");
        let file = DataFile { path, bytes: 7, keys: Some(Arc::from("a")..=Arc::from("b")) };
        let rows = vec![(Row::Abandoned(VersionId::new()), 1)];
        let schema = Table::Errors.schema();
        let nullable = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let nullable = Arc::new(arrow::datatypes::Schema::new(nullable.collect::<Vec<_>>()));
        let columns = nullable.fields().iter().map(|field| new_null_array(field.data_type(), 3)).collect();
        let occurrences = vec![RecordBatch::try_new(nullable, columns).expect("rows")];
        let closed = Closed {
            epoch: ClosedEpoch { epoch: 9, rows },
            occurrences,
            files: vec![file],
            present: [true, false, false, true, false],
        };
        let bytes = encode(&Step::Closed(closed.clone())).expect("encodes");
        let Step::Closed(read) = decode(bytes.clone()).expect("decodes") else { panic!("another step") };
        assert_eq!((&read.epoch, &read.files, read.present), (&closed.epoch, &closed.files, closed.present));
        assert_eq!(read.occurrences[0].num_rows(), 3);
        for length in 0..bytes.len() {
            // Bytes that are cut off are an error, or a step without the last bytes of its occurrences; never a panic.
            let _ = decode(bytes.slice(..length));
        }
        let base = Base { since: 3, ..Base::default() };
        let committed = decode(encode(&Step::Committed { base, replaced: true }).expect("encodes"));
        assert!(matches!(committed, Ok(Step::Committed { base: Base { since: 3, .. }, replaced: true })));
    }
}

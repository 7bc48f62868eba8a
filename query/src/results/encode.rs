//! Encodes the rows of a result in the client's format, as they arrive.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::json;

use crate::results::json;

/// Rows of a Parquet row group, which are buffered before it is written.
const ROW_GROUP_ROWS: usize = 64 * 1024;

/// A format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// `{"columns":[{"name","type"}],"rows":[[…]],"epoch","truncated"}`
    Json,
    /// With a header line. A null is empty; lists and structs are JSON.
    Csv,
    /// The Arrow IPC streaming format.
    Arrow,
    /// A Parquet file.
    Parquet,
}

/// Why rows could not be encoded.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode the rows in this format: {0}")]
pub struct EncodeError(String);

impl From<ArrowError> for EncodeError {
    fn from(error: ArrowError) -> Self {
        EncodeError(error.to_string())
    }
}

impl From<ParquetError> for EncodeError {
    fn from(error: ParquetError) -> Self {
        EncodeError(error.to_string())
    }
}

impl RowFormat {
    /// All formats; the first is the default.
    pub const ALL: [RowFormat; 4] = [RowFormat::Json, RowFormat::Csv, RowFormat::Arrow, RowFormat::Parquet];

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            RowFormat::Json => "application/json",
            RowFormat::Csv => "text/csv",
            RowFormat::Arrow => "application/vnd.apache.arrow.stream",
            RowFormat::Parquet => "application/vnd.apache.parquet",
        }
    }
}

/// Encodes rows. [`Encoder::take`] returns the encoded bytes.
pub struct Encoder {
    form: Form,
    written: Written,
    epoch: u64,
}

enum Form {
    Json { any: bool },
    Csv,
    Arrow(Box<StreamWriter<Written>>),
    Parquet(Box<ArrowWriter<Written>>),
}

impl Encoder {
    /// Begins a result with these columns at an epoch.
    pub fn begin(format: RowFormat, schema: &SchemaRef, epoch: u64) -> Result<Encoder, EncodeError> {
        let mut written = Written::default();
        let form = match format {
            RowFormat::Json => {
                let columns: Vec<_> = schema
                    .fields()
                    .iter()
                    .map(|field| json!({"name": field.name(), "type": field.data_type().to_string()}))
                    .collect();
                written.push(format!("{{\"columns\":{},\"rows\":[", json!(columns)).as_bytes());
                Form::Json { any: false }
            }
            RowFormat::Csv => {
                csv(&mut written, &RecordBatch::new_empty(Arc::clone(schema)), true)?;
                Form::Csv
            }
            RowFormat::Arrow => Form::Arrow(Box::new(StreamWriter::try_new(written.clone(), schema)?)),
            RowFormat::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS));
                let writer = ArrowWriter::try_new(written.clone(), Arc::clone(schema), Some(properties.build()))?;
                Form::Parquet(Box::new(writer))
            }
        };
        Ok(Encoder { form, written, epoch })
    }

    /// Writes rows.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), EncodeError> {
        match &mut self.form {
            Form::Json { any } => {
                for row in json::rows(rows)? {
                    if std::mem::replace(any, true) {
                        self.written.push(b",");
                    }
                    self.written.push(row.to_string().as_bytes());
                }
            }
            Form::Csv => csv(&mut self.written, rows, false)?,
            Form::Arrow(writer) => writer.write(rows)?,
            Form::Parquet(writer) => writer.write(rows)?,
        }
        Ok(())
    }

    /// Ends the result; `truncated` if more rows were cut off.
    pub fn finish(&mut self, truncated: bool) -> Result<(), EncodeError> {
        match &mut self.form {
            Form::Json { .. } => {
                let end = format!("],\"epoch\":{},\"truncated\":{truncated}}}", self.epoch);
                self.written.push(end.as_bytes());
            }
            Form::Csv => {}
            Form::Arrow(writer) => writer.finish()?,
            Form::Parquet(writer) => drop(writer.finish()?),
        }
        Ok(())
    }

    /// The bytes written since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut *self.written.bytes())
    }
}

fn csv(to: &mut Written, rows: &RecordBatch, header: bool) -> Result<(), EncodeError> {
    arrow::csv::WriterBuilder::new().with_header(header).build(to).write(&json::flat(rows)?)?;
    Ok(())
}

/// Bytes that were written and not yet taken.
#[derive(Debug, Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes().extend_from_slice(bytes);
    }
}

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn encoded(format: RowFormat) -> Vec<u8> {
        let codes: StringArray = [Some("E_\"A"), None].into_iter().collect();
        let counts = Int64Array::from(vec![1, 2]);
        let rows = RecordBatch::try_from_iter([("code", Arc::new(codes) as _), ("n", Arc::new(counts) as _)]);
        let rows = rows.expect("columns of equal length");
        let mut encoder = Encoder::begin(format, &rows.schema(), 7).expect("it begins");
        let mut all = encoder.take();
        for part in [rows.slice(0, 1), rows.slice(1, 1), rows.slice(0, 0)] {
            encoder.write(&part).expect("it is written");
            all.extend(encoder.take());
        }
        encoder.finish(true).expect("it ends");
        all.extend(encoder.take());
        all
    }

    #[test]
    fn output_is_complete_when_rows_arrive_in_parts() {
        let json = r#"{"columns":[{"name":"code","type":"Utf8"},{"name":"n","type":"Int64"}],"rows":[["E_\"A",1],[null,2]],"epoch":7,"truncated":true}"#;
        assert_eq!(String::from_utf8(encoded(RowFormat::Json)).as_deref(), Ok(json));
        assert_eq!(String::from_utf8(encoded(RowFormat::Csv)).as_deref(), Ok("code,n\n\"E_\"\"A\",1\n,2\n"));
        assert!(encoded(RowFormat::Parquet).ends_with(b"PAR1"));
        let arrow = encoded(RowFormat::Arrow);
        let arrow = arrow::ipc::reader::StreamReader::try_new(&arrow[..], None);
        assert_eq!(arrow.expect("it is a stream").map(|rows| rows.expect("rows").num_rows()).sum::<usize>(), 2);
    }
}

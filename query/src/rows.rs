//! Rows as JSON.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, TimeUnit, TimestampMicrosecondType};
use arrow::datatypes::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};
use serde_json::Value;

/// The rows, each a list of values in the order of the columns.
pub fn rows(batch: &RecordBatch) -> Result<Vec<Value>, ArrowError> {
    let mut rows = vec![Vec::with_capacity(batch.num_columns()); batch.num_rows()];
    for column in batch.columns() {
        for (row, value) in rows.iter_mut().zip(values(column)?) {
            row.push(value);
        }
    }
    Ok(rows.into_iter().map(Value::Array).collect())
}

/// A time in microseconds since 1970 as RFC 3339.
pub fn rfc3339(micros: i64) -> Value {
    DateTime::from_timestamp_micros(micros)
        .map_or(Value::Null, |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into())
}

/// A column's values: numbers, truth values and nulls as such, times as RFC 3339, all else as text.
fn values(column: &dyn Array) -> Result<Vec<Value>, ArrowError> {
    macro_rules! numbers {
        ($kind:ty) => {
            column.as_primitive::<$kind>().iter().map(|value| value.map_or(Value::Null, Value::from)).collect()
        };
    }
    Ok(match column.data_type() {
        DataType::Boolean => column.as_boolean().iter().map(|value| value.map_or(Value::Null, Value::from)).collect(),
        DataType::Int8 => numbers!(Int8Type),
        DataType::Int16 => numbers!(Int16Type),
        DataType::Int32 => numbers!(Int32Type),
        DataType::Int64 => numbers!(Int64Type),
        DataType::UInt8 => numbers!(UInt8Type),
        DataType::UInt16 => numbers!(UInt16Type),
        DataType::UInt32 => numbers!(UInt32Type),
        DataType::UInt64 => numbers!(UInt64Type),
        DataType::Float32 => numbers!(Float32Type),
        DataType::Float64 => numbers!(Float64Type),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            let times = column.as_primitive::<TimestampMicrosecondType>();
            times.iter().map(|value| value.map_or(Value::Null, rfc3339)).collect()
        }
        _ => {
            let options = FormatOptions::default();
            let text = ArrayFormatter::try_new(column, &options)?;
            let value = |index| match column.is_null(index) {
                true => Ok(Value::Null),
                false => text.value(index).try_to_string().map(Value::from),
            };
            (0..column.len()).map(value).collect::<Result<_, _>>()?
        }
    })
}

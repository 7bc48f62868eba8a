//! Rows as JSON.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema, TimeUnit, TimestampMicrosecondType};
use arrow::datatypes::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Value};

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

/// A column's values: numbers, booleans, nulls and lists as such, structs as objects, timestamps as RFC 3339, others as
/// text.
fn values(column: &dyn Array) -> Result<Vec<Value>, ArrowError> {
    macro_rules! numbers {
        ($kind:ty) => {
            column.as_primitive::<$kind>().iter().map(|value| value.map_or(Value::Null, Value::from)).collect()
        };
    }
    Ok(match column.data_type() {
        DataType::Null => vec![Value::Null; column.len()],
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
        DataType::List(_) => lists(column.as_list::<i32>().iter())?,
        DataType::LargeList(_) => lists(column.as_list::<i64>().iter())?,
        DataType::FixedSizeList(..) => lists(column.as_fixed_size_list().iter())?,
        DataType::Struct(fields) => {
            let parts = column.as_struct();
            let mut objects = vec![Map::new(); column.len()];
            for (field, part) in fields.iter().zip(parts.columns()) {
                for (object, value) in objects.iter_mut().zip(values(part)?) {
                    object.insert(field.name().clone(), value);
                }
            }
            let whole = |(row, object)| if column.is_null(row) { Value::Null } else { Value::Object(object) };
            objects.into_iter().enumerate().map(whole).collect()
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

fn lists(lists: impl Iterator<Item = Option<ArrayRef>>) -> Result<Vec<Value>, ArrowError> {
    lists.map(|list| list.map_or(Ok(Value::Null), |list| values(&list).map(Value::Array))).collect()
}

/// The same rows with lists and structs as text, for formats without nested types.
pub fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns: Result<Vec<_>, ArrowError> = batch
        .columns()
        .iter()
        .map(|column| {
            if !column.data_type().is_nested() {
                return Ok(Arc::clone(column));
            }
            let text = |value: Value| match value {
                Value::Null => None,
                Value::String(text) => Some(text),
                value => Some(value.to_string()),
            };
            Ok(Arc::new(values(column)?.into_iter().map(text).collect::<StringArray>()) as ArrayRef)
        })
        .collect();
    let columns = columns?;
    let names = batch.schema_ref().fields().iter().zip(&columns);
    let fields: Vec<_> =
        names.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true)).collect();
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListArray, NullArray, StructArray};
    use arrow::datatypes::Int64Type;
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_values_are_json_values_and_text_in_flat_formats() {
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
        let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None]));
        let part = Arc::new(Field::new("n", DataType::Int64, true));
        let structure = StructArray::from(vec![(part, number)]);
        let columns: [(&str, ArrayRef); 3] =
            [("a", Arc::new(NullArray::new(2))), ("b", Arc::new(list)), ("c", Arc::new(structure))];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)));
        let batch = batch.expect("columns of equal length");
        let read = rows(&batch).expect("they are values");
        assert_eq!(json!(read), json!([[null, [1, null], {"n": 7}], [null, null, {"n": null}]]));
        let read = rows(&flat(&batch).expect("the values are texts")).expect("they are values");
        assert_eq!(json!(read), json!([[null, "[1,null]", "{\"n\":7}"], [null, null, "{\"n\":null}"]]));
    }
}

//! A batch's labels as SQL sees them: `labels['site']`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, MapBuilder, StringBuilder};
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::cast::as_string_array;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};

/// `label_map(text)`: the map that a JSON object of texts says; null for null.
pub fn label_map() -> ScalarUDF {
    let of = |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let texts = args[0].to_array(1)?;
        Ok(ColumnarValue::Array(maps(&texts)?))
    };
    create_udf("label_map", vec![DataType::Utf8], map_type(), Volatility::Immutable, Arc::new(of))
}

fn map_type() -> DataType {
    let fields = vec![Field::new("keys", DataType::Utf8, false), Field::new("values", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(Fields::from(fields)), false)), false)
}

fn maps(texts: &ArrayRef) -> Result<ArrayRef> {
    let texts = as_string_array(texts)?;
    let mut maps = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in 0..texts.len() {
        let text = texts.is_valid(row).then(|| texts.value(row));
        let labels: Option<BTreeMap<String, String>> = text.and_then(|text| serde_json::from_str(text).ok());
        for (name, value) in labels.iter().flatten() {
            maps.keys().append_value(name);
            maps.values().append_value(value);
        }
        maps.append(labels.is_some())?;
    }
    let maps: ArrayRef = Arc::new(maps.finish());
    debug_assert_eq!(maps.as_map().data_type(), &map_type());
    Ok(maps)
}

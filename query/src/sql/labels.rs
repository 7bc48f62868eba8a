//! A batch's labels in SQL: `labels['site']`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, MapBuilder, StringArray, StringBuilder};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields};
use datafusion::common::cast::as_string_array;
use datafusion::common::exec_err;
use datafusion::error::Result;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, create_udf,
};

/// `label_map(text)`: a JSON object of texts as a map; null for null.
pub fn label_map() -> ScalarUDF {
    let of = |args: &[ColumnarValue]| -> Result<ColumnarValue> {
        let texts = args[0].to_array(1)?;
        Ok(ColumnarValue::Array(maps(&texts)?))
    };
    create_udf("label_map", vec![DataType::Utf8], map_type(), Volatility::Immutable, Arc::new(of))
}

/// `label_value(labels, name)`, in PostgreSQL `labels ->> name`: of a map, or of the JSON text that PostgreSQL clients
/// see instead.
pub fn label_value() -> ScalarUDF {
    ScalarUDF::from(LabelValue { signature: Signature::any(2, Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct LabelValue {
    signature: Signature,
}

impl ScalarUDFImpl for LabelValue {
    fn name(&self) -> &str {
        "label_value"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [labels, ColumnarValue::Scalar(name)] = &args.args[..] else {
            return exec_err!("->> needs a literal label name, as in labels ->> 'site'");
        };
        let Some(name) = name.try_as_str().flatten() else {
            return exec_err!("a label name must be a text, as in labels ->> 'site'");
        };
        let labels = labels.to_array(args.number_rows)?;
        let maps = match labels.data_type() {
            DataType::Map(..) => Arc::clone(&labels),
            _ => maps(&cast(&labels, &DataType::Utf8)?)?,
        };
        let maps = maps.as_map();
        let values: StringArray = (0..maps.len())
            .map(|row| {
                let entries = maps.is_valid(row).then(|| maps.value(row))?;
                let (names, values) = (entries.column(0).as_string::<i32>(), entries.column(1).as_string::<i32>());
                (0..entries.len()).find(|&at| names.value(at) == name).map(|at| values.value(at).to_owned())
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(values)))
    }
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

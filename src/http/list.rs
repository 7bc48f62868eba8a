//! Lists: a page of rows as JSON, or as CSV on `Accept: text/csv`.

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::answers::answer::Answer;
use crate::http::problem::Problem;

/// The cursor of the next page of a list in CSV, which has no other place for it.
const NEXT_CURSOR: HeaderName = HeaderName::from_static("argus-next-cursor");

/// The columns of the codes of the fleet as CSV.
pub const CODE_COLUMNS: [&str; 9] =
    ["code", "group", "vin", "count", "inactive", "batches", "vehicles", "first_seen", "last_seen"];

/// The columns of the compared codes as CSV.
pub const COMPARED_COLUMNS: [&str; 18] = [
    "code",
    "change",
    "vehicles",
    "vehicles_total",
    "share",
    "count",
    "rate",
    "against.vehicles",
    "against.vehicles_total",
    "against.share",
    "against.count",
    "against.rate",
    "difference",
    "interval",
    "test",
    "p_value",
    "q_value",
    "warnings",
];

/// The content type of CSV.
const CSV: &str = "text/csv; charset=utf-8";

/// A page of rows.
pub struct List {
    /// The field that contains the rows.
    name: &'static str,
    /// The columns of the CSV.
    columns: &'static [&'static str],
    rows: Vec<Value>,
    next_cursor: Option<String>,
    /// Further fields of the JSON.
    fields: Map<String, Value>,
}

impl List {
    /// A page of rows, and the cursor of the next page if there is one.
    pub fn new<T: Serialize>(
        name: &'static str,
        columns: &'static [&'static str],
        rows: impl IntoIterator<Item = T>,
        next_cursor: Option<String>,
    ) -> Result<List, Problem> {
        let rows = rows.into_iter().map(serde_json::to_value).collect::<Result<_, _>>();
        let rows = rows.map_err(|error| Problem::internal(&error))?;
        Ok(List { name, columns, rows, next_cursor, fields: Map::new() })
    }

    /// Adds a field to the JSON.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> List {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The response in the format that the request accepts.
    pub fn respond(self, request: &HeaderMap) -> Result<Response, Problem> {
        if !accepts_csv(request) {
            let mut body = self.fields;
            body.insert(self.name.to_owned(), self.rows.into());
            body.insert("next_cursor".to_owned(), self.next_cursor.into());
            return Ok(([(header::VARY, "accept")], Json(body)).into_response());
        }
        let csv = csv(self.columns, &self.rows).map_err(|error| Problem::internal(&error))?;
        let mut response = ([(header::CONTENT_TYPE, CSV), (header::VARY, "accept")], csv).into_response();
        if let Some(cursor) = self.next_cursor.and_then(|cursor| HeaderValue::try_from(cursor).ok()) {
            response.headers_mut().insert(NEXT_CURSOR, cursor);
        }
        Ok(response)
    }
}

/// The rows of a cached answer as CSV.
pub fn csv_of(answer: &Answer, field: &str, columns: &[&str]) -> Result<Response, Problem> {
    let mut body: Value = serde_json::from_slice(answer.body()).map_err(|error| Problem::internal(&error))?;
    let rows = match body[field].take() {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    };
    let csv = csv(columns, &rows).map_err(|error| Problem::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, CSV), (header::VARY, "accept")], csv).into_response())
}

/// Whether a request prefers CSV.
pub fn accepts_csv(request: &HeaderMap) -> bool {
    let accepted = request.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepted.flat_map(|value| value.split(',')).filter_map(|one| one.split(';').next()).map(str::trim);
    types.any(|one| one.eq_ignore_ascii_case("text/csv"))
}

/// A field of a row; `a.b` is the field `b` of the object `a`.
pub fn field<'r>(row: &'r Value, name: &str) -> Option<&'r Value> {
    name.split('.').try_fold(row, |object, name| object.get(name))
}

/// Some [`field`]s of rows as CSV (RFC 4180), with a header. Lists and objects are JSON.
pub fn csv(columns: &[&str], rows: &[Value]) -> Result<String, csv::Error> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    writer.write_record(columns)?;
    for row in rows {
        writer.write_record(columns.iter().map(|column| match field(row, column) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }))?;
    }
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The limit of a list: from 1 to `max`.
pub fn limit_within(limit: Option<u32>, default: u32, max: u32) -> Result<u32, Problem> {
    match limit.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        limit => Err(Problem::invalid(format!("limit is {limit}, but must be from 1 to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_are_csv_with_a_header() {
        let rows = [
            json!({"name": "a,b", "count": 2, "labels": {"k": "v"}, "none": null}),
            json!({"name": "c\"d", "count": 3, "labels": {}, "none": 1}),
        ];
        let text = csv(&["name", "count", "labels", "none"], &rows).expect("writes");
        let expected = "name,count,labels,none\r\n\"a,b\",2,\"{\"\"k\"\":\"\"v\"\"}\",\r\n\"c\"\"d\",3,{},1\r\n";
        assert_eq!(text, expected);
        assert_eq!(csv(&["labels.k"], &rows).expect("writes"), "labels.k\r\nv\r\n\"\"\r\n");
        assert_eq!(csv(&["name"], &[]).expect("writes"), "name\r\n");
    }

    #[test]
    fn csv_is_sent_to_those_that_accept_it() {
        let request = |accept: &'static str| HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
        assert!(accepts_csv(&request("text/csv")) && accepts_csv(&request("application/xml, Text/CSV;q=0.5")));
        assert!(!accepts_csv(&request("*/*")) && !accepts_csv(&HeaderMap::new()));
    }
}

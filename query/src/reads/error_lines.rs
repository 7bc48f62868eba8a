//! The lines with codes, page by page, sorted by file and line.

use std::sync::Arc;

use argus_sinks::Snapshot;
use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::results::json::rfc3339;
use crate::tables::views::{literal, time_literal};

/// A request for a page of lines.
#[derive(Debug, Clone)]
pub struct ErrorsRequest {
    /// The batch.
    pub batch_id: Uuid,
    /// Only this code.
    pub code: Option<String>,
    /// Only this file.
    pub file: Option<String>,
    /// Only lines with this level.
    pub level: Option<String>,
    /// Only lines of this component.
    pub component: Option<String>,
    /// Only codes with this severity.
    pub severity: Option<String>,
    /// Only lines with a plausible time at or after this, in microseconds since 1970.
    pub since: Option<i64>,
    /// Only lines with a plausible time before this.
    pub until: Option<i64>,
    /// The maximum number of lines on the page.
    pub limit: usize,
    /// Where the previous page ended: file, line and code of its last line.
    pub after: Option<(String, u64, String)>,
}

/// A code in a line.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ErrorLine {
    /// The file's name.
    pub file: String,
    /// The line's number.
    pub line: u64,
    /// The offset of its first byte.
    pub offset: u64,
    /// The line's own timestamp, RFC 3339, or null.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub ts: Value,
    /// Whether the timestamp is plausible: from 2000 on, and at most a day after the upload. Null if there is none.
    pub ts_plausible: Option<bool>,
    /// The log level named in the line.
    pub level: Option<String>,
    /// The process, tag or logger named in the line.
    pub component: Option<String>,
    /// The code.
    pub code: String,
    /// Its severity: `critical`, `error`, `warning` or `info`.
    pub severity: String,
    /// The line, at most 1,024 bytes.
    pub text: String,
}

/// A page of lines.
#[derive(Debug, Clone)]
pub struct ErrorsPage {
    /// The lines.
    pub errors: Vec<ErrorLine>,
    /// Whether more lines follow.
    pub more: bool,
}

/// The number of files that were counted with other rules than `rules`, and of batches with such files.
pub async fn files_of_other_rules(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    rules: &str,
) -> Result<(u64, u64), QueryError> {
    let sql =
        format!("SELECT count(*), count(DISTINCT batch_id) FROM files WHERE rules IS DISTINCT FROM {}", literal(rules));
    let rows = engine.collect_large(snapshot, &sql).await?;
    let number = |column: usize| {
        rows.first().map_or(0, |rows| rows.column(column).as_primitive::<Int64Type>().value(0).max(0) as u64)
    };
    Ok((number(0), number(1)))
}

impl ErrorsPage {
    /// Reads a page.
    pub async fn read(
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        request: &ErrorsRequest,
    ) -> Result<ErrorsPage, QueryError> {
        let mut wanted = format!("batch_id = '{}'", request.batch_id);
        let equal = [
            ("code", &request.code),
            ("file", &request.file),
            ("level", &request.level),
            ("component", &request.component),
            ("severity", &request.severity),
        ];
        for (column, value) in equal {
            if let Some(value) = value {
                wanted += &format!(" AND {column} = {}", literal(value));
            }
        }
        for (comparison, time) in [(">=", request.since), ("<", request.until)] {
            if let Some(time) = time {
                wanted += &format!(" AND ts_plausible AND ts {comparison} {}", time_literal(time));
            }
        }
        if let Some((file, line, code)) = &request.after {
            let (file, code) = (literal(file), literal(code));
            wanted += &format!(
                " AND (file > {file} OR (file = {file} AND (line > {line} OR (line = {line} AND code > {code}))))"
            );
        }
        let sql = format!(
            "SELECT file, line, \"offset\", ts, level, component, code, text, ts_plausible, severity FROM errors WHERE {wanted} \
             ORDER BY file, line, code LIMIT {}",
            request.limit + 1
        );
        let mut errors = Vec::new();
        for batch in engine.collect(snapshot, &sql).await? {
            let text = |column: usize| batch.column(column).as_string::<i32>();
            let number = |column: usize| batch.column(column).as_primitive::<Int64Type>();
            let plausible = batch.column(8).as_boolean();
            let times = batch.column(3).as_primitive::<TimestampMicrosecondType>();
            let optional = |column: &StringArray, row| column.is_valid(row).then(|| column.value(row).to_owned());
            for row in 0..batch.num_rows() {
                errors.push(ErrorLine {
                    file: text(0).value(row).to_owned(),
                    line: number(1).value(row).max(0) as u64,
                    offset: number(2).value(row).max(0) as u64,
                    ts: if times.is_valid(row) { rfc3339(times.value(row)) } else { Value::Null },
                    ts_plausible: plausible.is_valid(row).then(|| plausible.value(row)),
                    level: optional(text(4), row),
                    component: optional(text(5), row),
                    code: text(6).value(row).to_owned(),
                    severity: text(9).value(row).to_owned(),
                    text: text(7).value(row).to_owned(),
                });
            }
        }
        let more = errors.len() > request.limit;
        errors.truncate(request.limit);
        Ok(ErrorsPage { errors, more })
    }
}

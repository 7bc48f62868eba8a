//! The lines with codes, page by page, sorted by file and line.

use std::sync::Arc;

use argus_sinks::Snapshot;
use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::batch_lines::{Times, is, lines_of_batch, numbers, text};
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
        let mut page = match lines_of_batch(engine, snapshot, request.batch_id).await? {
            Some(rows) => ErrorsPage::of_rows(&rows, request),
            None => ErrorsPage::queried(engine, snapshot, request).await?,
        };
        page.more = page.errors.len() > request.limit;
        page.errors.truncate(request.limit);
        Ok(page)
    }

    /// The lines that follow, from all rows of the batch; at most one line more than the page has.
    fn of_rows(rows: &[RecordBatch], request: &ErrorsRequest) -> ErrorsPage {
        let columns: Vec<Columns<'_>> = rows.iter().map(Columns::of).collect();
        let all =
            columns.iter().zip(rows).flat_map(|(columns, rows)| (0..rows.num_rows()).map(move |row| (columns, row)));
        let mut wanted: Vec<(&Columns<'_>, usize)> =
            all.filter(|(columns, row)| columns.is_wanted(*row, request)).collect();
        wanted.sort_unstable_by_key(|(columns, row)| columns.place(*row));
        let errors = wanted.into_iter().take(request.limit + 1).map(|(columns, row)| columns.line(row)).collect();
        ErrorsPage { errors, more: false }
    }

    /// The same by a query, at most one line more than the page has.
    async fn queried(
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
            "SELECT file, line, \"offset\", ts, ts_plausible, level, component, code, severity, text FROM errors WHERE {wanted} \
             ORDER BY file, line, code LIMIT {}",
            request.limit + 1
        );
        let mut errors = Vec::new();
        for rows in engine.collect(snapshot, &sql).await? {
            let columns = Columns::of(&rows);
            errors.extend((0..rows.num_rows()).map(|row| columns.line(row)));
        }
        Ok(ErrorsPage { errors, more: false })
    }
}

/// The columns of the table `errors` that a page shows.
struct Columns<'r> {
    file: &'r StringArray,
    line: &'r Int64Array,
    offset: &'r Int64Array,
    ts: &'r TimestampMicrosecondArray,
    ts_plausible: &'r BooleanArray,
    times: Times<'r>,
    level: &'r StringArray,
    component: &'r StringArray,
    code: &'r StringArray,
    severity: &'r StringArray,
    text: &'r StringArray,
}

impl<'r> Columns<'r> {
    fn of(rows: &'r RecordBatch) -> Columns<'r> {
        Columns {
            file: text(rows, "file"),
            line: numbers(rows, "line"),
            offset: numbers(rows, "offset"),
            ts: numbers(rows, "ts"),
            ts_plausible: rows["ts_plausible"].as_boolean(),
            times: Times::of(rows),
            level: text(rows, "level"),
            component: text(rows, "component"),
            code: text(rows, "code"),
            severity: text(rows, "severity"),
            text: text(rows, "text"),
        }
    }

    /// Where a line is in the order of pages.
    fn place(&self, row: usize) -> (&'r str, u64, &'r str) {
        (self.file.value(row), self.line.value(row).max(0) as u64, self.code.value(row))
    }

    fn line(&self, row: usize) -> ErrorLine {
        let optional = |column: &StringArray| column.is_valid(row).then(|| column.value(row).to_owned());
        ErrorLine {
            file: self.file.value(row).to_owned(),
            line: self.line.value(row).max(0) as u64,
            offset: self.offset.value(row).max(0) as u64,
            ts: if self.ts.is_valid(row) { rfc3339(self.ts.value(row)) } else { Value::Null },
            ts_plausible: self.ts_plausible.is_valid(row).then(|| self.ts_plausible.value(row)),
            level: optional(self.level),
            component: optional(self.component),
            code: self.code.value(row).to_owned(),
            severity: self.severity.value(row).to_owned(),
            text: self.text.value(row).to_owned(),
        }
    }

    /// The conditions of the query.
    fn is_wanted(&self, row: usize, request: &ErrorsRequest) -> bool {
        let is = |column, wanted: &Option<String>| is(column, row, wanted.as_deref());
        let is_in_time = || self.times.is_within(row, request.since, request.until);
        let follows =
            |(file, line, code): &(String, u64, String)| self.place(row) > (file.as_str(), *line, code.as_str());
        is(self.code, &request.code)
            && is(self.file, &request.file)
            && is(self.level, &request.level)
            && is(self.component, &request.component)
            && is(self.severity, &request.severity)
            && (request.since.is_none() && request.until.is_none() || is_in_time())
            && request.after.as_ref().is_none_or(follows)
    }
}

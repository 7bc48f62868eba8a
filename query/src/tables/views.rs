//! The tables that users see, as SQL over the differences.
//!
//! A generation of a file is live if its differences up to the epoch sum to more than zero. Counts and occurrences are
//! those of live generations. The generations are on the left of each join, because a hash join holds its left side in
//! memory and streams its right.

/// A table that users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Its name in SQL.
    pub name: &'static str,
    sql: &'static str,
}

/// Live generations; `{epoch}` is the last visible epoch.
const LIVE: &str = "SELECT batch_id, version, sum(last_line) AS last_line FROM lake.files \
                    WHERE epoch <= {epoch}{exists} GROUP BY batch_id, version HAVING sum(live) > 0";

/// Live batches.
const BATCHES: &str = "SELECT batch_id, vehicle_id, vin, platform, firmware, labels, \
                       CASE WHEN sum(completed) > 0 THEN 'completed' ELSE 'pending' END AS status, created_at, \
                       max(epoch) AS epoch FROM lake.batches WHERE epoch <= {epoch}{batch_exists} \
                       GROUP BY batch_id, vehicle_id, vin, platform, firmware, labels, created_at HAVING sum(live) > 0";

/// Labels in a view: as a map, and as JSON text.
pub(crate) const LABELS: &str = "label_map(b.labels) AS labels";
pub(crate) const LABELS_AS_TEXT: &str = "b.labels AS labels";

/// Live batches with the time range of their lines.
const RECORDED: &str = "SELECT b.batch_id, b.vehicle_id, b.vin, b.platform, b.firmware, label_map(b.labels) AS labels, \
                        b.status, b.created_at, coalesce(r.first_ts, b.created_at) AS recorded_first, \
                        coalesce(r.last_ts, b.created_at) AS recorded_last, b.epoch \
                        FROM ({batches}) b LEFT JOIN \
                        (SELECT batch_id, min(first_ts) AS first_ts, max(last_ts) AS last_ts FROM \
                         (SELECT batch_id, version, min(first_ts) AS first_ts, max(last_ts) AS last_ts FROM lake.files \
                          WHERE epoch <= {epoch}{exists} GROUP BY batch_id, version HAVING sum(live) > 0) \
                         GROUP BY batch_id) r ON b.batch_id = r.batch_id";

/// A past epoch does not show what was deleted since, even if its rows still exist.
const BATCH_EXISTS: &str = " AND batch_id NOT IN (SELECT batch_id FROM lake.batches WHERE live < 0)";
const FILE_EXISTS: &str = " AND file_id NOT IN (SELECT file_id FROM lake.files WHERE erased > 0)";

/// A cell is the sum over a vehicle's batches, so a vehicle of which anything was deleted is left out.
const VIN_EXISTS: &str = " AND vin NOT IN (SELECT vin FROM lake.batches \
                         WHERE batch_id IN (SELECT batch_id FROM lake.batches WHERE live < 0) \
                         OR batch_id IN (SELECT batch_id FROM lake.files WHERE erased > 0))";

/// All views.
pub const VIEWS: [View; 6] = [
    View { name: "batches", sql: RECORDED },
    View {
        name: "files",
        sql: "SELECT batch_id, file_id, name, max(generation) AS generation, sum(bytes) AS bytes, sum(lines) AS lines, \
              sum(long_lines) AS long_lines, sum(error_lines) AS error_lines, sum(errors) AS errors, \
              min(first_ts) AS first_ts, max(last_ts) AS last_ts, max(sha256) AS sha256, max(rules) AS rules, \
              max(uploaded_at) AS uploaded_at, max(failure) AS failure, max(\"binary\") AS \"binary\", \
              max(epoch) AS epoch FROM \
              (SELECT batch_id, file_id, name, max(generation) AS generation, sum(bytes) AS bytes, \
               sum(lines) AS lines, sum(long_lines) AS long_lines, sum(error_lines) AS error_lines, \
               sum(occurrences) AS errors, min(first_ts) AS first_ts, max(last_ts) AS last_ts, \
               last_value(sha256 ORDER BY epoch) AS sha256, last_value(rules ORDER BY epoch) AS rules, \
               max(uploaded_at) AS uploaded_at, max(failure) AS failure, \
               max(\"binary\") AS \"binary\", max(epoch) AS epoch \
               FROM lake.files WHERE epoch <= {epoch}{exists} \
               GROUP BY batch_id, file_id, version, name HAVING sum(live) > 0) \
              GROUP BY batch_id, file_id, name",
    },
    View {
        name: "error_counts",
        sql: "SELECT c.batch_id, c.file, c.code, c.severity, first_value(c.rule ORDER BY c.example_line) AS rule, \
              sum(c.count) AS count, sum(CASE WHEN c.active THEN 0 ELSE c.count END) AS inactive, \
              min(c.first_seen) AS first_seen, max(c.last_seen) AS last_seen, \
              min(c.example_line) AS example_line, \
              first_value(c.example_text ORDER BY c.example_line) AS example_text \
              FROM ({live}) f JOIN lake.error_counts c ON c.batch_id = f.batch_id AND c.version = f.version \
              WHERE c.epoch <= {epoch} GROUP BY c.batch_id, c.file, c.code, c.severity",
    },
    View {
        name: "errors",
        sql: "SELECT e.batch_id, e.file, e.line, e.\"offset\", e.ts, e.ts_plausible, e.level, e.component, e.code, e.rule, \
              e.severity, e.active, e.text \
              FROM ({live}) f JOIN lake.errors e ON e.batch_id = f.batch_id AND e.version = f.version \
              WHERE e.line <= f.last_line",
    },
    View {
        name: "fleet_codes",
        sql: "SELECT firmware, platform, vehicle_id, vin, code, count, inactive, batches, \
              first_seen, last_seen FROM lake.fleet WHERE epoch <= {epoch}{vin_exists} AND subject = 'code' \
              GROUP BY firmware, platform, vehicle_id, vin, code, count, inactive, batches, first_seen, last_seen \
              HAVING sum(live) > 0",
    },
    View {
        name: "vehicles",
        sql: "SELECT vin, last_value(vehicle_id ORDER BY recorded_first, batch_id) AS vehicle_id, \
              last_value(platform ORDER BY recorded_first, batch_id) AS platform, \
              last_value(firmware ORDER BY recorded_first, batch_id) AS firmware, count(*) AS batches, \
              min(recorded_first) AS first_seen, max(recorded_last) AS last_seen FROM ({recorded}) GROUP BY vin",
    },
];

/// What each table contains, for users.
pub const TABLE_COMMENTS: [(&str, &str); 7] = [
    ("batches", "one row per batch"),
    ("files", "one row per file, in its current generation"),
    ("error_counts", "one row per file, code and severity: counts, time range, and the first line with the code"),
    ("errors", "one row per line and code"),
    ("fleet_codes", "one row per code, vehicle, firmware and platform"),
    ("vehicles", "one row per vehicle, as described by its latest batch"),
    (
        "catalog",
        "descriptions of codes: yours, and built-in ones; a row without a code describes all codes that its rule finds",
    ),
];

/// What each column contains; columns with the same name contain the same in every table.
pub const COLUMN_COMMENTS: [(&str, &str); 49] = [
    ("active", "false if the line marks the code as not active, for example a cleared trouble code"),
    ("batch_id", "the batch; ids are ordered by creation time"),
    ("batches", "distinct batches, with the code or of the vehicle; add rows of one code only, not of different codes"),
    ("binary", "1 if the file contains bytes that are not text, else 0"),
    ("bytes", "size of the text in bytes, after decompression"),
    ("cause", "what causes the code"),
    ("code", "the error code"),
    ("component", "the process, tag or logger named in the line"),
    ("count", "occurrences: a code counts once per line"),
    ("created_at", "when the batch was created"),
    ("epoch", "the last epoch that changed the row"),
    ("error_lines", "lines with at least one code"),
    ("errors", "occurrences in the file"),
    ("example_line", "the number of the first line with the code"),
    ("example_text", "that line, at most 1,024 bytes"),
    ("failure", "why the file could not be counted, or null; a failed file has no codes"),
    ("file", "the file's name"),
    ("file_id", "the id of the file, the same in all its generations"),
    ("firmware", "the firmware that was rolled out"),
    ("first_seen", "the earliest plausible timestamp of a line with the code, or of the vehicle"),
    ("first_ts", "the first plausible timestamp of the file's lines, or null"),
    ("generation", "1 for the first upload, one more for each replacement with other content"),
    ("inactive", "occurrences that mark the code as not active"),
    ("labels", "the batch's labels; read one with labels['name']"),
    ("last_seen", "the latest plausible timestamp of a line with the code, or of the vehicle"),
    ("last_ts", "the last plausible timestamp of the file's lines, or null"),
    ("level", "the log level named in the line"),
    ("line", "the line's number, from 1"),
    ("lines", "lines of the file"),
    ("long_lines", "lines of which only the first MiB was searched"),
    ("meaning", "what the code means"),
    ("name", "the file's name"),
    ("offset", "the offset of the line's first byte"),
    ("platform", "the vehicle's hardware platform"),
    ("recorded_first", "the first plausible timestamp of the batch's lines, else its creation time"),
    ("recorded_last", "the last plausible timestamp of the batch's lines, else its creation time"),
    ("remedy", "how to resolve it"),
    ("rule", "the rule that finds the code"),
    ("rules", "the fingerprint of the rules that the file was counted with"),
    ("severity", "critical, error, warning or info: the worse of the rule's and the line's own level"),
    ("sha256", "SHA-256 of the file as it was sent, in hexadecimal"),
    ("source", "where the description comes from: user, rules, or a standard"),
    ("status", "completed, or pending while files can be added"),
    ("text", "the line, at most 1,024 bytes"),
    ("ts", "the line's own timestamp, or null"),
    ("ts_plausible", "false if ts is not plausible: before 2000, or more than a day after the upload"),
    ("uploaded_at", "when the current generation was uploaded"),
    ("vehicle_id", "the vehicle's id, chosen by its owner"),
    ("vin", "the vehicle identification number"),
];

fn filled(sql: &str, epoch: u64, is_past: bool) -> String {
    let (batch_exists, file_exists, vin_exists) =
        if is_past { (BATCH_EXISTS, FILE_EXISTS, VIN_EXISTS) } else { ("", "", "") };
    sql.replace("{exists}", &format!("{batch_exists}{file_exists}"))
        .replace("{vin_exists}", vin_exists)
        .replace("{batch_exists}", batch_exists)
        .replace("{epoch}", &epoch.to_string())
}

/// The SQL of live batches as of `epoch`: labels as text, and without the time range of their lines.
pub fn batches_sql(epoch: u64, is_past: bool) -> String {
    filled(BATCHES, epoch, is_past)
}

/// A text as an SQL string literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A time in microseconds since 1970 as an SQL literal.
pub fn time_literal(micros: i64) -> String {
    format!("arrow_cast({micros}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
}

impl View {
    /// The view of that name.
    pub fn named(name: &str) -> Option<View> {
        VIEWS.into_iter().find(|view| view.name == name)
    }

    /// The view's query as of `epoch`, which may be in the past.
    pub fn sql(&self, epoch: u64, is_past: bool) -> String {
        let sql = self.sql.replace("{recorded}", RECORDED).replace("{batches}", BATCHES).replace("{live}", LIVE);
        filled(&sql, epoch, is_past)
    }
}

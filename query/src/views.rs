//! The tables that users see, as SQL over the differences.
//!
//! A generation of a file is live when its differences up to the epoch sum to
//! more than nothing; counts and sightings are those of live generations. The
//! generations stand on the left of each join, for a hash join keeps its left
//! side in memory and streams its right.

/// A table that users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Its name in SQL.
    pub name: &'static str,
    sql: &'static str,
}

/// Live generations; `{epoch}` is the last epoch that is seen.
const LIVE: &str = "SELECT batch_id, version, sum(last_line) AS last_line FROM lake.files \
                    WHERE epoch <= {epoch}{there} GROUP BY batch_id, version HAVING sum(live) > 0";

/// Live batches.
const BATCHES: &str = "SELECT batch_id, vehicle_id, vin, platform, firmware, labels, \
                       CASE WHEN sum(completed) > 0 THEN 'completed' ELSE 'pending' END AS status, created_at, \
                       max(epoch) AS epoch FROM lake.batches WHERE epoch <= {epoch}{batch_there} \
                       GROUP BY batch_id, vehicle_id, vin, platform, firmware, labels, created_at HAVING sum(live) > 0";

/// Labels in a view: as a map, and as the text that says one.
pub(crate) const LABELS: &str = "label_map(b.labels) AS labels";
pub(crate) const LABELS_AS_TEXT: &str = "b.labels AS labels";

/// Those with the times of their lines.
const RECORDED: &str = "SELECT b.batch_id, b.vehicle_id, b.vin, b.platform, b.firmware, label_map(b.labels) AS labels, \
                        b.status, b.created_at, coalesce(r.first_ts, b.created_at) AS recorded_first, \
                        coalesce(r.last_ts, b.created_at) AS recorded_last, b.epoch \
                        FROM ({batches}) b LEFT JOIN \
                        (SELECT batch_id, min(first_ts) AS first_ts, max(last_ts) AS last_ts FROM \
                         (SELECT batch_id, version, min(first_ts) AS first_ts, max(last_ts) AS last_ts \
                          FROM lake.files WHERE epoch <= {epoch}{there} GROUP BY batch_id, version HAVING sum(live) > 0) \
                         GROUP BY batch_id) r ON b.batch_id = r.batch_id";

/// What was deleted by now has no past either, though its rows may still be there.
const BATCH_THERE: &str = " AND batch_id NOT IN (SELECT batch_id FROM lake.batches WHERE live < 0)";
const FILE_THERE: &str = " AND file_id NOT IN (SELECT file_id FROM lake.files WHERE erased > 0)";

/// Cells add a vehicle's batches, so nothing is told apart of those of which something was deleted.
const VIN_THERE: &str = " AND vin NOT IN (SELECT vin FROM lake.batches \
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
               sum(sightings) AS errors, min(first_ts) AS first_ts, max(last_ts) AS last_ts, \
               last_value(sha256 ORDER BY epoch) AS sha256, last_value(rules ORDER BY epoch) AS rules, \
               max(uploaded_at) AS uploaded_at, max(failure) AS failure, \
               max(\"binary\") AS \"binary\", max(epoch) AS epoch \
               FROM lake.files WHERE epoch <= {epoch}{there} \
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
              first_seen, last_seen FROM lake.fleet WHERE epoch <= {epoch}{vin_there} AND subject = 'code' \
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

/// What each table holds, for people.
pub const TABLE_COMMENTS: [(&str, &str); 7] = [
    ("batches", "a row for each batch"),
    ("files", "a row for each file, as its current generation is"),
    ("error_counts", "a row for each code and severity in each file: how often, when, and the first line that says it"),
    ("errors", "a row for each code in each line"),
    ("fleet_codes", "a row for each code of each vehicle, by its firmware and platform"),
    ("vehicles", "a row for each vehicle, as its latest batch describes it"),
    ("catalog", "what is known of codes; a row without a code is of all that its rule finds"),
];

/// What each column holds; columns of one name hold the same everywhere.
pub const COLUMN_COMMENTS: [(&str, &str); 48] = [
    ("active", "false where the line says that the code is not active, as a trouble code that was cleared"),
    ("batch_id", "the batch; ids are in order of their making"),
    (
        "batches",
        "different batches: with the code, of the vehicle; one code's rows add up, those of several codes do not",
    ),
    ("binary", "1 where the text holds bytes that are no text, else 0"),
    ("bytes", "bytes of text, after decompression"),
    ("cause", "what leads to it"),
    ("code", "the error code"),
    ("component", "the process, tag or logger that the line names"),
    ("count", "sightings: a code counts once for a line"),
    ("created_at", "when the batch was made"),
    ("epoch", "the last epoch that changed the row"),
    ("error_lines", "lines with at least one code"),
    ("errors", "sightings in the file"),
    ("example_line", "the number of the first line that says the code"),
    ("example_text", "that line, at most 1,024 bytes"),
    ("failure", "why the file could not be counted, or null: its lines have no codes"),
    ("file", "the file's name"),
    ("file_id", "the file, through all its generations"),
    ("firmware", "the firmware that was rolled out"),
    ("first_seen", "the earliest plausible time that a line with the code, or of the vehicle, names"),
    ("first_ts", "the first plausible time that the file's lines name, or null"),
    ("generation", "how often the file was uploaded"),
    ("inactive", "how many of the sightings say that the code is not active"),
    ("labels", "what else the batch is found by: labels['name']"),
    ("last_seen", "the latest plausible time that a line with the code, or of the vehicle, names"),
    ("last_ts", "the last plausible time that the file's lines name, or null"),
    ("level", "the level that the line names"),
    ("line", "the line's number, from 1"),
    ("lines", "lines of the file"),
    ("long_lines", "lines of which only the first MiB was searched"),
    ("meaning", "what the code says"),
    ("name", "the file's name"),
    ("offset", "the offset of the line's first byte"),
    ("platform", "the vehicle's hardware platform"),
    ("recorded_first", "the first plausible time that the batch's lines name, else when it was made"),
    ("recorded_last", "the last plausible time that the batch's lines name, else when it was made"),
    ("remedy", "what helps"),
    ("rule", "the rule that finds the code"),
    ("rules", "the fingerprint of the rules that the file was counted by"),
    ("severity", "critical, error, warning or info: the worse of the rule's and the line's own level"),
    ("sha256", "of the file as it was sent, in hexadecimal"),
    ("status", "completed, or pending while files may come"),
    ("text", "the line, at most 1,024 bytes"),
    ("ts", "the time that the line names, or null"),
    ("ts_plausible", "false where no clock can have said ts: before 2000, or more than a day after the upload"),
    ("uploaded_at", "when the current generation was uploaded"),
    ("vehicle_id", "the vehicle, by the name its owner gave it"),
    ("vin", "the vehicle identification number"),
];

fn filled(sql: &str, epoch: u64, is_past: bool) -> String {
    let (batch_there, file_there, vin_there) =
        if is_past { (BATCH_THERE, FILE_THERE, VIN_THERE) } else { ("", "", "") };
    sql.replace("{there}", &format!("{batch_there}{file_there}"))
        .replace("{vin_there}", vin_there)
        .replace("{batch_there}", batch_there)
        .replace("{epoch}", &epoch.to_string())
}

/// Live batches as their tables have them, as of `epoch`: labels as text, and without the times of their lines.
pub fn batches_sql(epoch: u64, is_past: bool) -> String {
    filled(BATCHES, epoch, is_past)
}

/// A text as an SQL literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl View {
    /// The view of that name.
    pub fn named(name: &str) -> Option<View> {
        VIEWS.into_iter().find(|view| view.name == name)
    }

    /// The query that it stands for, as of `epoch`, which may be past.
    pub fn sql(&self, epoch: u64, is_past: bool) -> String {
        let sql = self.sql.replace("{recorded}", RECORDED).replace("{batches}", BATCHES).replace("{live}", LIVE);
        filled(&sql, epoch, is_past)
    }
}

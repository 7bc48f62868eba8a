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
    /// What it holds, for people.
    pub about: &'static str,
    sql: &'static str,
}

/// Live generations; `{epoch}` is the last epoch that is seen.
const LIVE: &str = "SELECT batch_id, version, sum(last_line) AS last_line FROM lake.files WHERE epoch <= {epoch} \
                    GROUP BY batch_id, version HAVING sum(live) > 0";

/// Live batches.
const BATCHES: &str = "SELECT batch_id, vehicle_id, vin, platform, firmware, \
                       CASE WHEN sum(completed) > 0 THEN 'completed' ELSE 'pending' END AS status, created_at, \
                       max(epoch) AS epoch FROM lake.batches WHERE epoch <= {epoch} \
                       GROUP BY batch_id, vehicle_id, vin, platform, firmware, created_at HAVING sum(live) > 0";

/// All views.
pub const VIEWS: [View; 5] = [
    View { name: "batches", about: "a row for each batch", sql: BATCHES },
    View {
        name: "files",
        about: "a row for each file, as its current generation is",
        sql: "SELECT batch_id, file_id, name, max(generation) AS generation, sum(bytes) AS bytes, sum(lines) AS lines, \
              sum(long_lines) AS long_lines, sum(error_lines) AS error_lines, sum(errors) AS errors, \
              max(uploaded_at) AS uploaded_at, max(epoch) AS epoch FROM \
              (SELECT batch_id, file_id, name, max(generation) AS generation, sum(bytes) AS bytes, \
               sum(lines) AS lines, sum(long_lines) AS long_lines, sum(error_lines) AS error_lines, \
               sum(sightings) AS errors, max(uploaded_at) AS uploaded_at, max(epoch) AS epoch \
               FROM lake.files WHERE epoch <= {epoch} \
               GROUP BY batch_id, file_id, version, name HAVING sum(live) > 0) \
              GROUP BY batch_id, file_id, name",
    },
    View {
        name: "error_counts",
        about: "sightings of each code in each file",
        // Words of severity sort from bad to harmless.
        sql: "SELECT c.batch_id, c.file, c.code, first_value(c.rule ORDER BY c.example_line) AS rule, min(c.severity) AS severity, sum(c.count) AS count, \
              min(c.first_seen) AS first_seen, max(c.last_seen) AS last_seen, \
              min(c.example_line) AS example_line, \
              first_value(c.example_text ORDER BY c.example_line) AS example_text \
              FROM ({live}) f JOIN lake.error_counts c ON c.batch_id = f.batch_id AND c.version = f.version \
              WHERE c.epoch <= {epoch} GROUP BY c.batch_id, c.file, c.code",
    },
    View {
        name: "errors",
        about: "a row for each code in each line",
        sql: "SELECT e.batch_id, e.file, e.line, e.\"offset\", e.ts, e.level, e.component, e.code, e.rule, e.severity, e.text \
              FROM ({live}) f JOIN lake.errors e ON e.batch_id = f.batch_id AND e.version = f.version \
              WHERE e.line <= f.last_line",
    },
    View {
        name: "fleet_codes",
        about: "each code over the fleet, by firmware, platform, vehicle and component",
        sql: "SELECT firmware, platform, vehicle_id, vin, component, code, count, batches, 1 AS vehicles, \
              first_seen, last_seen FROM lake.fleet WHERE epoch <= {epoch} AND subject = 'component' \
              GROUP BY firmware, platform, vehicle_id, vin, component, code, count, batches, first_seen, last_seen \
              HAVING sum(live) > 0",
    },
];

/// The versions that are live at `epoch`, with their last lines, as SQL.
pub fn live(epoch: u64) -> String {
    LIVE.replace("{epoch}", &epoch.to_string())
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

    /// The query that it stands for, as of `epoch`.
    pub fn sql(&self, epoch: u64) -> String {
        self.sql.replace("{live}", LIVE).replace("{epoch}", &epoch.to_string())
    }
}

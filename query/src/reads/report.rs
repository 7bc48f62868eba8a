//! The report of a batch: the totals of its rows, and its codes compared with the fleet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use argus_dataflow::{FleetGroup, Recorded, Severity, is_other_code};
use argus_sinks::{FleetView, RecentBatch, Snapshot};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::findings::DiagnosisInShort;
use crate::results::json::rfc3339;

/// The status in the table `batches` of a batch that its owner has completed.
const COMPLETED: &str = "completed";

/// Metadata of a batch, which its files and counts do not contain.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BatchFacts {
    /// The batch; nil where files were read without one.
    #[serde(rename = "batch_id")]
    pub id: Uuid,
    /// The vehicle's id, chosen by its owner.
    #[serde(default)]
    pub vehicle_id: String,
    /// The vehicle identification number.
    #[serde(default)]
    pub vin: String,
    /// The vehicle's platform.
    #[serde(default)]
    pub platform: Option<String>,
    /// The firmware that was rolled out.
    #[serde(default)]
    pub firmware: Option<String>,
    /// When the batch was created, microseconds since 1970.
    #[serde(skip)]
    pub created_at: i64,
    /// The name of its status.
    pub status: String,
}

/// The codes of a batch, over all its files.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// The batch, if there is one.
    #[serde(flatten)]
    pub batch: Option<BatchFacts>,
    /// Whether the batch is gathered: no files will be added.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Files accepted.
    pub total_files: u64,
    /// Files counted.
    pub parsed_files: u64,
    /// Bytes of text.
    pub total_bytes: u64,
    /// Lines.
    pub total_lines: u64,
    /// Lines with at least one code.
    pub error_lines: u64,
    /// Occurrences.
    pub total_errors: u64,
    /// The first plausible timestamp of its lines; null if there is none.
    pub recorded_first: Option<DateTime<Utc>>,
    /// The last plausible timestamp of its lines.
    pub recorded_last: Option<DateTime<Utc>>,
    /// Sorted by count, highest first, then by code.
    pub codes: Vec<CodeReport>,
    /// Sorted by name.
    pub files: Vec<FileReport>,
    /// What stands out, once the report is final; `GET /batches/{id}/diagnosis` has the evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<DiagnosisInShort>,
}

/// One code of a report.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CodeReport {
    /// The code.
    pub code: String,
    /// The rule that found it.
    pub rule: String,
    /// The highest severity of any line with the code.
    pub severity: ReportSeverity,
    /// Occurrences.
    pub count: u64,
    /// Occurrences that mark the code as not active.
    #[serde(default)]
    pub inactive: u64,
    /// Files with the code.
    pub files: u64,
    /// The earliest plausible timestamp of a line with the code, RFC 3339; null if no line has one.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_seen: Value,
    /// The latest plausible timestamp of a line with the code.
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub last_seen: Value,
    /// Whether the code is active here and was not active in any batch of the vehicle that was recorded earlier.
    pub new_for_vehicle: bool,
    /// Occurrences per line here, divided by occurrences per line in the other batches of the platform.
    pub fleet_ratio: Option<f64>,
    /// The first line with the code, in the first file by name.
    pub example: Example,
}

/// The severity of a code. Ordered from harmless to critical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum ReportSeverity {
    Info,
    Warning,
    Error,
    Critical,
}

impl ReportSeverity {
    /// The name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            ReportSeverity::Info => "info",
            ReportSeverity::Warning => "warning",
            ReportSeverity::Error => "error",
            ReportSeverity::Critical => "critical",
        }
    }

    /// The severity of that name.
    pub fn named(name: &str) -> Option<ReportSeverity> {
        Severity::of(name).map(ReportSeverity::of)
    }

    fn of(severity: Severity) -> ReportSeverity {
        match severity {
            Severity::Critical => ReportSeverity::Critical,
            Severity::Error => ReportSeverity::Error,
            Severity::Warning => ReportSeverity::Warning,
            Severity::Info => ReportSeverity::Info,
        }
    }
}

/// A line with a code.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Example {
    /// The file's name.
    pub file: String,
    /// The line's number.
    pub line: u64,
    /// Its text, truncated.
    pub text: String,
}

/// One file of a report.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its generation.
    pub generation: u32,
    /// Bytes of text.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Lines of which only the beginning was searched.
    pub long_lines: u64,
    /// Occurrences.
    pub errors: u64,
    /// The first plausible timestamp of its lines; null if there is none.
    pub first_ts: Option<DateTime<Utc>>,
    /// The last plausible timestamp of its lines.
    pub last_ts: Option<DateTime<Utc>>,
    /// Occurrences by code.
    pub codes: BTreeMap<String, u64>,
    /// Whether the file contains bytes that are not text.
    #[serde(default, skip_serializing_if = "is_false")]
    pub binary: bool,
    /// Whether it has more distinct codes of a rule than are counted by name: the others are counted as `OTHER:` and
    /// the rule.
    #[serde(default, skip_serializing_if = "is_false")]
    pub codes_limited: bool,
    /// `failed` if the file could not be counted; it has no codes then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Why it could not be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    #[serde(skip)]
    error_lines: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The counts of a code in a file.
struct CountLine {
    file: String,
    code: String,
    rule: String,
    severity: ReportSeverity,
    count: u64,
    inactive: u64,
    first_seen: Option<i64>,
    last_seen: Option<i64>,
    example_line: u64,
    example_text: String,
}

/// How other batches compare with the codes of a report.
#[derive(Default)]
struct Fleet {
    known_for_vehicle: HashSet<String>,
    per_line: HashMap<String, f64>,
}

impl Report {
    /// The totals of a batch's files in the snapshot, without the fleet fields of its codes. Those change with other
    /// batches; [`Report::set_fleet`] sets them.
    pub async fn of_batch(engine: &Engine, snapshot: &Snapshot, id: Uuid) -> Result<Report, QueryError> {
        match snapshot.recent.batch(id) {
            Some(batch) => Ok(Report::of_files(batch)),
            None => Ok(Report::of_files(&engine.look_up(snapshot, id).await?)),
        }
    }

    /// Sets the batch and the fleet fields of its codes. The caller supplies `total_files` and `is_final`, because it
    /// knows which files are still in progress.
    pub fn set_fleet(&mut self, view: &FleetView, facts: BatchFacts, total_files: u64, is_final: bool) {
        let fleet = Fleet::from_view(view, &facts, self);
        self.apply(&fleet, facts, total_files, is_final);
    }

    fn apply(&mut self, fleet: &Fleet, facts: BatchFacts, total_files: u64, is_final: bool) {
        for code in &mut self.codes {
            // All active codes of a vehicle's first batch are new; without a vehicle no code is new.
            code.new_for_vehicle = code.count > code.inactive && !fleet.known_for_vehicle.contains(&code.code);
            code.fleet_ratio =
                fleet.per_line.get(&code.code).map(|others| code.count as f64 / self.total_lines as f64 / others);
        }
        self.batch = Some(facts);
        self.total_files = total_files.max(self.parsed_files);
        self.is_final = is_final;
    }

    /// The report of files without a vehicle, all of them counted.
    pub fn of_files(files: &RecentBatch) -> Report {
        Report::of_rows(file_reports(files), count_lines(files))
    }

    /// The number of lines of a batch, and of distinct codes in them.
    pub async fn totals(engine: &Engine, snapshot: &Snapshot, id: Uuid) -> Result<(u64, u64), QueryError> {
        let report = Report::of_batch(engine, snapshot, id).await?;
        Ok((report.total_lines, report.codes.len() as u64))
    }

    /// Keeps the first `top` codes.
    pub fn cut(&mut self, top: usize) {
        self.codes.truncate(top);
    }

    /// The report of a batch in a past snapshot. The batch's metadata come from that snapshot too. `None` if the batch
    /// did not exist then.
    pub async fn of_past_batch(
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        id: Uuid,
    ) -> Result<Option<Report>, QueryError> {
        let rows = engine
            .collect(snapshot, &format!("SELECT status, vin, platform, created_at, vehicle_id, firmware FROM batches WHERE batch_id = '{id}'"))
            .await?;
        let Some(row) = rows.iter().find(|rows| rows.num_rows() > 0) else { return Ok(None) };
        let platform = row.column(2).is_valid(0).then(|| text(row, 2, 0));
        let created_at = row.column(3).as_primitive::<TimestampMicrosecondType>().value(0);
        let (vin, status) = (text(row, 1, 0), text(row, 0, 0));
        let firmware = row.column(5).is_valid(0).then(|| text(row, 5, 0));
        let vehicle_id = text(row, 4, 0);
        let facts = BatchFacts { id, vehicle_id, vin, platform, firmware, created_at, status };
        let is_final = facts.status == COMPLETED;
        let mut report = Report::of_batch(engine, snapshot, id).await?;
        match &snapshot.fleet {
            Some(view) => report.set_fleet(view, facts, 0, is_final),
            None => report.apply(&Fleet::from_tables(engine, snapshot, id).await?, facts, 0, is_final),
        }
        Ok(Some(report))
    }

    /// The report of `files`, sorted by name, and their `counts`, sorted by file and code.
    fn of_rows(mut files: Vec<FileReport>, counts: Vec<CountLine>) -> Report {
        let by_name: HashMap<String, usize> =
            files.iter().enumerate().map(|(index, file)| (file.name.clone(), index)).collect();
        for count in &counts {
            if let Some(&index) = by_name.get(&count.file) {
                files[index].codes.insert(count.code.clone(), count.count);
                files[index].codes_limited |= is_other_code(&count.code);
            }
        }
        let total_lines = files.iter().map(|file| file.lines).sum();
        Report {
            batch: None,
            is_final: true,
            total_files: files.len() as u64,
            parsed_files: files.len() as u64,
            total_bytes: files.iter().map(|file| file.bytes).sum(),
            total_lines,
            error_lines: files.iter().map(|file| file.error_lines).sum(),
            total_errors: files.iter().map(|file| file.errors).sum(),
            recorded_first: files.iter().filter_map(|file| file.first_ts).min(),
            recorded_last: files.iter().filter_map(|file| file.last_ts).max(),
            codes: codes(counts),
            files,
            diagnosis: None,
        }
    }
}

/// Adds up the counts of all files by code. `counts` are sorted by file.
fn codes(counts: Vec<CountLine>) -> Vec<CodeReport> {
    let mut seen: BTreeMap<String, (CodeReport, Option<i64>, Option<i64>)> = BTreeMap::new();
    for line in counts {
        match seen.get_mut(&line.code) {
            Some((code, first, last)) => {
                code.count += line.count;
                code.inactive += line.inactive;
                code.files += 1;
                code.severity = code.severity.max(line.severity);
                *first = argus_dataflow::earliest(*first, line.first_seen);
                *last = (*last).max(line.last_seen);
            }
            None => {
                let code = CodeReport {
                    code: line.code.clone(),
                    rule: line.rule,
                    severity: line.severity,
                    count: line.count,
                    inactive: line.inactive,
                    files: 1,
                    first_seen: Value::Null,
                    last_seen: Value::Null,
                    new_for_vehicle: false,
                    fleet_ratio: None,
                    example: Example { file: line.file, line: line.example_line, text: line.example_text },
                };
                seen.insert(line.code, (code, line.first_seen, line.last_seen));
            }
        }
    }
    let mut codes: Vec<CodeReport> = seen
        .into_values()
        .map(|(mut code, first, last)| {
            code.first_seen = first.map_or(Value::Null, rfc3339);
            code.last_seen = last.map_or(Value::Null, rfc3339);
            code
        })
        .collect();
    // The sort is stable: codes with the same count stay sorted by name.
    codes.sort_by_key(|code| std::cmp::Reverse(code.count));
    codes
}

/// Files sorted by name; versions of a file are merged.
fn file_reports(batch: &RecentBatch) -> Vec<FileReport> {
    let mut files: BTreeMap<(&str, Uuid), FileReport> = BTreeMap::new();
    for row in batch.files().map(|file| &file.row) {
        let file = files.entry((&row.name, row.file_id)).or_insert_with(|| FileReport {
            name: row.name.clone(),
            generation: 0,
            bytes: 0,
            lines: 0,
            long_lines: 0,
            error_lines: 0,
            errors: 0,
            first_ts: None,
            last_ts: None,
            codes: BTreeMap::new(),
            binary: false,
            codes_limited: false,
            status: None,
            failure: None,
        });
        file.binary |= row.binary;
        if let Some(failure) = &row.failure {
            file.status = Some("failed".to_owned());
            file.failure = Some(failure.clone());
        }
        file.generation = file.generation.max(row.generation);
        file.bytes += row.bytes;
        file.lines += row.lines;
        file.long_lines += row.long_lines;
        file.error_lines += row.error_lines;
        file.errors += row.occurrences;
        let time = DateTime::from_timestamp_micros;
        file.first_ts = argus_dataflow::earliest(file.first_ts, row.first_ts.and_then(time));
        file.last_ts = file.last_ts.max(row.last_ts.and_then(time));
    }
    files.into_values().collect()
}

/// Counts by file and code; versions and components are merged.
fn count_lines(batch: &RecentBatch) -> Vec<CountLine> {
    let mut counts: BTreeMap<(&str, &str), CountLine> = BTreeMap::new();
    for count in batch.counts() {
        let row = &count.row;
        let line = counts.entry((&row.file, &row.code)).or_insert_with(|| CountLine {
            file: row.file.clone(),
            code: row.code.clone(),
            rule: row.rule.clone(),
            severity: ReportSeverity::of(row.severity),
            count: 0,
            inactive: 0,
            first_seen: None,
            last_seen: None,
            example_line: row.example_line,
            example_text: row.example_text.clone(),
        });
        line.count += count.count;
        line.inactive += if row.active { 0 } else { count.count };
        line.severity = line.severity.max(ReportSeverity::of(row.severity));
        line.first_seen = argus_dataflow::earliest(line.first_seen, row.first_seen);
        line.last_seen = line.last_seen.max(row.last_seen);
        if row.example_line < line.example_line {
            line.example_line = row.example_line;
            line.rule.clone_from(&row.rule);
            line.example_text.clone_from(&row.example_text);
        }
    }
    counts.into_values().collect()
}

impl Fleet {
    /// From the fleet totals in memory, at the snapshot's epoch.
    fn from_view(view: &FleetView, facts: &BatchFacts, report: &Report) -> Fleet {
        let mut fleet = Fleet::default();
        let vehicle = FleetGroup::Vehicle { vin: facts.vin.clone(), vehicle_id: String::new() };
        let recorded = report.recorded_first.map_or(facts.created_at, |first| first.timestamp_micros());
        let own = Recorded { at: recorded, batch_id: facts.id };
        for (group, code, totals) in view.from(vehicle) {
            match (group, code) {
                (FleetGroup::Vehicle { vin, .. }, _) if *vin != facts.vin => break,
                (FleetGroup::Vehicle { .. }, Some(code))
                    if totals.seen.first_batch.is_some_and(|first| first < own) =>
                {
                    fleet.known_for_vehicle.insert(code.to_owned());
                }
                (FleetGroup::Vehicle { .. }, _) => {}
                _ => break,
            }
        }
        if facts.platform.is_none() {
            return fleet;
        }
        let platform = FleetGroup::Platform(facts.platform.clone());
        let others = |code, own: u64| view.totals(&platform, code).map_or(0, |totals| totals.count.saturating_sub(own));
        let lines = others(None, report.total_lines);
        for code in &report.codes {
            let count = others(Some(&code.code), code.count);
            if count > 0 && lines > 0 {
                fleet.per_line.insert(code.code.clone(), count as f64 / lines as f64);
            }
        }
        fleet
    }

    /// Counted from the tables, for past snapshots: they have no fleet totals in memory.
    async fn from_tables(engine: &Engine, snapshot: &Arc<Snapshot>, id: Uuid) -> Result<Fleet, QueryError> {
        let known = format!(
            "SELECT DISTINCT c.code FROM error_counts c JOIN batches b ON c.batch_id = b.batch_id \
             JOIN batches this ON b.vin = this.vin WHERE this.batch_id = '{id}' AND c.count > c.inactive \
             AND (b.recorded_first < this.recorded_first \
                  OR (b.recorded_first = this.recorded_first AND b.batch_id < '{id}'))"
        );
        let rates = format!(
            "WITH others AS (SELECT b.batch_id FROM batches b JOIN batches this ON b.platform = this.platform \
                             WHERE this.batch_id = '{id}' AND b.batch_id <> '{id}') \
             SELECT c.code, sum(c.count) AS count, \
                    (SELECT sum(f.lines) FROM files f JOIN others o ON f.batch_id = o.batch_id) AS lines \
             FROM error_counts c JOIN others o ON c.batch_id = o.batch_id GROUP BY c.code"
        );
        let mut fleet = Fleet::default();
        for batch in engine.collect(snapshot, &known).await? {
            fleet.known_for_vehicle.extend((0..batch.num_rows()).map(|row| text(&batch, 0, row)));
        }
        for batch in engine.collect(snapshot, &rates).await? {
            for row in 0..batch.num_rows() {
                let rate = number(&batch, 1, row) as f64 / number(&batch, 2, row) as f64;
                fleet.per_line.insert(text(&batch, 0, row), rate);
            }
        }
        Ok(fleet)
    }
}

fn text(batch: &RecordBatch, column: usize, row: usize) -> String {
    batch.column(column).as_string::<i32>().value(row).to_owned()
}

fn number(batch: &RecordBatch, column: usize, row: usize) -> u64 {
    batch.column(column).as_primitive::<Int64Type>().value(row).max(0) as u64
}

//! Occurrences and batches over time.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use argus_sinks::Snapshot;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::batch_lines::{Times, is, lines_of_batch, text};
use crate::reads::filter::FleetFilter;
use crate::reads::fleet_codes::as_rfc3339;
use crate::tables::views::{literal, time_literal};

/// What is counted over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Occurrences, by the plausible times of their lines.
    Occurrences,
    /// Batches, by the first plausible time of their lines, else the time of their creation.
    Batches,
}

/// The dimension that the counts are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum TimelineGroup {
    Firmware,
    Platform,
    Vehicle,
    Component,
    Severity,
    Code,
}

/// Not the name of a dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dimension {0:?}; group by firmware, platform, vehicle, component, severity or code")]
pub struct UnknownGroup(String);

impl TimelineGroup {
    const ALL: [TimelineGroup; 6] = [
        TimelineGroup::Firmware,
        TimelineGroup::Platform,
        TimelineGroup::Vehicle,
        TimelineGroup::Component,
        TimelineGroup::Severity,
        TimelineGroup::Code,
    ];

    /// Whether it is a property of lines, which batches do not have.
    pub fn is_of_lines(self) -> bool {
        matches!(self, TimelineGroup::Component | TimelineGroup::Severity | TimelineGroup::Code)
    }
}

impl fmt::Display for TimelineGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TimelineGroup::Firmware => "firmware",
            TimelineGroup::Platform => "platform",
            TimelineGroup::Vehicle => "vehicle",
            TimelineGroup::Component => "component",
            TimelineGroup::Severity => "severity",
            TimelineGroup::Code => "code",
        })
    }
}

impl FromStr for TimelineGroup {
    type Err = UnknownGroup;

    fn from_str(word: &str) -> Result<TimelineGroup, UnknownGroup> {
        let found = TimelineGroup::ALL.into_iter().find(|group| group.to_string() == word);
        found.ok_or_else(|| UnknownGroup(word.to_owned()))
    }
}

/// A request for counts over time.
#[derive(Debug, Clone)]
pub struct TimelineRequest {
    /// What is counted.
    pub counted: Counted,
    /// Only this code.
    pub code: Option<String>,
    /// Only this batch.
    pub batch_id: Option<Uuid>,
    /// The dimension; without one, all are counted together.
    pub group_by: Option<TimelineGroup>,
    /// The length of a bucket in seconds.
    pub bucket_s: u64,
    /// Which batches and lines.
    pub filter: FleetFilter,
    /// The maximum number of buckets of groups.
    pub limit: usize,
}

/// The counts of a group in a bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Bucket {
    /// When the bucket begins; buckets are aligned to 1970.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    pub at: Option<i64>,
    /// The group's name; null if it has none, or without `group_by`.
    pub group: Option<String>,
    /// Occurrences, or batches.
    pub count: u64,
    /// Distinct batches.
    pub batches: u64,
    /// Distinct vehicles.
    pub vehicles: u64,
}

/// Counts over time, sorted by time and group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeline {
    /// The buckets that have any.
    pub buckets: Vec<Bucket>,
    /// Whether there are more.
    pub more: bool,
}

impl TimelineRequest {
    /// Counts.
    pub async fn read(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Timeline, QueryError> {
        let looked_up = match self.batch_to_look_up() {
            Some(id) => lines_of_batch(engine, snapshot, id).await?,
            None => None,
        };
        let mut buckets = match looked_up {
            Some(rows) => self.of_rows(&rows),
            None => self.queried(engine, snapshot).await?,
        };
        let more = buckets.len() > self.limit;
        buckets.truncate(self.limit);
        Ok(Timeline { buckets, more })
    }

    /// The batch, if all that is counted and grouped by are its lines.
    fn batch_to_look_up(&self) -> Option<Uuid> {
        let is_of_lines = self.counted == Counted::Occurrences && self.group_by.is_none_or(TimelineGroup::is_of_lines);
        self.batch_id.filter(|_| is_of_lines && self.filter.of_batches().is_empty())
    }

    /// Counts the rows of the table `errors` of one batch.
    fn of_rows(&self, rows: &[RecordBatch]) -> Vec<Bucket> {
        let bucket = i64::try_from(self.bucket_s).unwrap_or(i64::MAX).saturating_mul(1_000_000).max(1);
        // Lines without a group come last.
        let mut counts: BTreeMap<(i64, bool, &str), u64> = BTreeMap::new();
        for rows in rows {
            let times = Times::of(rows);
            let [code, component, severity] = ["code", "component", "severity"].map(|name| text(rows, name));
            let group = self.group_by.map(|group| text(rows, &group.to_string()));
            for row in 0..rows.num_rows() {
                let is_wanted = times.is_within(row, self.filter.since, self.filter.until)
                    && is(code, row, self.code.as_deref())
                    && is(component, row, self.filter.component.as_deref())
                    && is(severity, row, self.filter.severity.as_deref());
                let Some(ts) = times.plausible(row).filter(|_| is_wanted) else { continue };
                let name = group.filter(|group| group.is_valid(row)).map(|group| group.value(row));
                let key = (ts.div_euclid(bucket) * bucket, name.is_none(), name.unwrap_or_default());
                *counts.entry(key).or_default() += 1;
            }
        }
        let bucket = |((at, is_null, name), count): ((i64, bool, &str), u64)| Bucket {
            at: Some(at),
            group: (!is_null).then(|| name.to_owned()),
            count,
            batches: 1,
            vehicles: 1,
        };
        counts.into_iter().map(bucket).collect()
    }

    /// Counts by a query, at most one bucket more than the limit.
    async fn queried(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Vec<Bucket>, QueryError> {
        let mut buckets = Vec::new();
        for rows in engine.collect_large(snapshot, &self.sql()).await? {
            let times = rows.column(0).as_primitive::<TimestampMicrosecondType>();
            let groups = rows.column(1).as_string::<i32>();
            let number = |column: usize, row| rows.column(column).as_primitive::<Int64Type>().value(row).max(0) as u64;
            buckets.extend((0..rows.num_rows()).map(|row| Bucket {
                at: times.is_valid(row).then(|| times.value(row)),
                group: groups.is_valid(row).then(|| groups.value(row).to_owned()),
                count: number(2, row),
                batches: number(3, row),
                vehicles: number(4, row),
            }));
        }
        Ok(buckets)
    }

    fn sql(&self) -> String {
        let group = match self.group_by {
            None => "CAST(NULL AS VARCHAR)".to_owned(),
            Some(group) if group.is_of_lines() => format!("e.{group}"),
            Some(TimelineGroup::Vehicle) => "b.vehicle_id".to_owned(),
            Some(group) => format!("b.{group}"),
        };
        let of_batches = self.filter.of_batches();
        let of_batch = |column: &str| self.batch_id.map_or_else(String::new, |id| format!(" AND {column} = '{id}'"));
        let (time, batches, from) = match self.counted {
            Counted::Batches => {
                let mut times = String::new();
                for (comparison, time) in [(">=", self.filter.since), ("<", self.filter.until)] {
                    if let Some(time) = time {
                        times += &format!(" AND b.recorded_first {comparison} {}", time_literal(time));
                    }
                }
                let from = format!("batches b WHERE TRUE{of_batches}{}{times}", of_batch("b.batch_id"));
                ("b.recorded_first", "count(*)", from)
            }
            Counted::Occurrences => {
                let code = self.code.as_ref().map_or_else(String::new, |code| format!(" AND code = {}", literal(code)));
                let lines = format!(
                    "SELECT batch_id, ts, code, severity, component FROM errors WHERE {}{}{code}{}",
                    self.filter.of_times("ts"),
                    self.filter.of_lines(),
                    of_batch("batch_id"),
                );
                // Also of the batches: otherwise all are read to find one.
                let of_batch = of_batch("b.batch_id");
                let from =
                    format!("({lines}) e JOIN batches b ON b.batch_id = e.batch_id WHERE TRUE{of_batches}{of_batch}");
                ("e.ts", "count(DISTINCT e.batch_id)", from)
            }
        };
        format!(
            "SELECT date_bin(INTERVAL '{} seconds', {time}, {}) AS at, {group} AS grp, count(*) AS n, \
             {batches} AS batches, count(DISTINCT b.vin) AS vehicles FROM {from} \
             GROUP BY 1, 2 ORDER BY 1, 2 LIMIT {}",
            self.bucket_s,
            time_literal(0),
            self.limit + 1
        )
    }
}

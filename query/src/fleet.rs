//! Codes over the fleet, by one dimension.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use argus_dataflow::Group;
use argus_sinks::{FleetView, Snapshot};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::Engine;
use crate::query_error::QueryError;
use crate::views::batches_sql;

/// What batches, or lines, are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum GroupBy {
    Firmware,
    Platform,
    Vehicle,
    Component,
}

/// A word that names no dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing to group by: firmware, platform, vehicle or component")]
pub struct UnknownDimension(String);

impl FromStr for GroupBy {
    type Err = UnknownDimension;

    fn from_str(word: &str) -> Result<GroupBy, UnknownDimension> {
        let all = [GroupBy::Firmware, GroupBy::Platform, GroupBy::Vehicle, GroupBy::Component];
        all.into_iter().find(|by| by.to_string() == word).ok_or_else(|| UnknownDimension(word.to_owned()))
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupBy::Firmware => "firmware",
            GroupBy::Platform => "platform",
            GroupBy::Vehicle => "vehicle",
            GroupBy::Component => "component",
        })
    }
}

impl GroupBy {
    /// The first group of the dimension, in the order of groups.
    fn first(self) -> Group {
        match self {
            GroupBy::Firmware => Group::Firmware(None),
            GroupBy::Platform => Group::Platform(None),
            GroupBy::Vehicle => Group::Vehicle { vin: String::new(), vehicle_id: String::new() },
            GroupBy::Component => Group::Component(None),
        }
    }

    /// The name and the VIN of a group of this dimension.
    fn names(self, group: &Group) -> Option<(Option<&str>, Option<&str>)> {
        match (self, group) {
            (GroupBy::Firmware, Group::Firmware(name))
            | (GroupBy::Platform, Group::Platform(name))
            | (GroupBy::Component, Group::Component(name)) => Some((name.as_deref(), None)),
            (GroupBy::Vehicle, Group::Vehicle { vin, vehicle_id }) => Some((Some(vehicle_id), Some(vin))),
            _ => None,
        }
    }

    /// The columns of name and VIN, where `b` are batches and `e` sightings.
    fn columns(self) -> &'static str {
        match self {
            GroupBy::Firmware => "b.firmware AS group_name, '' AS group_vin",
            GroupBy::Platform => "b.platform AS group_name, '' AS group_vin",
            GroupBy::Vehicle => "b.vehicle_id AS group_name, b.vin AS group_vin",
            GroupBy::Component => "e.component AS group_name, '' AS group_vin",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct FleetRequest {
    /// The dimension.
    pub group_by: GroupBy,
    /// Only lines that name a plausible time from this on, microseconds since 1970.
    pub since: Option<i64>,
    /// Only lines that name a plausible time before this.
    pub until: Option<i64>,
    /// At most so many.
    pub limit: usize,
}

/// A code in a group. In order of count, highest first, then of code and group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub struct FleetCode {
    /// Sightings.
    #[schema(value_type = u64)]
    pub count: Reverse<u64>,
    /// The code.
    pub code: String,
    /// The group's name; null for what has none.
    pub group: Option<String>,
    /// How many of the sightings say that the code is not active.
    pub inactive: u64,
    /// Its vehicle identification number, of a vehicle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vin: Option<String>,
    /// Different batches with the code.
    pub batches: u64,
    /// Different vehicles with it.
    pub vehicles: u64,
    /// The earliest plausible time of a line with it, RFC 3339.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_seen: Option<i64>,
    /// The latest.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub last_seen: Option<i64>,
}

pub(crate) fn as_rfc3339<S: serde::Serializer>(time: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
    time.map(crate::rows::rfc3339).serialize(to)
}

impl FleetRequest {
    /// The most frequent codes of the groups, and whether there are more. Without a span of time, they are
    /// read off what is kept of the fleet; with one, the lines are counted that name a time in it.
    pub async fn read(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<(Vec<FleetCode>, bool), QueryError> {
        let mut codes = match &snapshot.fleet {
            Some(fleet) if self.since.is_none() && self.until.is_none() => self.read_kept(fleet),
            _ => self.count(engine, snapshot).await?,
        };
        let more = codes.len() > self.limit;
        codes.truncate(self.limit);
        Ok((codes, more))
    }

    /// How many sightings a span of time leaves out because their lines name no plausible time; `None` without a span.
    pub async fn without_time(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Option<u64>, QueryError> {
        if self.since.is_none() && self.until.is_none() {
            return Ok(None);
        }
        let sql = "SELECT count(*) FROM errors WHERE ts_plausible IS NOT TRUE";
        let rows = engine.collect_large(snapshot, sql).await?;
        let count = rows.first().map_or(0, |rows| rows.column(0).as_primitive::<Int64Type>().value(0));
        Ok(Some(count.max(0) as u64))
    }

    fn read_kept(&self, fleet: &FleetView) -> Vec<FleetCode> {
        // The best so far, the least of them on top.
        let mut best = BinaryHeap::new();
        for (group, code, totals) in fleet.from(self.group_by.first()) {
            let Some((name, vin)) = self.group_by.names(group) else { break };
            let Some(code) = code else { continue };
            best.push(FleetCode {
                count: Reverse(totals.count),
                code: code.to_owned(),
                group: name.map(str::to_owned),
                inactive: totals.inactive,
                vin: vin.map(str::to_owned),
                batches: totals.batches,
                vehicles: totals.vehicles,
                first_seen: totals.seen.first,
                last_seen: totals.seen.last,
            });
            if best.len() > self.limit + 1 {
                best.pop();
            }
        }
        best.into_sorted_vec()
    }

    /// Counts the lines with codes, one by one.
    async fn count(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Vec<FleetCode>, QueryError> {
        let time = |micros: i64| format!("arrow_cast({micros}, 'Timestamp(Microsecond, Some(\"UTC\"))')");
        let mut wanted = vec!["e.ts_plausible".to_owned()];
        wanted.extend(self.since.map(|since| format!("e.ts >= {}", time(since))));
        wanted.extend(self.until.map(|until| format!("e.ts < {}", time(until))));
        // In three steps, each of which spills where it must: different values of many groups at once would not.
        let sql = format!(
            "WITH by_batch AS (SELECT {columns}, e.code AS code, e.batch_id AS batch_id, b.vin AS vin, \
             count(*) AS n, sum(CASE WHEN e.active THEN 0 ELSE 1 END) AS inactive, min(e.ts) AS first_ts, max(e.ts) AS last_ts \
             FROM ({batches}) b JOIN errors e ON e.batch_id = b.batch_id WHERE {wanted} GROUP BY 1, 2, 3, 4, 5), \
             by_vehicle AS (SELECT group_name, group_vin, code, vin, sum(n) AS n, \
             sum(inactive) AS inactive, count(*) AS batches, min(first_ts) AS first_ts, max(last_ts) AS last_ts FROM by_batch GROUP BY 1, 2, 3, 4) \
             SELECT group_name, group_vin, code, sum(n) AS n, sum(batches), count(*), min(first_ts), max(last_ts), sum(inactive) \
             FROM by_vehicle GROUP BY 1, 2, 3 ORDER BY n DESC, code, group_name NULLS FIRST, group_vin LIMIT {limit}",
            columns = self.group_by.columns(),
            wanted = wanted.join(" AND "),
            batches = batches_sql(snapshot.epoch, snapshot.is_past),
            limit = self.limit + 1,
        );
        let mut codes = Vec::new();
        for rows in engine.collect_large(snapshot, &sql).await? {
            let text = |column: usize, row| {
                let texts = rows.column(column).as_string::<i32>();
                texts.is_valid(row).then(|| texts.value(row).to_owned())
            };
            let number = |column: usize, row| rows.column(column).as_primitive::<Int64Type>().value(row).max(0) as u64;
            let time = |column: usize, row| {
                let times = rows.column(column).as_primitive::<TimestampMicrosecondType>();
                times.is_valid(row).then(|| times.value(row))
            };
            codes.extend((0..rows.num_rows()).map(|row| FleetCode {
                count: Reverse(number(3, row)),
                code: text(2, row).unwrap_or_default(),
                group: text(0, row),
                inactive: number(8, row),
                vin: text(1, row).filter(|_| self.group_by == GroupBy::Vehicle),
                batches: number(4, row),
                vehicles: number(5, row),
                first_seen: time(6, row),
                last_seen: time(7, row),
            }));
        }
        Ok(codes)
    }
}

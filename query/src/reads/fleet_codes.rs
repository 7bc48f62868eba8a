//! Codes over the fleet, by one dimension.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use argus_dataflow::FleetGroup;
use argus_sinks::{FleetView, Snapshot};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Engine, with_timeout};
use crate::error::QueryError;
use crate::reads::filter::FleetFilter;
use crate::tables::views::batches_sql;

/// Lines with codes that are grouped by one query: about ten megabytes.
const OCCURRENCES_AT_ONCE: u64 = 100_000;

/// The dimension that batches or lines are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum GroupBy {
    Firmware,
    Platform,
    Vehicle,
    Component,
}

/// Not the name of a dimension.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown dimension {0:?}; group by firmware, platform, vehicle or component")]
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
    fn first(self) -> FleetGroup {
        match self {
            GroupBy::Firmware => FleetGroup::Firmware(None),
            GroupBy::Platform => FleetGroup::Platform(None),
            GroupBy::Vehicle => FleetGroup::Vehicle { vin: String::new(), vehicle_id: String::new() },
            GroupBy::Component => FleetGroup::Component(None),
        }
    }

    /// The name and the VIN of a group of this dimension.
    fn names(self, group: &FleetGroup) -> Option<(Option<&str>, Option<&str>)> {
        match (self, group) {
            (GroupBy::Firmware, FleetGroup::Firmware(name))
            | (GroupBy::Platform, FleetGroup::Platform(name))
            | (GroupBy::Component, FleetGroup::Component(name)) => Some((name.as_deref(), None)),
            (GroupBy::Vehicle, FleetGroup::Vehicle { vin, vehicle_id }) => Some((Some(vehicle_id), Some(vin))),
            _ => None,
        }
    }
}

/// A request for the codes of the fleet.
#[derive(Debug, Clone)]
pub struct FleetRequest {
    /// The dimension.
    pub group_by: GroupBy,
    /// Which batches and lines.
    pub filter: FleetFilter,
    /// The maximum number of codes.
    pub limit: usize,
}

/// A code in a group. Ordered by count, highest first, then by code and group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub struct FleetCode {
    /// Occurrences.
    #[schema(value_type = u64)]
    pub count: Reverse<u64>,
    /// The code.
    pub code: String,
    /// The group's name; null if it has none.
    pub group: Option<String>,
    /// Occurrences that mark the code as not active.
    pub inactive: u64,
    /// The vehicle identification number, if the group is a vehicle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vin: Option<String>,
    /// Distinct batches with the code.
    pub batches: u64,
    /// Distinct vehicles with the code.
    pub vehicles: u64,
    /// The earliest plausible timestamp of a line with the code, RFC 3339.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub first_seen: Option<i64>,
    /// The latest plausible timestamp of a line with the code.
    #[serde(serialize_with = "as_rfc3339")]
    #[schema(value_type = Option<chrono::DateTime<chrono::Utc>>)]
    pub last_seen: Option<i64>,
}

pub(crate) fn as_rfc3339<S: serde::Serializer>(time: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
    time.map(crate::results::json::rfc3339).serialize(to)
}

/// Codes of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetCodes {
    /// The most frequent first.
    pub codes: Vec<FleetCode>,
    /// Whether there are more.
    pub more: bool,
    /// For a time range: occurrences that are left out because their lines have no plausible timestamp.
    pub without_time: Option<u64>,
}

impl FleetRequest {
    /// The most frequent codes of the groups. Without a filter they come from the fleet totals in memory; with one, the
    /// lines that it selects are counted.
    pub async fn read(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<FleetCodes, QueryError> {
        let is_range = self.filter.has_times();
        let (mut codes, without_time) = match &snapshot.fleet {
            Some(fleet) if self.filter.is_all() => (self.read_totals(fleet), 0),
            _ => self.count(engine, snapshot).await?,
        };
        let more = codes.len() > self.limit;
        codes.truncate(self.limit);
        Ok(FleetCodes { codes, more, without_time: is_range.then_some(without_time) })
    }

    fn read_totals(&self, fleet: &FleetView) -> Vec<FleetCode> {
        // The highest counts so far; the lowest of them is at the top of the heap.
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

    /// Counts the lines with codes, some batches at a time, so that the memory does not grow with the number of lines.
    async fn count(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<(Vec<FleetCode>, u64), QueryError> {
        with_timeout(async {
            let mut counted: HashMap<CodeKey, CodeCounts> = HashMap::new();
            let mut without_time = 0;
            for some in parts_of(batches(engine, snapshot, &self.filter).await?) {
                without_time += self.count_some(engine, snapshot, &some, &mut counted).await?;
            }
            let mut codes: Vec<FleetCode> =
                counted.into_iter().map(|(key, counted)| counted.into_code(key, self.group_by)).collect();
            codes.sort();
            codes.truncate(self.limit + 1);
            Ok((codes, without_time))
        })
        .await
    }

    /// Adds the lines of batches with consecutive ids; returns how many have no plausible timestamp.
    async fn count_some(
        &self,
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        batches: &[CountedBatch],
        counted: &mut HashMap<CodeKey, CodeCounts>,
    ) -> Result<u64, QueryError> {
        let ([first, ..], [.., last]) = (batches, batches) else { return Ok(0) };
        let is_range = self.filter.has_times();
        let within = match is_range {
            true => format!(" AND (ts_plausible IS NOT TRUE OR ({}))", self.filter.of_times("ts")),
            false => String::new(),
        };
        // The ids of other batches may be between those of the selected ones.
        let selected = match self.filter.of_batches() {
            none if none.is_empty() => none,
            some => format!(" AND batch_id IN (SELECT b.batch_id FROM batches b WHERE TRUE{some})"),
        };
        let plausible = |column: &str| format!("CASE WHEN ts_plausible THEN {column} END");
        // With a time range, lines without a plausible timestamp form one row per batch.
        let timed = |column: &str| if is_range { plausible(column) } else { column.to_owned() };
        // Only grouping by component needs the column, and it multiplies the rows.
        let component = if self.group_by == GroupBy::Component { "component" } else { "CAST(NULL AS VARCHAR)" };
        let sql = format!(
            "SELECT batch_id, {code} AS code, {component} AS component, count(*) AS n, \
             sum(CASE WHEN active THEN 0 ELSE 1 END) AS inactive, min({ts}), max({ts}) FROM errors \
             WHERE batch_id >= '{}' AND batch_id <= '{}'{selected}{within}{} GROUP BY 1, 2, 3",
            first.id,
            last.id,
            self.filter.of_lines(),
            code = timed("code"),
            component = timed(component),
            ts = plausible("ts"),
        );
        let mut without_time = 0;
        let by_id: HashMap<&str, &CountedBatch> = batches.iter().map(|batch| (batch.id.as_str(), batch)).collect();
        for rows in engine.collect_large(snapshot, &sql).await? {
            let text = |column: usize, row| {
                let texts = rows.column(column).as_string::<i32>();
                texts.is_valid(row).then(|| texts.value(row))
            };
            let number = |column: usize, row| rows.column(column).as_primitive::<Int64Type>().value(row).max(0) as u64;
            let time = |column: usize, row| {
                let times = rows.column(column).as_primitive::<TimestampMicrosecondType>();
                times.is_valid(row).then(|| times.value(row))
            };
            for row in 0..rows.num_rows() {
                let Some(batch) = text(0, row).and_then(|id| by_id.get(id)) else { continue };
                let (name, vin) = match self.group_by {
                    GroupBy::Firmware => (batch.firmware.clone(), None),
                    GroupBy::Platform => (batch.platform.clone(), None),
                    GroupBy::Vehicle => (Some(batch.vehicle_id.clone()), Some(batch.vin.clone())),
                    GroupBy::Component => (text(2, row).map(str::to_owned), None),
                };
                let Some(code) = text(1, row) else {
                    without_time += number(3, row);
                    continue;
                };
                let key = CodeKey { name, vin, code: code.to_owned() };
                let counted = counted.entry(key).or_default();
                counted.count += number(3, row);
                counted.inactive += number(4, row);
                counted.batches += 1;
                counted.vehicles.insert(Arc::clone(&batch.vin_shared));
                counted.first = argus_dataflow::earliest(counted.first, time(5, row));
                counted.last = counted.last.max(time(6, row));
            }
        }
        Ok(without_time)
    }
}

/// A batch whose lines are counted.
struct CountedBatch {
    id: String,
    firmware: Option<String>,
    platform: Option<String>,
    vehicle_id: String,
    vin: String,
    /// The same, shared by the sets of vehicles.
    vin_shared: Arc<str>,
    /// Occurrences: each line counts once for each of its codes.
    occurrences: u64,
}

/// A code in a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CodeKey {
    name: Option<String>,
    vin: Option<String>,
    code: String,
}

/// The counts of a code in a group.
#[derive(Debug, Default)]
struct CodeCounts {
    count: u64,
    inactive: u64,
    batches: u64,
    vehicles: HashSet<Arc<str>>,
    first: Option<i64>,
    last: Option<i64>,
}

impl CodeCounts {
    fn into_code(self, key: CodeKey, group_by: GroupBy) -> FleetCode {
        FleetCode {
            count: Reverse(self.count),
            code: key.code,
            group: key.name,
            inactive: self.inactive,
            vin: key.vin.filter(|_| group_by == GroupBy::Vehicle),
            batches: self.batches,
            vehicles: self.vehicles.len() as u64,
            first_seen: self.first,
            last_seen: self.last,
        }
    }
}

/// The selected batches, sorted by id.
async fn batches(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    filter: &FleetFilter,
) -> Result<Vec<CountedBatch>, QueryError> {
    let sql = format!(
        "SELECT b.batch_id, b.firmware, b.platform, b.vehicle_id, b.vin, f.occurrences FROM ({}) b \
         JOIN (SELECT batch_id, sum(errors) AS occurrences FROM files GROUP BY batch_id) f ON f.batch_id = b.batch_id \
         WHERE TRUE{} ORDER BY b.batch_id",
        batches_sql(snapshot.epoch, snapshot.is_past),
        filter.of_batches(),
    );
    let mut batches = Vec::new();
    let mut vins: HashSet<Arc<str>> = HashSet::new();
    for rows in engine.collect_large(snapshot, &sql).await? {
        let text = |column: usize, row| {
            let texts = rows.column(column).as_string::<i32>();
            texts.is_valid(row).then(|| texts.value(row).to_owned())
        };
        let occurrences = rows.column(5).as_primitive::<Int64Type>();
        for row in 0..rows.num_rows() {
            let vin = text(4, row).unwrap_or_default();
            let vin_shared = match vins.get(vin.as_str()) {
                Some(known) => Arc::clone(known),
                None => {
                    let new: Arc<str> = vin.as_str().into();
                    vins.insert(Arc::clone(&new));
                    new
                }
            };
            batches.push(CountedBatch {
                id: text(0, row).unwrap_or_default(),
                firmware: text(1, row),
                platform: text(2, row),
                vehicle_id: text(3, row).unwrap_or_default(),
                vin,
                vin_shared,
                occurrences: occurrences.value(row).max(0) as u64,
            });
        }
    }
    Ok(batches)
}

/// Splits batches into parts whose lines can be grouped in memory.
fn parts_of(batches: Vec<CountedBatch>) -> Vec<Vec<CountedBatch>> {
    let mut parts: Vec<Vec<CountedBatch>> = Vec::new();
    let mut room = 0;
    for batch in batches.into_iter().filter(|batch| batch.occurrences > 0) {
        match parts.last_mut() {
            Some(part) if batch.occurrences <= room => {
                room -= batch.occurrences;
                part.push(batch);
            }
            _ => {
                room = OCCURRENCES_AT_ONCE.saturating_sub(batch.occurrences);
                parts.push(vec![batch]);
            }
        }
    }
    parts
}

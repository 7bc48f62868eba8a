//! Codes over the fleet, by one dimension.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use argus_dataflow::Group;
use argus_sinks::{FleetView, Snapshot};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::{Engine, in_time};
use crate::query_error::QueryError;
use crate::views::batches_sql;

/// Lines with codes that are grouped at once: some ten megabytes.
const OCCURRENCES_AT_ONCE: u64 = 100_000;

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

/// Codes of groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetCodes {
    /// The most frequent first.
    pub codes: Vec<FleetCode>,
    /// Whether there are more.
    pub more: bool,
    /// Of a span of time: how many occurrences it leaves out because their lines name no plausible time.
    pub without_time: Option<u64>,
}

impl FleetRequest {
    /// The most frequent codes of the groups. Without a span of time, they are
    /// read off what is kept of the fleet; with one, the lines are counted that name a time in it.
    pub async fn read(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<FleetCodes, QueryError> {
        let is_span = self.since.is_some() || self.until.is_some();
        let (mut codes, without_time) = match &snapshot.fleet {
            Some(fleet) if !is_span => (self.read_kept(fleet), 0),
            _ => self.count(engine, snapshot).await?,
        };
        let more = codes.len() > self.limit;
        codes.truncate(self.limit);
        Ok(FleetCodes { codes, more, without_time: is_span.then_some(without_time) })
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

    /// Counts the lines with codes, one by one: those of some batches after those of others, so that the memory that it
    /// takes does not grow with the lines.
    async fn count(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<(Vec<FleetCode>, u64), QueryError> {
        in_time(async {
            let mut counted: HashMap<Key, Counted> = HashMap::new();
            let mut without_time = 0;
            for some in parts_of(batches(engine, snapshot).await?) {
                without_time += self.count_some(engine, snapshot, &some, &mut counted).await?;
            }
            let mut codes: Vec<FleetCode> =
                counted.into_iter().map(|(key, counted)| counted.told(key, self.group_by)).collect();
            codes.sort();
            codes.truncate(self.limit + 1);
            Ok((codes, without_time))
        })
        .await
    }

    /// Adds the lines of batches whose ids follow each other; says how many name no plausible time.
    async fn count_some(
        &self,
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        batches: &[CountedBatch],
        counted: &mut HashMap<Key, Counted>,
    ) -> Result<u64, QueryError> {
        let ([first, ..], [.., last]) = (batches, batches) else { return Ok(0) };
        let time = |micros: i64| format!("arrow_cast({micros}, 'Timestamp(Microsecond, Some(\"UTC\"))')");
        let mut within = vec!["ts_plausible".to_owned()];
        within.extend(self.since.map(|since| format!("ts >= {}", time(since))));
        within.extend(self.until.map(|until| format!("ts < {}", time(until))));
        // Those without a time are one row of each batch.
        let timed = |column: &str| format!("CASE WHEN ts_plausible THEN {column} END");
        // Nobody asks by component but by that, and it tells many rows apart.
        let component = if self.group_by == GroupBy::Component { "component" } else { "CAST(NULL AS VARCHAR)" };
        let sql = format!(
            "SELECT batch_id, {code} AS code, {component} AS component, count(*) AS n, \
             sum(CASE WHEN active THEN 0 ELSE 1 END) AS inactive, min({ts}), max({ts}) FROM errors \
             WHERE batch_id >= '{}' AND batch_id <= '{}' AND (ts_plausible IS NOT TRUE OR ({})) GROUP BY 1, 2, 3",
            first.id,
            last.id,
            within.join(" AND "),
            code = timed("code"),
            component = timed(component),
            ts = timed("ts"),
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
                let key = Key { name, vin, code: code.to_owned() };
                let counted = counted.entry(key).or_default();
                counted.count += number(3, row);
                counted.inactive += number(4, row);
                counted.batches += 1;
                counted.vehicles.insert(Arc::clone(&batch.vin_shared));
                counted.first = [counted.first, time(5, row)].into_iter().flatten().min();
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
    /// The same, for sets of vehicles.
    vin_shared: Arc<str>,
    /// The lines with codes that it has, each as often as it has some.
    occurrences: u64,
}

/// A code in a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Option<String>,
    vin: Option<String>,
    code: String,
}

/// What was counted of it.
#[derive(Debug, Default)]
struct Counted {
    count: u64,
    inactive: u64,
    batches: u64,
    vehicles: HashSet<Arc<str>>,
    first: Option<i64>,
    last: Option<i64>,
}

impl Counted {
    fn told(self, key: Key, group_by: GroupBy) -> FleetCode {
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

/// All batches, in order of their ids.
async fn batches(engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Vec<CountedBatch>, QueryError> {
    let sql = format!(
        "SELECT b.batch_id, b.firmware, b.platform, b.vehicle_id, b.vin, f.occurrences FROM ({}) b \
         JOIN (SELECT batch_id, sum(errors) AS occurrences FROM files GROUP BY batch_id) f ON f.batch_id = b.batch_id \
         ORDER BY b.batch_id",
        batches_sql(snapshot.epoch, snapshot.is_past)
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

/// Batches in parts, each with so many lines that they can be grouped in memory.
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

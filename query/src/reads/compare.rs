//! Compares two firmwares: which codes more vehicles have with one than with the other.
//!
//! Occurrences cluster by vehicle, so the unit of every test is the vehicle. One test serves all codes of a comparison,
//! and each code names it:
//! - McNemar's, if enough vehicles were seen with both firmwares: each is compared with itself;
//! - Cochran, Mantel and Haenszel's within the platforms, if several platforms have both firmwares;
//! - Fisher's otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use argus_dataflow::FleetGroup;
use argus_sinks::{FleetView, Snapshot};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::filter::FleetFilter;
use crate::statistics::{TwoGroups, discovery, fisher, interval, mcnemar, stratified};
use crate::tables::views::{literal, time_literal};

/// So many vehicles seen with both firmwares are enough for McNemar's test, if they are also half of the vehicles of
/// the firmware with fewer.
const PAIRS_ENOUGH: u64 = 10;

/// With more codes of vehicles, only the totals of the firmwares are compared: reading so many takes about a second.
const CODES_OF_VEHICLES_MAX: u64 = 500_000;

/// A result with a p-value above this is not significant.
const SIGNIFICANT: f64 = 0.05;

/// Platforms disagree if differences that vary as much have at most this probability. Stricter than [`SIGNIFICANT`],
/// because every code is tested.
const DISAGREEMENT: f64 = 0.01;

/// A comparison to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparisonRequest {
    /// The firmware to examine.
    pub firmware: String,
    /// The baseline firmware.
    pub against: String,
    /// Whether to include occurrences that their lines report as inactive.
    pub inactive: bool,
    /// Which batches and lines; its firmware is not used.
    pub filter: FleetFilter,
}

/// The comparison of two firmwares.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Comparison {
    /// The firmware to compare.
    pub firmware: String,
    /// The baseline firmware.
    pub against: String,
    /// Vehicles with the firmware that sent lines.
    pub vehicles: u64,
    /// Vehicles with the baseline that sent lines.
    pub against_vehicles: u64,
    /// Vehicles that sent lines with both; null if they are not known.
    pub both_vehicles: Option<u64>,
    /// The exposure: batches per vehicle with the firmware.
    pub batches_per_vehicle: f64,
    /// Batches per vehicle with the baseline.
    pub against_batches_per_vehicle: f64,
    /// The vehicles of each hardware platform; empty if they are not known.
    pub platforms: Vec<PlatformVehicles>,
    /// `totals_only`: the fleet is too large to compare each vehicle with itself, or within platforms, so all vehicles of
    /// one firmware are compared with all of the other.
    #[schema(value_type = Vec<String>)]
    pub warnings: Vec<&'static str>,
    /// Sorted by p-value, lowest first, then by code.
    pub codes: Vec<ComparedCode>,
}

/// The vehicles of a hardware platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlatformVehicles {
    /// The platform; null for vehicles without one.
    pub platform: Option<String>,
    /// Vehicles with the firmware.
    pub vehicles: u64,
    /// Vehicles with the baseline.
    pub against_vehicles: u64,
}

/// A code with both firmwares.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ComparedCode {
    /// The code.
    pub code: String,
    /// Its rates with the firmware.
    #[serde(flatten)]
    pub with: CodeRates,
    /// Its rates with the baseline.
    pub against: CodeRates,
    /// `more`, `less` or `same`: the sign of `difference`.
    pub change: &'static str,
    /// The share of vehicles with the firmware less that with the baseline: among the vehicles seen with both
    /// (`mcnemar_exact`), within the platforms (`cochran_mantel_haenszel`), or among all.
    pub difference: f64,
    /// The 95 % confidence interval of the difference.
    pub interval: [f64; 2],
    /// The test that gives `p_value`: `fisher_exact_two_sided`, `mcnemar_exact`, `cochran_mantel_haenszel_exact` or
    /// `cochran_mantel_haenszel`.
    pub test: &'static str,
    /// The probability of a result at least as unlikely, in either direction, if the firmware makes no difference.
    pub p_value: f64,
    /// The false discovery rate: the share of the codes up to this one that is expected to be there by chance
    /// (Benjamini and Hochberg, 1995).
    pub q_value: f64,
    /// What to consider before relying on the result: `small_support` (too few vehicles have the code for any result to
    /// be significant), `platforms_disagree` (the difference is not the same on all platforms), `exposure` (counted by
    /// batches instead of vehicles, the difference has the other sign or none).
    #[schema(value_type = Vec<String>)]
    pub warnings: Vec<&'static str>,
    /// The code on each platform, if several have both firmwares.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<PlatformCode>,
}

/// How often a code occurs with one firmware.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct CodeRates {
    /// Occurrences.
    pub count: u64,
    /// Occurrences per vehicle with the firmware.
    pub rate: f64,
    /// Vehicles with the code.
    pub vehicles: u64,
    /// Vehicles with the firmware.
    pub vehicles_total: u64,
    /// The share of the vehicles with the firmware that have the code.
    pub share: f64,
    /// The share of the batches with the firmware that have the code, active or not.
    pub batch_share: f64,
}

/// A code on one hardware platform.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PlatformCode {
    /// The platform; null for vehicles without one.
    pub platform: Option<String>,
    /// Vehicles with the firmware and the code.
    pub vehicles: u64,
    /// Vehicles with the firmware.
    pub vehicles_total: u64,
    /// Vehicles with the baseline and the code.
    pub against_vehicles: u64,
    /// Vehicles with the baseline.
    pub against_vehicles_total: u64,
    /// Fisher's exact test on this platform alone.
    pub p_value: f64,
}

/// Why two firmwares cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// No selected vehicle has sent lines with this firmware.
    #[error("no vehicle has sent lines with firmware {0:?}{selected}", selected = if *.1 { " that the filters select" } else { "" })]
    UnknownFirmware(String, bool),
    /// The tables could not be read.
    #[error(transparent)]
    Query(#[from] QueryError),
}

impl ComparisonRequest {
    /// Whether it reads only the counts of the fleet, which change less often than the lines.
    pub fn is_of_fleet(&self) -> bool {
        FleetFilter { platform: None, ..self.filter.clone() }.is_all()
    }

    /// Compares. Fails if no vehicle has sent lines with one of the firmwares. If the fleet is too large for its vehicles to
    /// be read, the totals of the firmwares in memory are compared.
    pub async fn read(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Comparison, ComparisonError> {
        match &snapshot.fleet {
            Some(fleet) if self.filter.is_all() && self.codes_of_vehicles(fleet) > CODES_OF_VEHICLES_MAX => {
                self.compare_totals(fleet)
            }
            _ => self.read_vehicles(engine, snapshot).await,
        }
    }

    /// The number of codes of vehicles, each with its vehicle and firmware.
    fn codes_of_vehicles(&self, fleet: &FleetView) -> u64 {
        let of = |firmware: &String| {
            let group = FleetGroup::Firmware(Some(firmware.clone()));
            let own = fleet.from(group.clone()).take_while(move |(of, ..)| **of == group);
            own.map(|(_, _, totals)| totals.vehicles).sum::<u64>()
        };
        of(&self.firmware) + of(&self.against)
    }

    fn compare_totals(&self, fleet: &FleetView) -> Result<Comparison, ComparisonError> {
        let mut counted = Counted { is_of_totals: true, ..Counted::default() };
        for (side, firmware) in [&self.firmware, &self.against].into_iter().enumerate() {
            let group = FleetGroup::Firmware(Some(firmware.clone()));
            let only = |number: u64| if side == 0 { [number, 0] } else { [0, number] };
            for (_, code, totals) in fleet.from(group.clone()).take_while(|(of, ..)| **of == group) {
                let Some(code) = code else {
                    add(counted.platforms.entry(None).or_default(), only(totals.vehicles));
                    add(&mut counted.batches, only(totals.batches));
                    continue;
                };
                let (count, vehicles) = match self.inactive {
                    true => (totals.count, totals.vehicles),
                    false => (totals.count.saturating_sub(totals.inactive), totals.active_vehicles),
                };
                let found = counted.codes.entry(code.to_owned()).or_default();
                add(&mut found.count, only(count));
                add(&mut found.batches, only(totals.batches));
                add(found.platforms.entry(None).or_default(), only(vehicles));
            }
        }
        self.check(&counted)?;
        Ok(counted.compare(self))
    }

    /// Fails if no vehicle has sent lines with one of the firmwares.
    fn check(&self, counted: &Counted) -> Result<(), ComparisonError> {
        let all = counted.all();
        for (side, firmware) in [&self.firmware, &self.against].into_iter().enumerate() {
            if all[side] == 0 {
                return Err(ComparisonError::UnknownFirmware(firmware.clone(), !self.filter.is_all()));
            }
        }
        Ok(())
    }

    async fn read_vehicles(&self, engine: &Engine, snapshot: &Arc<Snapshot>) -> Result<Comparison, ComparisonError> {
        let mut counted = Counted::default();
        for rows in engine.collect_large(snapshot, &self.vehicles_sql(snapshot.epoch)).await? {
            (0..rows.num_rows()).for_each(|row| counted.add_vehicles(&rows, row));
        }
        self.check(&counted)?;
        for rows in engine.collect_large(snapshot, &self.codes_sql(snapshot.epoch)).await? {
            (0..rows.num_rows()).for_each(|row| counted.add_codes(&rows, row));
        }
        Ok(counted.compare(self))
    }

    /// Vehicles by platform and by the firmwares they were seen with.
    fn vehicles_sql(&self, epoch: u64) -> String {
        format!(
            "WITH vehicles AS ({}) SELECT platform, {one}, {other}, count(*), sum(one), sum(other) \
             FROM vehicles GROUP BY 1, 2, 3",
            self.vehicles(epoch),
            one = flag("one > 0"),
            other = flag("other > 0"),
        )
    }

    /// Vehicles with a code, by platform, by the firmwares they were seen with and by those with the code.
    fn codes_sql(&self, epoch: u64) -> String {
        format!(
            "WITH vehicles AS ({}), found AS (SELECT vin, code, {one_count} AS one_count, \
             {other_count} AS other_count, {one} AS one, {other} AS other FROM ({}) GROUP BY vin, code) \
             SELECT v.platform, f.code, {with_one}, {with_other}, {has_one}, {has_other}, count(*), \
             sum(f.one_count), sum(f.other_count), sum(f.one), sum(f.other) \
             FROM found f JOIN vehicles v ON v.vin = f.vin GROUP BY 1, 2, 3, 4, 5, 6",
            self.vehicles(epoch),
            self.codes(epoch),
            one_count = self.sum("n", true),
            other_count = self.sum("n", false),
            one = self.sum("batches", true),
            other = self.sum("batches", false),
            with_one = flag("v.one > 0"),
            with_other = flag("v.other > 0"),
            has_one = flag("f.one_count > 0"),
            has_other = flag("f.other_count > 0"),
        )
    }

    /// Each vehicle with the number of its batches with lines, with either firmware.
    fn vehicles(&self, epoch: u64) -> String {
        let lines = match self.is_of_fleet() {
            true => format!(
                "SELECT vin, platform, firmware, sum(live * batches) AS batches FROM {} AND subject = 'lines' \
                 GROUP BY vin, platform, firmware HAVING sum(live) > 0",
                self.cells(epoch)
            ),
            false => {
                format!(
                    "SELECT vin, platform, firmware, count(*) AS batches FROM ({}) GROUP BY 1, 2, 3",
                    self.batches()
                )
            }
        };
        format!(
            "SELECT vin, min(platform) AS platform, {} AS one, {} AS other FROM ({lines}) GROUP BY vin",
            self.sum("batches", true),
            self.sum("batches", false),
        )
    }

    /// The codes of each vehicle and firmware: occurrences `n`, and batches. They are sums, so differences of cells need not
    /// be added up before.
    fn codes(&self, epoch: u64) -> String {
        if self.is_of_fleet() {
            let count = if self.inactive { "count" } else { "(count - inactive)" };
            let cells = self.cells(epoch);
            return format!(
                "SELECT vin, firmware, code, live * {count} AS n, live * batches AS batches FROM {cells} AND subject = 'code'"
            );
        }
        let of_lines = self.filter.of_lines();
        // The counts of files are enough, unless lines are selected by what only they have.
        let occurrences = match self.filter.has_times() || self.filter.component.is_some() {
            true => {
                let one = if self.inactive { "1" } else { "CASE WHEN active THEN 1 ELSE 0 END" };
                let times = if self.filter.has_times() { self.filter.of_times("ts") } else { "TRUE".to_owned() };
                format!("SELECT batch_id, code, sum({one}) AS n FROM errors WHERE {times}{of_lines} GROUP BY 1, 2")
            }
            false => {
                let count = if self.inactive { "count" } else { "count - inactive" };
                format!("SELECT batch_id, code, sum({count}) AS n FROM error_counts WHERE TRUE{of_lines} GROUP BY 1, 2")
            }
        };
        format!(
            "SELECT b.vin, b.firmware, e.code, sum(e.n) AS n, count(*) AS batches FROM ({}) b \
             JOIN ({occurrences}) e ON e.batch_id = b.batch_id GROUP BY 1, 2, 3",
            self.batches()
        )
    }

    /// The differences of the maintained counts of the vehicles with the firmwares, with a condition.
    fn cells(&self, epoch: u64) -> String {
        let platform = self.filter.platform.as_deref();
        let platform = platform.map_or_else(String::new, |platform| format!(" AND platform = {}", literal(platform)));
        format!("lake.fleet WHERE epoch <= {epoch} AND {}{platform}", self.firmwares("firmware"))
    }

    /// The selected batches with lines. With a time range: those whose lines may be in it.
    fn batches(&self) -> String {
        let mut times = String::new();
        for (condition, time) in [("b.recorded_last >=", self.filter.since), ("b.recorded_first <", self.filter.until)]
        {
            if let Some(time) = time {
                times += &format!(" AND {condition} {}", time_literal(time));
            }
        }
        let filter = FleetFilter { firmware: None, ..self.filter.clone() };
        format!(
            "SELECT b.batch_id, b.vin, b.platform, b.firmware FROM batches b WHERE {}{}{times} \
             AND b.batch_id IN (SELECT batch_id FROM files WHERE lines > 0)",
            self.firmwares("b.firmware"),
            filter.of_batches(),
        )
    }

    fn firmwares(&self, column: &str) -> String {
        format!("{column} IN ({}, {})", literal(&self.firmware), literal(&self.against))
    }

    /// The sum of a column over rows with one of the firmwares.
    fn sum(&self, column: &str, is_with: bool) -> String {
        let firmware = if is_with { &self.firmware } else { &self.against };
        format!("sum(CASE WHEN firmware = {} THEN {column} ELSE 0 END)", literal(firmware))
    }
}

/// A condition as 1 or 0.
fn flag(condition: &str) -> String {
    format!("CAST(CASE WHEN {condition} THEN 1 ELSE 0 END AS BIGINT)")
}

/// The vehicles and codes of both firmwares; the first of two numbers is of the firmware, the second of the baseline.
#[derive(Debug, Default)]
struct Counted {
    platforms: BTreeMap<Option<String>, [u64; 2]>,
    both: u64,
    batches: [u64; 2],
    codes: BTreeMap<String, CountedCode>,
    /// Whether only the totals of the firmwares are known.
    is_of_totals: bool,
}

#[derive(Debug, Default)]
struct CountedCode {
    count: [u64; 2],
    batches: [u64; 2],
    platforms: BTreeMap<Option<String>, [u64; 2]>,
    /// Of the vehicles seen with both firmwares: those that have the code with one only.
    only: [u64; 2],
}

impl Counted {
    fn add_vehicles(&mut self, rows: &RecordBatch, row: usize) {
        let [one, other, vehicles, batches, other_batches] = numbers(rows, 1, row);
        add(self.platforms.entry(text(rows, 0, row)).or_default(), [one * vehicles, other * vehicles]);
        self.both += one * other * vehicles;
        add(&mut self.batches, [batches, other_batches]);
    }

    fn add_codes(&mut self, rows: &RecordBatch, row: usize) {
        let [one, other, has_one, has_other, vehicles, count, other_count, batches, other_batches] =
            numbers(rows, 2, row);
        let code = self.codes.entry(text(rows, 1, row).unwrap_or_default()).or_default();
        add(code.platforms.entry(text(rows, 0, row)).or_default(), [has_one * vehicles, has_other * vehicles]);
        if one == 1 && other == 1 && has_one != has_other {
            add(&mut code.only, [has_one * vehicles, has_other * vehicles]);
        }
        add(&mut code.count, [count, other_count]);
        add(&mut code.batches, [batches, other_batches]);
    }

    fn all(&self) -> [u64; 2] {
        let mut all = [0, 0];
        self.platforms.values().for_each(|platform| add(&mut all, *platform));
        all
    }

    fn compare(self, request: &ComparisonRequest) -> Comparison {
        let all = self.all();
        let shared: BTreeSet<&Option<String>> =
            self.platforms.iter().filter(|(_, all)| !all.contains(&0)).map(|(platform, _)| platform).collect();
        let design = match () {
            () if self.both >= PAIRS_ENOUGH && self.both * 2 >= all[0].min(all[1]) => Design::Paired,
            () if shared.len() > 1 => Design::Stratified,
            () => Design::Independent,
        };
        let is_several = shared.len() > 1;
        // Codes that are only inactive are not compared.
        let codes = self.codes.iter().filter(|(_, found)| found.count != [0, 0]);
        let mut codes: Vec<ComparedCode> =
            codes.map(|(code, found)| self.compare_code(code, found, all, design, is_several)).collect();
        codes.sort_by(|a, b| a.p_value.total_cmp(&b.p_value));
        let p_values: Vec<f64> = codes.iter().map(|code| code.p_value).collect();
        for (code, q_value) in codes.iter_mut().zip(discovery::q_values(&p_values)) {
            code.q_value = q_value;
        }
        let platforms = self.platforms.iter().map(|(platform, &[vehicles, against_vehicles])| PlatformVehicles {
            platform: platform.clone(),
            vehicles,
            against_vehicles,
        });
        Comparison {
            firmware: request.firmware.clone(),
            against: request.against.clone(),
            vehicles: all[0],
            against_vehicles: all[1],
            both_vehicles: (!self.is_of_totals).then_some(self.both),
            batches_per_vehicle: ratio(self.batches[0], all[0]),
            against_batches_per_vehicle: ratio(self.batches[1], all[1]),
            platforms: platforms.filter(|_| !self.is_of_totals).collect(),
            warnings: if self.is_of_totals { vec!["totals_only"] } else { Vec::new() },
            codes,
        }
    }

    fn compare_code(
        &self,
        code: &str,
        found: &CountedCode,
        all: [u64; 2],
        design: Design,
        is_several: bool,
    ) -> ComparedCode {
        let mut groups = TwoGroups { found: [0, 0], all };
        found.platforms.values().for_each(|platform| add(&mut groups.found, *platform));
        let strata: Vec<(&Option<String>, TwoGroups)> = self
            .platforms
            .iter()
            .map(|(platform, &all)| {
                let found = found.platforms.get(platform).copied().unwrap_or_default();
                (platform, TwoGroups { found, all })
            })
            .collect();
        let tables: Vec<TwoGroups> = strata.iter().map(|(_, groups)| *groups).collect();
        let [first, second] = found.only;
        let ((difference, interval), (p_value, test), smallest) = match design {
            Design::Paired => (
                interval::paired(first, second, self.both),
                (mcnemar::two_sided(first, second), mcnemar::NAME),
                mcnemar::two_sided(first + second, 0),
            ),
            Design::Stratified => {
                (interval::stratified(&tables), stratified::two_sided(&tables), stratified::smallest(&tables))
            }
            Design::Independent => {
                (interval::independent(groups), (fisher::two_sided(groups), fisher::NAME), fisher::smallest(groups))
            }
        };
        let rates = |side: usize| CodeRates {
            count: found.count[side],
            rate: ratio(found.count[side], all[side]),
            vehicles: groups.found[side],
            vehicles_total: all[side],
            share: ratio(groups.found[side], all[side]),
            batch_share: ratio(found.batches[side], self.batches[side]),
        };
        let (with, against) = (rates(0), rates(1));
        let mut warnings = Vec::new();
        if smallest > SIGNIFICANT {
            warnings.push("small_support");
        }
        if is_several && stratified::agreement(&tables) <= DISAGREEMENT {
            warnings.push("platforms_disagree");
        }
        if difference != 0.0 && difference * (with.batch_share - against.batch_share) <= 0.0 {
            warnings.push("exposure");
        }
        let change = match difference {
            more if more > 0.0 => "more",
            less if less < 0.0 => "less",
            _ => "same",
        };
        let platforms = strata.into_iter().filter(|_| is_several).map(|(platform, groups)| PlatformCode {
            platform: platform.clone(),
            vehicles: groups.found[0],
            vehicles_total: groups.all[0],
            against_vehicles: groups.found[1],
            against_vehicles_total: groups.all[1],
            p_value: fisher::two_sided(groups),
        });
        ComparedCode {
            code: code.to_owned(),
            with,
            against,
            change,
            difference,
            interval,
            test,
            p_value,
            q_value: 1.0,
            warnings,
            platforms: platforms.collect(),
        }
    }
}

/// How vehicles are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Design {
    /// Each with itself.
    Paired,
    /// Within their platforms.
    Stratified,
    /// All of one firmware with all of the other.
    Independent,
}

fn add(to: &mut [u64; 2], more: [u64; 2]) {
    to[0] += more[0];
    to[1] += more[1];
}

fn ratio(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { part as f64 / all as f64 }
}

fn text(rows: &RecordBatch, column: usize, row: usize) -> Option<String> {
    let texts = rows.column(column).as_string::<i32>();
    texts.is_valid(row).then(|| texts.value(row).to_owned())
}

/// The numbers in consecutive columns.
fn numbers<const N: usize>(rows: &RecordBatch, first: usize, row: usize) -> [u64; N] {
    std::array::from_fn(|index| rows.column(first + index).as_primitive::<Int64Type>().value(row).max(0) as u64)
}

#[cfg(test)]
mod tests {
    use argus_dataflow::{FleetRow, SeenRange, Totals};

    use super::*;

    /// The totals of a firmware: vehicles with each code, each with two occurrences, one of them inactive.
    fn rows(firmware: &str, vehicles: u64, codes: &[(&str, u64)]) -> Vec<FleetRow> {
        let totals = |vehicles: u64| Totals {
            count: 2 * vehicles,
            inactive: vehicles,
            batches: vehicles,
            vehicles,
            active_vehicles: vehicles,
            seen: SeenRange { first: None, last: None, first_batch: None },
        };
        let all = [(None, vehicles)].into_iter().chain(codes.iter().map(|(code, found)| (Some(*code), *found)));
        all.map(|(code, found)| FleetRow {
            group: FleetGroup::Firmware(Some(firmware.to_owned())),
            code: code.map(str::to_owned),
            totals: totals(found),
        })
        .collect()
    }

    #[test]
    fn the_totals_of_a_large_fleet_are_compared_by_fishers_test() {
        let mut view = FleetView::default();
        let rows =
            [rows("7.1.0", 200, &[("E_OLD", 50), ("E_BOTH", 20)]), rows("7.2.0", 100, &[("E_BOTH", 40)])].concat();
        view.apply(1, rows.iter().map(|row| (row, 1)));
        let request = ComparisonRequest {
            firmware: "7.2.0".to_owned(),
            against: "7.1.0".to_owned(),
            inactive: false,
            filter: FleetFilter::default(),
        };
        let compared = request.compare_totals(&view).expect("both firmwares are there");
        assert_eq!((compared.vehicles, compared.against_vehicles, compared.both_vehicles), (100, 200, None));
        assert_eq!((compared.platforms.len(), compared.warnings), (0, vec!["totals_only"]));
        let code = |name: &str| compared.codes.iter().find(|code| code.code == name).expect("it is compared").clone();
        let both = code("E_BOTH");
        assert_eq!((both.with.vehicles, both.against.vehicles, both.change, both.test), (40, 20, "more", fisher::NAME));
        assert_eq!((both.with.count, both.platforms.len()), (40, 0));
        assert_eq!((code("E_OLD").with.vehicles, code("E_OLD").change), (0, "less"));
        let unknown = ComparisonRequest { against: "9".to_owned(), ..request }.compare_totals(&view);
        assert!(matches!(unknown, Err(ComparisonError::UnknownFirmware(firmware, false)) if firmware == "9"));
    }
}

//! What stands out in a batch: its codes, compared with other vehicles, other firmwares and the vehicle's past.
//!
//! All comes from the batch's report and the counts of the fleet in memory. A code is a finding if at most one in a
//! hundred other vehicles has it ([`EvidenceKind::Rare`]), or if its firmware raises it ([`EvidenceKind::Firmware`]).
//! Other evidence explains a finding, but makes none.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use argus_dataflow::FleetGroup;
use argus_sinks::FleetView;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::reads::fleet_totals::{FirmwareTotals, FleetTotals};
use crate::reads::report::{BatchFacts, Example, Report, ReportSeverity};
use crate::statistics::{TwoGroups, binomial, discovery, fisher};

/// A code is rare if the share of vehicles with it, this one counted, is at most this.
const RARE: f64 = 0.01;

/// A firmware raises a code if the false discovery rate is at most this. A wrong result would be a finding of every vehicle
/// with the code.
const RAISED: f64 = 0.001;

/// A code is more frequent than in the vehicle's past if the p-value is at most this.
const MORE: f64 = 0.01;

/// Firmwares at an epoch whose raised codes are remembered.
const RAISED_MAX: u64 = 16;

/// Fewer other vehicles say nothing.
const VEHICLES_MIN: u64 = 20;

/// What was found in a batch.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Findings {
    /// Codes that stand out; those that say most first.
    pub findings: Vec<Finding>,
    /// The other codes: the most severe and frequent first.
    pub others: Vec<Finding>,
    /// The firmware that the batch's is compared with: the one that was recorded before it. Null if there is none.
    pub previous_firmware: Option<String>,
}

/// A diagnosis in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiagnosisInShort {
    /// In a sentence.
    pub summary: String,
    /// The codes that stand out, at most 10; those that say most first.
    pub codes: Vec<String>,
}

/// Codes that a diagnosis in short names.
const CODES_IN_SHORT: usize = 10;

impl Findings {
    /// What stands out, in a sentence.
    pub fn summary(&self) -> String {
        match self.findings.as_slice() {
            [] if self.others.is_empty() => "No active error code.".to_owned(),
            [] if self.others.iter().all(|code| code.bits.is_none()) => {
                "There are too few other vehicles with this firmware or platform to compare with.".to_owned()
            }
            [] => "No code stands out among those of other vehicles.".to_owned(),
            [first, ..] => {
                let reason = first.evidence.first().map_or("", |evidence| evidence.text.as_str());
                format!("{} stands out: {reason}.", first.code)
            }
        }
    }

    /// The diagnosis in short.
    pub fn in_short(&self) -> DiagnosisInShort {
        let codes = self.findings.iter().take(CODES_IN_SHORT).map(|finding| finding.code.clone()).collect();
        DiagnosisInShort { summary: self.summary(), codes }
    }
}

/// A code of a batch, and what is known about it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Finding {
    /// The code.
    pub code: String,
    /// Its severity.
    pub severity: ReportSeverity,
    /// Occurrences in the batch.
    pub count: u64,
    /// The information in bits: how unlikely the code is in this batch, by the evidence that makes it a finding. Null if
    /// nothing was tested.
    pub bits: Option<f64>,
    /// Why.
    pub evidence: Vec<Evidence>,
    /// The first line with the code.
    pub line: Example,
}

/// A comparison of a code.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Evidence {
    /// The kind.
    pub kind: EvidenceKind,
    /// What was found, in words.
    pub text: String,
    /// How many of what is compared have the code: vehicles; batches (`new`); lines of the batch (`past`); occurrences that are
    /// in one minute (`burst`); stretches of lines with the code that have the other code too (`together`).
    pub found: u64,
    /// All of them.
    pub of: u64,
    /// With the other firmware: vehicles with the code. In the vehicle's other batches: lines with it. Stretches with the
    /// other code only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_found: Option<u64>,
    /// With the other firmware: all vehicles. In the other batches: all lines. Stretches without the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_of: Option<u64>,
    /// The test; null if nothing is tested.
    pub test: Option<&'static str>,
    /// Its p-value.
    pub p_value: Option<f64>,
    /// The false discovery rate over all codes of both firmwares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q_value: Option<f64>,
}

/// A kind of comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EvidenceKind {
    /// With the other vehicles of the firmware and of the platform: the rank of this vehicle among them.
    Rare,
    /// With the firmware before: Fisher's exact test.
    Firmware,
    /// With the vehicle's earlier batches, by the times in the logs.
    New,
    /// Of its rate with that in the vehicle's other batches: the exact test of two rates. Occurrences of a fault are not independent,
    /// so it makes no finding.
    Past,
    /// Of its minutes: most occurrences are in one.
    Burst,
    /// Of the lines around it: another code comes with it.
    Together,
}

/// What stands out in a batch. Its report must have the fleet's fields; `raised` is of the same counts.
pub fn findings(report: &Report, facts: &BatchFacts, view: &FleetView, raised: Option<&Raised>) -> Findings {
    let vehicle = OfVehicle::new(view, facts);
    let (mut findings, mut others) = (Vec::new(), Vec::new());
    for code in report.codes.iter().filter(|code| code.count > code.inactive) {
        let rare = rare(view, facts, &code.code);
        let firmware = raised.and_then(|raised| raised.evidence(&code.code, facts));
        let is_finding = |evidence: &Evidence| match evidence.kind {
            EvidenceKind::Rare => evidence.p_value.is_some_and(|p_value| p_value <= RARE),
            _ => evidence.q_value.is_some_and(|q_value| q_value <= RAISED),
        };
        let tested: Vec<&Evidence> = rare.iter().chain(&firmware).collect();
        let least = |evidence: &Option<Evidence>| {
            evidence.as_ref().filter(|evidence| is_finding(evidence)).and_then(|evidence| evidence.p_value)
        };
        let (raises, is_rare) = (least(&firmware), least(&rare));
        let least = [raises, is_rare].into_iter().flatten().min_by(f64::total_cmp);
        let any = tested.iter().filter_map(|evidence| evidence.p_value).min_by(f64::total_cmp);
        let new = (code.new_for_vehicle && vehicle.batches > 1).then(|| new(vehicle.batches - 1));
        let past = vehicle.past(&code.code, code.count, report.total_lines);
        let finding = Finding {
            code: code.code.clone(),
            severity: code.severity,
            count: code.count,
            bits: least.or(any).map(|p_value| -p_value.max(f64::MIN_POSITIVE).log2()),
            // What makes it a finding comes first.
            evidence: match is_rare.is_some() && least == is_rare {
                true => [rare, firmware, new, past],
                false => [firmware, rare, new, past],
            }
            .into_iter()
            .flatten()
            .collect(),
            line: code.example.clone(),
        };
        if least.is_some() { findings.push(finding) } else { others.push(finding) }
    }
    let bits = |finding: &Finding| finding.bits.unwrap_or_default();
    findings.sort_by(|a: &Finding, b| bits(b).total_cmp(&bits(a)).then_with(|| b.severity.cmp(&a.severity)));
    others.sort_by_key(|finding: &Finding| Reverse((finding.severity, finding.count)));
    Findings { findings, others, previous_firmware: raised.map(|raised| raised.against.clone()) }
}

/// The counts of the vehicle in all its batches, this one too.
struct OfVehicle<'v> {
    batches: u64,
    lines: u64,
    counts: HashMap<&'v str, u64>,
}

impl<'v> OfVehicle<'v> {
    fn new(view: &'v FleetView, facts: &BatchFacts) -> OfVehicle<'v> {
        let first = FleetGroup::Vehicle { vin: facts.vin.clone(), vehicle_id: String::new() };
        let is_own = |group: &FleetGroup| matches!(group, FleetGroup::Vehicle { vin, .. } if *vin == facts.vin);
        let mut own = OfVehicle { batches: 0, lines: 0, counts: HashMap::new() };
        for (_, code, totals) in view.from(first).take_while(|(group, _, _)| is_own(group)) {
            match code {
                Some(code) => *own.counts.entry(code).or_default() += totals.count,
                None => {
                    own.batches += totals.batches;
                    own.lines += totals.count;
                }
            }
        }
        own
    }

    /// If the code, with `count` occurrences on `lines` lines of this batch, is less frequent in the others that have it.
    fn past(&self, code: &str, count: u64, lines: u64) -> Option<Evidence> {
        let (others, other_lines) = (self.counts.get(code)?.saturating_sub(count), self.lines.saturating_sub(lines));
        if others == 0 || u128::from(count) * u128::from(other_lines) <= u128::from(others) * u128::from(lines) {
            return None;
        }
        let share = lines as f64 / (lines + other_lines) as f64;
        let p_value = binomial::at_least(count, count + others, share);
        if p_value > MORE {
            return None;
        }
        let text = format!(
            "once in {} lines here, and once in {} in the vehicle's other batches",
            lines.div_ceil(count.max(1)),
            other_lines.div_ceil(others)
        );
        let evidence = Evidence::new(EvidenceKind::Past, text, [count, lines], binomial::RATES_NAME, p_value);
        Some(Evidence { against_found: Some(others), against_of: Some(other_lines), ..evidence })
    }
}

/// How many of the other vehicles have the code: those of the firmware, and those of the platform. The group that has it
/// more often counts: what is common there is no fault of this vehicle.
fn rare(view: &FleetView, facts: &BatchFacts, code: &str) -> Option<Evidence> {
    let groups = [
        ("with this firmware", facts.firmware.clone().map(|name| FleetGroup::Firmware(Some(name)))),
        ("of this platform", facts.platform.clone().map(|name| FleetGroup::Platform(Some(name)))),
    ];
    let compared = groups.into_iter().filter_map(|(which, group)| {
        let group = group?;
        let others = view.totals(&group, None)?.vehicles.checked_sub(1).filter(|others| *others >= VEHICLES_MIN)?;
        // This vehicle has the code.
        let found = view.totals(&group, Some(code))?.active_vehicles.saturating_sub(1);
        let p_value = (found + 1) as f64 / (others + 1) as f64;
        let text = format!("{found} of {others} other vehicles {which} have it");
        Some(Evidence::new(EvidenceKind::Rare, text, [found, others], "rank_among_vehicles", p_value))
    });
    compared.max_by(|a, b| a.p_value.partial_cmp(&b.p_value).unwrap_or(std::cmp::Ordering::Equal))
}

fn new(others: u64) -> Evidence {
    let batches = if others == 1 {
        "the vehicle's other batch".to_owned()
    } else {
        format!("the vehicle's {others} other batches")
    };
    let text = format!("new for the vehicle: among {batches}, no earlier one has it");
    Evidence { test: None, p_value: None, ..Evidence::new(EvidenceKind::New, text, [0, others], "", 1.0) }
}

impl Evidence {
    pub(crate) fn new(
        kind: EvidenceKind,
        text: String,
        [found, of]: [u64; 2],
        test: &'static str,
        p_value: f64,
    ) -> Evidence {
        let (test, p_value) = (Some(test), Some(p_value));
        Evidence { kind, text, found, of, against_found: None, against_of: None, test, p_value, q_value: None }
    }
}

/// The codes that firmwares raise, at the last epochs: all batches of a firmware share them. Clones share the cache.
#[derive(Clone)]
pub struct RaisedCodes(Cache<(u64, String), Arc<Option<Raised>>>);

impl RaisedCodes {
    /// An empty cache.
    pub fn new() -> RaisedCodes {
        RaisedCodes(Cache::new(RAISED_MAX))
    }

    /// Those of a batch's firmware at the epoch of the counts; `None` inside without a firmware to compare with.
    pub fn of(&self, epoch: u64, view: &FleetView, facts: &BatchFacts) -> Arc<Option<Raised>> {
        let Some(firmware) = &facts.firmware else { return Arc::default() };
        self.0.get_with((epoch, firmware.clone()), || Arc::new(Raised::by(view, firmware)))
    }
}

impl Default for RaisedCodes {
    fn default() -> Self {
        RaisedCodes::new()
    }
}

/// The codes of a firmware, compared with the firmware that was recorded before it.
pub struct Raised {
    against: String,
    all: [u64; 2],
    /// Sorted by code: vehicles with the code, p-value and q-value.
    codes: Vec<(String, [u64; 2], f64, f64)>,
}

impl Raised {
    /// `None` without another firmware before it, or with too few vehicles of one of them.
    fn by(view: &FleetView, firmware: &str) -> Option<Raised> {
        // The latest first.
        let mut firmwares = FleetTotals::of(view).firmwares.into_iter();
        let own = firmwares.find(|one| one.firmware == firmware)?;
        // A build that few vehicles tried is no baseline.
        let comparable = |one: &FirmwareTotals| one.vehicles >= VEHICLES_MIN && one.first_recorded < own.first_recorded;
        let before = firmwares.find(comparable)?;
        let all = [own.vehicles, before.vehicles];
        if all[0] < VEHICLES_MIN {
            return None;
        }
        let mut found: BTreeMap<String, [u64; 2]> = BTreeMap::new();
        for (side, name) in [firmware, &before.firmware].into_iter().enumerate() {
            let group = FleetGroup::Firmware(Some(name.to_owned()));
            for (of, code, totals) in view.from(group.clone()) {
                match code {
                    _ if *of != group => break,
                    Some(code) => found.entry(code.to_owned()).or_default()[side] = totals.active_vehicles,
                    None => {}
                }
            }
        }
        let mut codes: Vec<(String, [u64; 2], f64, f64)> = found
            .into_iter()
            .map(|(code, found)| (code, found, fisher::two_sided(TwoGroups { found, all }), 1.0))
            .collect();
        codes.sort_by(|a, b| a.2.total_cmp(&b.2));
        let p_values: Vec<f64> = codes.iter().map(|code| code.2).collect();
        for (code, q_value) in codes.iter_mut().zip(discovery::q_values(&p_values)) {
            code.3 = q_value;
        }
        codes.sort_by(|a, b| a.0.cmp(&b.0));
        Some(Raised { against: before.firmware, all, codes })
    }

    /// If more vehicles have the code with the batch's firmware than with the one before.
    fn evidence(&self, code: &str, facts: &BatchFacts) -> Option<Evidence> {
        let index = self.codes.binary_search_by(|known| known.0.as_str().cmp(code)).ok()?;
        let &(_, [with, before], p_value, q_value) = &self.codes[index];
        let [all, all_before] = self.all;
        if u128::from(with) * u128::from(all_before) <= u128::from(before) * u128::from(all) {
            return None;
        }
        let text = format!(
            "{with} of {all} vehicles with firmware {} have it, and {before} of {all_before} with {}",
            facts.firmware.as_deref().unwrap_or_default(),
            self.against
        );
        let evidence = Evidence::new(EvidenceKind::Firmware, text, [with, all], fisher::NAME, p_value);
        Some(Evidence { against_found: Some(before), against_of: Some(all_before), q_value: Some(q_value), ..evidence })
    }
}

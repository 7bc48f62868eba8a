//! Two firmwares side by side: which codes more vehicles have with one than with the other.
//!
//! Sightings of one vehicle come in heaps and say little of the others, so what
//! is tested is vehicles: of those with each firmware, how many have the code.

use argus_dataflow::{Group, Totals};
use argus_sinks::FleetView;
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};
use statrs::stats_tests::Alternative;
use statrs::stats_tests::fisher::fishers_exact;
use utoipa::ToSchema;

/// With so many vehicles expected everywhere, the normal distribution is near enough.
const EXPECTED_ENOUGH: f64 = 100.0;

/// Two firmwares, compared.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Comparison {
    /// The firmware that is looked at.
    pub firmware: String,
    /// The one that it is held against.
    pub against: String,
    /// Vehicles with the first that sent lines.
    pub vehicles: u64,
    /// Vehicles with the other.
    pub against_vehicles: u64,
    /// By p-value, least first, then by code.
    pub codes: Vec<ComparedCode>,
}

/// A code with both.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ComparedCode {
    /// The code.
    pub code: String,
    /// What the first says of it.
    #[serde(flatten)]
    pub with: CodeRates,
    /// What the other says of it.
    pub against: CodeRates,
    /// `more`, `less` or `same`: how the share of vehicles is with the first.
    pub change: &'static str,
    /// How likely a difference of shares at least as large is, either way, where
    /// the firmware makes none: Fisher's exact test, or among many vehicles the
    /// test of two proportions.
    pub p_value: f64,
}

/// How often a code is with one firmware.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct CodeRates {
    /// Sightings.
    pub count: u64,
    /// Sightings per vehicle with the firmware.
    pub rate: f64,
    /// Vehicles with the code.
    pub vehicles: u64,
    /// Their share of those with the firmware.
    pub share: f64,
}

impl Comparison {
    /// Compares; an error names a firmware that no vehicle has sent lines of.
    pub fn of(fleet: &FleetView, firmware: &str, against: &str) -> Result<Comparison, UnknownFirmware> {
        let (one, other) = (Side::of(fleet, firmware)?, Side::of(fleet, against)?);
        let mut codes: Vec<&str> = one.codes().chain(other.codes()).collect();
        codes.sort_unstable();
        codes.dedup();
        let mut codes: Vec<ComparedCode> = codes.into_iter().map(|code| compare(&one, &other, code)).collect();
        codes.sort_by(|a, b| a.p_value.total_cmp(&b.p_value));
        Ok(Comparison {
            firmware: firmware.to_owned(),
            against: against.to_owned(),
            vehicles: one.vehicles,
            against_vehicles: other.vehicles,
            codes,
        })
    }
}

/// No vehicle has sent lines of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no vehicle has sent lines with firmware {0:?}")]
pub struct UnknownFirmware(pub String);

/// What vehicles with a firmware say.
struct Side<'f> {
    vehicles: u64,
    codes: Vec<(&'f str, Totals)>,
}

impl<'f> Side<'f> {
    fn of(fleet: &'f FleetView, firmware: &str) -> Result<Side<'f>, UnknownFirmware> {
        let group = Group::Firmware(Some(firmware.to_owned()));
        let mut side = Side { vehicles: 0, codes: Vec::new() };
        for (found, code, totals) in fleet.from(group.clone()) {
            match code {
                _ if *found != group => break,
                Some(code) => side.codes.push((code, totals)),
                None => side.vehicles = totals.vehicles,
            }
        }
        if side.vehicles == 0 { Err(UnknownFirmware(firmware.to_owned())) } else { Ok(side) }
    }

    fn codes(&self) -> impl Iterator<Item = &'f str> {
        self.codes.iter().map(|(code, _)| *code)
    }

    fn rates(&self, code: &str) -> CodeRates {
        let place = self.codes.binary_search_by(|(known, _)| (*known).cmp(code));
        let (count, vehicles) = place.map_or((0, 0), |place| {
            let totals = self.codes[place].1;
            (totals.count, totals.vehicles)
        });
        let per = |number: u64| number as f64 / self.vehicles as f64;
        CodeRates { count, rate: per(count), vehicles, share: per(vehicles) }
    }
}

fn compare(one: &Side, other: &Side, code: &str) -> ComparedCode {
    let (with, against) = (one.rates(code), other.rates(code));
    let change = match with.share.total_cmp(&against.share) {
        std::cmp::Ordering::Greater => "more",
        std::cmp::Ordering::Less => "less",
        std::cmp::Ordering::Equal => "same",
    };
    let p_value = two_sided([with.vehicles, against.vehicles], [one.vehicles, other.vehicles]);
    ComparedCode { code: code.to_owned(), with, against, change, p_value }
}

/// The p-value of `found` out of `all` on both sides.
fn two_sided(found: [u64; 2], all: [u64; 2]) -> f64 {
    let rest = [all[0] - found[0].min(all[0]), all[1] - found[1].min(all[1])];
    let total = (all[0] + all[1]) as f64;
    let pooled = (found[0] + found[1]) as f64 / total;
    let least = all[0].min(all[1]) as f64 * pooled.min(1.0 - pooled);
    let by_proportions = || {
        let error = (pooled * (1.0 - pooled) * (1.0 / all[0] as f64 + 1.0 / all[1] as f64)).sqrt();
        let difference = found[0] as f64 / all[0] as f64 - found[1] as f64 / all[1] as f64;
        2.0 * Normal::standard().sf((difference / error).abs())
    };
    if least >= EXPECTED_ENOUGH {
        return by_proportions().clamp(0.0, 1.0);
    }
    match fishers_exact(&[found[0], found[1], rest[0], rest[1]], Alternative::TwoSided) {
        Ok(p_value) => p_value.clamp(0.0, 1.0),
        // A table with an empty side says nothing.
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_other_programs() {
        // R: fisher.test(matrix(c(8, 2, 1, 5), 2))$p.value, and of other tables.
        let near = |found, all, expected: f64| {
            let p_value = two_sided(found, all);
            assert!((p_value - expected).abs() < 1e-6 * expected.max(1e-3), "{found:?} of {all:?}: {p_value}");
        };
        near([8, 1], [10, 6], 0.034_965_034_965);
        near([0, 0], [10, 10], 1.0);
        near([10, 10], [10, 10], 1.0);
        near([3, 0], [3, 3], 0.1);
        // R: prop.test(c(300, 200), c(1000, 1000), correct = FALSE)$p.value
        near([300, 200], [1000, 1000], 2.417_000e-7);
    }
}

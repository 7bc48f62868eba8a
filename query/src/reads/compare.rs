//! Compares two firmwares: which codes more vehicles have with one than with the other.
//!
//! Occurrences cluster by vehicle, so the test counts vehicles: how many of those with each firmware
//! have the code.

use argus_dataflow::{FleetGroup, Totals};
use argus_sinks::FleetView;
use serde::Serialize;
use utoipa::ToSchema;

use crate::reads::fisher;

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
    /// Sorted by p-value, lowest first, then by code.
    pub codes: Vec<ComparedCode>,
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
    /// `more`, `less` or `same`: the share of vehicles with the firmware, compared with the baseline.
    pub change: &'static str,
    /// The test that gives `p_value`.
    pub test: &'static str,
    /// The probability of a result at least as unlikely, in either direction, if the firmware makes no difference.
    pub p_value: f64,
    /// The false discovery rate: the share of the codes up to this one that is expected to be there by chance
    /// (Benjamini and Hochberg, 1995).
    pub q_value: f64,
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
    /// Their share of those with the firmware.
    pub share: f64,
}

impl Comparison {
    /// Compares two firmwares. Fails if no vehicle has sent lines with one of them. Occurrences that are not active
    /// are left out unless `inactive` is set.
    pub fn of(fleet: &FleetView, firmware: &str, against: &str, inactive: bool) -> Result<Comparison, UnknownFirmware> {
        let (one, other) = (Side::of(fleet, firmware, inactive)?, Side::of(fleet, against, inactive)?);
        let mut codes: Vec<&str> = one.codes().chain(other.codes()).collect();
        codes.sort_unstable();
        codes.dedup();
        let mut codes: Vec<ComparedCode> = codes.into_iter().map(|code| compare(&one, &other, code)).collect();
        codes.sort_by(|a, b| a.p_value.total_cmp(&b.p_value));
        let (mut least, all) = (1.0_f64, codes.len() as f64);
        for (index, code) in codes.iter_mut().enumerate().rev() {
            least = least.min(code.p_value * all / (index + 1) as f64);
            code.q_value = least;
        }
        Ok(Comparison {
            firmware: firmware.to_owned(),
            against: against.to_owned(),
            vehicles: one.vehicles,
            against_vehicles: other.vehicles,
            codes,
        })
    }
}

/// No vehicle has sent lines with this firmware.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no vehicle has sent lines with firmware {0:?}")]
pub struct UnknownFirmware(pub String);

/// The codes of the vehicles with a firmware.
struct Side<'f> {
    vehicles: u64,
    codes: Vec<(&'f str, Totals)>,
}

impl<'f> Side<'f> {
    fn of(fleet: &'f FleetView, firmware: &str, inactive: bool) -> Result<Side<'f>, UnknownFirmware> {
        let group = FleetGroup::Firmware(Some(firmware.to_owned()));
        let mut side = Side { vehicles: 0, codes: Vec::new() };
        for (found, code, totals) in fleet.from(group.clone()) {
            match code {
                _ if *found != group => break,
                Some(code) if inactive => side.codes.push((code, totals)),
                Some(code) => {
                    let (count, vehicles) = (totals.count - totals.inactive.min(totals.count), totals.active_vehicles);
                    if count > 0 {
                        side.codes.push((code, Totals { count, vehicles, ..totals }));
                    }
                }
                None => side.vehicles = totals.vehicles,
            }
        }
        if side.vehicles == 0 { Err(UnknownFirmware(firmware.to_owned())) } else { Ok(side) }
    }

    fn codes(&self) -> impl Iterator<Item = &'f str> {
        self.codes.iter().map(|(code, _)| *code)
    }

    fn rates(&self, code: &str) -> CodeRates {
        let index = self.codes.binary_search_by(|(known, _)| (*known).cmp(code));
        let (count, vehicles) = index.map_or((0, 0), |index| {
            let totals = self.codes[index].1;
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
    let p_value = fisher::two_sided([with.vehicles, against.vehicles], [one.vehicles, other.vehicles]);
    ComparedCode { code: code.to_owned(), with, against, change, test: fisher::NAME, p_value, q_value: 1.0 }
}

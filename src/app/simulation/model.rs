//! What the service must answer: a plain loop over the lines of each file.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::random::Random;

pub(super) const VINS: [&str; 2] = ["WVWZZZ1JZXW000001", "WVWZZZ1JZXW000002"];
pub(super) const FIRMWARES: [Option<&str>; 3] = [None, Some("7.2.0"), Some("7.2.1")];
pub(super) const NAMES: [&str; 3] = ["a.log", "b.log", "c.log"];

/// Lines with the codes in them.
const LINES: [(&str, &[&str]); 5] = [
    ("2026-03-01 10:15:30 ERROR ota: E_FAIL\n", &["E_FAIL"]),
    ("2026-03-01 10:15:29 ERROR ota: E_FAIL and SIGSEGV\n", &["E_FAIL", "SIGSEGV"]),
    ("2026-03-01 10:15:35 WARN bms: E_ABORT\n", &["E_ABORT"]),
    ("nothing to see here\n", &[]),
    ("2026-03-02 00:00:00 ERROR can: DTC P0301-07 stored\n", &["P0301-07"]),
];

/// A file, as numbers of [`LINES`].
pub(super) type Lines = Vec<usize>;

/// Random lines; with many, the body is stored in several parts.
pub(super) fn lines(random: &mut Random) -> Lines {
    let count = if random.one_in(20) { 3000 } else { random.below(6) };
    (0..count).map(|_| random.below(LINES.len())).collect()
}

pub(super) fn text(lines: &[usize]) -> String {
    lines.iter().map(|&line| LINES[line].0).collect()
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelBatch {
    pub(super) id: Uuid,
    pub(super) vin: &'static str,
    pub(super) firmware: Option<&'static str>,
    pub(super) is_completed: bool,
    pub(super) files: BTreeMap<&'static str, Lines>,
}

impl ModelBatch {
    /// Occurrences by code.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for code in self.files.values().flatten().flat_map(|&line| LINES[line].1) {
            *counts.entry((*code).to_owned()).or_default() += 1;
        }
        counts
    }

    pub(super) fn total_lines(&self) -> u64 {
        self.files.values().map(|lines| lines.len() as u64).sum()
    }
}

/// The counts of a code in a group: occurrences, batches, vehicles.
pub(super) type FleetCounts = (u64, u64, u64);

/// The codes of the fleet, by firmware and code.
pub(super) fn fleet(batches: &[ModelBatch]) -> BTreeMap<(Option<String>, String), FleetCounts> {
    let mut counts: BTreeMap<_, (u64, u64, BTreeSet<&str>)> = BTreeMap::new();
    for batch in batches {
        for (code, count) in batch.counts() {
            let sum = counts.entry((batch.firmware.map(str::to_owned), code)).or_default();
            sum.0 += count;
            sum.1 += 1;
            sum.2.insert(batch.vin);
        }
    }
    counts.into_iter().map(|(key, (count, batches, vins))| (key, (count, batches, vins.len() as u64))).collect()
}

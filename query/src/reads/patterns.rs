//! Patterns of codes within one batch: bursts in time, and codes that come together.
//!
//! They explain a finding and make none: a log of minutes is full of bursts, and the codes of one fault come together in
//! every vehicle that has it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use argus_sinks::{RecentBatch, Snapshot};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use uuid::Uuid;

use crate::engine::Engine;
use crate::error::QueryError;
use crate::reads::batch_lines::{Times, lines_of_batch, numbers, text};
use crate::reads::findings::{Evidence, EvidenceKind};
use crate::results::json::rfc3339;
use crate::statistics::{TwoGroups, binomial, fisher};

/// The most occurrences that are looked at, in the order of files and lines; later ones of a larger batch are not.
const OCCURRENCES_MAX: u64 = 50_000;

/// The length of a burst, in microseconds (1 minute).
const BURST_US: i64 = 60_000_000;

/// Fewer occurrences are no burst, and codes in fewer blocks do not come together.
const FEW: u64 = 3;

/// In a shorter log everything is a burst, in microseconds (10 minutes).
const SPAN_MIN_US: i64 = 10 * BURST_US;

/// Codes within so many lines come together.
const BLOCK_LINES: u64 = 20;

/// Stretches with more different codes are lists.
const BLOCK_CODES_MAX: usize = 50;

/// A pattern is listed if the probability that it comes by chance, in any place or any pair of codes, is at most this.
const BY_CHANCE: f64 = 0.001;

/// The patterns of a batch, by code.
#[derive(Debug, Default)]
pub struct Patterns {
    by_code: HashMap<String, Vec<Evidence>>,
}

impl Patterns {
    /// Those of a batch at the snapshot's epoch.
    pub async fn of_batch(engine: &Engine, snapshot: &Arc<Snapshot>, id: Uuid) -> Result<Patterns, QueryError> {
        let batch = {
            let _permit = engine.internal_permit().await?;
            engine.lookup.batch_or_recent(snapshot, id).await?
        };
        let rows = match lines_of_batch(engine, snapshot, id).await? {
            Some(rows) => rows,
            None => {
                let sql = format!(
                    "SELECT file, line, ts, ts_plausible, active, code FROM errors WHERE batch_id = '{id}' \
                     ORDER BY file, line LIMIT {OCCURRENCES_MAX}"
                );
                engine.collect_large(snapshot, &sql).await?
            }
        };
        Ok(Patterns::of(&Occurrences::of(&rows), &batch))
    }

    /// The evidence of a code.
    pub fn of_code(&self, code: &str) -> &[Evidence] {
        self.by_code.get(code).map_or(&[], Vec::as_slice)
    }

    fn of(occurrences: &Occurrences<'_>, batch: &RecentBatch) -> Patterns {
        let mut by_code: HashMap<String, Vec<Evidence>> = HashMap::new();
        let files = || batch.files().map(|file| &file.row);
        let span = covered(files().filter_map(|file| Some((file.first_ts?, file.last_ts?))).collect());
        for (code, times) in &occurrences.times {
            by_code.entry((*code).to_owned()).or_default().extend(burst(times, span));
        }
        // Parts that were appended to a file are one.
        let mut lines: BTreeMap<&str, u64> = BTreeMap::new();
        files().for_each(|file| *lines.entry(&file.name).or_default() += file.lines);
        let blocks = lines.values().map(|lines| lines.div_ceil(BLOCK_LINES)).sum();
        for (code, evidence) in together(occurrences, blocks) {
            by_code.entry(code.to_owned()).or_default().push(evidence);
        }
        Patterns { by_code }
    }
}

/// The active occurrences of a batch.
#[derive(Debug, Default)]
struct Occurrences<'r> {
    /// The plausible times of each code, sorted.
    times: BTreeMap<&'r str, Vec<i64>>,
    /// The first line of each code in each block of lines of a file.
    blocks: BTreeMap<(&'r str, u64), BTreeMap<&'r str, u64>>,
}

impl<'r> Occurrences<'r> {
    fn of(rows: &'r [RecordBatch]) -> Occurrences<'r> {
        let mut all = Occurrences::default();
        for rows in rows {
            let (files, codes, lines) = (text(rows, "file"), text(rows, "code"), numbers::<Int64Type>(rows, "line"));
            let (times, active) = (Times::of(rows), rows["active"].as_boolean());
            for row in (0..rows.num_rows()).filter(|&row| active.value(row)) {
                let line = lines.value(row).max(1) as u64;
                all.add(files.value(row), line, codes.value(row), times.plausible(row));
            }
        }
        all.times.values_mut().for_each(|times| times.sort_unstable());
        all
    }

    fn add(&mut self, file: &'r str, line: u64, code: &'r str, time: Option<i64>) {
        self.times.entry(code).or_default().extend(time);
        let first = self.blocks.entry((file, (line - 1) / BLOCK_LINES)).or_default().entry(code).or_insert(line);
        *first = line.min(*first);
    }
}

/// The time that ranges cover together: what lies between the logs of two drives is no time of theirs.
fn covered(mut ranges: Vec<(i64, i64)>) -> i64 {
    ranges.sort_unstable();
    let (mut covered, mut until) = (0, i64::MIN);
    for (first, last) in ranges {
        covered += (last - first.max(until)).max(0);
        until = until.max(last);
    }
    covered
}

/// The minute with most occurrences, if they would hardly fall into any one minute by chance.
fn burst(times: &[i64], span: i64) -> Option<Evidence> {
    let all = times.len() as u64;
    if all < FEW || span < SPAN_MIN_US {
        return None;
    }
    let (mut most, mut from, mut start) = (0, 0, 0);
    for (end, time) in times.iter().enumerate() {
        while times[start] <= time - BURST_US {
            start += 1;
        }
        if end + 1 - start > most {
            (most, from) = (end + 1 - start, times[start]);
        }
    }
    let most = most as u64;
    let share = BURST_US as f64 / span as f64;
    // Any occurrence may begin the minute, which has the others.
    let p_value = (all as f64 * binomial::at_least(most - 1, all - 1, share)).min(1.0);
    if most < FEW || p_value > BY_CHANCE {
        return None;
    }
    let at = rfc3339(from);
    let text = format!(
        "{most} of its {all} occurrences with a time are within a minute, from {}; the log has {} minutes",
        at.as_str().unwrap_or_default(),
        span / BURST_US
    );
    Some(Evidence::new(EvidenceKind::Burst, text, [most, all], "scan_of_minutes", p_value))
}

/// For each code the one that comes with it least by chance, if there is one.
fn together<'r>(occurrences: &Occurrences<'r>, blocks: u64) -> Vec<(&'r str, Evidence)> {
    let mut alone: HashMap<&str, u64> = HashMap::new();
    // Blocks with both, and those of them where the second is first.
    let mut pairs: BTreeMap<(&str, &str), (u64, u64)> = BTreeMap::new();
    for codes in occurrences.blocks.values() {
        codes.keys().for_each(|code| *alone.entry(code).or_default() += 1);
        // A list of codes is no company, and its pairs would be too many.
        if codes.len() > BLOCK_CODES_MAX {
            continue;
        }
        for (code, line) in codes {
            for (other, other_line) in codes.iter().filter(|(other, _)| *other != code) {
                let pair = pairs.entry((code, other)).or_default();
                pair.0 += 1;
                pair.1 += u64::from(other_line < line);
            }
        }
    }
    let blocks = blocks.max(occurrences.blocks.len() as u64);
    let tested = pairs.len() as f64;
    let mut best: BTreeMap<&str, Evidence> = BTreeMap::new();
    for ((code, other), (both, first)) in pairs {
        let (with_code, with_other) = (alone[code], alone[other]);
        // Less than half is no company.
        if both < FEW || 2 * both < with_code {
            continue;
        }
        let (rest, without) = (with_other - both, blocks - with_code);
        if u128::from(both) * u128::from(without) <= u128::from(rest) * u128::from(with_code) {
            continue;
        }
        let p_value =
            (tested * fisher::two_sided(TwoGroups { found: [both, rest], all: [with_code, without] })).min(1.0);
        if p_value > BY_CHANCE || best.get(code).and_then(|best| best.p_value).is_some_and(|least| least <= p_value) {
            continue;
        }
        let order = match first {
            0 => ", always after it".to_owned(),
            first if first == both => ", always before it or in its line".to_owned(),
            first => format!(", in {first} of them before it"),
        };
        let text = format!(
            "in {both} of the {with_code} stretches of {BLOCK_LINES} lines that have it, {other} is too{order}; {rest} of {without} others \
             have {other}"
        );
        let evidence = Evidence::new(EvidenceKind::Together, text, [both, with_code], fisher::NAME, p_value);
        best.insert(code, Evidence { against_found: Some(rest), against_of: Some(without), ..evidence });
    }
    best.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = BURST_US;

    fn of_lines<'r>(lines: &[(u64, &'r str)]) -> Occurrences<'r> {
        let mut all = Occurrences::default();
        lines.iter().for_each(|(line, code)| all.add("a.log", *line, code, None));
        all
    }

    #[test]
    fn a_minute_with_most_occurrences_is_a_burst() {
        let hour = 60 * MINUTE;
        let in_a_minute: Vec<i64> = (0..12).map(|n| 7 * MINUTE + n * 1_000_000).chain([0, hour]).collect();
        let mut times = in_a_minute.clone();
        times.sort_unstable();
        let burst = burst(&times, hour).expect("a burst");
        assert_eq!((burst.found, burst.of), (12, 14));
        assert!(burst.text.contains("within a minute, from 1970-01-01T00:07:00Z"), "{}", burst.text);
    }

    #[test]
    fn the_time_between_logs_is_not_covered() {
        assert_eq!(covered(Vec::new()), 0);
        assert_eq!(covered(vec![(100, 110), (0, 10), (5, 20), (7, 8)]), 30);
    }

    #[test]
    fn even_occurrences_are_no_burst() {
        let hour = 60 * MINUTE;
        let even: Vec<i64> = (0..60).map(|n| n * MINUTE).collect();
        assert_eq!(burst(&even, hour), None);
        // Too few, and a log that is too short.
        assert_eq!(burst(&[0, 1], hour), None);
        assert_eq!(burst(&[0, 1, 2, 3, 4, 5], 5 * MINUTE), None);
    }

    #[test]
    fn random_times_are_hardly_ever_a_burst() {
        let day = 24 * 60 * MINUTE;
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 33) as i64 * 40) % day
        };
        let bursts = (0..2000).filter(|_| {
            let mut times: Vec<i64> = (0..50).map(|_| random()).collect();
            times.sort_unstable();
            burst(&times, day).is_some()
        });
        assert!(bursts.count() <= 6, "of 2,000, 2 are expected");
    }

    #[test]
    fn codes_in_the_same_stretches_come_together_with_their_order() {
        let lines: Vec<(u64, &str)> =
            (0..10).flat_map(|n| [(n * 400 + 1, "CAUSE"), (n * 400 + 3, "EFFECT"), (n * 400 + 200, "OTHER")]).collect();
        let found: BTreeMap<&str, Evidence> = together(&of_lines(&lines), 200).into_iter().collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&"CAUSE", &"EFFECT"]);
        let effect = &found["EFFECT"];
        assert_eq!((effect.found, effect.of, effect.against_found, effect.against_of), (10, 10, Some(0), Some(190)));
        assert!(effect.text.contains("CAUSE is too, always before it"), "{}", effect.text);
        assert!(found["CAUSE"].text.contains("EFFECT is too, always after it"));
    }

    #[test]
    fn codes_that_are_everywhere_come_with_none() {
        let lines: Vec<(u64, &str)> = (0..40).flat_map(|n| [(n * 20 + 1, "NOISE"), (n * 20 + 2, "HUM")]).collect();
        assert!(together(&of_lines(&lines), 40).is_empty());
    }
}

//! Partial counts of blocks: for each code and component, its count, times and severity.
//!
//! The distinct codes of one rule in one upload are limited ([`CodeLimits`]);
//! those beyond the limit are counted together. Which codes are counted by name must
//! not depend on blocks, epochs or workers, so the order of the names decides, not
//! the order of the lines: the first codes of any part of the blocks include those
//! that are first overall, so a code dropped early would also be dropped at the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::counts::earliest::earliest;
use crate::rules::Severity;
use crate::scan::interner::Interner;

/// How many distinct codes and components are counted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeLimits {
    /// Distinct codes of one rule. Further codes, ordered by name, are counted as [`other_code`].
    pub codes_per_rule: usize,
    /// Distinct pairs of code and component of one rule. Further components, ordered by code and component, are
    /// counted as [`OTHER`].
    pub pairs_per_rule: usize,
}

impl Default for CodeLimits {
    fn default() -> Self {
        CodeLimits { codes_per_rule: 500, pairs_per_rule: 1000 }
    }
}

/// The component that counts those beyond the limit together, and the prefix of [`other_code`].
pub const OTHER: &str = "OTHER";

/// The code that counts a rule's codes beyond the limit together.
pub fn other_code(rule: &str) -> String {
    format!("{OTHER}:{rule}")
}

/// Whether a code is an [`other_code`].
pub fn is_other_code(code: &str) -> bool {
    code.strip_prefix(OTHER).is_some_and(|rest| rest.starts_with(':'))
}

/// Entries that one scanner collects before it applies the limits.
const ENTRIES_MAX: usize = 4096;

/// The counts of some blocks of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartialCounts {
    /// Lines with at least one occurrence.
    pub error_lines: u64,
    /// The counts by rule, code and component.
    pub codes: BTreeMap<CountKey, CodeCounts>,
    /// The first line that could not be searched, if any; the version is not counted then.
    pub failed_line: Option<u64>,
    /// The times of its lines.
    #[serde(default)]
    pub times: Times,
}

/// The first lines of a file, whose times are read in addition to those of lines with codes. To read all times would
/// cost more than the search.
pub const HEAD_LINES: u64 = 64;
/// The same for the last lines.
pub const TAIL_LINES: u64 = 16;

/// The first and last plausible times, each as the number of its line and microseconds since 1970. Which lines are
/// read does not depend on the blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Of the first [`HEAD_LINES`] lines of the file and of those with codes.
    pub first: Option<(u64, i64)>,
    /// The last of the same.
    pub last: Option<(u64, i64)>,
    /// The last of the last [`TAIL_LINES`] lines of some block.
    pub tail: Option<(u64, i64)>,
    /// The number of the last line.
    pub last_line: u64,
}

impl Times {
    fn merge(&mut self, other: Times) {
        self.first = earliest(self.first, other.first);
        self.last = self.last.max(other.last);
        self.tail = self.tail.max(other.tail);
        self.last_line = self.last_line.max(other.last_line);
    }

    /// Records the time of a line.
    pub fn note(&mut self, line: u64, time: i64) {
        self.first = earliest(self.first, Some((line, time)));
        self.last = self.last.max(Some((line, time)));
    }

    /// The earlier and the later of the first and the last time.
    pub fn span(&self) -> (Option<i64>, Option<i64>) {
        // A tail that is near the end of a block, but not of the file, is ignored.
        let tail = self.tail.filter(|(line, _)| line + TAIL_LINES > self.last_line);
        let times = [earliest(self.first, tail), self.last.max(tail)];
        let times = times.into_iter().flatten().map(|(_, time)| time);
        (times.clone().min(), times.max())
    }
}

/// The key of a count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CountKey {
    /// The rule that found the code.
    pub rule: String,
    /// The code.
    pub code: String,
    /// The process, tag or logger named on the lines.
    pub component: Option<String>,
    /// Its severity on these lines.
    pub severity: Severity,
    /// `false` if these lines state that it is not active.
    pub active: bool,
}

/// The counts of one code in one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeCounts {
    /// Occurrences.
    pub count: u64,
    /// The earliest plausible time of an occurrence, microseconds since 1970.
    pub first_seen: Option<i64>,
    /// The latest.
    pub last_seen: Option<i64>,
    /// The first line with the code.
    pub example_line: u64,
    /// That line's text.
    pub example_text: String,
}

impl PartialCounts {
    /// Adds other blocks of the same version and applies the limits; the order does not matter.
    pub fn merge(&mut self, other: PartialCounts, limits: CodeLimits) {
        self.error_lines += other.error_lines;
        self.failed_line = earliest(self.failed_line, other.failed_line);
        self.times.merge(other.times);
        for (key, more) in other.codes {
            self.add(key, more);
        }
        self.limit(limits);
    }

    fn add(&mut self, key: CountKey, more: CodeCounts) {
        match self.codes.get_mut(&key) {
            Some(code) => code.merge(more),
            None => drop(self.codes.insert(key, more)),
        }
    }

    /// Counts entries beyond the limits together.
    fn limit(&mut self, limits: CodeLimits) {
        // No rule has more entries than all rules together.
        if self.codes.len() <= limits.codes_per_rule.min(limits.pairs_per_rule) {
            return;
        }
        let mut beyond: Vec<(CountKey, CountKey)> = Vec::new();
        let (mut rule, mut other, mut code): (Option<&str>, String, Option<&str>) = (None, String::new(), None);
        let mut pair = None;
        let (mut codes, mut pairs) = (0, 0);
        for key in self.codes.keys() {
            if rule != Some(key.rule.as_str()) {
                (rule, other, code, codes, pairs) = (Some(key.rule.as_str()), other_code(&key.rule), None, 0, 0);
                pair = None;
            }
            if key.code == other {
                continue;
            }
            if code != Some(key.code.as_str()) {
                code = Some(key.code.as_str());
                codes += 1;
            }
            if codes > limits.codes_per_rule {
                let to = CountKey { code: other.clone(), component: None, ..key.clone() };
                beyond.push((key.clone(), to));
            } else if key.component.as_deref() != Some(OTHER) {
                // One pair may have several entries, which differ in severity or active state.
                let this = Some((key.code.as_str(), key.component.as_deref()));
                pairs += usize::from(pair != this);
                pair = this;
                if pairs > limits.pairs_per_rule {
                    beyond.push((key.clone(), CountKey { component: Some(OTHER.to_owned()), ..key.clone() }));
                }
            }
        }
        for (from, to) in beyond {
            if let Some(code) = self.codes.remove(&from) {
                self.add(to, code);
            }
        }
    }
}

impl CodeCounts {
    fn merge(&mut self, more: CodeCounts) {
        self.count += more.count;
        self.first_seen = earliest(self.first_seen, more.first_seen);
        self.last_seen = self.last_seen.max(more.last_seen);
        if more.example_line < self.example_line {
            self.example_line = more.example_line;
            self.example_text = more.example_text;
        }
    }
}

/// Partial counts that one scanner still adds to, by the numbers of its [`Interner`].
#[derive(Debug, Default)]
pub struct OpenCounts {
    /// Lines with at least one occurrence.
    pub error_lines: u64,
    limits: CodeLimits,
    entries: Vec<Entry>,
    indexes: HashMap<EntryKey, usize, RandomState>,
    /// The numbering that the keys of `indexes` use.
    numbering: u64,
    /// Earlier counts, within the limits.
    limited: PartialCounts,
}

/// Component, code, rule, severity, and whether it is active.
type EntryKey = (Option<u32>, u32, usize, Severity, bool);

#[derive(Debug)]
struct Entry {
    component: Option<Arc<str>>,
    code: Arc<str>,
    rule: Arc<str>,
    severity: Severity,
    active: bool,
    seen: CodeCounts,
}

/// An occurrence to count.
pub struct SeenCode<'a> {
    /// The component's number, if the line names one.
    pub component: Option<u32>,
    /// The code's number.
    pub code: u32,
    /// The index of the rule that found it.
    pub rule_index: usize,
    /// That rule's name.
    pub rule: &'a Arc<str>,
    /// The higher of the rule's severity and the line's.
    pub severity: Severity,
    /// `false` if the line states that the code is not active.
    pub active: bool,
    /// The line's time, if it is plausible.
    pub observed_at: Option<i64>,
    /// The line's number.
    pub line: u64,
}

impl OpenCounts {
    /// Empty counts with these limits.
    pub fn new(limits: CodeLimits) -> OpenCounts {
        OpenCounts { limits, ..OpenCounts::default() }
    }

    /// Continues with another numbering; the earlier numbers are no longer valid.
    pub fn renumber(&mut self, numbering: u64) {
        if self.numbering != numbering {
            self.numbering = numbering;
            self.indexes.clear();
        }
    }

    /// Adds an occurrence; calls `text` for the line's text if it becomes the example.
    pub fn add(&mut self, seen: &SeenCode<'_>, names: &Interner, text: impl FnOnce() -> String) {
        let SeenCode { component, code, rule_index, rule, severity, active, observed_at, line } = *seen;
        let key = (component, code, rule_index, severity, active);
        if let Some(&index) = self.indexes.get(&key) {
            let partial = &mut self.entries[index].seen;
            partial.count += 1;
            partial.first_seen = earliest(partial.first_seen, observed_at);
            partial.last_seen = partial.last_seen.max(observed_at);
            if line < partial.example_line {
                partial.example_line = line;
                partial.example_text = text();
            }
            return;
        }
        if self.entries.len() >= ENTRIES_MAX {
            self.apply_limits();
        }
        let partial = CodeCounts {
            count: 1,
            first_seen: observed_at,
            last_seen: observed_at,
            example_line: line,
            example_text: text(),
        };
        self.indexes.insert(key, self.entries.len());
        let component = component.map(|component| Arc::clone(names.text(component)));
        let (code, rule) = (Arc::clone(names.text(code)), Arc::clone(rule));
        self.entries.push(Entry { component, code, rule, severity, active, seen: partial });
    }

    /// Adds the counts of blocks that another process has scanned.
    pub fn merge(&mut self, mut other: PartialCounts) {
        self.error_lines += std::mem::take(&mut other.error_lines);
        self.limited.merge(other, self.limits);
    }

    /// Records the times of lines.
    pub fn note_times(&mut self, times: Times) {
        self.limited.times.merge(times);
    }

    /// Records that this line could not be searched: the version is not counted.
    pub fn fail(&mut self, line: u64) {
        self.limited.failed_line = earliest(self.limited.failed_line, Some(line));
    }

    /// Whether there is nothing to emit.
    pub fn is_empty(&self) -> bool {
        self.error_lines == 0 && self.limited.failed_line.is_none() && self.limited.times == Times::default()
    }

    /// The final partial counts.
    pub fn close(mut self) -> PartialCounts {
        self.apply_limits();
        match self.limited.failed_line {
            failed_line @ Some(_) => PartialCounts { failed_line, ..PartialCounts::default() },
            None => PartialCounts { error_lines: self.error_lines, ..self.limited },
        }
    }

    fn apply_limits(&mut self) {
        self.indexes.clear();
        for Entry { component, code, rule, severity, active, seen } in self.entries.drain(..) {
            let component = component.map(|component| component.to_string());
            let key = CountKey { rule: rule.to_string(), code: code.to_string(), component, severity, active };
            self.limited.add(key, seen);
        }
        self.limited.limit(self.limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CodeLimits = CodeLimits { codes_per_rule: 3, pairs_per_rule: 4 };

    fn one(rule: &str, code: &str, component: Option<&str>, line: u64) -> (CountKey, CodeCounts) {
        let component = component.map(str::to_owned);
        let severity = if line.is_multiple_of(3) { Severity::Warning } else { Severity::Error };
        let key = CountKey { rule: rule.to_owned(), code: code.to_owned(), component, severity, active: true };
        let (seen, example_text) = (Some(line as i64), format!("line {line}"));
        (key, CodeCounts { count: 1, first_seen: seen, last_seen: seen, example_line: line, example_text })
    }

    fn merged(parts: &[Vec<(CountKey, CodeCounts)>]) -> PartialCounts {
        let mut partial = PartialCounts::default();
        for part in parts {
            let mut other = PartialCounts { error_lines: part.len() as u64, ..PartialCounts::default() };
            part.iter().for_each(|(key, code)| other.add(key.clone(), code.clone()));
            other.limit(LIMITS);
            partial.merge(other, LIMITS);
        }
        partial
    }

    fn counts(partial: &PartialCounts) -> Vec<String> {
        let text = |((rule, code, component), count): (&(&String, &String, Option<&str>), &u64)| {
            format!("{rule} {code} {} {count}", component.unwrap_or("-"))
        };
        let mut counts: Vec<String> = Vec::new();
        let mut pairs: BTreeMap<_, u64> = BTreeMap::new();
        for (key, code) in &partial.codes {
            *pairs.entry((&key.rule, &key.code, key.component.as_deref())).or_default() += code.count;
        }
        counts.extend(pairs.iter().map(text));
        counts
    }

    #[test]
    fn codes_and_components_beyond_the_limits_are_counted_together() {
        let mut seen = Vec::new();
        for code in ["E", "B", "A", "D", "C", "A"] {
            seen.push(one("r", code, None, seen.len() as u64));
        }
        for component in ["x", "y", "z"] {
            seen.push(one("r", "A", Some(component), 10));
        }
        seen.push(one("s", "Z", None, 11));
        let partial = merged(&[seen]);
        // A uses all four pairs, so the components of B and C are beyond the limit.
        let expected =
            ["r A - 2", "r A x 1", "r A y 1", "r A z 1", "r B OTHER 1", "r C OTHER 1", "r OTHER:r - 2", "s Z - 1"];
        assert_eq!(counts(&partial), expected);
        assert!(is_other_code(&other_code("r")) && !is_other_code("OTHERS"));
    }

    #[test]
    fn any_split_into_parts_gives_the_same_codes_and_counts() {
        let names: Vec<String> = (0..12).map(|number| format!("C{:02}", (number * 7) % 12)).collect();
        let mut seen = Vec::new();
        for round in 0..40_usize {
            let component = ["a", "b", "c"].get((round * 5) % 4).copied();
            let rule = if round % 5 == 0 { "s" } else { "r" };
            seen.push(one(rule, &names[(round * 11) % 12], component, round as u64));
        }
        let whole = merged(std::slice::from_ref(&seen));
        for size in 1..20 {
            let parts: Vec<Vec<_>> = seen.chunks(size).map(<[_]>::to_vec).collect();
            assert_eq!(merged(&parts), whole, "parts of {size}");
            let backwards: Vec<Vec<_>> = parts.into_iter().rev().collect();
            assert_eq!(merged(&backwards), whole, "parts of {size}, backwards");
        }
    }
}

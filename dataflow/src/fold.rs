//! What blocks add up to: for each code and component, how often, when, how bad.
//!
//! The different codes of one rule in one upload are limited ([`CodeLimits`]):
//! those behind the limit are counted together. Which codes are kept must not
//! depend on blocks, epochs or workers, so it is the order of their names that
//! decides and not the order of their lines: the first codes of any part of the
//! blocks include those that are first in all of them, so what is dropped early
//! would have been dropped at the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use crate::names::Names;
use crate::rules::Severity;

/// How many different codes and components are counted each by its own name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeLimits {
    /// Different codes of one rule. Further codes, in the order of their names, are counted as [`other_code`].
    pub codes_per_rule: usize,
    /// Different pairs of code and component of one rule. Further components, in the order of codes and components,
    /// are counted as [`OTHER`].
    pub pairs_per_rule: usize,
}

impl Default for CodeLimits {
    fn default() -> Self {
        CodeLimits { codes_per_rule: 500, pairs_per_rule: 1000 }
    }
}

/// The component under which those behind the limit are counted together, and the beginning of [`other_code`].
pub const OTHER: &str = "OTHER";

/// The code under which the codes of a rule behind the limit are counted together.
pub fn other_code(rule: &str) -> String {
    format!("{OTHER}:{rule}")
}

/// Whether a code stands for the codes of a rule behind the limit.
pub fn is_other_code(code: &str) -> bool {
    code.strip_prefix(OTHER).is_some_and(|rest| rest.starts_with(':'))
}

/// Entries that one scanner gathers before the limits are applied to them.
const ENTRIES_MAX: usize = 4096;

/// What blocks of one version add to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Lines with at least one occurrence.
    pub error_lines: u64,
    /// What was seen of each code, by rule and component.
    pub codes: BTreeMap<FoldKey, CodeFold>,
    /// The first line that could not be searched, where there is one: then nothing of the version is counted.
    pub failed_line: Option<u64>,
    /// What its lines say of when they were written.
    #[serde(default)]
    pub times: Times,
}

/// Lines at the beginning and at the end of a file whose times are read, beside those of lines with codes: to read all
/// would cost more than the search.
pub const HEAD_LINES: u64 = 64;
/// The same at the end.
pub const TAIL_LINES: u64 = 16;

/// The first and last plausible times of lines that are looked at, each with the number of its line; times are
/// microseconds since 1970. Which lines those are does not depend on blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Of the first [`HEAD_LINES`] lines of the file and of those with codes.
    pub first: Option<(u64, i64)>,
    /// The last of the same.
    pub last: Option<(u64, i64)>,
    /// The last of the last [`TAIL_LINES`] lines of some block.
    pub tail: Option<(u64, i64)>,
    /// The last line.
    pub last_line: u64,
}

impl Times {
    fn merge(&mut self, other: Times) {
        self.first = earliest(self.first, other.first);
        self.last = self.last.max(other.last);
        self.tail = self.tail.max(other.tail);
        self.last_line = self.last_line.max(other.last_line);
    }

    /// Notes the time of a line.
    pub fn note(&mut self, line: u64, time: i64) {
        self.first = earliest(self.first, Some((line, time)));
        self.last = self.last.max(Some((line, time)));
    }

    /// The earlier and the later of the first and the last.
    pub fn span(&self) -> (Option<i64>, Option<i64>) {
        // What stood near the end of a block alone is not looked at.
        let tail = self.tail.filter(|(line, _)| line + TAIL_LINES > self.last_line);
        let times = [earliest(self.first, tail), self.last.max(tail)];
        let times = times.into_iter().flatten().map(|(_, time)| time);
        (times.clone().min(), times.max())
    }
}

/// What tells counts apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FoldKey {
    /// The rule that found the code.
    pub rule: String,
    /// The code.
    pub code: String,
    /// The process, tag or logger that the lines name.
    pub component: Option<String>,
    /// How bad it is on these lines.
    pub severity: Severity,
    /// Whether these lines say that it is active, or nothing of it.
    pub active: bool,
}

/// What was seen of one code in one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeFold {
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

impl Fold {
    /// Adds other blocks of the same version, within the limits; the order does not matter.
    pub fn merge(&mut self, other: Fold, limits: CodeLimits) {
        self.error_lines += other.error_lines;
        self.failed_line = earliest(self.failed_line, other.failed_line);
        self.times.merge(other.times);
        for (key, more) in other.codes {
            self.add(key, more);
        }
        self.limit(limits);
    }

    fn add(&mut self, key: FoldKey, more: CodeFold) {
        match self.codes.get_mut(&key) {
            Some(code) => code.merge(more),
            None => drop(self.codes.insert(key, more)),
        }
    }

    /// Counts what is behind the limits together.
    fn limit(&mut self, limits: CodeLimits) {
        // No rule can have more than all have.
        if self.codes.len() <= limits.codes_per_rule.min(limits.pairs_per_rule) {
            return;
        }
        let mut behind: Vec<(FoldKey, FoldKey)> = Vec::new();
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
                let to = FoldKey { code: other.clone(), component: None, ..key.clone() };
                behind.push((key.clone(), to));
            } else if key.component.as_deref() != Some(OTHER) {
                // Counts of one pair differ in severity, or in whether the code is active.
                let this = Some((key.code.as_str(), key.component.as_deref()));
                pairs += usize::from(pair != this);
                pair = this;
                if pairs > limits.pairs_per_rule {
                    behind.push((key.clone(), FoldKey { component: Some(OTHER.to_owned()), ..key.clone() }));
                }
            }
        }
        for (from, to) in behind {
            if let Some(code) = self.codes.remove(&from) {
                self.add(to, code);
            }
        }
    }
}

impl CodeFold {
    fn merge(&mut self, more: CodeFold) {
        self.count += more.count;
        self.first_seen = earliest(self.first_seen, more.first_seen);
        self.last_seen = self.last_seen.max(more.last_seen);
        if more.example_line < self.example_line {
            self.example_line = more.example_line;
            self.example_text = more.example_text;
        }
    }
}

fn earliest<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// A fold that one scanner still adds to, by the numbers of its [`Names`].
#[derive(Debug, Default)]
pub struct OpenFold {
    /// Lines with at least one occurrence.
    pub error_lines: u64,
    limits: CodeLimits,
    entries: Vec<Entry>,
    places: HashMap<Place, usize, RandomState>,
    /// Which numbers `places` speaks of.
    numbering: u64,
    /// What was gathered before, within the limits.
    limited: Fold,
}

/// Component, code, rule, severity, and whether it is active.
type Place = (Option<u32>, u32, usize, Severity, bool);

#[derive(Debug)]
struct Entry {
    component: Option<Arc<str>>,
    code: Arc<str>,
    rule: Arc<str>,
    severity: Severity,
    active: bool,
    seen: CodeFold,
}

/// A code on a line, as a fold takes it.
pub struct Seen<'a> {
    /// The component's number, where the line names one.
    pub component: Option<u32>,
    /// The code's number.
    pub code: u32,
    /// The index of the rule that found it.
    pub rule_index: usize,
    /// That rule's name.
    pub rule: &'a Arc<str>,
    /// The worse of the rule's severity and the line's own.
    pub severity: Severity,
    /// Whether the line says that it is active, or nothing of it.
    pub active: bool,
    /// The line's time, where it is plausible.
    pub observed_at: Option<i64>,
    /// The line's number.
    pub line: u64,
}

impl OpenFold {
    /// A fold within these limits.
    pub fn new(limits: CodeLimits) -> OpenFold {
        OpenFold { limits, ..OpenFold::default() }
    }

    /// Goes on with other numbers than before.
    pub fn renumber(&mut self, numbering: u64) {
        if self.numbering != numbering {
            self.numbering = numbering;
            self.places.clear();
        }
    }

    /// Adds an occurrence; `text` is asked for the line's text where it becomes an example.
    pub fn add(&mut self, seen: &Seen<'_>, names: &Names, text: impl FnOnce() -> String) {
        let Seen { component, code, rule_index, rule, severity, active, observed_at, line } = *seen;
        let place = (component, code, rule_index, severity, active);
        if let Some(&place) = self.places.get(&place) {
            let fold = &mut self.entries[place].seen;
            fold.count += 1;
            fold.first_seen = earliest(fold.first_seen, observed_at);
            fold.last_seen = fold.last_seen.max(observed_at);
            if line < fold.example_line {
                fold.example_line = line;
                fold.example_text = text();
            }
            return;
        }
        if self.entries.len() >= ENTRIES_MAX {
            self.apply_limits();
        }
        let fold = CodeFold {
            count: 1,
            first_seen: observed_at,
            last_seen: observed_at,
            example_line: line,
            example_text: text(),
        };
        self.places.insert(place, self.entries.len());
        let component = component.map(|component| Arc::clone(names.text(component)));
        let (code, rule) = (Arc::clone(names.text(code)), Arc::clone(rule));
        self.entries.push(Entry { component, code, rule, severity, active, seen: fold });
    }

    /// Notes what lines say of when they were written.
    pub fn note_times(&mut self, times: Times) {
        self.limited.times.merge(times);
    }

    /// Nothing of the version is counted, since this line could not be searched.
    pub fn fail(&mut self, line: u64) {
        self.limited.failed_line = earliest(self.limited.failed_line, Some(line));
    }

    /// Whether there is nothing to pass on.
    pub fn is_empty(&self) -> bool {
        self.error_lines == 0 && self.limited.failed_line.is_none() && self.limited.times == Times::default()
    }

    /// What it has come to.
    pub fn close(mut self) -> Fold {
        self.apply_limits();
        match self.limited.failed_line {
            failed_line @ Some(_) => Fold { failed_line, ..Fold::default() },
            None => Fold { error_lines: self.error_lines, ..self.limited },
        }
    }

    fn apply_limits(&mut self) {
        self.places.clear();
        for Entry { component, code, rule, severity, active, seen } in self.entries.drain(..) {
            let component = component.map(|component| component.to_string());
            let key = FoldKey { rule: rule.to_string(), code: code.to_string(), component, severity, active };
            self.limited.add(key, seen);
        }
        self.limited.limit(self.limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CodeLimits = CodeLimits { codes_per_rule: 3, pairs_per_rule: 4 };

    fn one(rule: &str, code: &str, component: Option<&str>, line: u64) -> (FoldKey, CodeFold) {
        let component = component.map(str::to_owned);
        let severity = if line.is_multiple_of(3) { Severity::Warning } else { Severity::Error };
        let key = FoldKey { rule: rule.to_owned(), code: code.to_owned(), component, severity, active: true };
        let (seen, example_text) = (Some(line as i64), format!("line {line}"));
        (key, CodeFold { count: 1, first_seen: seen, last_seen: seen, example_line: line, example_text })
    }

    fn folded(parts: &[Vec<(FoldKey, CodeFold)>]) -> Fold {
        let mut fold = Fold::default();
        for part in parts {
            let mut other = Fold { error_lines: part.len() as u64, ..Fold::default() };
            part.iter().for_each(|(key, code)| other.add(key.clone(), code.clone()));
            other.limit(LIMITS);
            fold.merge(other, LIMITS);
        }
        fold
    }

    fn counts(fold: &Fold) -> Vec<String> {
        let text = |((rule, code, component), count): (&(&String, &String, Option<&str>), &u64)| {
            format!("{rule} {code} {} {count}", component.unwrap_or("-"))
        };
        let mut counts: Vec<String> = Vec::new();
        let mut pairs: BTreeMap<_, u64> = BTreeMap::new();
        for (key, code) in &fold.codes {
            *pairs.entry((&key.rule, &key.code, key.component.as_deref())).or_default() += code.count;
        }
        counts.extend(pairs.iter().map(text));
        counts
    }

    #[test]
    fn codes_and_components_behind_the_limits_are_counted_together() {
        let mut seen = Vec::new();
        for code in ["E", "B", "A", "D", "C", "A"] {
            seen.push(one("r", code, None, seen.len() as u64));
        }
        for component in ["x", "y", "z"] {
            seen.push(one("r", "A", Some(component), 10));
        }
        seen.push(one("s", "Z", None, 11));
        let fold = folded(&[seen]);
        // A takes all four pairs, so the components of B and C are behind the limit.
        let expected =
            ["r A - 2", "r A x 1", "r A y 1", "r A z 1", "r B OTHER 1", "r C OTHER 1", "r OTHER:r - 2", "s Z - 1"];
        assert_eq!(counts(&fold), expected);
        assert!(is_other_code(&other_code("r")) && !is_other_code("OTHERS"));
    }

    #[test]
    fn any_split_into_parts_keeps_the_same_codes_and_counts() {
        let names: Vec<String> = (0..12).map(|number| format!("C{:02}", (number * 7) % 12)).collect();
        let mut seen = Vec::new();
        for round in 0..40_usize {
            let component = ["a", "b", "c"].get((round * 5) % 4).copied();
            let rule = if round % 5 == 0 { "s" } else { "r" };
            seen.push(one(rule, &names[(round * 11) % 12], component, round as u64));
        }
        let whole = folded(std::slice::from_ref(&seen));
        for size in 1..20 {
            let parts: Vec<Vec<_>> = seen.chunks(size).map(<[_]>::to_vec).collect();
            assert_eq!(folded(&parts), whole, "parts of {size}");
            let backwards: Vec<Vec<_>> = parts.into_iter().rev().collect();
            assert_eq!(folded(&backwards), whole, "parts of {size}, backwards");
        }
    }
}

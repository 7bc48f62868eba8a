//! What the rules mean: every pattern tried on one line, in order, with no
//! short cut. The reference that tests hold [`crate::scan`] to.

use std::collections::HashSet;

use crate::colours::Plain;
use crate::rules::{Pattern, Rule, RuleSet};

/// A code found in a line, with the rule that found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The code.
    pub code: String,
    /// The index of its rule.
    pub rule_index: usize,
}

/// The distinct codes of one line, which is given without its end; its colours are no part of it.
pub fn codes_of_line(rules: &RuleSet, line: &[u8]) -> Vec<Found> {
    let plain = Plain::of(line);
    let line = plain.as_ref().map_or(line, |plain| &plain.text);
    let mut taken = Vec::new();
    let mut known = HashSet::new();
    let mut found = Vec::new();
    for (rule_index, rule) in rules.rules().iter().enumerate() {
        if rule.require.as_ref().is_some_and(|require| !require.is_match(line)) {
            continue;
        }
        for pattern in &rule.patterns {
            for code in codes_of_pattern(rule, pattern, line, &mut taken) {
                if known.insert(code.clone()) {
                    found.push(Found { code, rule_index });
                }
            }
        }
    }
    found
}

/// The codes that count of a pattern's matches, left to right. `taken` are the
/// spans of accepted matches; one that overlaps an earlier one is dropped.
fn codes_of_pattern(rule: &Rule, pattern: &Pattern, line: &[u8], taken: &mut Vec<(usize, usize)>) -> Vec<String> {
    let mut codes = Vec::new();
    for captures in pattern.regex.captures_iter(line) {
        let Some(span) = captures.get_group(pattern.code_group) else { continue };
        if taken.iter().any(|&(from, to)| span.start < to && from < span.end) {
            continue;
        }
        let group = |group: usize| captures.get_group(group).map(|span| &line[span.start..span.end]);
        let Some(code) = rule.code(pattern, group) else { continue };
        taken.push((span.start, span.end));
        let symbol = pattern.sym_group.and_then(|group| captures.get_group(group));
        taken.extend(symbol.filter(|symbol| !symbol.is_empty()).map(|symbol| (symbol.start, symbol.end)));
        if !rule.denies(&code) {
            codes.push(code);
        }
    }
    codes
}

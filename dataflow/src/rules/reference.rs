//! The reference semantics of the rules: every pattern is tried on one line, in
//! order, without optimization. Tests compare [`crate::scan`] with it.

use std::collections::HashSet;

use crate::rules::{Pattern, Rule, RuleSet};
use crate::scan::ansi::StrippedText;

/// A code found in a line, with the rule that found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The code.
    pub code: String,
    /// The index of its rule.
    pub rule_index: usize,
}

/// The distinct codes of one line (without its line end). Colour codes are removed first.
pub fn codes_of_line(rules: &RuleSet, line: &[u8]) -> Vec<Found> {
    let stripped = StrippedText::of(line);
    let line = stripped.as_ref().map_or(line, |stripped| &stripped.text);
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

/// The codes to count from a pattern's matches, left to right. `taken` has the spans
/// of accepted matches; a match that overlaps one of them is dropped.
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

//! How a rule set is searched: which literals trigger which patterns, and where.
//!
//! Built once and shared by all workers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::rules::{Pattern, Rule, RuleSet};
use crate::scan::prefilter::byte_set::ByteSet;
use crate::scan::prefilter::literals::{self, Literal, Unfiltered};
use crate::scan::prefilter::tables::Prefilter;

/// A match of `require` is usually within this many bytes before the pattern's match, or after it.
const REQUIRED_WITHIN: usize = 16;

/// Where a pattern is tried: the first is the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// At the positions where its literals show that a match can begin.
    Starts,
    /// On lines that contain one of its literals, from the first position at which a match with one can begin.
    Lines,
    /// On every line, because it has no useful literals.
    EveryLine,
}

/// A rule set, prepared for the search.
pub struct Plan {
    rules: RuleSet,
    patterns: Vec<Planned>,
    prefilter: Prefilter,
    /// For each literal of the prefilter, the patterns that it triggers.
    triggers: Vec<Vec<Trigger>>,
    every_line: Vec<usize>,
}

/// A pattern, numbered across all rules.
pub struct Planned {
    /// The index of its rule.
    pub rule_index: usize,
    /// Its index in its rule.
    pub pattern_index: usize,
    /// Where it is tried.
    pub reach: Reach,
    /// How many bytes before the start of a match can influence what is found; `None` for any number.
    pub context: Option<usize>,
    /// How often it is expected to be tried, in candidates per byte of logs; or why it is tried on every line.
    pub frequency: Result<f64, Unfiltered>,
}

/// A pattern that a literal triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    /// The pattern's number.
    pub pattern: usize,
    /// How many bytes before the literal a match begins, or begins at most if the pattern's [`Reach`] is `Lines`;
    /// `None` for anywhere in the line.
    pub start: Option<usize>,
}

/// The literals of each pattern, in order. Many patterns take many milliseconds,
/// and a user waits for the command, so all cores are used.
fn literals_of(rules: &RuleSet) -> Vec<Result<Vec<Literal>, Unfiltered>> {
    let texts: Vec<&str> = rules.rules().iter().flat_map(|rule| &rule.patterns).map(|one| one.text.as_str()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // Later patterns tend to be longer, so each thread takes every nth.
    let each_nth = |first: usize| texts.iter().skip(first).step_by(threads).map(|text| literals::literals(text));
    let mut shares: Vec<_> = std::thread::scope(|scope| {
        let others: Vec<_> =
            (1..threads).map(|first| scope.spawn(move || each_nth(first).collect::<Vec<_>>())).collect();
        let mine = each_nth(0).collect();
        let others = others.into_iter().map(|thread| thread.join().unwrap_or_default());
        std::iter::once(mine).chain(others).map(Vec::into_iter).collect()
    });
    // A thread that panicked has no results; patterns without literals are tried on every line.
    (0..texts.len()).map(|index| shares[index % threads].next().unwrap_or(Err(Unfiltered::NothingFixed))).collect()
}

impl Plan {
    /// A plan for these rules.
    pub fn new(rules: RuleSet) -> Arc<Plan> {
        let mut patterns = Vec::new();
        let mut literals: Vec<Literal> = Vec::new();
        let mut triggers: Vec<Vec<Trigger>> = Vec::new();
        let mut every_line = Vec::new();
        let mut numbers: HashMap<(Option<ByteSet>, Vec<ByteSet>), usize> = HashMap::new();
        let mut of_patterns = literals_of(&rules).into_iter();
        for (rule_index, rule) in rules.rules().iter().enumerate() {
            for (pattern_index, own) in (0..rule.patterns.len()).zip(of_patterns.by_ref()) {
                let number = patterns.len();
                let reach = match &own {
                    Err(_) => Reach::EveryLine,
                    Ok(own) if own.iter().all(|literal| literal.start.is_exact()) => Reach::Starts,
                    Ok(_) => Reach::Lines,
                };
                if own.is_err() {
                    every_line.push(number);
                }
                let frequency =
                    own.as_ref().map(|own| own.iter().map(|literal| literal.frequency).sum()).map_err(|why| *why);
                for literal in own.into_iter().flatten() {
                    let start = literal.start.most;
                    let key = (literal.lead, literal.classes.clone());
                    let index = *numbers.entry(key).or_insert_with(|| {
                        literals.push(literal);
                        triggers.push(Vec::new());
                        triggers.len() - 1
                    });
                    triggers[index].push(Trigger { pattern: number, start });
                }
                let looks_far = rule.patterns[pattern_index].looks_far || rule.require_looks_far;
                let context = match (looks_far, &rule.require) {
                    (true, _) => None,
                    (false, None) => Some(1),
                    (false, Some(_)) => Some(REQUIRED_WITHIN),
                };
                patterns.push(Planned { rule_index, pattern_index, reach, context, frequency });
            }
        }
        Arc::new(Plan { prefilter: Prefilter::new(&literals), rules, patterns, triggers, every_line })
    }

    /// The rules of this plan.
    pub fn rule_set(&self) -> &RuleSet {
        &self.rules
    }

    /// The rules, in order of priority.
    pub fn rules(&self) -> &[Rule] {
        self.rules.rules()
    }

    /// All patterns, in order of priority.
    pub fn patterns(&self) -> &[Planned] {
        &self.patterns
    }

    /// A pattern by its number, and its rule.
    pub fn pattern(&self, number: usize) -> (&Rule, &Pattern) {
        let planned = &self.patterns[number];
        let rule = &self.rules()[planned.rule_index];
        (rule, &rule.patterns[planned.pattern_index])
    }

    /// The prefilter, which finds the literals.
    pub fn prefilter(&self) -> &Prefilter {
        &self.prefilter
    }

    /// The patterns that a literal of the prefilter triggers.
    pub fn triggers(&self, literal: usize) -> &[Trigger] {
        &self.triggers[literal]
    }

    /// The numbers of the patterns that are tried on every line.
    pub fn every_line(&self) -> &[usize] {
        &self.every_line
    }
}

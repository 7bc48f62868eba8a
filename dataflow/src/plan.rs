//! How a rule set is searched: which windows tell where which pattern is tried.
//!
//! Made once and shared by all workers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::bytes::ByteSet;
use crate::finder::Finder;
use crate::rules::{Pattern, Rule, RuleSet};
use crate::windows::{self, Unfiltered, Window};

/// What a rule requires of a line stands mostly in this many bytes before a match, or behind it.
const REQUIRED_WITHIN: usize = 16;

/// Where a pattern is tried: the first is the fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Where a window says that a match can begin.
    Starts,
    /// On lines that have one of its windows, from where the first of them can belong to a match.
    Lines,
    /// On every line, for it has no windows of use.
    EveryLine,
}

/// A rule set, ready to be searched for.
pub struct Plan {
    rules: RuleSet,
    patterns: Vec<Planned>,
    finder: Finder,
    /// For each window of the finder, what it sets off.
    triggers: Vec<Vec<Trigger>>,
    every_line: Vec<usize>,
}

/// A pattern, numbered through all rules.
pub struct Planned {
    /// The index of its rule.
    pub rule_index: usize,
    /// Its index in its rule.
    pub pattern_index: usize,
    /// Where it is tried.
    pub reach: Reach,
    /// How many bytes before the start of a match may have to do with what is found; `None` for any.
    pub context: Option<usize>,
    /// How often it is expected to be tried in logs, in places per byte; why everywhere, where it is.
    pub frequency: Result<f64, Unfiltered>,
}

/// What a window sets off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trigger {
    /// The pattern's number.
    pub pattern: usize,
    /// How far before the window a match begins, or at most begins where the pattern's [`Reach`] is lines; `None` for
    /// anywhere in the line.
    pub start: Option<usize>,
}

/// The windows of each pattern, in order. Many patterns take many milliseconds,
/// and a command is waited for, so every core takes part.
fn windows_of(rules: &RuleSet) -> Vec<Result<Vec<Window>, Unfiltered>> {
    let texts: Vec<&str> = rules.rules().iter().flat_map(|rule| &rule.patterns).map(|one| one.text.as_str()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    // Later patterns tend to be the longer ones, so threads take turns.
    let each_nth = |first: usize| texts.iter().skip(first).step_by(threads).map(|text| windows::windows(text));
    let mut shares: Vec<_> = std::thread::scope(|scope| {
        let others: Vec<_> =
            (1..threads).map(|first| scope.spawn(move || each_nth(first).collect::<Vec<_>>())).collect();
        let mine = each_nth(0).collect();
        let others = others.into_iter().map(|thread| thread.join().unwrap_or_default());
        std::iter::once(mine).chain(others).map(Vec::into_iter).collect()
    });
    // A thread that died has found none, and what has no windows is tried everywhere.
    (0..texts.len()).map(|index| shares[index % threads].next().unwrap_or(Err(Unfiltered::NothingFixed))).collect()
}

impl Plan {
    /// A plan for these rules.
    pub fn new(rules: RuleSet) -> Arc<Plan> {
        let mut patterns = Vec::new();
        let mut windows: Vec<Window> = Vec::new();
        let mut triggers: Vec<Vec<Trigger>> = Vec::new();
        let mut every_line = Vec::new();
        let mut numbers: HashMap<(Option<ByteSet>, Vec<ByteSet>), usize> = HashMap::new();
        let mut of_patterns = windows_of(&rules).into_iter();
        for (rule_index, rule) in rules.rules().iter().enumerate() {
            for (pattern_index, own) in (0..rule.patterns.len()).zip(of_patterns.by_ref()) {
                let number = patterns.len();
                let reach = match &own {
                    Err(_) => Reach::EveryLine,
                    Ok(own) if own.iter().all(|window| window.start.is_exact()) => Reach::Starts,
                    Ok(_) => Reach::Lines,
                };
                if own.is_err() {
                    every_line.push(number);
                }
                let frequency =
                    own.as_ref().map(|own| own.iter().map(|window| window.frequency).sum()).map_err(|why| *why);
                for window in own.into_iter().flatten() {
                    let start = window.start.most;
                    let key = (window.lead, window.classes.clone());
                    let index = *numbers.entry(key).or_insert_with(|| {
                        windows.push(window);
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
        Arc::new(Plan { finder: Finder::new(&windows), rules, patterns, triggers, every_line })
    }

    /// The rules that it is for.
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

    /// Finds the windows.
    pub fn finder(&self) -> &Finder {
        &self.finder
    }

    /// What a window of the finder sets off.
    pub fn triggers(&self, window: usize) -> &[Trigger] {
        &self.triggers[window]
    }

    /// The numbers of the patterns that are tried on every line.
    pub fn every_line(&self) -> &[usize] {
        &self.every_line
    }
}

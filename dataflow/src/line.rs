//! Runs the rules on one line.
//!
//! A pattern is tried where a match of it can begin ([`crate::plan`]). What a
//! match comes to (its code, the span that it takes, whether the code is
//! denied) depends on the bytes of the match and the byte on either side only,
//! so it is worked out once and remembered. So are the codes of a line by its
//! ending ([`crate::endings`]).

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use regex_automata::meta::Cache;
use regex_automata::util::iter::Searcher;
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::{Anchored, Input};

use crate::endings::Endings;
use crate::names::Names;
use crate::plan::{Plan, Reach};
use crate::rules::{Pattern, Rule};

/// A match longer than this (bytes) is worked out each time.
const REMEMBERED_BYTES_MAX: usize = 128;

/// Matches that are remembered before all are forgotten.
const REMEMBERED_MAX: usize = 16 * 1024;

/// Places in one line at which patterns are tried one by one; in a line with
/// more, they run over the whole line.
const TRIES_MAX: usize = 64 * 1024;

/// Places in one line at which a pattern is tried whose matches may have any length.
const FAR_TRIES_MAX: usize = 16;

/// Codes and components are numbered up to this many bytes (4 MiB), roughly, before all are forgotten.
const NAMES_BYTES_MAX: usize = 4 << 20;

/// A pattern to be tried on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Try {
    /// The pattern's number.
    pub pattern: u32,
    /// Where a match can begin in the line, and not before where the pattern's [`Reach`] is lines; or
    /// [`Try::ANYWHERE`].
    pub start: u32,
}

impl Try {
    /// Behind every place of a line, which is within a block.
    pub const ANYWHERE: u32 = u32::MAX;
}

/// The patterns to be tried on a line.
#[derive(Default)]
pub struct Tries(Vec<Try>);

impl Tries {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds one. Beyond [`TRIES_MAX`] the places are forgotten and the patterns kept.
    pub fn add(&mut self, one: Try) {
        if self.0.len() >= TRIES_MAX {
            self.0.iter_mut().for_each(|one| one.start = Try::ANYWHERE);
            self.settle();
        }
        self.0.push(one);
    }

    fn settle(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }
}

/// A code found in a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundCode {
    /// The code's number.
    pub code: u32,
    /// The index of the rule that found it.
    pub rule_index: usize,
}

/// Searches lines. Each worker has its own.
pub struct LineSearch {
    plan: Arc<Plan>,
    /// The names that codes have.
    pub names: Names,
    caches: Vec<Option<Box<Cache>>>,
    slots: Vec<Option<NonMaxUsize>>,
    remembered: HashMap<Box<[u8]>, Outcome, RandomState>,
    key: Vec<u8>,
    endings: Endings,
    taken: Spans,
    /// The last line on which each code was seen.
    last_seen: Vec<u64>,
    line_count: u64,
    numbering: u64,
}

/// What a match comes to. Spans are counted from its start.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// The span of the code; `None` where the group took no part.
    span: Option<(usize, usize)>,
    /// The span of the symbol.
    symbol: Option<(usize, usize)>,
    /// The code; `None` where the form yields none.
    code: Option<u32>,
    denied: bool,
}

impl LineSearch {
    /// A search by this plan.
    pub fn new(plan: Arc<Plan>) -> LineSearch {
        let caches = plan.patterns().iter().map(|_| None).collect();
        LineSearch {
            plan,
            names: Names::default(),
            caches,
            slots: Vec::new(),
            remembered: HashMap::default(),
            key: Vec::new(),
            endings: Endings::default(),
            taken: Spans::default(),
            last_seen: Vec::new(),
            line_count: 0,
            numbering: 0,
        }
    }

    /// Which numbers the names have: another answer, other numbers. To be asked before a block.
    pub fn numbering(&mut self) -> u64 {
        if self.names.bytes() > NAMES_BYTES_MAX {
            self.names.clear();
            self.remembered.clear();
            self.endings.clear();
            self.last_seen.clear();
            self.numbering += 1;
        }
        self.numbering
    }

    /// Finds the distinct codes of a line (without its end) by trying `tries`, in order of priority.
    pub fn search(&mut self, line: &[u8], tries: &mut Tries, found: &mut Vec<FoundCode>) {
        found.clear();
        let from = self.ending_from(tries);
        let ending = from.and_then(|from| self.endings.ending(line, from));
        if let Some(known) = ending.and_then(|ending| self.endings.found(ending)) {
            found.extend_from_slice(known);
            return;
        }
        let by_ending = self.search_anew(line, tries, from.unwrap_or(line.len()), found);
        if let Some(ending) = ending.filter(|_| by_ending) {
            self.endings.remember(ending, found);
        }
    }

    /// Where the part of the line begins on which depends what is found by `tries`; `None` where that is not known.
    fn ending_from(&self, tries: &Tries) -> Option<usize> {
        let context = |one: &Try| {
            let before = self.plan.patterns()[one.pattern as usize].context?;
            (one.start != Try::ANYWHERE).then(|| (one.start as usize).saturating_sub(before))
        };
        let first = tries.0.iter().map(context).try_fold(usize::MAX, |first, from| Some(first.min(from?)));
        first.filter(|&from| from < usize::MAX)
    }

    /// The same without a look at earlier lines. Tells whether what is found depends on the bytes from `from` on only.
    fn search_anew(&mut self, line: &[u8], tries: &mut Tries, from: usize, found: &mut Vec<FoundCode>) -> bool {
        tries.settle();
        let mut by_ending = true;
        self.line_count += 1;
        self.taken.clear();
        let plan = Arc::clone(&self.plan);
        let mut required: Option<(usize, bool)> = None;
        for tries in tries.0.chunk_by(|one, other| one.pattern == other.pattern) {
            let number = tries[0].pattern as usize;
            let planned = &plan.patterns()[number];
            let (rule, pattern) = plan.pattern(number);
            let mut meets = |start: usize, end: usize, search: &mut LineSearch, cache: &mut Cache| {
                // Few lines have a match, so what the rule requires is looked for last.
                let holds = match (&rule.require, required) {
                    (None, _) => true,
                    (Some(_), Some((rule_index, holds))) if rule_index == planned.rule_index => holds,
                    (Some(require), _) => {
                        // A match looks at the byte before it, which must be in the ending too.
                        let within = if from == 0 { 0 } else { line.len().min(from + 1) };
                        let in_ending = require.is_match(Input::new(line).range(within..));
                        let holds = in_ending || require.is_match(line);
                        by_ending &= in_ending;
                        required = Some((planned.rule_index, holds));
                        holds
                    }
                };
                if holds {
                    search.accept(line, (start, end), number, (rule, pattern), cache, |code| {
                        found.push(FoundCode { code, rule_index: planned.rule_index });
                    });
                }
            };
            let mut cache = self.caches[number].take().unwrap_or_else(|| Box::new(pattern.regex.create_cache()));
            // The places are in order, so this one comes last.
            let anywhere = tries.last().is_some_and(|last| last.start == Try::ANYWHERE);
            // Many searches that each may run to the end of the line would take the square of its length.
            let one_by_one = planned.reach == Reach::Starts && !(pattern.runs_far && tries.len() > FAR_TRIES_MAX);
            if one_by_one && !anywhere {
                let mut behind = 0;
                for &Try { start, .. } in tries {
                    let start = start as usize;
                    if start < behind || start > line.len() {
                        continue;
                    }
                    let input = Input::new(line).range(start..).anchored(Anchored::Yes);
                    if let Some(end) = pattern.regex.search_half_with(&mut cache, &input) {
                        meets(start, end.offset(), self, &mut cache);
                        behind = end.offset();
                    }
                }
            } else {
                let first = if anywhere { 0 } else { tries[0].start as usize };
                let mut matches = Searcher::new(Input::new(line).range(first.min(line.len())..));
                while let Some(next) = matches.advance(|input| Ok(pattern.regex.search_with(&mut cache, input))) {
                    meets(next.start(), next.end(), self, &mut cache);
                }
            }
            self.caches[number] = Some(cache);
            self.taken.settle();
        }
        by_ending
    }

    /// Takes a match of a pattern and tells its code where that counts.
    fn accept(
        &mut self,
        line: &[u8],
        (start, end): (usize, usize),
        number: usize,
        (rule, pattern): (&Rule, &Pattern),
        cache: &mut Cache,
        counts: impl FnOnce(u32),
    ) {
        let outcome = self.outcome(line, (start, end), number, (rule, pattern), cache);
        let Some((code_start, code_end)) = outcome.span else { return };
        let (code_start, code_end) = (start + code_start, start + code_end);
        if self.taken.overlap(code_start, code_end) {
            return;
        }
        let Some(code) = outcome.code else { return };
        self.taken.take(code_start, code_end);
        if let Some((from, to)) = outcome.symbol {
            self.taken.take(start + from, start + to);
        }
        if outcome.denied {
            return;
        }
        let index = code as usize;
        if self.last_seen.len() <= index {
            self.last_seen.resize(index + 1, 0);
        }
        if self.last_seen[index] != self.line_count {
            self.last_seen[index] = self.line_count;
            counts(code);
        }
    }

    fn outcome(
        &mut self,
        line: &[u8],
        (start, end): (usize, usize),
        number: usize,
        (rule, pattern): (&Rule, &Pattern),
        cache: &mut Cache,
    ) -> Outcome {
        if end - start > REMEMBERED_BYTES_MAX || pattern.looks_far {
            return self.work_out(line, (start, end), (rule, pattern), cache);
        }
        self.key.clear();
        // Patterns are few; their numbers fit.
        self.key.extend_from_slice(&(number as u32).to_le_bytes());
        self.key.extend_from_slice(&[u8::from(start == 0), u8::from(end == line.len())]);
        self.key.extend_from_slice(&line[start.saturating_sub(1)..line.len().min(end + 1)]);
        if let Some(outcome) = self.remembered.get(&self.key[..]) {
            return *outcome;
        }
        let outcome = self.work_out(line, (start, end), (rule, pattern), cache);
        if self.remembered.len() >= REMEMBERED_MAX {
            self.remembered.clear();
        }
        self.remembered.insert(self.key.as_slice().into(), outcome);
        outcome
    }

    fn work_out(
        &mut self,
        line: &[u8],
        (start, end): (usize, usize),
        (rule, pattern): (&Rule, &Pattern),
        cache: &mut Cache,
    ) -> Outcome {
        self.slots.clear();
        self.slots.resize(pattern.regex.group_info().slot_len(), None);
        let input = Input::new(line).range(start..).anchored(Anchored::Yes);
        let matched = pattern.regex.search_slots_with(cache, &input, &mut self.slots);
        let slots = &self.slots;
        // What is remembered of a match would be of another one otherwise.
        debug_assert!(matched.is_some() && slots[1].map(|slot| slot.get()) == Some(end), "a match is found again");
        let span =
            |group: usize| Some((slots.get(2 * group)?.as_ref()?.get(), slots.get(2 * group + 1)?.as_ref()?.get()));
        let relative = |(from, to): (usize, usize)| (from - start, to - start);
        let code = rule.code(pattern, |group| span(group).map(|(from, to)| &line[from..to]));
        let denied = code.as_ref().is_some_and(|code| rule.denies(code));
        Outcome {
            span: span(pattern.code_group).map(relative),
            symbol: pattern.sym_group.and_then(span).filter(|(from, to)| from < to).map(relative),
            code: code.map(|code| self.names.number(code.as_bytes())),
            denied,
        }
    }
}

/// The spans of a line that accepted matches have taken, in order, no two of
/// which overlap. The matches of one pattern come in order and do not overlap
/// each other, so theirs are put aside until the pattern is done.
#[derive(Default)]
pub struct Spans {
    settled: Vec<(usize, usize)>,
    fresh: Vec<(usize, usize)>,
}

impl Spans {
    /// Forgets all.
    pub fn clear(&mut self) {
        self.settled.clear();
        self.fresh.clear();
    }

    /// Whether a span overlaps one of an earlier pattern.
    pub fn overlap(&self, start: usize, end: usize) -> bool {
        let before = self.settled.partition_point(|&(from, _)| from < end);
        before > 0 && start < self.settled[before - 1].1
    }

    /// Takes a span of the present pattern.
    pub fn take(&mut self, start: usize, end: usize) {
        self.fresh.push((start, end));
    }

    /// The present pattern is done.
    pub fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        self.settled.append(&mut self.fresh);
        // Two runs in order, which the sort takes as they are.
        self.settled.sort();
        self.settled.dedup_by(|next, last| {
            let overlap = next.0 < last.1;
            if overlap {
                last.1 = last.1.max(next.1);
            }
            overlap
        });
    }
}

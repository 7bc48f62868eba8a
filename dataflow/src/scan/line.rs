//! Runs the rules on one line.
//!
//! A pattern is tried where a match of it can begin ([`crate::scan::plan`]). The
//! outcome of a match (its code, its span, whether the code is denied) depends only on
//! the bytes of the match and the two adjacent ones, so it is cached. So are the codes
//! of a line by its ending ([`crate::scan::endings`]).

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use regex_automata::meta::Cache;
use regex_automata::util::iter::Searcher;
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::{Anchored, Input};

use crate::rules::{Pattern, Rule};
use crate::scan::endings::Endings;
use crate::scan::found_code::FoundCode;
use crate::scan::interner::Interner;
use crate::scan::plan::{Plan, Reach};

/// The outcome of a longer match (bytes) is not cached.
const CACHED_MATCH_BYTES_MAX: usize = 128;

/// Outcomes in the cache before it is cleared.
const CACHED_OUTCOMES_MAX: usize = 16 * 1024;

/// Candidates of one line that are tried one by one; on a line with more, the
/// patterns search the whole line.
const CANDIDATES_MAX: usize = 64 * 1024;

/// Candidates of one line that are tried one by one for a pattern whose matches may have any length.
const FAR_CANDIDATES_MAX: usize = 16;

/// The approximate memory of interned codes and components (4 MiB) before they are cleared.
const NAMES_BYTES_MAX: usize = 4 << 20;

/// A pattern to try on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The pattern's number.
    pub pattern: u32,
    /// Where a match begins in the line, or begins at the earliest if the pattern's [`Reach`] is `Lines`; or
    /// [`Candidate::ANYWHERE`].
    pub start: u32,
}

impl Candidate {
    /// Greater than every position in a line, since a line is within a block.
    pub const ANYWHERE: u32 = u32::MAX;
}

/// The patterns to try on a line.
#[derive(Default)]
pub struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Removes all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds one. At [`CANDIDATES_MAX`], the positions are dropped and only the patterns remain.
    pub fn add(&mut self, one: Candidate) {
        if self.0.len() >= CANDIDATES_MAX {
            self.0.iter_mut().for_each(|one| one.start = Candidate::ANYWHERE);
            self.sort_and_dedup();
        }
        self.0.push(one);
    }

    fn sort_and_dedup(&mut self) {
        self.0.sort_unstable();
        self.0.dedup();
    }
}

/// Searches lines. Each worker has its own.
pub struct LineSearch {
    plan: Arc<Plan>,
    /// The interned codes and components.
    pub names: Interner,
    caches: Vec<Option<Box<Cache>>>,
    slots: Vec<Option<NonMaxUsize>>,
    outcomes: HashMap<Box<[u8]>, Outcome, RandomState>,
    key: Vec<u8>,
    endings: Endings,
    taken: Spans,
    /// The last line on which each code was seen.
    last_seen: Vec<u64>,
    line_count: u64,
    numbering: u64,
}

/// The outcome of a match. Spans are relative to its start.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// The span of the code; `None` if the group took no part in the match.
    span: Option<(usize, usize)>,
    /// The span of the symbol.
    symbol: Option<(usize, usize)>,
    /// The code; `None` if the form yields none.
    code: Option<u32>,
    denied: bool,
}

impl LineSearch {
    /// A search with this plan.
    pub fn new(plan: Arc<Plan>) -> LineSearch {
        let caches = plan.patterns().iter().map(|_| None).collect();
        LineSearch {
            plan,
            names: Interner::default(),
            caches,
            slots: Vec::new(),
            outcomes: HashMap::default(),
            key: Vec::new(),
            endings: Endings::default(),
            taken: Spans::default(),
            last_seen: Vec::new(),
            line_count: 0,
            numbering: 0,
        }
    }

    /// The current numbering of the names: with another value, numbers have another meaning. Call it before each block.
    pub fn numbering(&mut self) -> u64 {
        if self.names.bytes() > NAMES_BYTES_MAX {
            self.names.clear();
            self.outcomes.clear();
            self.endings.clear();
            self.last_seen.clear();
            self.numbering += 1;
        }
        self.numbering
    }

    /// Finds the distinct codes of a line (without its end) by trying `candidates`, in order of priority.
    pub fn search(&mut self, line: &[u8], candidates: &mut Candidates, found: &mut Vec<FoundCode>) {
        found.clear();
        let from = self.ending_from(candidates);
        let ending = from.and_then(|from| self.endings.ending(line, from));
        if let Some(cached) = ending.and_then(|ending| self.endings.found(ending)) {
            found.extend_from_slice(cached);
            return;
        }
        let by_ending = self.search_uncached(line, candidates, from.unwrap_or(line.len()), found);
        if let Some(ending) = ending.filter(|_| by_ending) {
            self.endings.insert(ending, found);
        }
    }

    /// Where the part of the line begins that decides what `candidates` find; `None` if that is unknown.
    fn ending_from(&self, candidates: &Candidates) -> Option<usize> {
        let context = |one: &Candidate| {
            let before = self.plan.patterns()[one.pattern as usize].context?;
            (one.start != Candidate::ANYWHERE).then(|| (one.start as usize).saturating_sub(before))
        };
        let first = candidates.0.iter().map(context).try_fold(usize::MAX, |first, from| Some(first.min(from?)));
        first.filter(|&from| from < usize::MAX)
    }

    /// The same without the cache of endings. Returns whether the result depends only on the bytes from `from` on.
    fn search_uncached(
        &mut self,
        line: &[u8],
        candidates: &mut Candidates,
        from: usize,
        found: &mut Vec<FoundCode>,
    ) -> bool {
        candidates.sort_and_dedup();
        let mut by_ending = true;
        self.line_count += 1;
        self.taken.clear();
        let plan = Arc::clone(&self.plan);
        let mut required: Option<(usize, bool)> = None;
        for candidates in candidates.0.chunk_by(|one, other| one.pattern == other.pattern) {
            let number = candidates[0].pattern as usize;
            let planned = &plan.patterns()[number];
            let (rule, pattern) = plan.pattern(number);
            let mut on_match = |start: usize, end: usize, search: &mut LineSearch, cache: &mut Cache| {
                // Few lines have a match, so `require` is checked last.
                let is_met = match (&rule.require, required) {
                    (None, _) => true,
                    (Some(_), Some((rule_index, is_met))) if rule_index == planned.rule_index => is_met,
                    (Some(require), _) => {
                        // A match depends on the byte before it, which must be in the ending too.
                        let within = if from == 0 { 0 } else { line.len().min(from + 1) };
                        let in_ending = require.is_match(Input::new(line).range(within..));
                        let is_met = in_ending || require.is_match(line);
                        by_ending &= in_ending;
                        required = Some((planned.rule_index, is_met));
                        is_met
                    }
                };
                if is_met {
                    search.accept(line, (start, end), number, (rule, pattern), cache, |code| {
                        found.push(FoundCode { code, rule_index: planned.rule_index });
                    });
                }
            };
            let mut cache = self.caches[number].take().unwrap_or_else(|| Box::new(pattern.regex.create_cache()));
            // Candidates are sorted, so this one comes last.
            let anywhere = candidates.last().is_some_and(|last| last.start == Candidate::ANYWHERE);
            // Many searches that may each run to the end of the line would take quadratic time.
            let one_by_one =
                planned.reach == Reach::Starts && !(pattern.runs_far && candidates.len() > FAR_CANDIDATES_MAX);
            if one_by_one && !anywhere {
                let mut previous_end = 0;
                for &Candidate { start, .. } in candidates {
                    let start = start as usize;
                    if start < previous_end || start > line.len() {
                        continue;
                    }
                    let input = Input::new(line).range(start..).anchored(Anchored::Yes);
                    if let Some(end) = pattern.regex.search_half_with(&mut cache, &input) {
                        on_match(start, end.offset(), self, &mut cache);
                        previous_end = end.offset();
                    }
                }
            } else {
                let first = if anywhere { 0 } else { candidates[0].start as usize };
                let mut matches = Searcher::new(Input::new(line).range(first.min(line.len())..));
                while let Some(next) = matches.advance(|input| Ok(pattern.regex.search_with(&mut cache, input))) {
                    on_match(next.start(), next.end(), self, &mut cache);
                }
            }
            self.caches[number] = Some(cache);
            self.taken.settle();
        }
        by_ending
    }

    /// Accepts a match of a pattern unless it overlaps an earlier one; calls `on_code` with its code if that counts.
    fn accept(
        &mut self,
        line: &[u8],
        (start, end): (usize, usize),
        number: usize,
        (rule, pattern): (&Rule, &Pattern),
        cache: &mut Cache,
        on_code: impl FnOnce(u32),
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
            on_code(code);
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
        if end - start > CACHED_MATCH_BYTES_MAX || pattern.looks_far {
            return self.compute_outcome(line, (start, end), (rule, pattern), cache);
        }
        self.key.clear();
        // Patterns are few; their numbers fit.
        self.key.extend_from_slice(&(number as u32).to_le_bytes());
        self.key.extend_from_slice(&[u8::from(start == 0), u8::from(end == line.len())]);
        self.key.extend_from_slice(&line[start.saturating_sub(1)..line.len().min(end + 1)]);
        if let Some(outcome) = self.outcomes.get(&self.key[..]) {
            return *outcome;
        }
        let outcome = self.compute_outcome(line, (start, end), (rule, pattern), cache);
        if self.outcomes.len() >= CACHED_OUTCOMES_MAX {
            self.outcomes.clear();
        }
        self.outcomes.insert(self.key.as_slice().into(), outcome);
        outcome
    }

    fn compute_outcome(
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
        // Otherwise the outcome would be of another match.
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

/// The spans of the accepted matches on a line, in order and without overlap. The
/// matches of one pattern come in order and do not overlap each other, so their
/// spans are merged in when the pattern is done.
#[derive(Default)]
pub struct Spans {
    settled: Vec<(usize, usize)>,
    fresh: Vec<(usize, usize)>,
}

impl Spans {
    /// Removes all.
    pub fn clear(&mut self) {
        self.settled.clear();
        self.fresh.clear();
    }

    /// Whether a span overlaps one of an earlier pattern.
    pub fn overlap(&self, start: usize, end: usize) -> bool {
        let before = self.settled.partition_point(|&(from, _)| from < end);
        before > 0 && start < self.settled[before - 1].1
    }

    /// Adds a span of the current pattern.
    pub fn take(&mut self, start: usize, end: usize) {
        self.fresh.push((start, end));
    }

    /// Ends the current pattern and merges its spans in.
    pub fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        self.settled.append(&mut self.fresh);
        // Two sorted runs, which the sort merges without sorting them again.
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

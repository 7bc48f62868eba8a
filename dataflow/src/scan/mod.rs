//! A block becomes occurrences and counts.
//!
//! Only [`Scanner`] searches lines. It looks for the literals of all patterns at once
//! ([`crate::scan::prefilter::search`]) and runs the rules only on the few lines that
//! contain some, at the positions that these give ([`crate::scan::line`]). The counts
//! are the same as if every pattern were tried on each line alone;
//! [`crate::rules::reference`] defines what that means.

mod activity;
pub mod ansi;
pub mod endings;
pub mod found_code;
pub mod header;
pub mod interner;
pub mod line;
pub mod plan;
pub mod prefilter;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::counts::partial::{HEAD_LINES, OpenCounts, PartialCounts, SeenCode, TAIL_LINES, Times};
use crate::rules::reference::{self, Found};
use crate::rules::{RuleSet, Severity};
use crate::scan::ansi::StrippedText;
use crate::scan::found_code::FoundCode;
use crate::scan::header::{Level, UTF8_BOM};
use crate::scan::line::{Candidate, Candidates, LineSearch};
use crate::scan::plan::{Plan, Reach, Trigger};
use crate::scan::prefilter::positions::Positions;
use crate::scan::prefilter::tables::CandidatePosition;
use crate::text::blocks::TextBlock;

/// The text of an occurrence is cut to this many bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// One code on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurrence {
    /// The line's number in its file, from 1.
    pub line: u64,
    /// The offset of the line's first byte in the file's text.
    pub offset: u64,
    /// The line's own time in microseconds since 1970, UTC; `None` if it has none.
    pub observed_at: Option<i64>,
    /// Whether that time is plausible ([`header::time::is_plausible`]).
    pub is_plausible: bool,
    /// The line's level.
    pub level: Option<Level>,
    /// The process, tag or logger named on the line.
    pub component: Option<Arc<str>>,
    /// The code.
    pub code: Arc<str>,
    /// The rule that found it.
    pub rule: Arc<str>,
    /// The higher of the rule's severity and the line's.
    pub severity: Severity,
    /// `false` if the line states that the code is not active.
    pub active: bool,
    /// The line, at most [`TEXT_BYTES_MAX`] bytes, invalid UTF-8 replaced.
    pub text: Arc<str>,
}

/// Runs a rule set over blocks. Each worker has its own.
pub struct Scanner {
    plan: Arc<Plan>,
    positions: Positions,
    search: LineSearch,
    headers: header::Reader,
    candidates: Candidates,
    found: Vec<FoundCode>,
}

impl Scanner {
    /// A scanner for these rules.
    pub fn new(rules: RuleSet) -> Scanner {
        Scanner::of(Plan::new(rules))
    }

    /// A scanner for a plan, which several scanners may share.
    pub fn of(plan: Arc<Plan>) -> Scanner {
        Scanner {
            search: LineSearch::new(Arc::clone(&plan)),
            headers: header::Reader::default(),
            positions: Positions::default(),
            plan,
            candidates: Candidates::default(),
            found: Vec::new(),
        }
    }

    /// The rules that it runs.
    pub fn rules(&self) -> &RuleSet {
        self.plan.rule_set()
    }

    /// Searches one block; returns its partial counts and its occurrences.
    /// `uploaded_at` (microseconds since 1970) is the reference for their times.
    pub fn scan(&mut self, block: &TextBlock, uploaded_at: i64) -> (PartialCounts, Vec<Occurrence>) {
        let (mut partial, mut occurrences) = (OpenCounts::default(), Vec::new());
        self.scan_into(block, uploaded_at, &mut partial, Some(&mut occurrences));
        (partial.close(), occurrences)
    }

    /// Searches one block; adds to the partial counts of its version, and to the
    /// occurrences if they are wanted.
    pub fn scan_into(
        &mut self,
        block: &TextBlock,
        uploaded_at: i64,
        partial: &mut OpenCounts,
        occurrences: Option<&mut Vec<Occurrence>>,
    ) {
        fail_on_demand(&block.text);
        partial.renumber(self.search.numbering());
        let Scanner { plan, positions, search, headers, candidates, found } = self;
        let stripped = StrippedText::of(&block.text);
        let text: &[u8] = stripped.as_ref().map_or(&block.text, |stripped| &stripped.text);
        let stripped = stripped.as_ref();
        let mut lines = Lines {
            plan,
            search,
            headers,
            candidates,
            found,
            block,
            text,
            stripped,
            uploaded_at,
            partial,
            occurrences,
            current: None,
            times: Times::default(),
        };
        plan.prefilter().find(text, positions, |candidate| lines.take(candidate));
        if !plan.every_line().is_empty() {
            lines.walk_to(text.len());
        }
        lines.finish();
        lines.note_times();
    }

    /// The same, but a panic of the search fails the version: nothing of the block is counted, and the partial counts
    /// record the line. The scanner is then rebuilt, because its caches may be inconsistent.
    pub fn scan_or_fail(
        &mut self,
        block: &TextBlock,
        uploaded_at: i64,
        partial: &mut OpenCounts,
        mut occurrences: Option<&mut Vec<Occurrence>>,
    ) {
        let before = occurrences.as_ref().map_or(0, |occurrences| occurrences.len());
        let searched = catch_unwind(AssertUnwindSafe(|| {
            self.scan_into(block, uploaded_at, partial, occurrences.as_deref_mut());
        }));
        if searched.is_ok() {
            return;
        }
        *self = Scanner::of(Arc::clone(&self.plan));
        if let Some(occurrences) = occurrences {
            occurrences.truncate(before);
        }
        partial.fail(self.failing_line(block, uploaded_at));
    }

    /// The number of the first line of a block on which a search of the line alone panics; else of its first line.
    fn failing_line(&mut self, block: &TextBlock, uploaded_at: i64) -> u64 {
        let mut offset = block.offset;
        for (number, line) in (block.first_line..).zip(block.text.split_inclusive(|&byte| byte == b'\n')) {
            let alone = TextBlock { text: line.to_vec().into(), first_line: number, offset };
            let searched = catch_unwind(AssertUnwindSafe(|| {
                self.scan_into(&alone, uploaded_at, &mut OpenCounts::default(), None);
            }));
            if searched.is_err() {
                *self = Scanner::of(Arc::clone(&self.plan));
                return number;
            }
            offset += line.len() as u64;
        }
        block.first_line
    }

    /// The distinct codes of one line (without its line end), by trying every pattern
    /// in order: the reference for every faster way.
    pub fn codes_of_line(&self, line: &[u8]) -> Vec<Found> {
        reference::codes_of_line(self.plan.rule_set(), line)
    }
}

/// The searched lines of a block, as their candidates arrive.
struct Lines<'a> {
    plan: &'a Plan,
    search: &'a mut LineSearch,
    headers: &'a mut header::Reader,
    candidates: &'a mut Candidates,
    found: &'a mut Vec<FoundCode>,
    block: &'a TextBlock,
    /// Its text, without colour codes.
    text: &'a [u8],
    /// Maps positions of that text to the block, if there were colour codes.
    stripped: Option<&'a StrippedText>,
    uploaded_at: i64,
    partial: &'a mut OpenCounts,
    occurrences: Option<&'a mut Vec<Occurrence>>,
    current: Option<Line>,
    /// The times of the lines.
    times: Times,
}

/// A line of a block.
#[derive(Clone, Copy)]
struct Line {
    /// Where it begins in the block.
    start: usize,
    /// Where its text begins for the rules: after a byte order mark.
    visible: usize,
    /// After its line feed.
    end: usize,
    number: u64,
}

impl Lines<'_> {
    /// Adds a candidate, which is in the line of the candidate before it or in a later one.
    fn take(&mut self, candidate: CandidatePosition) {
        if self.current.is_none_or(|line| line.end <= candidate.at) {
            if self.plan.every_line().is_empty() {
                self.finish();
                let start = memchr::memrchr(b'\n', &self.text[..candidate.at]).map_or(0, |feed| feed + 1);
                self.begin(start, self.block.first_line + candidate.line_feeds);
            } else {
                self.walk_to(candidate.at);
            }
        }
        let Some(line) = self.current else { return };
        for &Trigger { pattern, start } in self.plan.triggers(candidate.literal) {
            let start = match start.map(|before| candidate.at.checked_sub(before + line.visible)) {
                Some(Some(start)) => start as u32,
                // A match cannot begin before its line.
                Some(None) if self.plan.patterns()[pattern].reach == Reach::Starts => continue,
                Some(None) => 0,
                None => Candidate::ANYWHERE,
            };
            self.candidates.add(Candidate { pattern: pattern as u32, start });
        }
    }

    /// Searches every line before the one that contains `at`, and begins that one.
    fn walk_to(&mut self, at: usize) {
        loop {
            let (start, number) = self.current.map_or((0, self.block.first_line), |line| (line.end, line.number + 1));
            self.finish();
            if start >= self.text.len() {
                return;
            }
            self.begin(start, number);
            for &pattern in self.plan.every_line() {
                self.candidates.add(Candidate { pattern: pattern as u32, start: Candidate::ANYWHERE });
            }
            if self.current.is_some_and(|line| line.end > at) {
                return;
            }
        }
    }

    fn begin(&mut self, start: usize, number: u64) {
        let text = self.text;
        let end = memchr::memchr(b'\n', &text[start..]).map_or(text.len(), |feed| start + feed + 1);
        let at_file_start = self.block.offset + start as u64 == 0;
        let mark = at_file_start && text[start..end].starts_with(UTF8_BOM);
        let visible = start + if mark { UTF8_BOM.len() } else { 0 };
        self.candidates.clear();
        self.current = Some(Line { start, visible, end, number });
    }

    /// Searches the current line, whose candidates have all arrived.
    fn finish(&mut self) {
        let Some(Line { start, visible, end, number }) = self.current.take() else { return };
        let line = without_end(&self.text[visible..end]);
        self.search.search(line, self.candidates, self.found);
        if self.found.is_empty() {
            return;
        }
        let header = self.headers.read(line, self.uploaded_at);
        let component = header.component.map(|name| self.search.names.number(&name));
        let component_text = component.map(|number| Arc::clone(self.search.names.text(number)));
        self.partial.error_lines += 1;
        let original = self.stripped.map_or(line, |stripped| {
            without_end(&self.block.text[stripped.line_in_original(visible)..stripped.line_in_original(end)])
        });
        let start = self.stripped.map_or(start, |stripped| stripped.line_in_original(start));
        let observed_at = header.observed_at;
        let is_plausible = observed_at.is_some_and(|time| header::time::is_plausible(time, self.uploaded_at));
        if let Some(time) = observed_at.filter(|_| is_plausible) {
            self.times.note(number, time);
        }
        let may_be_inactive = |found: &&FoundCode| activity::may_be_inactive(&self.plan.rules()[found.rule_index].form);
        let trouble_codes = self.found.iter().filter(may_be_inactive);
        let names: Vec<&str> = trouble_codes.map(|found| &**self.search.names.text(found.code)).collect();
        let are_active = activity::are_active(line, &names);
        let mut text: Option<Arc<str>> = None;
        let mut are_active = are_active.into_iter();
        for found in self.found.iter() {
            let &FoundCode { code, rule_index } = found;
            let rule = &self.plan.rules()[rule_index];
            let severity = header.level.map_or(rule.severity, |level| rule.severity.max(level.severity()));
            let active = !may_be_inactive(&found) || are_active.next().unwrap_or(true);
            let seen = SeenCode {
                component,
                code,
                rule_index,
                rule: &rule.name,
                severity,
                active,
                observed_at: observed_at.filter(|_| is_plausible),
                line: number,
            };
            self.partial.add(&seen, &self.search.names, || cut_text(original));
            if let Some(occurrences) = &mut self.occurrences {
                occurrences.push(Occurrence {
                    line: number,
                    offset: self.block.offset + start as u64,
                    observed_at,
                    is_plausible,
                    level: header.level,
                    component: component_text.clone(),
                    code: Arc::clone(self.search.names.text(code)),
                    rule: Arc::clone(&rule.name),
                    severity,
                    active,
                    text: Arc::clone(text.get_or_insert_with(|| cut_text(original).into())),
                });
            }
        }
    }

    /// Records the times of the first lines of the file and the last lines of the block, with or without codes.
    fn note_times(&mut self) {
        let plausible = |line: &[u8], headers: &mut header::Reader| {
            if !header::may_name_time(line) {
                return None;
            }
            let time = headers.read(without_end(line), self.uploaded_at).observed_at?;
            header::time::is_plausible(time, self.uploaded_at).then_some(time)
        };
        let first_line = self.block.first_line;
        let lines = || self.text.split_inclusive(|&byte| byte == b'\n');
        for (number, line) in (first_line..=HEAD_LINES).zip(lines()) {
            if let Some(time) = plausible(line, self.headers) {
                self.times.note(number, time);
                break;
            }
        }
        let line_feeds = memchr::memchr_iter(b'\n', self.text.strip_suffix(b"\n").unwrap_or(self.text)).count();
        self.times.last_line = first_line + line_feeds as u64;
        let tail = (first_line..=self.times.last_line).rev().take(TAIL_LINES as usize);
        for (number, line) in tail.zip(lines().rev()) {
            if let Some(time) = plausible(line, self.headers) {
                self.times.tail = Some((number, time));
                break;
            }
        }
        self.partial.note_times(self.times);
    }
}

/// Panics on a block that contains the text of `ARGUS_PANIC_ON`, so that tests can make a search fail. Does nothing in
/// builds without debug assertions.
fn fail_on_demand(_text: &[u8]) {
    #[cfg(debug_assertions)]
    {
        static WANTED: std::sync::LazyLock<Option<String>> =
            std::sync::LazyLock::new(|| std::env::var("ARGUS_PANIC_ON").ok().filter(|text| !text.is_empty()));
        if let Some(wanted) = &*WANTED {
            assert!(
                memchr::memmem::find(_text, wanted.as_bytes()).is_none(),
                "the block contains the text of ARGUS_PANIC_ON"
            );
        }
    }
}

/// A line without its line feed and one carriage return before it.
fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The beginning of a line as text: at most [`TEXT_BYTES_MAX`] bytes.
fn cut_text(line: &[u8]) -> String {
    let cut = &line[..line.len().min(TEXT_BYTES_MAX)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if text.len() > TEXT_BYTES_MAX || cut.len() < line.len() {
        // A replacement character takes three bytes, and the cut may be inside a character.
        if cut.len() < line.len() && text.ends_with(char::REPLACEMENT_CHARACTER) {
            text.pop();
        }
        let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

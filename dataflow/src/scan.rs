//! A block becomes sightings and folded counts.
//!
//! [`Scanner`] is the one place where lines are searched, and the one to be
//! replaced by something faster. It searches the block once for the strings
//! of which every match must hold one ([`crate::literals`]) and runs the
//! rules on the few lines that have some. The counts are as if each line were
//! tried alone with every pattern; [`Scanner::codes_of_line`] says what that
//! means.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use serde::{Deserialize, Serialize};

use crate::blocks::TextBlock;
use crate::handle::InFlight;
use crate::header::{self, Level};
use crate::literals;
use crate::rows::Origin;
use crate::rules::{Pattern, Rule, RuleSet, Severity};

/// The text of a line that is kept with a sighting is cut to this.
pub const TEXT_BYTES_MAX: usize = 1024;

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// One code seen in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The line's number in its file, from 1.
    pub line: u64,
    /// The offset of the line's first byte in the file's text.
    pub offset: u64,
    /// The line's own time in microseconds since 1970, UTC; `None` when it names none.
    pub observed_at: Option<i64>,
    /// The level that the line names.
    pub level: Option<Level>,
    /// The process, tag or logger that the line names.
    pub component: Option<Arc<str>>,
    /// The code.
    pub code: Arc<str>,
    /// The rule that found it.
    pub rule: Arc<str>,
    /// The line's own severity, else the rule's.
    pub severity: Severity,
    /// The line, at most [`TEXT_BYTES_MAX`] bytes, invalid UTF-8 replaced.
    pub text: Arc<str>,
}

/// The sightings of one block, on their way out. Holds the block's room in
/// flight until it is dropped: a slow reader of sightings slows the feeders.
#[derive(Debug)]
pub struct ScannedBlock {
    /// Where the block is from.
    pub origin: Arc<Origin>,
    /// In order of line, then of priority.
    pub sightings: Vec<Sighting>,
    pub(crate) _room: Arc<InFlight>,
}

/// What one block adds to its generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Lines with at least one sighting.
    pub error_lines: u64,
    /// What was seen of each code, by component; lines that name none are under the empty name.
    pub components: HashMap<String, HashMap<String, CodeFold>>,
}

/// What was seen of one code in one component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeFold {
    /// Sightings.
    pub count: u64,
    /// The rule of the first sighting.
    pub rule: String,
    /// The worst severity of any sighting.
    pub severity: Severity,
    /// The earliest time of a sighting, microseconds since 1970.
    pub first_seen: Option<i64>,
    /// The latest.
    pub last_seen: Option<i64>,
    /// The first line with the code.
    pub example_line: u64,
    /// That line's text.
    pub example_text: String,
}

impl Fold {
    fn add(&mut self, sighting: &Sighting) {
        let seen = sighting.observed_at;
        let component = sighting.component.as_deref().unwrap_or_default();
        let codes = match self.components.get_mut(component) {
            Some(codes) => codes,
            None => self.components.entry(component.to_owned()).or_default(),
        };
        match codes.get_mut(&*sighting.code) {
            Some(code) => {
                code.count += 1;
                code.severity = code.severity.max(sighting.severity);
                code.first_seen = earliest(code.first_seen, seen);
                code.last_seen = code.last_seen.max(seen);
            }
            None => {
                let code = CodeFold {
                    count: 1,
                    rule: sighting.rule.to_string(),
                    severity: sighting.severity,
                    first_seen: seen,
                    last_seen: seen,
                    example_line: sighting.line,
                    example_text: sighting.text.to_string(),
                };
                codes.insert(sighting.code.to_string(), code);
            }
        }
    }

    /// Adds another block of the same generation; the order of blocks does not matter.
    pub fn merge(&mut self, other: Fold) {
        self.error_lines += other.error_lines;
        for (component, codes) in other.components {
            let mine = self.components.entry(component).or_default();
            for (name, more) in codes {
                match mine.get_mut(&name) {
                    Some(code) => code.merge(more),
                    None => {
                        mine.insert(name, more);
                    }
                }
            }
        }
    }

    /// Every code of every component, with what was seen of it.
    pub fn codes(self) -> impl Iterator<Item = (Option<String>, String, CodeFold)> {
        self.components.into_iter().flat_map(|(component, codes)| {
            let component = (!component.is_empty()).then_some(component);
            codes.into_iter().map(move |(code, seen)| (component.clone(), code, seen))
        })
    }
}

impl CodeFold {
    fn merge(&mut self, more: CodeFold) {
        self.count += more.count;
        self.severity = self.severity.max(more.severity);
        self.first_seen = earliest(self.first_seen, more.first_seen);
        self.last_seen = self.last_seen.max(more.last_seen);
        if more.example_line < self.example_line {
            self.rule = more.rule;
            self.example_line = more.example_line;
            self.example_text = more.example_text;
        }
    }
}

fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Runs a rule set over blocks. Each worker has its own.
pub struct Scanner {
    rules: RuleSet,
    /// Finds the strings of all patterns at once; `None` when no pattern has any.
    finder: Option<AhoCorasick>,
    /// For each string of `finder`, the patterns that a line with it may match.
    patterns_by_string: Vec<Vec<usize>>,
    /// Patterns that must be tried on every line.
    unfiltered: PatternSet,
    /// The first pattern of each rule, numbered through all rules.
    first_pattern: Vec<usize>,
    pattern_count: usize,
}

/// A set of patterns, numbered through all rules.
#[derive(Clone, Default, PartialEq, Eq)]
struct PatternSet(Vec<u64>);

impl PatternSet {
    fn of_size(patterns: usize) -> PatternSet {
        PatternSet(vec![0; patterns.div_ceil(64)])
    }

    fn insert(&mut self, pattern: usize) {
        self.0[pattern / 64] |= 1 << (pattern % 64);
    }

    fn contains(&self, pattern: usize) -> bool {
        self.0[pattern / 64] & (1 << (pattern % 64)) != 0
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }
}

/// A code found in a line, with the rule that found it.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The code.
    pub code: String,
    /// The index of its rule.
    pub rule_index: usize,
}

impl Scanner {
    /// A scanner for these rules.
    pub fn new(rules: RuleSet) -> Scanner {
        let mut strings: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        let mut first_pattern = Vec::new();
        let mut number = 0;
        let count = rules.rules().iter().map(|rule| rule.patterns.len()).sum();
        let mut unfiltered = PatternSet::of_size(count);
        for rule in rules.rules() {
            first_pattern.push(number);
            for pattern in &rule.patterns {
                match literals::required(pattern.regex.as_str()) {
                    Some(set) => set.into_iter().for_each(|string| strings.entry(string).or_default().push(number)),
                    None => unfiltered.insert(number),
                }
                number += 1;
            }
        }
        let (strings, patterns_by_string): (Vec<_>, Vec<_>) = strings.into_iter().unzip();
        // Cannot fail for sets of this size; without a finder every pattern is tried everywhere.
        let finder = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&strings)
            .ok()
            .filter(|_| !strings.is_empty());
        if finder.is_none() {
            (0..count).for_each(|number| unfiltered.insert(number));
        }
        Scanner { rules, finder, patterns_by_string, unfiltered, first_pattern, pattern_count: count }
    }

    /// Searches a block. `upload_year` is the year of times that name none.
    pub fn scan(&mut self, block: &TextBlock, upload_year: i32) -> (Fold, Vec<Sighting>) {
        let candidates = self.candidates(&block.text);
        let mut fold = Fold::default();
        let mut sightings = Vec::new();
        let mut counted_to = 0;
        let mut line_number = block.first_line;
        let mut found = Vec::new();
        for (start, end, patterns) in candidates {
            let line = line_without_end(&block.text[start..end], block.offset + start as u64 == 0);
            self.search_line(line, Some(&patterns), &mut found);
            if found.is_empty() {
                continue;
            }
            line_number += memchr::memchr_iter(b'\n', &block.text[counted_to..start]).count() as u64;
            counted_to = start;
            let header = header::read(line, upload_year);
            let component = header.component.map(Arc::from);
            let text: Arc<str> = cut_text(line).into();
            fold.error_lines += 1;
            for Found { code, rule_index } in found.drain(..) {
                let rule = &self.rules.rules()[rule_index];
                let sighting = Sighting {
                    line: line_number,
                    offset: block.offset + start as u64,
                    observed_at: header.observed_at,
                    level: header.level,
                    component: component.clone(),
                    code: code.into(),
                    rule: Arc::clone(&rule.name),
                    severity: header.level.map_or(rule.severity, Level::severity),
                    text: Arc::clone(&text),
                };
                fold.add(&sighting);
                sightings.push(sighting);
            }
        }
        (fold, sightings)
    }

    /// The distinct codes of one line (without its end), every pattern tried in
    /// order: what the rules mean, and the reference for every faster way.
    pub fn codes_of_line(&self, line: &[u8]) -> Vec<Found> {
        let mut found = Vec::new();
        self.search_line(line, None, &mut found);
        found
    }

    /// The lines that can hold a code, as `start..end` with their ends, and the
    /// patterns that can match there.
    fn candidates(&self, text: &[u8]) -> Vec<(usize, usize, PatternSet)> {
        let mut lines: Vec<(usize, usize, PatternSet)> = Vec::new();
        if !self.unfiltered.is_empty() {
            let mut start = 0;
            for line in text.split_inclusive(|&byte| byte == b'\n') {
                lines.push((start, start + line.len(), self.unfiltered.clone()));
                start += line.len();
            }
        }
        let every_line = !lines.is_empty();
        let Some(finder) = &self.finder else { return lines };
        let mut current = 0;
        for hit in finder.find_overlapping_iter(text) {
            // Hits come in order of their end, so their lines come in order too.
            if every_line {
                while lines[current].1 <= hit.start() {
                    current += 1;
                }
            } else if lines.last().is_none_or(|&(_, end, _)| end <= hit.start()) {
                let start = memchr::memrchr(b'\n', &text[..hit.start()]).map_or(0, |feed| feed + 1);
                let end = memchr::memchr(b'\n', &text[hit.end()..]).map_or(text.len(), |feed| hit.end() + feed + 1);
                lines.push((start, end, PatternSet::of_size(self.pattern_count)));
                current = lines.len() - 1;
            }
            for &pattern in &self.patterns_by_string[hit.pattern().as_usize()] {
                lines[current].2.insert(pattern);
            }
        }
        lines
    }

    fn search_line(&self, line: &[u8], only: Option<&PatternSet>, found: &mut Vec<Found>) {
        let mut taken = Spans::default();
        let mut known = HashSet::new();
        for (rule_index, rule) in self.rules.rules().iter().enumerate() {
            let first = self.first_pattern[rule_index];
            let tried = |index: usize| only.is_none_or(|set| set.contains(first + index));
            if !(0..rule.patterns.len()).any(tried)
                || rule.require.as_ref().is_some_and(|require| !require.is_match(line))
            {
                continue;
            }
            for index in (0..rule.patterns.len()).filter(|&index| tried(index)) {
                search_pattern(rule, &rule.patterns[index], line, &mut taken, |code| {
                    if known.insert(code.clone()) {
                        found.push(Found { code, rule_index });
                    }
                });
            }
        }
    }
}

/// The spans of a line that accepted matches have taken, by their starts. No
/// two overlap, so a line of any length is searched in little more than linear time.
#[derive(Default)]
struct Spans(BTreeMap<usize, usize>);

impl Spans {
    fn overlap(&self, start: usize, end: usize) -> bool {
        self.0.range(..end).next_back().is_some_and(|(_, &to)| start < to)
    }

    /// Takes a span, together with those that it overlaps.
    fn take(&mut self, mut start: usize, mut end: usize) {
        while let Some((&from, &to)) = self.0.range(..end).next_back().filter(|&(_, &to)| start < to) {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        let to = self.0.entry(start).or_insert(end);
        *to = end.max(*to);
    }
}

/// Runs one pattern over a line, left to right, and yields the codes that count.
fn search_pattern(rule: &Rule, pattern: &Pattern, line: &[u8], taken: &mut Spans, mut counts: impl FnMut(String)) {
    // Most lines do not match, and finding that out needs no groups.
    if !pattern.regex.is_match(line) {
        return;
    }
    for captures in pattern.regex.captures_iter(line) {
        let Some(code_group) = captures.name("code") else { continue };
        let (start, end) = (code_group.start(), code_group.end());
        if taken.overlap(start, end) {
            continue;
        }
        let code = match &pattern.fixed {
            Some(fixed) => Some(fixed.clone()),
            None => rule.form.code(&captures),
        };
        let Some(code) = code else { continue };
        taken.take(start, end);
        if pattern.has_sym
            && let Some(symbol) = captures.name("sym").filter(|symbol| !symbol.is_empty())
        {
            taken.take(symbol.start(), symbol.end());
        }
        if !rule.deny.as_ref().is_some_and(|deny| deny.is_match(code.as_bytes())) {
            counts(code);
        }
    }
}

/// A line as the rules see it: without its line feed, one carriage return
/// before it, and a byte order mark at the start of the file.
fn line_without_end(line: &[u8], at_file_start: bool) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = if at_file_start { line.strip_prefix(UTF8_BOM).unwrap_or(line) } else { line };
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The beginning of a line as text: at most [`TEXT_BYTES_MAX`] bytes.
fn cut_text(line: &[u8]) -> String {
    let cut = &line[..line.len().min(TEXT_BYTES_MAX)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if text.len() > TEXT_BYTES_MAX || cut.len() < line.len() {
        // A replaced byte takes three, and the cut may stand inside a character.
        if cut.len() < line.len() && text.ends_with(char::REPLACEMENT_CHARACTER) {
            text.pop();
        }
        let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

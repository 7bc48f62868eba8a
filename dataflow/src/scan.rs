//! A block becomes sightings and counts.
//!
//! [`Scanner`] is the one place where lines are searched. It looks for the
//! windows of all patterns at once ([`crate::finder`]) and runs the rules on
//! the few lines that show some ([`crate::line`]), where they show them. The
//! counts are as if each line were tried alone with every pattern;
//! [`crate::plain`] says what that means.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::blocks::TextBlock;
use crate::colours::Plain;
use crate::finder::{Hit, Places};
use crate::fold::{Fold, HEAD_LINES, OpenFold, Seen, TAIL_LINES, Times};
use crate::handle::InFlight;
use crate::header::{self, Level, UTF8_BOM};
use crate::line::{FoundCode, LineSearch, Tries, Try};
use crate::plain::{self, Found};
use crate::plan::{Plan, Reach, Trigger};
use crate::rows::Origin;
use crate::rules::{RuleSet, Severity};
use crate::trouble;

/// The text of a line that is kept with a sighting is cut to this.
pub const TEXT_BYTES_MAX: usize = 1024;

/// One code seen in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The line's number in its file, from 1.
    pub line: u64,
    /// The offset of the line's first byte in the file's text.
    pub offset: u64,
    /// The line's own time in microseconds since 1970, UTC; `None` when it names none.
    pub observed_at: Option<i64>,
    /// Whether a clock can have said it.
    pub is_plausible: bool,
    /// The level that the line names.
    pub level: Option<Level>,
    /// The process, tag or logger that the line names.
    pub component: Option<Arc<str>>,
    /// The code.
    pub code: Arc<str>,
    /// The rule that found it.
    pub rule: Arc<str>,
    /// The worse of the rule's severity and the line's own.
    pub severity: Severity,
    /// Whether the line says that the code is active, or nothing of it.
    pub active: bool,
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

/// Runs a rule set over blocks. Each worker has its own.
pub struct Scanner {
    plan: Arc<Plan>,
    places: Places,
    search: LineSearch,
    headers: header::Reader,
    tries: Tries,
    found: Vec<FoundCode>,
}

impl Scanner {
    /// A scanner for these rules.
    pub fn new(rules: RuleSet) -> Scanner {
        Scanner::of(Plan::new(rules))
    }

    /// A scanner by a plan that others may have too.
    pub fn of(plan: Arc<Plan>) -> Scanner {
        Scanner {
            search: LineSearch::new(Arc::clone(&plan)),
            headers: header::Reader::default(),
            places: Places::default(),
            plan,
            tries: Tries::default(),
            found: Vec::new(),
        }
    }

    /// The rules that it runs.
    pub fn rules(&self) -> &RuleSet {
        self.plan.rule_set()
    }

    /// Searches one block: what it adds to its version, and its sightings.
    /// `uploaded_at` (microseconds since 1970) is what their times are held to.
    pub fn scan(&mut self, block: &TextBlock, uploaded_at: i64) -> (Fold, Vec<Sighting>) {
        let (mut fold, mut sightings) = (OpenFold::default(), Vec::new());
        self.scan_into(block, uploaded_at, &mut fold, Some(&mut sightings));
        (fold.close(), sightings)
    }

    /// Searches one block, adds to what its version has come to, and to the
    /// sightings where they are wanted.
    pub fn scan_into(
        &mut self,
        block: &TextBlock,
        uploaded_at: i64,
        fold: &mut OpenFold,
        sightings: Option<&mut Vec<Sighting>>,
    ) {
        fail_on_demand(&block.text);
        fold.renumber(self.search.numbering());
        let Scanner { plan, places, search, headers, tries, found } = self;
        let plain = Plain::of(&block.text);
        let text: &[u8] = plain.as_ref().map_or(&block.text, |plain| &plain.text);
        let plain = plain.as_ref();
        let mut lines = Lines {
            plan,
            search,
            headers,
            tries,
            found,
            block,
            text,
            plain,
            uploaded_at,
            fold,
            sightings,
            current: None,
            times: Times::default(),
        };
        plan.finder().find(text, places, |hit| lines.take(hit));
        if !plan.every_line().is_empty() {
            lines.walk_to(text.len());
        }
        lines.finish();
        lines.note_times();
    }

    /// The same, where a panic of the search is the version's failure: nothing of the block is taken, and the fold names
    /// the line. The search begins anew, for what it had remembered may be half made.
    pub fn scan_or_fail(
        &mut self,
        block: &TextBlock,
        uploaded_at: i64,
        fold: &mut OpenFold,
        mut sightings: Option<&mut Vec<Sighting>>,
    ) {
        let before = sightings.as_ref().map_or(0, |sightings| sightings.len());
        let searched = catch_unwind(AssertUnwindSafe(|| {
            self.scan_into(block, uploaded_at, fold, sightings.as_deref_mut());
        }));
        if searched.is_ok() {
            return;
        }
        *self = Scanner::of(Arc::clone(&self.plan));
        if let Some(sightings) = sightings {
            sightings.truncate(before);
        }
        fold.fail(self.failing_line(block, uploaded_at));
    }

    /// The number of the first line of a block that cannot be searched by itself; else of its first line.
    fn failing_line(&mut self, block: &TextBlock, uploaded_at: i64) -> u64 {
        let mut offset = block.offset;
        for (number, line) in (block.first_line..).zip(block.text.split_inclusive(|&byte| byte == b'\n')) {
            let alone = TextBlock { text: line.to_vec().into(), first_line: number, offset };
            let searched = catch_unwind(AssertUnwindSafe(|| {
                self.scan_into(&alone, uploaded_at, &mut OpenFold::default(), None);
            }));
            if searched.is_err() {
                *self = Scanner::of(Arc::clone(&self.plan));
                return number;
            }
            offset += line.len() as u64;
        }
        block.first_line
    }

    /// The distinct codes of one line (without its end), every pattern tried in
    /// order: what the rules mean, and the reference for every faster way.
    pub fn codes_of_line(&self, line: &[u8]) -> Vec<Found> {
        plain::codes_of_line(self.plan.rule_set(), line)
    }
}

/// The lines of a block that are searched, as their hits come in.
struct Lines<'a> {
    plan: &'a Plan,
    search: &'a mut LineSearch,
    headers: &'a mut header::Reader,
    tries: &'a mut Tries,
    found: &'a mut Vec<FoundCode>,
    block: &'a TextBlock,
    /// Its text, without colours.
    text: &'a [u8],
    /// Where that stands in the block, if there were some.
    plain: Option<&'a Plain>,
    uploaded_at: i64,
    fold: &'a mut OpenFold,
    sightings: Option<&'a mut Vec<Sighting>>,
    current: Option<Line>,
    /// What the lines say of when they were written.
    times: Times,
}

/// A line of a block.
#[derive(Clone, Copy)]
struct Line {
    /// Where it begins in the block.
    start: usize,
    /// Where the rules begin to see it, behind a byte order mark.
    visible: usize,
    /// Behind its line feed.
    end: usize,
    number: u64,
}

impl Lines<'_> {
    /// Takes a hit, which is in the line of the hit before it or in a later one.
    fn take(&mut self, hit: Hit) {
        if self.current.is_none_or(|line| line.end <= hit.at) {
            if self.plan.every_line().is_empty() {
                self.finish();
                let start = memchr::memrchr(b'\n', &self.text[..hit.at]).map_or(0, |feed| feed + 1);
                self.begin(start, self.block.first_line + hit.line_feeds);
            } else {
                self.walk_to(hit.at);
            }
        }
        let Some(line) = self.current else { return };
        for &Trigger { pattern, start } in self.plan.triggers(hit.window) {
            let start = match start.map(|before| hit.at.checked_sub(before + line.visible)) {
                Some(Some(start)) => start as u32,
                // What would begin before its line is no match.
                Some(None) if self.plan.patterns()[pattern].reach == Reach::Starts => continue,
                Some(None) => 0,
                None => Try::ANYWHERE,
            };
            self.tries.add(Try { pattern: pattern as u32, start });
        }
    }

    /// Searches every line before the one that `at` is in, and begins that one.
    fn walk_to(&mut self, at: usize) {
        loop {
            let (start, number) = self.current.map_or((0, self.block.first_line), |line| (line.end, line.number + 1));
            self.finish();
            if start >= self.text.len() {
                return;
            }
            self.begin(start, number);
            for &pattern in self.plan.every_line() {
                self.tries.add(Try { pattern: pattern as u32, start: Try::ANYWHERE });
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
        self.tries.clear();
        self.current = Some(Line { start, visible, end, number });
    }

    /// Searches the line whose hits have all come in.
    fn finish(&mut self) {
        let Some(Line { start, visible, end, number }) = self.current.take() else { return };
        let line = without_end(&self.text[visible..end]);
        self.search.search(line, self.tries, self.found);
        if self.found.is_empty() {
            return;
        }
        let header = self.headers.read(line, self.uploaded_at);
        let component = header.component.map(|name| self.search.names.number(&name));
        let component_text = component.map(|number| Arc::clone(self.search.names.text(number)));
        self.fold.error_lines += 1;
        let original = self.plain.map_or(line, |plain| {
            without_end(&self.block.text[plain.line_in_original(visible)..plain.line_in_original(end)])
        });
        let start = self.plain.map_or(start, |plain| plain.line_in_original(start));
        let observed_at = header.observed_at;
        let is_plausible = observed_at.is_some_and(|time| header::time::is_plausible(time, self.uploaded_at));
        if let Some(time) = observed_at.filter(|_| is_plausible) {
            self.times.note(number, time);
        }
        let may_be_inactive = |found: &&FoundCode| trouble::may_be_inactive(&self.plan.rules()[found.rule_index].form);
        let trouble_codes = self.found.iter().filter(may_be_inactive);
        let names: Vec<&str> = trouble_codes.map(|found| &**self.search.names.text(found.code)).collect();
        let are_active = trouble::are_active(line, &names);
        let mut text: Option<Arc<str>> = None;
        let mut are_active = are_active.into_iter();
        for found in self.found.iter() {
            let &FoundCode { code, rule_index } = found;
            let rule = &self.plan.rules()[rule_index];
            let severity = header.level.map_or(rule.severity, |level| rule.severity.max(level.severity()));
            let active = !may_be_inactive(&found) || are_active.next().unwrap_or(true);
            let seen = Seen {
                component,
                code,
                rule_index,
                rule: &rule.name,
                severity,
                active,
                observed_at: observed_at.filter(|_| is_plausible),
                line: number,
            };
            self.fold.add(&seen, &self.search.names, || cut_text(original));
            if let Some(sightings) = &mut self.sightings {
                sightings.push(Sighting {
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

    /// Notes the times of the first lines of the file and of the last of the block, whether they have codes or not.
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
        self.fold.note_times(self.times);
    }
}

/// Panics on a block that contains the text of `ARGUS_PANIC_ON`, so that tests can have a search fail. Builds without
/// debug assertions never do.
fn fail_on_demand(_text: &[u8]) {
    #[cfg(debug_assertions)]
    {
        static WANTED: std::sync::LazyLock<Option<String>> =
            std::sync::LazyLock::new(|| std::env::var("ARGUS_PANIC_ON").ok().filter(|text| !text.is_empty()));
        if let Some(wanted) = &*WANTED {
            assert!(memchr::memmem::find(_text, wanted.as_bytes()).is_none(), "a test wants the search to fail");
        }
    }
}

/// A line as the rules see it: without its line feed and one carriage return before it.
fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
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

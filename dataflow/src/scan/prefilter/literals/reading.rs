//! Derives the rows of byte classes from a pattern's syntax tree, cut by cut.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

use super::common_words::{COMMON_WORD_FREQUENCY, CommonWords};
use super::{Distance, LITERAL_BYTES, Literal};
use crate::scan::prefilter::byte_set::ByteSet;

/// More literals than this for one pattern cost more than they save.
const LITERALS_MAX: usize = 64;

/// Rows of classes that are followed after one cut before shorter rows are tried.
const ROWS_MAX: usize = 256;

/// Steps that are followed after one cut, and their depth, before the cut is given up.
const STEPS_MAX: usize = 64 * 1024;
const DEPTH_MAX: usize = 512;

/// The cost of another literal, as the frequency of candidates that costs the same.
const LITERAL_COST: f64 = 2e-6;

/// Literals up to this cost are chosen without looking at others: they are few and rare.
const GOOD_ENOUGH: f64 = 2.5 * LITERAL_COST;

/// The cost factor of a literal that does not give the start of its match: its whole line is searched.
const UNKNOWN_START_COST: f64 = 4.0;

/// The bytes after which `^` matches: a line feed, or the end of a byte order mark at the start of a file.
const BEFORE_LINE: [u8; 2] = [b'\n', 0xbf];

/// Rows of which every match contains one, each with the distance of its cut from
/// the start of the match, and their cost.
pub(super) struct Choice {
    pub(super) rows: Vec<(Row, Distance)>,
    cost: f64,
}

impl Choice {
    /// Rare enough to choose without looking at others.
    pub(super) fn is_good_enough(&self) -> bool {
        self.cost <= GOOD_ENOUGH
    }

    pub(super) fn rarest(one: Option<Choice>, other: Option<Choice>) -> Option<Choice> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if other.cost < one.cost { other } else { one }),
            (one, other) => one.or(other),
        }
    }
}

/// A class by its number in a [`Reading`].
type ClassNumber = u32;

/// The classes of a pattern's rows: there are many rows, but few distinct classes.
#[derive(Default)]
pub(super) struct Reading {
    sets: Vec<ByteSet>,
    frequencies: Vec<f64>,
    /// For each class, the letters of the common words that it accepts.
    letters: Vec<u64>,
    /// Steps that may still be followed after the current cut, and the depth of the current one.
    steps_left: usize,
    depth: usize,
    numbers: HashMap<ByteSet, ClassNumber, RandomState>,
}

/// A row of classes that grows along a path through the tree.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Row {
    lead: Option<ClassNumber>,
    classes: [ClassNumber; LITERAL_BYTES],
    length: usize,
}

impl Row {
    fn classes(&self) -> &[ClassNumber] {
        &self.classes[..self.length]
    }

    fn cut(&mut self, length: usize) {
        if length < self.length {
            self.classes[length..].fill(0);
            self.length = length;
        }
    }
}

impl Reading {
    fn number(&mut self, set: ByteSet) -> ClassNumber {
        *self.numbers.entry(set).or_insert_with(|| {
            self.sets.push(set);
            self.frequencies.push(set.frequency());
            self.letters.push(CommonWords::letters_in(&set));
            // The memory limit of a pattern keeps the number of classes within 32 bits.
            (self.sets.len() - 1) as ClassNumber
        })
    }

    fn set(&self, number: ClassNumber) -> ByteSet {
        self.sets[number as usize]
    }

    pub(super) fn literal(&self, row: &Row, start: Distance) -> Literal {
        Literal {
            lead: row.lead.map(|lead| self.set(lead)),
            classes: row.classes().iter().map(|&class| self.set(class)).collect(),
            start,
            frequency: self.frequency(row),
        }
    }

    /// How often a row is expected in logs, in candidates per byte.
    fn frequency(&self, row: &Row) -> f64 {
        let product = |classes: &[ClassNumber]| -> f64 {
            classes.iter().map(|&class| self.frequencies[class as usize]).product()
        };
        let lead = row.lead.map_or(1.0, |lead| self.frequencies[lead as usize]);
        // A row that spells a common word, or a piece of one, is as common as the word.
        let mut frequency = lead * product(row.classes());
        let mut spelt = CommonWords::PIECES;
        for (length, class) in row.classes().iter().enumerate() {
            if spelt & CommonWords::ENDS[length] != 0 {
                frequency = frequency.max(COMMON_WORD_FREQUENCY * product(&row.classes()[length..]));
            }
            spelt &= !CommonWords::ENDS[length] & (self.letters[*class as usize] >> length);
        }
        if spelt != 0 && row.length > 1 { frequency.max(COMMON_WORD_FREQUENCY) } else { frequency }
    }

    fn choice(&self, rows: Vec<(Row, Distance)>) -> Choice {
        let cost = |(row, start): &(Row, Distance)| {
            self.frequency(row) * if start.is_exact() { 1.0 } else { UNKNOWN_START_COST } + LITERAL_COST
        };
        Choice { cost: rows.iter().map(cost).sum(), rows }
    }

    /// The literals after one cut, at the length that costs least.
    pub(super) fn at_cut(&mut self, rest: &Rest<'_>, start: Distance) -> Option<Choice> {
        let mut rows = [LITERAL_BYTES, 5, 3].into_iter().find_map(|length| self.rows(rest, length))?;
        if rows.is_empty() || rows.iter().any(|row| row.length == 0) {
            return None;
        }
        let mut best = None;
        for length in (2..=LITERAL_BYTES).rev() {
            rows.iter_mut().for_each(|row| row.cut(length));
            rows = self.merge(rows);
            if rows.len() <= LITERALS_MAX {
                best = Choice::rarest(best, Some(self.choice(rows.iter().map(|row| (*row, start)).collect())));
            }
        }
        best
    }

    /// The literals of the best cut within `hir`, which `next` follows.
    pub(super) fn inside(&mut self, hir: &Hir, start: Distance, next: Option<&Rest<'_>>) -> Option<Choice> {
        let mut best = None;
        match hir.kind() {
            HirKind::Capture(capture) => return self.inside(&capture.sub, start, next),
            HirKind::Literal(literal) => {
                for cut in 1..literal.0.len() {
                    let rest = Rest { todo: Todo::Bytes(&literal.0[cut..]), next };
                    best = Choice::rarest(best, self.at_cut(&rest, start.and(cut, Some(cut))));
                }
            }
            HirKind::Concat(parts) => {
                let mut start = start;
                for (index, part) in parts.iter().enumerate() {
                    if best.as_ref().is_some_and(Choice::is_good_enough) {
                        break;
                    }
                    if index > 0 {
                        let rest = Rest { todo: Todo::Parts(&parts[index..]), next };
                        best = Choice::rarest(best, self.at_cut(&rest, start));
                    }
                    let after = Rest { todo: Todo::Parts(&parts[index + 1..]), next };
                    best = Choice::rarest(best, self.inside(part, start, Some(&after)));
                    // A part that never matches has no minimum length; where the next one begins is then irrelevant.
                    start = start.and(part.properties().minimum_len().unwrap_or(0), part.properties().maximum_len());
                }
            }
            HirKind::Alternation(branches) => {
                let mut all = Vec::new();
                for branch in branches {
                    let rest = Rest { todo: Todo::Parts(std::slice::from_ref(branch)), next };
                    let cut = self.at_cut(&rest, start);
                    all.extend(Choice::rarest(cut, self.inside(branch, start, next))?.rows);
                }
                best = (all.len() <= LITERALS_MAX).then(|| self.choice(all));
            }
            HirKind::Repetition(repetition) if repetition.min > 0 => {
                let again = Rest { todo: Todo::again(repetition), next };
                best = self.inside(&repetition.sub, start, Some(&again));
            }
            _ => {}
        }
        best
    }

    /// Every row of up to `length` classes that can follow; `None` if there are too many.
    fn rows(&mut self, rest: &Rest<'_>, length: usize) -> Option<Vec<Row>> {
        let mut rows = Vec::new();
        (self.steps_left, self.depth) = (STEPS_MAX, 0);
        self.follow(Some(rest), Path::default(), length, &mut rows).then_some(rows)
    }

    /// Follows every path through `rest`; `false` if they are too many or too long.
    fn follow(&mut self, rest: Option<&Rest<'_>>, path: Path, length: usize, rows: &mut Vec<Row>) -> bool {
        if self.steps_left == 0 || self.depth == DEPTH_MAX {
            return false;
        }
        self.steps_left -= 1;
        self.depth += 1;
        let followed = self.follow_step(rest, path, length, rows);
        self.depth -= 1;
        followed
    }

    fn follow_step(&mut self, rest: Option<&Rest<'_>>, path: Path, length: usize, rows: &mut Vec<Row>) -> bool {
        let (todo, next) = match rest {
            Some(Rest { todo, next }) if path.row.length < length => (todo, *next),
            rest => {
                rows.push(if rest.is_none() { self.end(path) } else { path.row });
                return rows.len() <= ROWS_MAX;
            }
        };
        match *todo {
            Todo::Parts([]) => self.follow(next, path, length, rows),
            Todo::Parts([first, others @ ..]) => {
                let after = Rest { todo: Todo::Parts(others), next };
                self.follow_part(first, Some(&after), path, length, rows)
            }
            Todo::Bytes(bytes) => self.follow_bytes(bytes, next, path, length, rows),
            Todo::Repeat { sub, min, max, length_before } => {
                // An iteration that matched nothing equals no iteration, which has been followed.
                if length_before == Some(path.row.length) {
                    return true;
                }
                if min == 0 && !self.follow(next, path, length, rows) {
                    return false;
                }
                if max == Some(0) {
                    return true;
                }
                let again = Todo::Repeat {
                    sub,
                    min: min.saturating_sub(1),
                    max: max.map(|max| max - 1),
                    length_before: Some(path.row.length),
                };
                self.follow_part(sub, Some(&Rest { todo: again, next }), path, length, rows)
            }
        }
    }

    fn follow_part(
        &mut self,
        part: &Hir,
        next: Option<&Rest<'_>>,
        mut path: Path,
        length: usize,
        rows: &mut Vec<Row>,
    ) -> bool {
        match part.kind() {
            HirKind::Empty => self.follow(next, path, length, rows),
            HirKind::Look(look) => {
                path.look = Some(*look);
                self.follow(next, path, length, rows)
            }
            HirKind::Literal(literal) => self.follow_bytes(&literal.0, next, path, length, rows),
            HirKind::Class(class) => {
                let bytes = match class {
                    Class::Bytes(class) => Some(class.clone()),
                    Class::Unicode(class) => class.to_byte_class(),
                };
                // After a character of several bytes nothing is known.
                let Some(bytes) = bytes else {
                    rows.push(path.row);
                    return rows.len() <= ROWS_MAX;
                };
                let mut set = ByteSet::EMPTY;
                bytes.ranges().iter().for_each(|range| (range.start()..=range.end()).for_each(|byte| set.insert(byte)));
                self.longer(path, set).is_none_or(|path| self.follow(next, path, length, rows))
            }
            HirKind::Capture(capture) => self.follow_part(&capture.sub, next, path, length, rows),
            HirKind::Concat(parts) => self.follow(Some(&Rest { todo: Todo::Parts(parts), next }), path, length, rows),
            HirKind::Alternation(branches) => {
                branches.iter().all(|branch| self.follow_part(branch, next, path, length, rows))
            }
            HirKind::Repetition(repetition) => {
                let todo = Todo::iterations(repetition);
                self.follow(Some(&Rest { todo, next }), path, length, rows)
            }
        }
    }

    fn follow_bytes(
        &mut self,
        bytes: &[u8],
        next: Option<&Rest<'_>>,
        mut path: Path,
        length: usize,
        rows: &mut Vec<Row>,
    ) -> bool {
        for &byte in bytes {
            if path.row.length >= length {
                break;
            }
            match self.longer(path, ByteSet::of(&[byte])) {
                Some(longer) => path = longer,
                None => return true,
            }
        }
        self.follow(next, path, length, rows)
    }

    /// A path with one more class; `None` if no line has such a row.
    fn longer(&mut self, mut path: Path, mut class: ByteSet) -> Option<Path> {
        class.remove(b'\n');
        let look = path.look.take();
        match (look, path.row.classes().last()) {
            (Some(Look::Start), None) => path.row.lead = Some(self.number(ByteSet::of(&BEFORE_LINE))),
            (Some(Look::WordAscii), None) => {
                let before = other_side(&class);
                path.row.lead = (before != ByteSet::ALL).then(|| self.number(before));
            }
            (Some(Look::WordAscii), Some(&last)) => class = class.intersection(&other_side(&self.set(last))),
            _ => {}
        }
        path.row.classes[path.row.length] = self.number(class);
        path.row.length += 1;
        (!class.is_empty()).then_some(path)
    }

    /// The row of a match that ends here, with the class of the byte that must follow it.
    fn end(&mut self, path: Path) -> Row {
        let mut row = path.row;
        let last = row.classes().last().filter(|_| row.length < LITERAL_BYTES);
        let Some(&last) = last else { return row };
        let after = match path.look {
            Some(Look::WordAscii) => other_side(&self.set(last)),
            Some(Look::End) => ByteSet::of(b"\r\n"),
            _ => return row,
        };
        row.classes[row.length] = self.number(after);
        row.length += 1;
        row
    }

    /// Merges rows that differ in one class only, which neither loses nor adds any text.
    fn merge(&mut self, mut rows: Vec<Row>) -> Vec<Row> {
        let longest = rows.iter().map(|row| row.length).max().unwrap_or(0);
        for position in (0..longest).rev() {
            if rows.len() == 1 {
                break;
            }
            let mut merged: Vec<Row> = Vec::with_capacity(rows.len());
            let mut equal: HashMap<Row, usize, RandomState> =
                HashMap::with_capacity_and_hasher(rows.len(), RandomState::default());
            for row in rows {
                let mut others = row;
                others.classes[position] = 0;
                match equal.get(&others) {
                    Some(&index) if position < row.length => {
                        let mut both = self.set(merged[index].classes[position]);
                        both.insert_all(&self.set(row.classes[position]));
                        merged[index].classes[position] = self.number(both);
                    }
                    Some(_) => {}
                    None => {
                        equal.insert(others, merged.len());
                        merged.push(row);
                    }
                }
            }
            rows = merged;
        }
        rows
    }
}

/// A row, and the assertion before its next byte.
#[derive(Clone, Copy, Default)]
struct Path {
    row: Row,
    look: Option<Look>,
}

/// The bytes that can be on the other side of a word boundary, line feeds included.
fn other_side(class: &ByteSet) -> ByteSet {
    if class.is_subset(&ByteSet::WORD) {
        ByteSet::WORD.complement()
    } else if class.is_subset(&ByteSet::WORD.complement()) {
        ByteSet::WORD
    } else {
        ByteSet::ALL
    }
}

/// What is still to be matched, as a linked list on the stack.
pub(super) struct Rest<'a> {
    pub(super) todo: Todo<'a>,
    pub(super) next: Option<&'a Rest<'a>>,
}

pub(super) enum Todo<'a> {
    Parts(&'a [Hir]),
    Bytes(&'a [u8]),
    Repeat { sub: &'a Hir, min: u32, max: Option<u32>, length_before: Option<usize> },
}

impl<'a> Todo<'a> {
    /// The iterations of a repetition. If an iteration may match nothing, there may as well be none.
    fn iterations(repetition: &'a Repetition) -> Todo<'a> {
        let Repetition { min, max, sub, .. } = repetition;
        let min = if sub.properties().minimum_len() == Some(0) { 0 } else { *min };
        Todo::Repeat { sub, min, max: *max, length_before: None }
    }

    /// What follows the first iteration of a repetition.
    fn again(repetition: &'a Repetition) -> Todo<'a> {
        match Todo::iterations(repetition) {
            Todo::Repeat { sub, min, max, length_before } => Todo::Repeat {
                sub,
                min: min.saturating_sub(1),
                max: max.map(|max| max.saturating_sub(1)),
                length_before,
            },
            other => other,
        }
    }
}

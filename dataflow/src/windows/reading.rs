//! Reads the rows of byte classes off a pattern's syntax tree, cut by cut.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use regex_syntax::hir::{Class, Hir, HirKind, Look, Repetition};

use super::common_words::{COMMON_WORD_FREQUENCY, CommonWords};
use super::{Behind, WINDOW_BYTES, Window};
use crate::bytes::ByteSet;

/// More windows than this for one pattern are not worth their search.
const WINDOWS_MAX: usize = 64;

/// Rows of classes that are followed behind one cut before they are taken shorter.
const ROWS_MAX: usize = 256;

/// Steps that are followed behind one cut, and how deep, before it is given up.
const STEPS_MAX: usize = 64 * 1024;
const DEPTH_MAX: usize = 512;

/// What another window costs, as the frequency of hits that costs the same.
const WINDOW_COST: f64 = 2e-6;

/// Windows of that cost are taken without a look at others: a few, and hardly ever hit.
const GOOD_ENOUGH: f64 = 2.5 * WINDOW_COST;

/// A hit that does not tell where its match begins costs the search of its line.
const UNKNOWN_START_COST: f64 = 4.0;

/// Bytes before which `^` holds: the line before, or the byte order mark at the start of a file.
const BEFORE_LINE: [u8; 2] = [b'\n', 0xbf];

/// Rows of which every match shows one, each with the distance of its cut from
/// the start of the match, and what they cost.
pub(super) struct Choice {
    pub(super) rows: Vec<(Row, Behind)>,
    cost: f64,
}

impl Choice {
    /// As rare as is of use.
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

/// The classes of a pattern's rows, which are many rows of few classes.
#[derive(Default)]
pub(super) struct Reading {
    sets: Vec<ByteSet>,
    frequencies: Vec<f64>,
    /// For each class, the letters of the common words that it accepts.
    letters: Vec<u64>,
    /// Steps that may still be followed behind the present cut, and how deep the present one is.
    steps_left: usize,
    depth: usize,
    numbers: HashMap<ByteSet, ClassNumber, RandomState>,
}

/// A row of classes as it grows along a path through the tree.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Row {
    lead: Option<ClassNumber>,
    classes: [ClassNumber; WINDOW_BYTES],
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
            // A pattern that has more takes more memory than it may.
            (self.sets.len() - 1) as ClassNumber
        })
    }

    fn set(&self, number: ClassNumber) -> ByteSet {
        self.sets[number as usize]
    }

    pub(super) fn window(&self, row: &Row, start: Behind) -> Window {
        Window {
            lead: row.lead.map(|lead| self.set(lead)),
            classes: row.classes().iter().map(|&class| self.set(class)).collect(),
            start,
            frequency: self.frequency(row),
        }
    }

    /// How often a row is expected in logs, in hits per byte.
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

    fn choice(&self, rows: Vec<(Row, Behind)>) -> Choice {
        let cost = |(row, start): &(Row, Behind)| {
            self.frequency(row) * if start.is_exact() { 1.0 } else { UNKNOWN_START_COST } + WINDOW_COST
        };
        Choice { cost: rows.iter().map(cost).sum(), rows }
    }

    /// The windows behind one cut, at the length that costs least.
    pub(super) fn at_cut(&mut self, rest: &Rest<'_>, start: Behind) -> Option<Choice> {
        let mut rows = [WINDOW_BYTES, 5, 3].into_iter().find_map(|length| self.rows(rest, length))?;
        if rows.is_empty() || rows.iter().any(|row| row.length == 0) {
            return None;
        }
        let mut best = None;
        for length in (2..=WINDOW_BYTES).rev() {
            rows.iter_mut().for_each(|row| row.cut(length));
            rows = self.merge(rows);
            if rows.len() <= WINDOWS_MAX {
                best = Choice::rarest(best, Some(self.choice(rows.iter().map(|row| (*row, start)).collect())));
            }
        }
        best
    }

    /// The windows of the best cut within `hir`, which `next` follows.
    pub(super) fn inside(&mut self, hir: &Hir, start: Behind, next: Option<&Rest<'_>>) -> Option<Choice> {
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
                    let behind = Rest { todo: Todo::Parts(&parts[index + 1..]), next };
                    best = Choice::rarest(best, self.inside(part, start, Some(&behind)));
                    // What matches nothing has no least length, and no matter where what follows it begins.
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
                best = (all.len() <= WINDOWS_MAX).then(|| self.choice(all));
            }
            HirKind::Repetition(repetition) if repetition.min > 0 => {
                let again = Rest { todo: Todo::again(repetition), next };
                best = self.inside(&repetition.sub, start, Some(&again));
            }
            _ => {}
        }
        best
    }

    /// Every row of up to `length` classes that can follow; `None` when they are too many.
    fn rows(&mut self, rest: &Rest<'_>, length: usize) -> Option<Vec<Row>> {
        let mut rows = Vec::new();
        (self.steps_left, self.depth) = (STEPS_MAX, 0);
        self.follow(Some(rest), Path::default(), length, &mut rows).then_some(rows)
    }

    /// Follows every way through `rest`; `false` when they are too many or too long.
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
                let behind = Rest { todo: Todo::Parts(others), next };
                self.follow_part(first, Some(&behind), path, length, rows)
            }
            Todo::Bytes(bytes) => self.follow_bytes(bytes, next, path, length, rows),
            Todo::Repeat { sub, min, max, length_before } => {
                // A round that took nothing was as good as none, which has been followed.
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
                // Behind a character of several bytes nothing is known.
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
                let todo = Todo::rounds(repetition);
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

    /// A path with one more class; `None` when no line has such a row.
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

    /// The row of a match that ends here, with what must stand behind it.
    fn end(&mut self, path: Path) -> Row {
        let mut row = path.row;
        let last = row.classes().last().filter(|_| row.length < WINDOW_BYTES);
        let Some(&last) = last else { return row };
        let behind = match path.look {
            Some(Look::WordAscii) => other_side(&self.set(last)),
            Some(Look::End) => ByteSet::of(b"\r\n"),
            _ => return row,
        };
        row.classes[row.length] = self.number(behind);
        row.length += 1;
        row
    }

    /// Puts together rows that differ in one class only, which leaves nothing out and lets nothing in.
    fn merge(&mut self, mut rows: Vec<Row>) -> Vec<Row> {
        let longest = rows.iter().map(|row| row.length).max().unwrap_or(0);
        for place in (0..longest).rev() {
            if rows.len() == 1 {
                break;
            }
            let mut merged: Vec<Row> = Vec::with_capacity(rows.len());
            let mut alike: HashMap<Row, usize, RandomState> =
                HashMap::with_capacity_and_hasher(rows.len(), RandomState::default());
            for row in rows {
                let mut others = row;
                others.classes[place] = 0;
                match alike.get(&others) {
                    Some(&index) if place < row.length => {
                        let mut both = self.set(merged[index].classes[place]);
                        both.insert_all(&self.set(row.classes[place]));
                        merged[index].classes[place] = self.number(both);
                    }
                    Some(_) => {}
                    None => {
                        alike.insert(others, merged.len());
                        merged.push(row);
                    }
                }
            }
            rows = merged;
        }
        rows
    }
}

/// A row, and what is asked of the byte that comes next.
#[derive(Clone, Copy, Default)]
struct Path {
    row: Row,
    look: Option<Look>,
}

/// What can stand on the other side of a word boundary, line feeds included.
fn other_side(class: &ByteSet) -> ByteSet {
    if class.is_subset(&ByteSet::WORD) {
        ByteSet::WORD.complement()
    } else if class.is_subset(&ByteSet::WORD.complement()) {
        ByteSet::WORD
    } else {
        ByteSet::ALL
    }
}

/// What is still to be matched, as a list that lives on the stack.
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
    /// The rounds of a repetition. One whose rounds may take nothing may as well have none of them.
    fn rounds(repetition: &'a Repetition) -> Todo<'a> {
        let Repetition { min, max, sub, .. } = repetition;
        let min = if sub.properties().minimum_len() == Some(0) { 0 } else { *min };
        Todo::Repeat { sub, min, max: *max, length_before: None }
    }

    /// What follows the first round of a repetition.
    fn again(repetition: &'a Repetition) -> Todo<'a> {
        match Todo::rounds(repetition) {
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

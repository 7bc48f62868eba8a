//! The literals of a pattern: every match contains at least one of them.
//!
//! A [`Literal`] is a row of byte classes: `\bDTC\s` is a non-word byte, then `D`, `T`,
//! `C` and a blank. For each pattern a few literals are chosen such that every match
//! contains at least one, if possible at a known distance from the start of the match.
//! Text without any of them need not be searched.
//!
//! The literals are derived from the pattern's syntax tree. Every match passes through
//! each *cut* of it (the points between the parts of a concatenation), and only a
//! limited number of rows of classes can follow a cut:
//!
//! ```text
//!  \b e r r (?:or)? \s* [:=]      after the cut before `err`:  !w e r r o r
//!    ▲ ▲ ▲ ▲       ▲   ▲                                       !w e r r [\s:=]
//!    cuts
//! ```
//!
//! Of all cuts, the one whose literals are rarest in logs is chosen. Literals are only a
//! necessary condition: a superfluous literal costs time, a missing one would lose
//! matches, so anything that is not understood is treated as any byte.

mod common_words;
mod reading;

use self::reading::{Choice, Reading, Rest, Todo};
use crate::scan::prefilter::byte_set::ByteSet;

/// The maximum length of a literal (bytes after its cut).
pub const LITERAL_BYTES: usize = 8;

/// Literals more frequent than this, in candidates per byte, would occur on nearly every line.
const FREQUENCY_MAX: f64 = 0.004;

/// A row of byte classes that a match contains.
#[derive(Debug, Clone, PartialEq)]
pub struct Literal {
    /// The class of the byte before the cut, which may be a line feed before the text.
    pub lead: Option<ByteSet>,
    /// The classes of the bytes from the cut on; after the last, any byte.
    pub classes: Vec<ByteSet>,
    /// How far the cut is after the start of the match.
    pub start: Distance,
    /// How often it is expected in logs, in candidates per byte.
    pub frequency: f64,
}

/// A distance from the start of a match, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// At least this many.
    pub least: usize,
    /// At most this many; `None` for any number.
    pub most: Option<usize>,
}

impl Distance {
    /// At the start itself.
    pub const START: Distance = Distance { least: 0, most: Some(0) };

    /// Whether the distance is always the same.
    pub fn is_exact(&self) -> bool {
        self.most == Some(self.least)
    }

    fn and(self, least: usize, most: Option<usize>) -> Distance {
        Distance { least: self.least + least, most: self.most.zip(most).map(|(one, other)| one + other) }
    }
}

/// Why a pattern has no useful literals, so that it must be tried on every line.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Unfiltered {
    /// Its matches need not have any bytes in common.
    #[error("no bytes that every match contains")]
    NothingFixed,
    /// The bytes that every match contains are on nearly every line.
    #[error("every match contains only common bytes, about {:.0} times per 1000 bytes of logs", frequency * 1000.0)]
    Common {
        /// In candidates per byte.
        frequency: f64,
    },
}

/// Literals of which every match of `pattern` contains one. The pattern must be valid
/// for bytes, without Unicode.
pub fn literals(pattern: &str) -> Result<Vec<Literal>, Unfiltered> {
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern);
    let hir = hir.map_err(|_| Unfiltered::NothingFixed)?;
    let whole = Rest { todo: Todo::Parts(std::slice::from_ref(&hir)), next: None };
    let mut reading = Reading::default();
    let choice = match reading.at_cut(&whole, Distance::START) {
        Some(choice) if choice.is_good_enough() => Some(choice),
        choice => Choice::rarest(choice, reading.inside(&hir, Distance::START, None)),
    };
    let rows = choice.ok_or(Unfiltered::NothingFixed)?.rows;
    let literals: Vec<Literal> = rows.iter().map(|(row, start)| reading.literal(row, *start)).collect();
    let frequency = literals.iter().map(|literal| literal.frequency).sum::<f64>();
    if frequency > FREQUENCY_MAX { Err(Unfiltered::Common { frequency }) } else { Ok(literals) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each literal as its lead, `|`, and its classes; classes of many bytes are a dot.
    fn check(pattern: &str, expected: &[&str]) {
        let class = |class: &ByteSet| match class.iter().collect::<Vec<u8>>().as_slice() {
            [byte] => byte.escape_ascii().to_string(),
            [upper, lower] if upper.to_ascii_lowercase() == *lower => (*lower as char).to_string(),
            some if some.len() <= 6 => format!("[{}]", some.escape_ascii()),
            _ => ".".to_owned(),
        };
        let mut shown: Vec<String> = literals(pattern)
            .unwrap_or_default()
            .into_iter()
            .map(|literal| {
                let lead = if literal.lead.is_some() { "|" } else { "" };
                let start = match literal.start {
                    Distance { least, most } if most == Some(least) => least.to_string(),
                    Distance { least, most: Some(most) } => format!("{least}-{most}"),
                    Distance { .. } => "?".to_owned(),
                };
                format!("{start} {lead}{}", literal.classes.iter().map(class).collect::<String>())
            })
            .collect();
        shown.sort();
        assert_eq!(shown, expected, "{pattern}");
    }

    #[test]
    fn the_rarest_bytes_that_every_match_contains_are_chosen() {
        check(r"\bDomain=(?P<dom>\w+)[ ,]+Code=(?P<code>\d+)", &["0 |Domain=."]);
        check(r"x+(?P<code>[0-9]+)QZ", &["? QZ"]);
        check(r"(?P<code>(?:a|b)QZX)", &["0 [ab]QZX"]);
    }

    #[test]
    fn a_pattern_with_candidates_on_nearly_every_line_has_no_literals() {
        for pattern in [r"\b(?P<code>[0-9]+)\b", "(?:abc)?", "abc|[0-9]+", ".*", "(?:a*)*", ""] {
            check(pattern, &[]);
        }
    }

    #[test]
    fn no_literal_contains_a_line_feed() {
        check(r"ab\nc|Q(?P<code>X)", &["0 QX"]);
    }
}

//! What every match of a pattern must contain.
//!
//! A [`Window`] is a row of byte classes: `\bDTC\s` is a byte that is no word,
//! then `D`, `T`, `C` and a blank. For a pattern we look for a few windows of
//! which every match shows at least one, and shows it at a known distance from
//! its start where that can be had. Bytes that show none of them need not be
//! looked at.
//!
//! The windows are read off the pattern's syntax tree. Every match passes
//! through each *cut* of it (the places between the parts of a
//! concatenation), and behind a cut only so many rows of classes can follow:
//!
//! ```text
//!  \b e r r (?:or)? \s* [:=]      behind the cut before `err`:  !w e r r o r
//!    ▲ ▲ ▲ ▲       ▲   ▲                                        !w e r r [\s:=]
//!    cuts
//! ```
//!
//! Of all cuts the one whose windows are rarest in logs is taken. Windows are a
//! necessary condition only: a window too many costs time, a missing one would
//! cost exactness, so what is not understood is taken to be any byte.

mod common_words;
mod reading;

use self::reading::{Choice, Reading, Rest, Todo};
use crate::bytes::ByteSet;

/// Bytes behind a cut that are told apart.
pub const WINDOW_BYTES: usize = 8;

/// Windows that are more frequent than this, in hits per byte, would hit nearly every line.
const FREQUENCY_MAX: f64 = 0.004;

/// A row of byte classes that a match shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    /// What the byte before the cut must be, line feeds before the text included.
    pub lead: Option<ByteSet>,
    /// What the bytes from the cut on must be; behind the last, any.
    pub classes: Vec<ByteSet>,
    /// How far the cut is behind the start of the match.
    pub start: Behind,
    /// How often it is expected in logs, in hits per byte.
    pub frequency: f64,
}

/// How far something is behind the start of a match, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// At least so far.
    pub least: usize,
    /// At most so far; `None` for any distance.
    pub most: Option<usize>,
}

impl Behind {
    /// At the start itself.
    pub const START: Behind = Behind { least: 0, most: Some(0) };

    /// Whether it is always as far.
    pub fn is_exact(&self) -> bool {
        self.most == Some(self.least)
    }

    fn and(self, least: usize, most: Option<usize>) -> Behind {
        Behind { least: self.least + least, most: self.most.zip(most).map(|(one, other)| one + other) }
    }
}

/// Why a pattern has no windows of use, so that it must be tried on every line.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Unfiltered {
    /// Nothing is fixed enough in it.
    #[error("a match need not show any bytes that could be searched for")]
    NothingFixed,
    /// What every match shows is in nearly every line.
    #[error("what every match shows stands in logs about {:.0} times per 1000 bytes", frequency * 1000.0)]
    Common {
        /// In hits per byte.
        frequency: f64,
    },
}

/// Windows of which every match of `pattern` shows one. The pattern is one
/// that holds, for bytes, without Unicode.
pub fn windows(pattern: &str) -> Result<Vec<Window>, Unfiltered> {
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern);
    let hir = hir.map_err(|_| Unfiltered::NothingFixed)?;
    let whole = Rest { todo: Todo::Parts(std::slice::from_ref(&hir)), next: None };
    let mut reading = Reading::default();
    let choice = match reading.at_cut(&whole, Behind::START) {
        Some(choice) if choice.is_good_enough() => Some(choice),
        choice => Choice::rarest(choice, reading.inside(&hir, Behind::START, None)),
    };
    let rows = choice.ok_or(Unfiltered::NothingFixed)?.rows;
    let windows: Vec<Window> = rows.iter().map(|(row, start)| reading.window(row, *start)).collect();
    let frequency = windows.iter().map(|window| window.frequency).sum::<f64>();
    if frequency > FREQUENCY_MAX { Err(Unfiltered::Common { frequency }) } else { Ok(windows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each window as its lead, `|`, and its classes; classes of many bytes are a dot.
    fn check(pattern: &str, expected: &[&str]) {
        let class = |class: &ByteSet| match class.iter().collect::<Vec<u8>>().as_slice() {
            [byte] => byte.escape_ascii().to_string(),
            [upper, lower] if upper.to_ascii_lowercase() == *lower => (*lower as char).to_string(),
            some if some.len() <= 6 => format!("[{}]", some.escape_ascii()),
            _ => ".".to_owned(),
        };
        let mut shown: Vec<String> = windows(pattern)
            .unwrap_or_default()
            .into_iter()
            .map(|window| {
                let lead = if window.lead.is_some() { "|" } else { "" };
                let start = match window.start {
                    Behind { least, most } if most == Some(least) => least.to_string(),
                    Behind { least, most: Some(most) } => format!("{least}-{most}"),
                    Behind { .. } => "?".to_owned(),
                };
                format!("{start} {lead}{}", window.classes.iter().map(class).collect::<String>())
            })
            .collect();
        shown.sort();
        assert_eq!(shown, expected, "{pattern}");
    }

    #[test]
    fn the_rarest_bytes_that_every_match_shows_are_chosen() {
        check(r"\bDomain=(?P<dom>\w+)[ ,]+Code=(?P<code>\d+)", &["0 |Domain=."]);
        check(r"x+(?P<code>[0-9]+)QZ", &["? QZ"]);
        check(r"(?P<code>(?:a|b)QZX)", &["0 [ab]QZX"]);
    }

    #[test]
    fn a_pattern_that_hits_nearly_every_line_has_no_windows() {
        for pattern in [r"\b(?P<code>[0-9]+)\b", "(?:abc)?", "abc|[0-9]+", ".*", "(?:a*)*", ""] {
            check(pattern, &[]);
        }
    }

    #[test]
    fn no_window_holds_a_line_feed() {
        check(r"ab\nc|Q(?P<code>X)", &["0 QX"]);
    }
}

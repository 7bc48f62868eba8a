//! Text from logs and file names, made safe for a terminal.
//!
//! A log may contain escape sequences that move the cursor, set the title or worse,
//! and characters that override the direction of text. On a terminal these are
//! printed as escapes: `\x1b`, `\u{202e}`. Pipes and files get the bytes unchanged.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Write};

/// Whether a terminal interprets the character instead of printing it: C0 and C1 controls, DEL, and overrides of the
/// text direction (Unicode Standard Annex 9).
fn is_interpreted(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether to print colours: on a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
pub fn has_colours(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The number of columns of standard output, if it is a terminal.
pub fn columns() -> Option<usize> {
    let terminal = console::Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1))
}

/// Escapes a text to one line: line feeds and tabs become `\n` and `\t`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Escapes a text of several lines: line feeds and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, is_layout)
}

fn is_layout(c: char) -> bool {
    matches!(c, '\n' | '\t')
}

fn escaped(text: &str, is_allowed: fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(|c| is_interpreted(c) && !is_allowed(c)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_interpreted(c) && !is_allowed(c) {
            true => escape(c, &mut escaped),
            false => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}

fn escape(c: char, to: &mut String) {
    // Writing to a string cannot fail.
    let _ = match c {
        '\n' => write!(to, "\\n"),
        '\r' => write!(to, "\\r"),
        '\t' => write!(to, "\\t"),
        '\0'..='\u{7f}' => write!(to, "\\x{:02x}", u32::from(c)),
        _ => write!(to, "\\u{{{:x}}}", u32::from(c)),
    };
}

fn escape_in_json(c: char, to: &mut String) {
    // All these characters are in the Basic Multilingual Plane, so none needs a surrogate pair.
    let _ = write!(to, "\\u{:04x}", u32::from(c));
}

/// Standard output for text or JSON; escapes what a terminal would interpret if it is one.
pub fn stdout(is_json: bool) -> Box<dyn Write + Send> {
    let out = io::stdout();
    match (out.is_terminal(), is_json) {
        (false, _) => Box::new(BufWriter::new(out)),
        (true, false) => Box::new(BufWriter::new(Terminal::new(out))),
        (true, true) => Box::new(BufWriter::new(Terminal::of_json(out))),
    }
}

/// A writer of UTF-8 text to a terminal; line feeds and tabs stay.
pub struct Terminal<W: Write> {
    to: W,
    /// The first bytes of a character that is not complete yet.
    pending: Vec<u8>,
    escape: fn(char, &mut String),
}

impl<W: Write> Terminal<W> {
    /// Escapes what the terminal would interpret.
    pub fn new(to: W) -> Terminal<W> {
        Terminal { to, pending: Vec::new(), escape }
    }

    /// The same for JSON, with JSON escapes: the value stays the same. (JSON has such characters only in strings.)
    pub fn of_json(to: W) -> Terminal<W> {
        Terminal { to, pending: Vec::new(), escape: escape_in_json }
    }
}

impl<W: Write> Write for Terminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        let mut escaped = String::new();
        let mut rest = 0;
        for chunk in self.pending.utf8_chunks() {
            rest += chunk.valid().len();
            for c in chunk.valid().chars() {
                match is_interpreted(c) && !is_layout(c) {
                    true => (self.escape)(c, &mut escaped),
                    false => escaped.push(c),
                }
            }
            let invalid = chunk.invalid();
            // Up to three bytes at the end may be an incomplete character.
            let is_last = rest + invalid.len() == self.pending.len();
            let is_incomplete = is_last && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if !invalid.is_empty() && !is_incomplete {
                escaped.push(char::REPLACEMENT_CHARACTER);
                rest += invalid.len();
            }
        }
        self.pending.drain(..rest);
        self.to.write_all(escaped.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[2J\u{9b}31m\x07\x7f\r\u{202e}\u{2066}b";

    #[test]
    fn what_a_terminal_would_interpret_is_escaped_and_other_text_is_unchanged() {
        let escaped = "a\\x1b[2J\\u{9b}31m\\x07\\x7f\\r\\u{202e}\\u{2066}b";
        assert_eq!(line(HOSTILE), escaped);
        assert_eq!(line("one\n\ttwo"), "one\\n\\ttwo");
        assert_eq!(lines("one\n\ttwo\x1b"), "one\n\ttwo\\x1b");
        for text in ["", "Grüße, 世界 🚗 \u{200f}\u{ad}", "\\x1b"] {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn a_writer_escapes_the_same_however_the_bytes_are_split() {
        let text = format!("Grüße 🚗\n\t{HOSTILE}\n");
        for size in 1..=text.len() {
            let mut to = Vec::new();
            let mut terminal = Terminal::new(&mut to);
            text.as_bytes().chunks(size).for_each(|part| terminal.write_all(part).expect("writes to memory"));
            assert_eq!(String::from_utf8(to).expect("text"), lines(&text), "in parts of {size}");
        }
        let mut to = Vec::new();
        Terminal::new(&mut to).write_all(b"a\xff\x9bb\n").expect("writes to memory");
        assert_eq!(String::from_utf8(to).expect("text"), "a\u{fffd}\u{fffd}b\n");
    }

    #[test]
    fn json_stays_the_same_json() {
        let mut to = Vec::new();
        serde_json::to_writer_pretty(Terminal::of_json(&mut to), &[HOSTILE]).expect("writes to memory");
        assert_eq!(serde_json::from_slice::<Vec<String>>(&to).expect("JSON"), [HOSTILE]);
        let text = String::from_utf8(to).expect("text");
        assert!(!text.contains(|c| is_interpreted(c) && c != '\n'), "{text}");
    }
}

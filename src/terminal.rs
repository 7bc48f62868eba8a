//! What a terminal is shown of logs and file names.
//!
//! A log may hold escape sequences that move the cursor, set the title or worse,
//! and characters that turn the direction of the text around. On a terminal these
//! are shown, not obeyed: `\x1b`, `\u{202e}`. Pipes and files get the bytes as they are.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, IsTerminal, Write};

/// Whether a terminal would obey the character, not show it: C0 and C1 controls, DEL, and what overrides the
/// direction of text (Unicode Standard Annex 9).
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether colours are wanted where there is a terminal: not where `NO_COLOR` says anything (no-color.org).
pub fn has_colours(is_terminal: bool) -> bool {
    is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Columns of standard output, where it is a terminal.
pub fn columns() -> Option<usize> {
    let terminal = console::Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1))
}

/// A text as one line: line feeds and tabs are shown as `\n` and `\t` too.
pub fn line(text: &str) -> Cow<'_, str> {
    shown(text, |_| false)
}

/// A text of several lines, which keeps its line feeds and tabs.
pub fn lines(text: &str) -> Cow<'_, str> {
    shown(text, is_layout)
}

fn is_layout(c: char) -> bool {
    matches!(c, '\n' | '\t')
}

fn shown(text: &str, is_kept: fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(|c| is_obeyed(c) && !is_kept(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_obeyed(c) && !is_kept(c) {
            true => escape(c, &mut shown),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

fn escape(c: char, to: &mut String) {
    // Memory is written without error.
    let _ = match c {
        '\n' => write!(to, "\\n"),
        '\r' => write!(to, "\\r"),
        '\t' => write!(to, "\\t"),
        '\0'..='\u{7f}' => write!(to, "\\x{:02x}", u32::from(c)),
        _ => write!(to, "\\u{{{:x}}}", u32::from(c)),
    };
}

fn escape_in_json(c: char, to: &mut String) {
    // None of them is outside the Basic Multilingual Plane, so none needs a pair.
    let _ = write!(to, "\\u{:04x}", u32::from(c));
}

/// Standard output for text or JSON: what a terminal would obey is shown where it is one.
pub fn stdout(is_json: bool) -> Box<dyn Write + Send> {
    let out = io::stdout();
    match (out.is_terminal(), is_json) {
        (false, _) => Box::new(BufWriter::new(out)),
        (true, false) => Box::new(BufWriter::new(Terminal::new(out))),
        (true, true) => Box::new(BufWriter::new(Terminal::of_json(out))),
    }
}

/// A writer to a terminal, of text in UTF-8 that has lines and tabs.
pub struct Terminal<W: Write> {
    to: W,
    /// The beginning of a character whose rest is not written yet.
    begun: Vec<u8>,
    escape: fn(char, &mut String),
}

impl<W: Write> Terminal<W> {
    /// Shows what the terminal would obey.
    pub fn new(to: W) -> Terminal<W> {
        Terminal { to, begun: Vec::new(), escape }
    }

    /// The same for JSON, which stays the same JSON. (It has such characters in strings only.)
    pub fn of_json(to: W) -> Terminal<W> {
        Terminal { to, begun: Vec::new(), escape: escape_in_json }
    }
}

impl<W: Write> Write for Terminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        let mut shown = String::new();
        let mut rest = 0;
        for chunk in self.begun.utf8_chunks() {
            rest += chunk.valid().len();
            for c in chunk.valid().chars() {
                match is_obeyed(c) && !is_layout(c) {
                    true => (self.escape)(c, &mut shown),
                    false => shown.push(c),
                }
            }
            let invalid = chunk.invalid();
            // Up to three bytes at the end may be a character that goes on.
            let is_last = rest + invalid.len() == self.begun.len();
            let goes_on = is_last && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if !invalid.is_empty() && !goes_on {
                shown.push(char::REPLACEMENT_CHARACTER);
                rest += invalid.len();
            }
        }
        self.begun.drain(..rest);
        self.to.write_all(shown.as_bytes())?;
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
    fn what_a_terminal_would_obey_is_shown_and_all_else_is_as_it_is() {
        let shown = "a\\x1b[2J\\u{9b}31m\\x07\\x7f\\r\\u{202e}\\u{2066}b";
        assert_eq!(line(HOSTILE), shown);
        assert_eq!(line("one\n\ttwo"), "one\\n\\ttwo");
        assert_eq!(lines("one\n\ttwo\x1b"), "one\n\ttwo\\x1b");
        for text in ["", "Grüße, 世界 🚗 \u{200f}\u{ad}", "\\x1b"] {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn a_writer_shows_the_same_however_the_bytes_are_cut() {
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
        assert!(!text.contains(|c| is_obeyed(c) && c != '\n'), "{text}");
    }
}

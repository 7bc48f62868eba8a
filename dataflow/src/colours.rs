//! Texts without their colours.
//!
//! A colour changes no code: lines are searched as they read without their
//! escape sequences. Where a sequence stands between two words, one byte that
//! is of no word stays, so that a match can begin behind it as at a word's
//! start.

/// Where an escape sequence begins, and what stays between two words.
const ESCAPE: u8 = 0x1b;

/// A text without colours.
pub struct Plain {
    /// The text.
    pub text: Vec<u8>,
    /// Places in it, in order, with their places in the original: between two of them nothing was taken out.
    places: Vec<(usize, usize)>,
}

impl Plain {
    /// A text without its colours; `None` where it has none.
    pub fn of(original: &[u8]) -> Option<Plain> {
        let mut escapes = memchr::memchr_iter(ESCAPE, original).filter_map(|start| {
            let end = sequence_end(&original[start..])?;
            Some((start, start + end))
        });
        let first = escapes.next()?;
        let mut plain = Plain { text: Vec::with_capacity(original.len()), places: vec![(0, 0)] };
        let mut copied = 0;
        for (start, end) in std::iter::once(first).chain(escapes) {
            plain.text.extend_from_slice(&original[copied..start]);
            copied = end;
            if plain.text.last().is_some_and(|&byte| is_word(byte))
                && original.get(end).is_some_and(|&byte| is_word(byte))
            {
                plain.text.push(ESCAPE);
            }
            plain.places.push((plain.text.len(), end));
        }
        plain.text.extend_from_slice(&original[copied..]);
        Some(plain)
    }

    /// Where in the original a line begins that begins at a place of this text, or ends there.
    pub fn line_in_original(&self, at: usize) -> usize {
        let Some(feed) = at.checked_sub(1) else { return 0 };
        // The line feed before it was not taken out, and colours behind that are the line's.
        let known = self.places.partition_point(|&(place, _)| place <= feed).saturating_sub(1);
        let (place, original) = self.places[known];
        original + (feed - place) + 1
    }
}

/// The length of a sequence that sets colours (`ESC[…m`) or erases the line behind them (`ESC[…K`).
fn sequence_end(text: &[u8]) -> Option<usize> {
    const PARAMETER_BYTES_MAX: usize = 32;
    let parameters = text.strip_prefix(&[ESCAPE, b'['])?;
    let end =
        parameters.iter().take(PARAMETER_BYTES_MAX).position(|byte| !matches!(byte, b'0'..=b'9' | b';' | b':'))?;
    matches!(parameters[end], b'm' | b'K').then_some(2 + end + 1)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_words_stay_apart() {
        let table: &[(&str, Option<&str>)] = &[
            ("no colour", None),
            ("\x1b[2J not one", None),
            ("\x1b", None),
            ("\x1b[", None),
            ("\x1b[31mP0A1F\x1b[0m", Some("P0A1F")),
            ("errno=\x1b[1;31m28\x1b[m\x1b[K.", Some("errno=28.")),
            ("DTC\x1b[31mP0A1F", Some("DTC\x1bP0A1F")),
            ("a\x1b[0m\n\x1b[31mb", Some("a\nb")),
        ];
        for (original, expected) in table {
            let plain = Plain::of(original.as_bytes()).map(|plain| String::from_utf8_lossy(&plain.text).into_owned());
            assert_eq!(plain.as_deref(), *expected, "{original:?}");
        }
    }

    #[test]
    fn lines_are_found_again_in_the_original() {
        let original = b"\x1b[31ma\x1b[0m\n\x1b[1mb\nc\x1b[0m\n";
        let plain = Plain::of(original).expect("it has colours");
        assert_eq!(plain.text, b"a\nb\nc\n");
        let starts = [0, 2, 4, 6].map(|at| plain.line_in_original(at));
        assert_eq!(starts, [0, 11, 17, original.len()]);
    }
}

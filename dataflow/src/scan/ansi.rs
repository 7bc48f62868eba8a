//! Texts without their ANSI colour codes.
//!
//! Lines are searched without their escape sequences, since a colour does not change
//! an error code. Where a sequence separates two words, one non-word byte stays, so
//! that a match can begin after it as at the start of a word.

/// The first byte of an escape sequence, which also stays between two words.
const ESCAPE: u8 = 0x1b;

/// A text without colour codes.
pub struct StrippedText {
    /// The text.
    pub text: Vec<u8>,
    /// Positions in it, in order, each with the position in the original; nothing was removed between two of them.
    positions: Vec<(usize, usize)>,
}

impl StrippedText {
    /// A text without its colour codes; `None` if it has none.
    pub fn of(original: &[u8]) -> Option<StrippedText> {
        let mut escapes = memchr::memchr_iter(ESCAPE, original).filter_map(|start| {
            let end = sequence_end(&original[start..])?;
            Some((start, start + end))
        });
        let first = escapes.next()?;
        let mut stripped = StrippedText { text: Vec::with_capacity(original.len()), positions: vec![(0, 0)] };
        let mut copied = 0;
        for (start, end) in std::iter::once(first).chain(escapes) {
            stripped.text.extend_from_slice(&original[copied..start]);
            copied = end;
            if stripped.text.last().is_some_and(|&byte| is_word(byte))
                && original.get(end).is_some_and(|&byte| is_word(byte))
            {
                stripped.text.push(ESCAPE);
            }
            stripped.positions.push((stripped.text.len(), end));
        }
        stripped.text.extend_from_slice(&original[copied..]);
        Some(stripped)
    }

    /// Maps the position where a line of this text begins or ends to the original.
    pub fn line_in_original(&self, at: usize) -> usize {
        let Some(feed) = at.checked_sub(1) else { return 0 };
        // The line feed before it was not removed, and colour codes after that belong to the line.
        let index = self.positions.partition_point(|&(position, _)| position <= feed).saturating_sub(1);
        let (position, original) = self.positions[index];
        original + (feed - position) + 1
    }
}

/// The length of a sequence that sets colours (`ESC[…m`) or erases the rest of the line (`ESC[…K`).
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
    fn colours_are_removed_and_words_stay_apart() {
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
            let stripped = StrippedText::of(original.as_bytes())
                .map(|stripped| String::from_utf8_lossy(&stripped.text).into_owned());
            assert_eq!(stripped.as_deref(), *expected, "{original:?}");
        }
    }

    #[test]
    fn lines_map_to_the_original() {
        let original = b"\x1b[31ma\x1b[0m\n\x1b[1mb\nc\x1b[0m\n";
        let stripped = StrippedText::of(original).expect("it has colours");
        assert_eq!(stripped.text, b"a\nb\nc\n");
        let starts = [0, 2, 4, 6].map(|at| stripped.line_in_original(at));
        assert_eq!(starts, [0, 11, 17, original.len()]);
    }
}

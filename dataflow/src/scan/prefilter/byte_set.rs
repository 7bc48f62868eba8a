//! Sets of bytes, and how often bytes occur in logs.

use std::fmt;

/// A set of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSet([u64; 4]);

impl ByteSet {
    /// No byte.
    pub const EMPTY: ByteSet = ByteSet([0; 4]);
    /// Every byte.
    pub const ALL: ByteSet = ByteSet([u64::MAX; 4]);
    /// `\w` in ASCII: `[0-9A-Za-z_]`.
    pub const WORD: ByteSet = ByteSet([0x03ff_0000_0000_0000, 0x07ff_fffe_87ff_fffe, 0, 0]);

    /// The set of these bytes.
    pub fn of(bytes: &[u8]) -> ByteSet {
        let mut set = ByteSet::EMPTY;
        bytes.iter().for_each(|&byte| set.insert(byte));
        set
    }

    /// Adds a byte.
    pub fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] |= 1 << (byte % 64);
    }

    /// Removes a byte.
    pub fn remove(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] &= !(1 << (byte % 64));
    }

    /// Adds the bytes of another set.
    pub fn insert_all(&mut self, other: &ByteSet) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, more)| *mine |= more);
    }

    /// Whether a byte is in the set.
    pub fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] & (1 << (byte % 64)) != 0
    }

    /// Whether no byte is in the set.
    pub fn is_empty(&self) -> bool {
        *self == ByteSet::EMPTY
    }

    /// Whether every byte of the set is in the other.
    pub fn is_subset(&self, other: &ByteSet) -> bool {
        self.intersection(other) == *self
    }

    /// The bytes that are in both sets.
    pub fn intersection(&self, other: &ByteSet) -> ByteSet {
        let mut both = *self;
        both.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine &= theirs);
        both
    }

    /// The bytes that are not in the set.
    pub fn complement(&self) -> ByteSet {
        ByteSet(self.0.map(|word| !word))
    }

    /// The bytes of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + use<> {
        self.0.into_iter().zip(0u8..).flat_map(|(mut word, index)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros() as u8)?;
                word &= word - 1;
                Some(index * 64 + bit)
            })
        })
    }

    /// The share of the bytes of logs that are in the set, between 0 and 1.
    pub fn frequency(&self) -> f64 {
        let count: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        match count {
            0..=128 => self.iter().map(frequency).sum::<f64>().min(1.0),
            _ => (1.0 - self.complement().iter().map(frequency).sum::<f64>()).max(0.0),
        }
    }
}

impl fmt::Debug for ByteSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<u8> = self.iter().collect();
        match bytes.len() {
            1..=16 => write!(f, "[{}]", bytes.escape_ascii()),
            256 => write!(f, "[any]"),
            count => write!(f, "[{count} bytes]"),
        }
    }
}

/// The approximate share of a byte in logs: blanks, digits, letters and punctuation as
/// in a mixed set of system and application logs, single letters as in English.
pub fn frequency(byte: u8) -> f64 {
    const LETTERS: [f64; 26] = [
        0.082, 0.015, 0.028, 0.043, 0.127, 0.022, 0.020, 0.061, 0.070, 0.002, 0.008, 0.040, 0.024, 0.067, 0.075, 0.019,
        0.001, 0.060, 0.063, 0.091, 0.028, 0.010, 0.024, 0.002, 0.020, 0.001,
    ];
    match byte {
        b' ' => 0.12,
        b'0'..=b'2' => 0.03,
        b'3'..=b'9' => 0.017,
        b'a'..=b'z' => 0.46 * LETTERS[usize::from(byte - b'a')],
        b'A'..=b'Z' => 0.07 * LETTERS[usize::from(byte - b'A')],
        b'.' | b':' | b'-' => 0.018,
        b'/' | b'_' | b'=' | b',' | b'[' | b']' | b'(' | b')' | b'"' => 0.008,
        b'\n' => 0.01,
        b'\r' | b'\t' | b'!'..=b'~' => 0.002,
        _ => 0.0001,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_bytes_are_those_of_the_pattern_engine() {
        let word = regex::bytes::RegexBuilder::new(r"^\w$").unicode(false).build().expect("the pattern is valid");
        for byte in 0..=u8::MAX {
            assert_eq!(ByteSet::WORD.contains(byte), word.is_match(&[byte]), "{byte}");
            assert_ne!(ByteSet::WORD.contains(byte), ByteSet::WORD.complement().contains(byte));
        }
    }

    #[test]
    fn the_frequencies_of_all_bytes_add_up_to_about_one() {
        let sum: f64 = (0..=u8::MAX).map(frequency).sum();
        assert!((0.9..1.1).contains(&sum), "{sum}");
    }
}

//! Words that are common in logs, and how their letters are found in rows of byte classes.

use super::LITERAL_BYTES;
use crate::scan::prefilter::byte_set::ByteSet;

/// Words that are more common in logs than their letters suggest.
const COMMON_WORDS: [&[u8]; 8] = [b"info", b"warn", b"error", b"fail", b"status", b"return", b"http", b"code"];
/// How often such a word, or a piece of one, is expected, in candidates per byte.
pub(super) const COMMON_WORD_FREQUENCY: f64 = 5e-4;

/// The letters of [`COMMON_WORDS`], one word after the other, as the bits of a `u64`.
pub(super) struct CommonWords;

impl CommonWords {
    /// Letters at which a piece of two letters or more begins.
    pub(super) const PIECES: u64 = {
        let mut pieces = 0;
        let mut left = 2;
        while left <= LITERAL_BYTES {
            pieces |= Self::ENDS[left];
            left += 1;
        }
        pieces
    };

    /// For each length, the letters from which on a word has that many left.
    pub(super) const ENDS: [u64; LITERAL_BYTES + 1] = {
        let mut ends = [0; LITERAL_BYTES + 1];
        let (mut word, mut bit) = (0, 0);
        while word < COMMON_WORDS.len() {
            let mut left = COMMON_WORDS[word].len();
            while left > 0 {
                ends[left] |= 1 << bit;
                left -= 1;
                bit += 1;
            }
            word += 1;
        }
        ends
    };

    /// The letters that a class accepts in either case.
    pub(super) fn letters_in(set: &ByteSet) -> u64 {
        let letters = COMMON_WORDS.iter().copied().flatten();
        letters.enumerate().fold(0, |bits, (bit, letter)| {
            let accepts = set.contains(*letter) || set.contains(letter.to_ascii_uppercase());
            bits | u64::from(accepts) << bit
        })
    }
}

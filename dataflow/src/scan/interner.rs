//! Codes and components as numbers, so that the hot path compares numbers.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Interned texts, each with a number. The numbers are valid until [`Interner::clear`].
#[derive(Default)]
pub struct Interner {
    numbers: HashMap<Box<[u8]>, u32, RandomState>,
    texts: Vec<Arc<str>>,
    bytes: usize,
}

/// The approximate memory of an entry beside its text.
const ENTRY_BYTES: usize = 96;

impl Interner {
    /// The number of a text; [`Interner::text`] returns the text with invalid UTF-8 replaced.
    pub fn number(&mut self, bytes: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(bytes) {
            return number;
        }
        let number = u32::try_from(self.texts.len()).expect("the interner is cleared long before");
        self.texts.push(String::from_utf8_lossy(bytes).into());
        self.numbers.insert(bytes.into(), number);
        self.bytes += ENTRY_BYTES + 2 * bytes.len();
        number
    }

    /// The text of a number.
    pub fn text(&self, number: u32) -> &Arc<str> {
        &self.texts[number as usize]
    }

    /// The approximate memory of all entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.numbers.clear();
        self.texts.clear();
        self.bytes = 0;
    }
}

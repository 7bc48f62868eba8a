//! Codes and components by number, so that the hot path compares numbers.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

/// Texts that were met, each with a number. The numbers hold until [`Names::clear`].
#[derive(Default)]
pub struct Names {
    numbers: HashMap<Box<[u8]>, u32, RandomState>,
    texts: Vec<Arc<str>>,
    bytes: usize,
}

/// What a name takes beside its text, roughly.
const NAME_BYTES: usize = 96;

impl Names {
    /// The number of a text; invalid UTF-8 is replaced in what [`Names::text`] says of it.
    pub fn number(&mut self, bytes: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(bytes) {
            return number;
        }
        let number = u32::try_from(self.texts.len()).expect("names are cleared long before");
        self.texts.push(String::from_utf8_lossy(bytes).into());
        self.numbers.insert(bytes.into(), number);
        self.bytes += NAME_BYTES + 2 * bytes.len();
        number
    }

    /// The text of a number.
    pub fn text(&self, number: u32) -> &Arc<str> {
        &self.texts[number as usize]
    }

    /// The memory that they take, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.numbers.clear();
        self.texts.clear();
        self.bytes = 0;
    }
}

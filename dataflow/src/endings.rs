//! Remembers what was found in lines that end alike.
//!
//! Logs say the same thing again and again, behind another time. What the
//! patterns find in a line depends on the bytes from a little before the first
//! place at which one is tried to the end of the line, its *ending*. So the
//! codes of a line whose ending was met before need no search.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::line::FoundCode;

/// A longer ending (bytes) is not remembered.
const ENDING_BYTES_MAX: usize = 256;

/// Endings that are remembered: two for each of so many hashes, the later ones.
const SETS: usize = 512;

/// Endings of lines, and the codes found in them.
#[derive(Default)]
pub struct Endings {
    hasher: RandomState,
    /// Made when there is a first.
    sets: Vec<[Known; 2]>,
}

#[derive(Default, Clone)]
struct Known {
    /// Zero where there is none.
    hash: u64,
    whole_line: bool,
    ending: Vec<u8>,
    found: Vec<FoundCode>,
}

/// An ending to be looked for or remembered.
#[derive(Clone, Copy)]
pub struct Ending<'l> {
    bytes: &'l [u8],
    /// Whether the line begins with it, which an anchor may ask.
    whole_line: bool,
    hash: u64,
}

impl Endings {
    /// The ending of a line from a place on; `None` when it is too long.
    pub fn ending<'l>(&self, line: &'l [u8], from: usize) -> Option<Ending<'l>> {
        let bytes = &line[from..];
        (bytes.len() <= ENDING_BYTES_MAX).then(|| Ending {
            bytes,
            whole_line: from == 0,
            hash: self.hasher.hash_one(bytes) | 1,
        })
    }

    /// What was found in a line with this ending.
    pub fn found(&self, ending: Ending<'_>) -> Option<&[FoundCode]> {
        let set = self.sets.get(set_of(ending.hash))?;
        let known = set.iter().find(|known| {
            known.hash == ending.hash && known.whole_line == ending.whole_line && known.ending == ending.bytes
        })?;
        Some(&known.found)
    }

    /// Remembers what was found, in the place of what came in before the last one of its kind.
    pub fn remember(&mut self, ending: Ending<'_>, found: &[FoundCode]) {
        if self.sets.is_empty() {
            self.sets.resize(SETS, Default::default());
        }
        let set = &mut self.sets[set_of(ending.hash)];
        set.swap(0, 1);
        let known = &mut set[0];
        (known.hash, known.whole_line) = (ending.hash, ending.whole_line);
        known.ending.clear();
        known.ending.extend_from_slice(ending.bytes);
        known.found.clear();
        known.found.extend_from_slice(found);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.sets.clear();
    }
}

fn set_of(hash: u64) -> usize {
    (hash >> 32) as usize % SETS
}

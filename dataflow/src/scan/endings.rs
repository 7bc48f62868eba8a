//! Caches the codes of lines with the same ending.
//!
//! Logs repeat the same message after another time. What the patterns find in a line
//! depends on the bytes from a little before the first candidate position to the end
//! of the line, its *ending*. So a line whose ending is cached needs no search.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::scan::found_code::FoundCode;

/// A longer ending (bytes) is not cached.
const ENDING_BYTES_MAX: usize = 256;

/// Sets of the cache, chosen by hash; each has the two latest endings.
const SETS: usize = 512;

/// Cached endings of lines, and the codes found in them.
#[derive(Default)]
pub struct Endings {
    hasher: RandomState,
    /// Allocated on first use.
    sets: Vec<[CachedEnding; 2]>,
}

#[derive(Default, Clone)]
struct CachedEnding {
    /// Zero if the entry is empty.
    hash: u64,
    whole_line: bool,
    ending: Vec<u8>,
    found: Vec<FoundCode>,
}

/// An ending to look up or to cache.
#[derive(Clone, Copy)]
pub struct Ending<'l> {
    bytes: &'l [u8],
    /// Whether it is the whole line, which matters to an anchor.
    whole_line: bool,
    hash: u64,
}

impl Endings {
    /// The ending of a line from a position on; `None` if it is too long.
    pub fn ending<'l>(&self, line: &'l [u8], from: usize) -> Option<Ending<'l>> {
        let bytes = &line[from..];
        (bytes.len() <= ENDING_BYTES_MAX).then(|| Ending {
            bytes,
            whole_line: from == 0,
            hash: self.hasher.hash_one(bytes) | 1,
        })
    }

    /// The codes found in a line with this ending, if cached.
    pub fn found(&self, ending: Ending<'_>) -> Option<&[FoundCode]> {
        let set = self.sets.get(set_of(ending.hash))?;
        let entry = set.iter().find(|entry| {
            entry.hash == ending.hash && entry.whole_line == ending.whole_line && entry.ending == ending.bytes
        })?;
        Some(&entry.found)
    }

    /// Caches what was found; replaces the older entry of its set.
    pub fn insert(&mut self, ending: Ending<'_>, found: &[FoundCode]) {
        if self.sets.is_empty() {
            self.sets.resize(SETS, Default::default());
        }
        let set = &mut self.sets[set_of(ending.hash)];
        set.swap(0, 1);
        let entry = &mut set[0];
        (entry.hash, entry.whole_line) = (ending.hash, ending.whole_line);
        entry.ending.clear();
        entry.ending.extend_from_slice(ending.bytes);
        entry.found.clear();
        entry.found.extend_from_slice(found);
    }

    /// Removes all entries.
    pub fn clear(&mut self) {
        self.sets.clear();
    }
}

fn set_of(hash: u64) -> usize {
    (hash >> 32) as usize % SETS
}

//! SHA-256 that can be put down and taken up again, so that a file which grows
//! by appended lines has the hash of all its bytes without reading them again.

use std::fmt::Write;

use sha2::compress256;
use sha2::digest::generic_array::GenericArray;

/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

const BLOCK: usize = 64;

/// The hash of the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    state: [u32; 8],
    /// Less than a block, behind the last whole one.
    rest: Vec<u8>,
    bytes: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Digest { state: INITIAL, rest: Vec::with_capacity(BLOCK), bytes: 0 }
    }
}

impl Digest {
    /// Adds bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if !self.rest.is_empty() {
            let missing = (BLOCK - self.rest.len()).min(bytes.len());
            self.rest.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.rest.len() < BLOCK {
                return;
            }
            compress256(&mut self.state, &[*GenericArray::from_slice(&self.rest)]);
            self.rest.clear();
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        for block in blocks.by_ref() {
            compress256(&mut self.state, std::slice::from_ref(GenericArray::from_slice(block)));
        }
        self.rest.extend_from_slice(blocks.remainder());
    }

    /// The hash, in hexadecimal.
    pub fn hex(&self) -> String {
        let mut end = self.clone();
        let mut padding = vec![0x80];
        padding.resize(1 + (2 * BLOCK - 9 - self.rest.len()) % BLOCK, 0);
        padding.extend_from_slice(&(self.bytes * 8).to_be_bytes());
        end.update(&padding);
        end.state.iter().fold(String::with_capacity(BLOCK), |mut text, word| {
            // A text takes all that is written.
            let _ = write!(text, "{word:08x}");
            text
        })
    }

    /// What [`Digest::taken_up`] goes on from.
    pub fn put_down(&self) -> Vec<u8> {
        let words = self.state.iter().flat_map(|word| word.to_be_bytes());
        words.chain(self.bytes.to_be_bytes()).chain(self.rest.iter().copied()).collect()
    }

    /// Goes on where another left; `None` when the bytes are not of [`Digest::put_down`].
    pub fn taken_up(bytes: &[u8]) -> Option<Digest> {
        let (words, rest) = bytes.split_at_checked(32)?;
        let (count, rest) = rest.split_first_chunk::<8>()?;
        let mut state = [0; 8];
        for (word, bytes) in state.iter_mut().zip(words.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        let bytes = u64::from_be_bytes(*count);
        (rest.len() as u64 == bytes % BLOCK as u64).then(|| Digest { state, rest: rest.to_vec(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    proptest! {
        #[test]
        fn any_cuts_give_the_hash_of_the_whole(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..150), 0..8)) {
            let mut ours = Digest::default();
            for part in &parts {
                ours.update(part);
                ours = Digest::taken_up(&ours.put_down()).expect("it was put down");
            }
            let theirs: String = Sha256::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(ours.hex(), theirs);
        }
    }

    #[test]
    fn foreign_bytes_are_not_taken_up() {
        assert_eq!(Digest::taken_up(b""), None);
        assert_eq!(Digest::taken_up(&[0; 41]), None);
    }
}

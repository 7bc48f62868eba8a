//! SHA-256 with a state that can be stored. When lines are appended to a file, the
//! hash of the whole file is computed without reading the earlier bytes again.

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256};

/// Bytes of a block (FIPS 180-4).
const BLOCK_BYTES: usize = 64;

/// The hash of the bytes so far.
#[derive(Debug, Clone, Default)]
pub struct Digest(Sha256);

impl PartialEq for Digest {
    fn eq(&self, other: &Digest) -> bool {
        self.0.serialize() == other.0.serialize()
    }
}

impl Eq for Digest {}

impl Digest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash, in hexadecimal.
    pub fn hex(&self) -> String {
        hex::encode(self.0.clone().finalize())
    }

    /// The state, for [`Digest::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.serialize().to_vec()
    }

    /// Restores a state; `None` if the bytes are not from [`Digest::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Digest> {
        let state = SerializedState::<Sha256>::try_from(bytes).ok()?;
        Sha256::deserialize(&state).ok().map(Digest)
    }
}

/// The state that an earlier version stored, in the present form: 8 words in big-endian order, the number of bytes, and the
/// bytes after the last whole block. `None` if the bytes are not such a state.
pub fn from_earlier_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let (words, rest) = bytes.split_at_checked(32)?;
    let (count, rest) = rest.split_first_chunk::<8>()?;
    let count = u64::from_be_bytes(*count);
    if rest.len() as u64 != count % BLOCK_BYTES as u64 {
        return None;
    }
    let words = words.as_chunks::<4>().0.iter().flat_map(|word| u32::from_be_bytes(*word).to_le_bytes());
    let mut state: Vec<u8> = words.chain((count / BLOCK_BYTES as u64).to_le_bytes()).collect();
    state.push(rest.len() as u8);
    state.extend_from_slice(rest);
    // The buffer never holds a whole block.
    state.resize(32 + 8 + BLOCK_BYTES, 0);
    Some(state)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_hash_like_the_whole(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..150), 0..8)) {
            let mut digest = Digest::default();
            for part in &parts {
                digest.update(part);
                digest = Digest::from_bytes(&digest.to_bytes()).expect("a stored state");
            }
            prop_assert_eq!(digest.hex(), hex::encode(Sha256::digest(parts.concat())));
        }
    }

    #[test]
    fn the_state_of_an_earlier_version_is_read() {
        // Of 64 times `a` and `bcd`, as it was stored.
        let mut whole = Sha256::new();
        whole.update([b'a'; 64]);
        let words = whole.serialize();
        let words = words[..32].as_chunks::<4>().0.iter().flat_map(|word| u32::from_le_bytes(*word).to_be_bytes());
        let earlier: Vec<u8> = words.chain(67_u64.to_be_bytes()).chain(*b"bcd").collect();
        let state = from_earlier_version(&earlier).expect("an earlier state");
        let digest = Digest::from_bytes(&state).expect("a state");
        assert_eq!(digest.hex(), hex::encode(Sha256::digest([&[b'a'; 64][..], b"bcd"].concat())));
        assert_eq!(from_earlier_version(&earlier[..42]), None);
    }

    #[test]
    fn invalid_bytes_are_not_restored() {
        assert!(Digest::from_bytes(b"").is_none());
        assert!(Digest::from_bytes(&[0; 41]).is_none());
        assert!(Digest::from_bytes(&[0xff; 104]).is_none());
    }
}

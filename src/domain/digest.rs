//! SHA-256 with a state that can be stored. When lines are appended to a file, the
//! hash of the whole file is computed without reading the earlier bytes again.

use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest as _, Sha256};

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
    fn invalid_bytes_are_not_restored() {
        assert!(Digest::from_bytes(b"").is_none());
        assert!(Digest::from_bytes(&[0; 41]).is_none());
        assert!(Digest::from_bytes(&[0xff; 105]).is_none());
    }
}

//! What is written to a server that may lie: sealed with its key.
//!
//! ```text
//!  "A1" ‖ HMAC-SHA-256(secret, key ‖ body) ‖ body, the answer compressed with zstd
//! ```
//!
//! An answer that was cut, changed, or put under another key does not open, and
//! counts as not found. Its key names the epoch, so an old one cannot pass for a
//! new one.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2_next::Sha256;
use uuid::Uuid;

/// The form's name; another form gets another.
const FORM: &[u8] = b"A1";
/// Bytes of a seal.
const SEAL_BYTES: usize = 32;
/// The longest answer that is opened (8 MiB): a forged one must not fill the memory.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// A secret that the processes of one deployment share.
#[derive(Clone, Copy)]
pub struct SealKey(pub [u8; 32]);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(…)")
    }
}

impl SealKey {
    /// A secret that nobody else has.
    pub fn random() -> SealKey {
        let halves = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()];
        let mut secret = [0; 32];
        secret.iter_mut().zip(halves.concat()).for_each(|(to, from)| *to = from);
        SealKey(secret)
    }

    /// Seals an answer under its key; `None` when it is too long to be kept.
    pub fn seal(&self, key: &str, answer: &[u8]) -> Option<Vec<u8>> {
        if answer.len() > ANSWER_BYTES_MAX {
            return None;
        }
        let body = zstd::bulk::compress(answer, 1).ok()?;
        let mut sealed = Vec::with_capacity(FORM.len() + SEAL_BYTES + body.len());
        sealed.extend_from_slice(FORM);
        sealed.extend_from_slice(&self.mac(key, &body)?.finalize().into_bytes());
        sealed.extend_from_slice(&body);
        Some(sealed)
    }

    /// Opens what was sealed under a key.
    pub fn open(&self, key: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (seal, body) = sealed.strip_prefix(FORM)?.split_at_checked(SEAL_BYTES)?;
        self.mac(key, body)?.verify_slice(seal).ok()?;
        zstd::bulk::decompress(body, ANSWER_BYTES_MAX).ok()
    }

    fn mac(&self, key: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        // The length keeps the end of a key from passing for the beginning of a body.
        Some(mac.chain_update((key.len() as u64).to_be_bytes()).chain_update(key).chain_update(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_under_the_key_opens() {
        let ours = SealKey([7; 32]);
        let sealed = ours.seal("report/1", b"an answer").expect("it is short");
        assert_eq!(ours.open("report/1", &sealed).as_deref(), Some(&b"an answer"[..]));
        assert_eq!(ours.open("report/2", &sealed), None, "under another key");
        assert_eq!(SealKey([8; 32]).open("report/1", &sealed), None, "with another secret");
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(ours.open("report/1", &changed), None, "changed at {place}");
            assert_eq!(ours.open("report/1", &sealed[..place]), None, "cut at {place}");
        }
    }
}

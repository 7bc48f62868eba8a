//! Signatures on entries in a server that is not trusted.
//!
//! ```text
//!  "A2" ‖ HMAC-SHA-256(secret, key ‖ body) ‖ body, the answer compressed with zstd
//! ```
//!
//! The signature of an answer that was truncated, changed or stored under another
//! key is invalid, and the answer counts as not found. The key contains the epoch,
//! so an old answer cannot pass for a new one.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use uuid::Uuid;

/// The version of the format.
const FORMAT: &[u8] = b"A2";
/// Length of a signature.
const SIGNATURE_BYTES: usize = 32;
/// The longest answer (8 MiB): a forged one must not exhaust the memory.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// A secret that the processes of one deployment share.
#[derive(Clone, Copy)]
pub struct SigningKey(pub [u8; 32]);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// A new random secret.
    pub fn random() -> SigningKey {
        let halves = [Uuid::new_v4().into_bytes(), Uuid::new_v4().into_bytes()];
        let mut secret = [0; 32];
        secret.iter_mut().zip(halves.concat()).for_each(|(to, from)| *to = from);
        SigningKey(secret)
    }

    /// Compresses an answer and signs it under its key; `None` when it is too long.
    pub fn sign(&self, key: &str, answer: &[u8]) -> Option<Vec<u8>> {
        if answer.len() > ANSWER_BYTES_MAX {
            return None;
        }
        let body = zstd::bulk::compress(answer, 1).ok()?;
        let mut signed = Vec::with_capacity(FORMAT.len() + SIGNATURE_BYTES + body.len());
        signed.extend_from_slice(FORMAT);
        signed.extend_from_slice(&self.mac(key, &body)?.finalize().into_bytes());
        signed.extend_from_slice(&body);
        Some(signed)
    }

    /// The answer that was signed under `key`; `None` when the signature is invalid.
    pub fn verify(&self, key: &str, signed: &[u8]) -> Option<Vec<u8>> {
        let (signature, body) = signed.strip_prefix(FORMAT)?.split_at_checked(SIGNATURE_BYTES)?;
        self.mac(key, body)?.verify_slice(signature).ok()?;
        zstd::bulk::decompress(body, ANSWER_BYTES_MAX).ok()
    }

    fn mac(&self, key: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
        let mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        // The length prevents the end of a key from passing for the beginning of a body.
        Some(mac.chain_update((key.len() as u64).to_be_bytes()).chain_update(key).chain_update(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_valid_for_its_key_and_secret_only() {
        let ours = SigningKey([7; 32]);
        let signed = ours.sign("report/1", b"an answer").expect("it is short");
        assert_eq!(ours.verify("report/1", &signed).as_deref(), Some(&b"an answer"[..]));
        assert_eq!(ours.verify("report/2", &signed), None, "under another key");
        assert_eq!(SigningKey([8; 32]).verify("report/1", &signed), None, "with another secret");
        for position in 0..signed.len() {
            let mut changed = signed.clone();
            changed[position] ^= 1;
            assert_eq!(ours.verify("report/1", &changed), None, "changed at {position}");
            assert_eq!(ours.verify("report/1", &signed[..position]), None, "cut at {position}");
        }
    }
}

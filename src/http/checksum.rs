//! `Upload-Checksum`, the extension of tus 1.0.

use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::http::problem::Problem;

/// The checksum of bytes as they arrive, and the one that the client says.
pub enum Checksum {
    /// SHA-1, which every server of tus must know.
    Sha1(Sha1, Vec<u8>),
    /// SHA-256.
    Sha256(Sha256, Vec<u8>),
}

impl Checksum {
    /// The checksum that a request has, if any.
    pub fn wanted(headers: &HeaderMap) -> Result<Option<Checksum>, Problem> {
        let Some(value) = headers.get("upload-checksum") else { return Ok(None) };
        let invalid = || Problem::invalid("Upload-Checksum must be sha1 or sha256, a space, and the digest in base64");
        let (algorithm, digest) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(invalid)?;
        let digest = BASE64_STANDARD.decode(digest.trim()).map_err(|_| invalid())?;
        match algorithm {
            "sha1" => Ok(Some(Checksum::Sha1(Sha1::new(), digest))),
            "sha256" => Ok(Some(Checksum::Sha256(Sha256::new(), digest))),
            _ => Err(Problem::new(StatusCode::BAD_REQUEST, "unknown-checksum", "the checksum must be sha1 or sha256")),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Checksum::Sha1(state, _) => state.update(bytes),
            Checksum::Sha256(state, _) => state.update(bytes),
        }
    }

    /// Fails with 460 if the bytes do not have the checksum.
    pub fn check(self) -> Result<(), Problem> {
        let is_same = match self {
            Checksum::Sha1(state, wanted) => state.finalize()[..] == wanted,
            Checksum::Sha256(state, wanted) => state.finalize()[..] == wanted,
        };
        match (is_same, StatusCode::from_u16(460)) {
            (false, Ok(mismatch)) => {
                let detail = "the bytes do not have this checksum and were dropped; send them again";
                Err(Problem::new(mismatch, "checksum-mismatch", detail))
            }
            _ => Ok(()),
        }
    }
}

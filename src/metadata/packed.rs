//! Texts as they are stored in the database: long ones are compressed, so that fewer bytes are written to its log.

use std::io;

use bytes::Bytes;

/// A shorter text is stored as it is: little is gained.
const PACK_BYTES_MIN: usize = 256;

/// The level of zstd: the fastest.
const LEVEL: i32 = 1;

/// The compressed form of a text, unless the text is short or does not get shorter.
pub fn pack(text: &[u8]) -> Option<Bytes> {
    let packed = (text.len() >= PACK_BYTES_MIN).then(|| zstd::bulk::compress(text, LEVEL).ok()).flatten()?;
    (packed.len() < text.len()).then(|| packed.into())
}

/// The text of a compressed form.
pub fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    zstd::decode_all(packed)
}

/// A compressed text with at least this many bytes becomes a part of a joined one as it is (64 KiB). Shorter ones are
/// compressed again, together.
const FRAME_BYTES_MIN: u64 = 64 << 10;

/// Joins texts to one compressed text, which has several frames of zstd.
#[derive(Debug, Default)]
pub struct Joined {
    frames: Vec<u8>,
    /// Texts that are not compressed yet.
    rest: Vec<u8>,
    text_bytes: u64,
}

impl Joined {
    /// Bytes of text.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Adds a text.
    pub fn add(&mut self, text: &[u8]) {
        self.text_bytes += text.len() as u64;
        self.rest.extend_from_slice(text);
    }

    /// Adds a compressed text of this many bytes.
    pub fn add_packed(&mut self, packed: &[u8], text_bytes: u64) -> io::Result<()> {
        if text_bytes < FRAME_BYTES_MIN {
            self.add(&unpack(packed)?);
            return Ok(());
        }
        self.compress_rest()?;
        self.frames.extend_from_slice(packed);
        self.text_bytes += text_bytes;
        Ok(())
    }

    /// All of them, compressed.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.compress_rest()?;
        Ok(self.frames)
    }

    fn compress_rest(&mut self) -> io::Result<()> {
        if !self.rest.is_empty() {
            self.frames.extend(zstd::bulk::compress(&self.rest, LEVEL)?);
            self.rest.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_packed() {
        assert_eq!(pack(b"E_FAIL\n"), None);
        let text = b"E_FAIL at the pump\n".repeat(50);
        let packed = pack(&text).expect("it gets shorter");
        assert!(packed.len() < text.len());
        assert_eq!(unpack(&packed).expect("it is whole"), text);
        assert!(unpack(&packed[..packed.len() - 1]).is_err());
    }

    #[test]
    fn joined_texts_are_one_compressed_text() {
        let long = b"E_ABORT in the gateway\n".repeat(4000);
        let texts = [&b"a\n"[..], b"bb\n", &long, &long, b"c\n", &long[..2300]];
        let mut joined = Joined::default();
        for text in texts {
            match pack(text) {
                Some(packed) => joined.add_packed(&packed, text.len() as u64).expect("it is whole"),
                None => joined.add(text),
            }
        }
        assert_eq!(joined.text_bytes(), texts.concat().len() as u64);
        assert_eq!(unpack(&joined.finish().expect("memory")).expect("it is whole"), texts.concat());
    }
}

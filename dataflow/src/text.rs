//! Compressed or UTF-16 bytes become the text that is counted.
//!
//! Which of these a file is, its first bytes say: gzip (RFC 1952), zstd
//! (RFC 8878) and a UTF-16 byte order mark. Everything else is text as it is.

use std::io::{self, Cursor, Read};

use encoding_rs_io::DecodeReaderBytesBuilder;
use flate2::read::MultiGzDecoder;

const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How a file's bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The bytes are the content.
    Identity,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

impl Compression {
    /// What the first bytes of a file say (four of them are enough).
    pub fn sniff(first: &[u8]) -> Compression {
        if first.starts_with(&GZIP_MAGIC) {
            Compression::Gzip
        } else if first.starts_with(&ZSTD_MAGIC) {
            Compression::Zstd
        } else {
            Compression::Identity
        }
    }

    /// Reads through this compression. A corrupt or cut-off stream is an
    /// error of kind `InvalidData`, `InvalidInput`, `UnexpectedEof` or `Other`.
    pub fn reader<'a>(self, input: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Compression::Identity => Box::new(input),
            Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(input)?),
        })
    }
}

/// The text of a file: decompressed by its first bytes, UTF-16 with a byte
/// order mark converted to UTF-8, everything else untouched.
pub fn text<'a>(input: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let (first, input) = peek(input)?;
    let content = Compression::sniff(&first).reader(input)?;
    let (first, content) = peek(content)?;
    if first.starts_with(&[0xff, 0xfe]) || first.starts_with(&[0xfe, 0xff]) {
        let utf8 = DecodeReaderBytesBuilder::new().bom_sniffing(true).strip_bom(true).build(content);
        return Ok(Box::new(utf8));
    }
    Ok(Box::new(content))
}

/// A reader whose first bytes were looked at.
type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// The first four bytes (fewer when there are no more) and a reader that
/// still yields them.
fn peek<R: Read>(mut input: R) -> io::Result<(Vec<u8>, Whole<R>)> {
    let mut first = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut first)?;
    Ok((first.clone(), Cursor::new(first).chain(input)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        text(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("writes to memory");
        encoder.finish().expect("writes to memory")
    }

    #[test]
    fn plain_text_passes_untouched_even_when_it_is_not_utf8() {
        for bytes in [&b""[..], b"a", b"abc\n", b"\xef\xbb\xbfbom\n", b"\xff\xfa\x00"] {
            assert_eq!(read(bytes).expect("reads"), bytes);
        }
    }

    #[test]
    fn gzip_members_and_zstd_frames_are_read_through() {
        let two = [gzip(b"one\n"), gzip(b"two\n")].concat();
        assert_eq!(read(&two).expect("reads"), b"one\ntwo\n");
        let frame = zstd::encode_all(&b"three\n"[..], 1).expect("encodes");
        assert_eq!(read(&[frame.clone(), frame].concat()).expect("reads"), b"three\nthree\n");
    }

    #[test]
    fn a_compressed_file_that_is_cut_off_or_damaged_is_an_error() {
        let whole = gzip(&b"a line of the log\n".repeat(100));
        assert!(read(&whole[..whole.len() - 5]).is_err());
        let mut damaged = zstd::encode_all(&b"a line of the log\n".repeat(100)[..], 1).expect("encodes");
        damaged.truncate(damaged.len() - 3);
        assert!(read(&damaged).is_err());
    }

    #[test]
    fn utf16_of_either_order_becomes_utf8_without_its_mark() {
        let units: Vec<u16> = "Grüße\n".encode_utf16().collect();
        let little: Vec<u8> = [0xff, 0xfe].into_iter().chain(units.iter().flat_map(|u| u.to_le_bytes())).collect();
        let big: Vec<u8> = [0xfe, 0xff].into_iter().chain(units.iter().flat_map(|u| u.to_be_bytes())).collect();
        assert_eq!(read(&little).expect("reads"), "Grüße\n".as_bytes());
        assert_eq!(read(&gzip(&big)).expect("reads"), "Grüße\n".as_bytes());
    }
}

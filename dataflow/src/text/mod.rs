//! Compressed, UTF-16 or DLT bytes become the text that is counted.
//!
//! The first bytes of a file decide its format: gzip (RFC 1952), zstd (RFC 8878),
//! xz, bzip2, LZ4 frames, a UTF-16 byte order mark, or a message of AUTOSAR DLT ([`dlt`]). Archives (zip, tar and others)
//! are rejected, because they contain many files. Everything else is text, unchanged.

pub mod blocks;
mod dlt;
mod lz4;

use std::io::{self, BufRead, BufReader, Cursor, Read};

use bzip2::bufread::MultiBzDecoder;
use encoding_rs_io::DecodeReaderBytesBuilder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use crate::text::lz4::Lz4Decoder;

const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const XZ_MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0x00];
const LZ4_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// What follows `BZh` and a digit: a block, or the end of an empty stream.
const BZIP2_BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
const BZIP2_END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];

/// The memory limit for reading one xz file (128 MiB, as for zstd); `xz -9` needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 128 << 20;

/// The first bytes of a text that are checked for binary content (8 KiB).
const TEXT_SNIFF_BYTES: usize = 8 << 10;

/// First bytes of archives.
const ARCHIVES: [(&str, &[u8]); 5] = [
    ("zip", b"PK\x03\x04"),
    ("zip", b"PK\x05\x06"),
    ("zip", b"PK\x07\x08"),
    ("7z", b"7z\xbc\xaf\x27\x1c"),
    ("rar", b"Rar!\x1a\x07"),
];
/// The offset of the magic number in a tar archive, and its values: POSIX and GNU.
const TAR_OFFSET: usize = 257;
const TAR_MAGICS: [&[u8]; 2] = [b"ustar\0", b"ustar  \0"];

/// The file is an archive of files, not a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is a {kind} archive; unpack it and upload each file by itself")]
pub struct Archive {
    /// The archive's format.
    pub kind: &'static str,
}

impl Archive {
    /// The archive format of content with these first bytes; a tar needs 512.
    pub fn sniff(first: &[u8]) -> Option<Archive> {
        if let Some((kind, _)) = ARCHIVES.iter().find(|(_, magic)| first.starts_with(magic)) {
            return Some(Archive { kind });
        }
        let magic = first.get(TAR_OFFSET..)?;
        TAR_MAGICS.iter().any(|tar| magic.starts_with(tar)).then_some(Archive { kind: "tar" })
    }
}

impl From<Archive> for io::Error {
    fn from(archive: Archive) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, archive)
    }
}

/// How a file's bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The bytes are the content.
    Identity,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
    /// One or more xz streams.
    Xz,
    /// One or more bzip2 streams.
    Bzip2,
    /// One or more LZ4 frames.
    Lz4,
}

impl Compression {
    /// How many first bytes of a file [`Compression::sniff`] needs.
    pub const SNIFF_BYTES: usize = 10;

    /// The compression of a file with these first bytes.
    pub fn sniff(first: &[u8]) -> Compression {
        if first.starts_with(&GZIP_MAGIC) {
            Compression::Gzip
        } else if first.starts_with(&ZSTD_MAGIC) || lz4::is_skippable(first) {
            Compression::Zstd
        } else if first.starts_with(&XZ_MAGIC) {
            Compression::Xz
        } else if is_bzip2(first) {
            Compression::Bzip2
        } else if first.starts_with(&LZ4_MAGIC) || first.starts_with(&lz4::LEGACY_MAGIC) {
            Compression::Lz4
        } else {
            Compression::Identity
        }
    }

    /// Decompresses `input`. A corrupt or truncated stream is an error of kind
    /// `InvalidData`, `InvalidInput`, `UnexpectedEof` or `Other`.
    pub fn reader<'a>(self, input: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Compression::Identity => Box::new(input),
            Compression::Gzip => Box::new(GzipMembers::new(BufReader::new(input))),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(input)?),
            Compression::Xz => {
                let stream = Stream::new_stream_decoder(XZ_MEMORY_BYTES, CONCATENATED)?;
                Box::new(XzDecoder::new_stream(BufReader::new(input), stream))
            }
            Compression::Bzip2 => Box::new(MultiBzDecoder::new(BufReader::new(input))),
            Compression::Lz4 => Box::new(Lz4Decoder::new(BufReader::new(input))),
        })
    }
}

/// The members of a gzip file, one after another. Zeros after the last member, as from tapes and fixed-size blocks, are
/// skipped, as gzip(1) does.
struct GzipMembers<R> {
    /// `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    fn new(input: R) -> Self {
        GzipMembers { member: Some(GzDecoder::new(input)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(mut input) = self.member.take().map(GzDecoder::into_inner) else { break };
            if has_more(&mut input)? {
                self.member = Some(GzDecoder::new(input));
            }
        }
        Ok(0)
    }
}

/// Whether anything but zeros follows.
fn has_more(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let next = input.fill_buf()?;
        let Some(&first) = next.first() else { return Ok(false) };
        if first != 0 {
            return Ok(true);
        }
        let zeros = next.iter().take_while(|byte| **byte == 0).count();
        input.consume(zeros);
    }
}

/// A text may begin with `BZh9` too, so the bytes after it are checked.
fn is_bzip2(first: &[u8]) -> bool {
    match first {
        [b'B', b'Z', b'h', b'1'..=b'9', rest @ ..] => rest.starts_with(&BZIP2_BLOCK) || rest.starts_with(&BZIP2_END),
        _ => false,
    }
}

/// Whether content with these first bytes is probably binary: it has a NUL in the first 8 KiB.
pub fn looks_binary(first: &[u8]) -> bool {
    memchr::memchr(0, &first[..first.len().min(TEXT_SNIFF_BYTES)]).is_some()
}

/// A reader of the text of a file.
pub struct Text<'a> {
    /// Whether it is probably binary, by [`looks_binary`].
    pub is_binary: bool,
    reader: Box<dyn Read + Send + 'a>,
}

impl Read for Text<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buffer)
    }
}

/// Whether a file with these first bytes is its own text: neither compressed, nor UTF-16, nor DLT.
pub fn is_its_own_text(first: &[u8]) -> bool {
    let is_converted = is_utf16(first) || first.starts_with(&dlt::MARK);
    !is_converted && Compression::sniff(first) == Compression::Identity
}

fn is_utf16(first: &[u8]) -> bool {
    first.starts_with(&[0xff, 0xfe]) || first.starts_with(&[0xfe, 0xff])
}

/// The text of a file: decompressed by its first bytes, UTF-16 with a byte
/// order mark converted to UTF-8, a line for each message of DLT, everything else unchanged. An archive,
/// compressed or not, is an error that wraps [`Archive`].
pub fn text<'a>(input: impl Read + Send + 'a) -> io::Result<Text<'a>> {
    let (first, input) = peek(input, Compression::SNIFF_BYTES)?;
    let content = Compression::sniff(&first).reader(input)?;
    let (first, content) = peek(content, TEXT_SNIFF_BYTES)?;
    if let Some(archive) = Archive::sniff(&first) {
        return Err(archive.into());
    }
    if first.starts_with(&dlt::MARK) {
        return Ok(Text { is_binary: false, reader: Box::new(dlt::DltText::new(content)) });
    }
    if is_utf16(&first) {
        let utf8 = DecodeReaderBytesBuilder::new().bom_sniffing(true).strip_bom(true).build(content);
        let (first, utf8) = peek(utf8, TEXT_SNIFF_BYTES)?;
        return Ok(Text { is_binary: looks_binary(&first), reader: Box::new(utf8) });
    }
    Ok(Text { is_binary: looks_binary(&first), reader: Box::new(content) })
}

/// A reader whose first bytes were read and put back.
type Whole<R> = io::Chain<Cursor<Vec<u8>>, R>;

/// The first bytes (fewer at the end of the input) and a reader that still
/// yields them.
fn peek<R: Read>(mut input: R, bytes: usize) -> io::Result<(Vec<u8>, Whole<R>)> {
    let mut first = Vec::with_capacity(bytes);
    input.by_ref().take(bytes as u64).read_to_end(&mut first)?;
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

    #[test]
    fn zeros_after_the_last_gzip_member_are_skipped() {
        let members = [gzip(b"a\n"), gzip(b"b\n")].concat();
        assert_eq!(read(&[&members[..], &[0; 700]].concat()).expect("it is whole"), b"a\nb\n");
        assert!(read(&[&members[..], &[0; 7], b"x"].concat()).is_err());
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("writes to memory");
        encoder.finish().expect("writes to memory")
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        liblzma::encode_all(bytes, 1).expect("encodes")
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(bytes).expect("writes to memory");
        encoder.finish().expect("writes to memory")
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
        encoder.write_all(bytes).expect("writes to memory");
        encoder.finish().expect("writes to memory")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).expect("encodes")
    }

    type Compress = fn(&[u8]) -> Vec<u8>;

    const COMPRESSIONS: [(Compression, Compress); 5] = [
        (Compression::Gzip, gzip),
        (Compression::Zstd, zstd),
        (Compression::Xz, xz),
        (Compression::Bzip2, bzip2),
        (Compression::Lz4, lz4),
    ];

    #[test]
    fn plain_text_is_unchanged_even_if_it_is_not_utf8() {
        for bytes in [&b""[..], b"a", b"abc\n", b"\xef\xbb\xbfbom\n", b"\xff\xfa\x00", b"BZh9 is no bzip2\n"] {
            assert_eq!(read(bytes).expect("reads"), bytes);
        }
    }

    #[test]
    fn every_compression_is_read_in_one_part_and_in_several() {
        for (compression, compress) in COMPRESSIONS {
            // More than one block of any of them.
            let long = b"a line of the log\n".repeat(300_000);
            let parts = [compress(b"one\n"), compress(&long), compress(b""), compress(b"two\n")].concat();
            assert_eq!(Compression::sniff(&parts[..Compression::SNIFF_BYTES]), compression);
            assert!(read(&parts).expect("reads") == [b"one\n", &long[..], b"two\n"].concat(), "{compression:?}");
            assert_eq!(read(&compress(b"")).expect("reads"), b"", "{compression:?}");
        }
    }

    #[test]
    fn a_truncated_or_damaged_compressed_file_is_an_error() {
        for (compression, compress) in COMPRESSIONS {
            let whole = compress(&b"a line of the log\n".repeat(100));
            for length in Compression::SNIFF_BYTES..whole.len() {
                assert!(read(&whole[..length]).is_err(), "{compression:?} up to {length} of {}", whole.len());
            }
            let parts = [whole.clone(), whole[..whole.len() / 2].to_vec()].concat();
            assert!(read(&parts).is_err(), "{compression:?}");
        }
    }

    #[test]
    fn zstd_may_begin_with_skippable_frames() {
        for number in 0x50..=0x5f {
            let skipped = [&[number, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat();
            let file = [&skipped[..], &skipped, &zstd(b"one\n"), &skipped, &zstd(b"two\n")].concat();
            assert_eq!(read(&file).expect("reads"), b"one\ntwo\n");
        }
    }

    #[test]
    fn an_archive_is_rejected_with_its_format_compressed_or_not() {
        let mut tar = vec![b'x'; 1024];
        tar[TAR_OFFSET..TAR_OFFSET + 6].copy_from_slice(b"ustar\0");
        let archives = [
            ("zip", &b"PK\x03\x04 and more"[..]),
            ("7z", b"7z\xbc\xaf\x27\x1c and more"),
            ("rar", b"Rar!\x1a\x07\x01\x00"),
            ("tar", &tar),
        ];
        for (kind, archive) in archives {
            for file in [archive.to_vec()].into_iter().chain(COMPRESSIONS.map(|(_, compress)| compress(archive))) {
                let error = read(&file).expect_err("it is an archive");
                let rejected = error.get_ref().and_then(|inner| inner.downcast_ref::<Archive>());
                assert_eq!(rejected, Some(&Archive { kind }));
                let expected = format!("this is a {kind} archive; unpack it and upload each file by itself");
                assert_eq!(error.to_string(), expected);
            }
        }
    }

    #[test]
    fn a_text_with_a_nul_early_on_looks_binary_and_utf16_does_not() {
        let is_binary = |bytes: &[u8]| text(bytes).expect("reads").is_binary;
        assert!(is_binary(b"\x7fELF\x02\x01\x01\x00") && is_binary(&gzip(b"\x7fELF\x02\x01\x01\x00")));
        assert!(!is_binary(b"") && !is_binary(b"E_FAIL\n"));
        let late = [vec![b'x'; TEXT_SNIFF_BYTES], vec![0]].concat();
        assert!(!is_binary(&late) && is_binary(&late[1..]));
        let utf16: Vec<u8> = "\u{feff}E_FAIL\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(!is_binary(&utf16));
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

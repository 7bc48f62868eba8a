//! LZ4 frames, one after another, as one stream.
//!
//! The crate's decoder reads one frame and treats the end of the input as the end of
//! the frame. Here a frame ends only with its end mark, and another may follow: see
//! "LZ4 Frame Format Description", 1.6.

use std::io::{self, Cursor, Read};

use lz4_flex::frame::FrameDecoder;

/// The first bytes of LZ4's legacy format, from before frames, which is rejected.
pub(crate) const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// Whether the first frame is a skippable one, which LZ4 and zstd files may begin with (RFC 8878, 3.1.2).
pub(crate) fn is_skippable(first: &[u8]) -> bool {
    matches!(first, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Decodes LZ4 frames. Do not read on after an error.
pub(crate) struct Lz4Decoder<R: Read> {
    state: State<R>,
}

enum State<R: Read> {
    /// Before a frame, or at the end.
    Between(R),
    Within(FrameDecoder<Frame<R>>),
    /// At the end, or after an error.
    Ended,
}

/// The input from the start of a frame.
struct Frame<R> {
    /// The bytes that were read already.
    magic: Cursor<[u8; 4]>,
    input: R,
    /// Whether the input ended before the frame.
    is_cut_off: bool,
}

impl<R: Read> Read for Frame<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = self.magic.read(buffer)?;
        if count == 0 {
            count = self.input.read(buffer)?;
        }
        self.is_cut_off |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

impl<R: Read> Lz4Decoder<R> {
    /// Reads frames from `input`, in small parts.
    pub(crate) fn new(input: R) -> Lz4Decoder<R> {
        Lz4Decoder { state: State::Between(input) }
    }
}

impl<R: Read> Read for Lz4Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Between(input) => match next_frame(input)? {
                    Some(frame) => self.state = State::Within(FrameDecoder::new(frame)),
                    None => return Ok(0),
                },
                State::Within(mut frame) => match frame.read(buffer)? {
                    0 if frame.get_ref().is_cut_off => return Err(cut_off()),
                    0 => self.state = State::Between(frame.into_inner().input),
                    count => {
                        self.state = State::Within(frame);
                        return Ok(count);
                    }
                },
                State::Ended => return Ok(0),
            }
        }
    }
}

/// The next frame with content; `None` at the end.
fn next_frame<R: Read>(mut input: R) -> io::Result<Option<Frame<R>>> {
    loop {
        let mut first = Vec::with_capacity(4);
        input.by_ref().take(4).read_to_end(&mut first)?;
        let magic: [u8; 4] = match first.try_into() {
            Ok(magic) => magic,
            Err(first) if first.is_empty() => return Ok(None),
            Err(_) => return Err(cut_off()),
        };
        if magic == LEGACY_MAGIC {
            let detail = "the file has LZ4's legacy format; compress it again with a current lz4";
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        if !is_skippable(&magic) {
            return Ok(Some(Frame { magic: Cursor::new(magic), input, is_cut_off: false }));
        }
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if io::copy(&mut input.by_ref().take(length), &mut io::sink())? < length {
            return Err(cut_off());
        }
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the LZ4 file is cut off")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

    use super::*;

    fn frame(info: FrameInfo, content: &[u8]) -> Vec<u8> {
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(content).expect("writes to memory");
        encoder.finish().expect("writes to memory")
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Lz4Decoder::new(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn frames_of_any_form_follow_one_another() {
        let content: Vec<u8> = (0..50_000).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
        let mut file = Vec::new();
        for size in [BlockSize::Max4MB, BlockSize::Max64KB, BlockSize::Max256KB] {
            for mode in [BlockMode::Linked, BlockMode::Independent] {
                let info = FrameInfo::new().block_size(size).block_mode(mode);
                let info = info.content_checksum(true).block_checksums(true);
                file.extend(frame(info, &content));
                file.extend([&[0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"any"].concat());
            }
        }
        assert!(read(&file).expect("reads") == content.repeat(6));
        assert!(read(&file[..file.len() - 1]).is_err());
    }

    #[test]
    fn a_damaged_frame_one_without_an_end_and_the_legacy_format_are_errors() {
        let info = FrameInfo::new().content_checksum(true);
        let whole = frame(info, &b"a line of the log\n".repeat(1000));
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        assert!(read(&damaged).is_err());
        assert!(read(&[&whole[..], b"text"].concat()).is_err());
        let error = read(&[0x02, 0x21, 0x4c, 0x18, 0, 0, 0, 0]).expect_err("it is not read");
        assert!(error.to_string().contains("legacy"), "{error}");
    }
}

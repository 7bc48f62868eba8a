//! Text becomes blocks of whole lines.
//!
//! A block has the number and offset of its first line, so any worker may scan any
//! block. The reader counts line feeds as it cuts. A line longer than
//! [`LINE_BYTES_MAX`] is counted once and only its beginning is returned, so memory
//! is bounded by the block size and not by the input.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// The default size of a block: 256 KiB.
pub const BLOCK_BYTES_DEFAULT: usize = 256 * 1024;

/// A line longer than this (1 MiB) is searched in its first `LINE_BYTES_MAX` bytes only.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Buffers that a reader keeps for later blocks.
const SPARE_MAX: usize = 4;

/// Whole lines of one file, in order, with their line feeds.
#[derive(Debug, PartialEq, Eq)]
pub struct TextBlock {
    /// The lines; the last may lack its line feed at the end of a file or where a long line was cut.
    pub text: BlockText,
    /// The number of the first line, counted from 1.
    pub first_line: u64,
    /// The offset of the first byte in the file's text.
    pub offset: u64,
}

/// The bytes of a block. On drop, their buffer returns to the reader for a later
/// block: allocating fresh memory costs as much as the scan.
#[derive(Debug)]
pub struct BlockText {
    buffer: Vec<u8>,
    length: usize,
    recycle: Option<SyncSender<Vec<u8>>>,
}

impl From<Vec<u8>> for BlockText {
    fn from(buffer: Vec<u8>) -> Self {
        BlockText { length: buffer.len(), buffer, recycle: None }
    }
}

impl Deref for BlockText {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl PartialEq for BlockText {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for BlockText {}

impl Drop for BlockText {
    fn drop(&mut self) {
        if let Some(recycle) = &self.recycle {
            // Fails if the reader has ended or has enough buffers.
            let _ = recycle.try_send(std::mem::take(&mut self.buffer));
        }
    }
}

/// Cuts a reader's text into [`TextBlock`]s of about `block_bytes`.
pub struct BlockReader<R> {
    input: R,
    block_bytes: usize,
    /// Its first `filled` bytes were read and not returned yet; they begin at the line after the last block.
    pending: Vec<u8>,
    filled: usize,
    /// Where blocks return their buffers.
    recycle: SyncSender<Vec<u8>>,
    spare: Receiver<Vec<u8>>,
    at_end: bool,
    lines: u64,
    bytes: u64,
    long_lines: u64,
    open_line: bool,
}

impl<R: Read> BlockReader<R> {
    /// Cuts `input` into blocks of `block_bytes`, clamped to 1 byte and [`LINE_BYTES_MAX`].
    pub fn new(input: R, block_bytes: usize) -> Self {
        BlockReader::behind(0, 0, input, block_bytes)
    }

    /// The same for text that follows `lines` lines of `bytes` bytes.
    pub fn behind(lines: u64, bytes: u64, input: R, block_bytes: usize) -> Self {
        let block_bytes = block_bytes.clamp(1, LINE_BYTES_MAX);
        let (recycle, spare) = sync_channel(SPARE_MAX);
        let (pending, filled, at_end, long_lines, open_line) = (Vec::new(), 0, false, 0, false);
        BlockReader { input, block_bytes, pending, filled, recycle, spare, at_end, lines, bytes, long_lines, open_line }
    }

    /// Lines returned so far: line feeds, plus one for a last line without one.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Bytes of text returned or skipped so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lines longer than [`LINE_BYTES_MAX`] so far.
    pub fn long_lines(&self) -> u64 {
        self.long_lines
    }

    /// Whether the last block is the text's last line and has no line feed.
    /// Such a line is a block of its own.
    pub fn ends_in_open_line(&self) -> bool {
        self.open_line
    }

    /// The next block; `None` at the end of the input.
    pub fn next_block(&mut self) -> io::Result<Option<TextBlock>> {
        let mut target = self.block_bytes;
        loop {
            self.fill(target)?;
            if let Some(last) = memchr::memrchr(b'\n', self.pending()) {
                // Only a line that fills the whole buffer can be too long.
                if self.first_line_is_long() {
                    return self.cut_long_line().map(Some);
                }
                return Ok(Some(self.take_block(last + 1)));
            }
            if self.first_line_is_long() {
                return self.cut_long_line().map(Some);
            }
            if self.at_end {
                return Ok((self.filled > 0).then(|| self.take_block(self.filled)));
            }
            // Room for the longest line with both bytes of its end.
            target = (target * 2).min(LINE_BYTES_MAX + 2);
        }
    }

    fn pending(&self) -> &[u8] {
        &self.pending[..self.filled]
    }

    /// Reads until `target` bytes are pending or the input ends.
    fn fill(&mut self, target: usize) -> io::Result<()> {
        if self.pending.len() < target {
            self.pending.resize(target, 0);
        }
        while self.filled < target && !self.at_end {
            match self.input.read(&mut self.pending[self.filled..target]) {
                Ok(0) => self.at_end = true,
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn first_line_is_long(&self) -> bool {
        if self.filled <= LINE_BYTES_MAX {
            return false;
        }
        let end = memchr::memchr(b'\n', self.pending());
        let line = &self.pending[..end.unwrap_or(self.filled)];
        let ended_or_unknown = end.is_some() || self.filled == LINE_BYTES_MAX + 1;
        let line = match line {
            [start @ .., b'\r'] if ended_or_unknown => start,
            whole => whole,
        };
        line.len() > LINE_BYTES_MAX
    }

    /// Returns the first `length` pending bytes: whole lines, or the last one without its line feed.
    fn take_block(&mut self, length: usize) -> TextBlock {
        let rest = length..self.filled;
        self.filled = rest.len();
        let mut next = self.spare.try_recv().unwrap_or_default();
        if next.len() < rest.len().max(self.block_bytes) {
            next.resize(rest.len().max(self.block_bytes), 0);
        }
        next[..rest.len()].copy_from_slice(&self.pending[rest]);
        let buffer = std::mem::replace(&mut self.pending, next);
        let text = BlockText { buffer, length, recycle: Some(self.recycle.clone()) };
        let block = TextBlock { first_line: self.lines + 1, offset: self.bytes, text };
        let feeds = memchr::memchr_iter(b'\n', &block.text).count() as u64;
        self.open_line = block.text.last() != Some(&b'\n');
        self.lines += feeds + u64::from(self.open_line);
        self.bytes += length as u64;
        block
    }

    /// Returns the beginning of a long line and skips to the next line.
    fn cut_long_line(&mut self) -> io::Result<TextBlock> {
        let text = self.pending[..LINE_BYTES_MAX].to_vec().into();
        let block = TextBlock { first_line: self.lines + 1, offset: self.bytes, text };
        self.lines += 1;
        self.long_lines += 1;
        loop {
            if let Some(end) = memchr::memchr(b'\n', self.pending()) {
                self.bytes += end as u64 + 1;
                self.pending.copy_within(end + 1..self.filled, 0);
                self.filled -= end + 1;
                return Ok(block);
            }
            self.bytes += self.filled as u64;
            self.filled = 0;
            if self.at_end {
                self.open_line = true;
                return Ok(block);
            }
            self.fill(self.block_bytes)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Number, offset and bytes.
    type Line = (u64, u64, Vec<u8>);

    /// Reads everything; returns the lines, and (lines, bytes, long lines).
    fn cut(text: &[u8], block_bytes: usize) -> (Vec<Line>, (u64, u64, u64)) {
        let mut reader = BlockReader::new(text, block_bytes);
        let mut lines = Vec::new();
        while let Some(block) = reader.next_block().expect("memory reads") {
            let (mut number, mut offset) = (block.first_line, block.offset);
            for line in block.text.split_inclusive(|&b| b == b'\n') {
                lines.push((number, offset, line.to_vec()));
                number += 1;
                offset += line.len() as u64;
            }
        }
        (lines, (reader.lines(), reader.bytes(), reader.long_lines()))
    }

    #[test]
    fn an_empty_input_has_no_line_and_a_lone_line_feed_is_one() {
        assert_eq!(cut(b"", 64).1, (0, 0, 0));
        assert_eq!(cut(b"\n", 64).1, (1, 1, 0));
        assert_eq!(cut(b"\r\n\0", 64).1, (2, 3, 0));
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_not_long_and_one_byte_more_is() {
        for end in [&b""[..], b"\n", b"\r\n"] {
            for (length, long) in [(LINE_BYTES_MAX - 1, 0), (LINE_BYTES_MAX, 0), (LINE_BYTES_MAX + 1, 1), (3 << 20, 1)]
            {
                for block_bytes in [64, BLOCK_BYTES_DEFAULT, LINE_BYTES_MAX] {
                    let mut text = b"before\n".to_vec();
                    text.resize(7 + length, b'x');
                    text.extend_from_slice(end);
                    text.extend_from_slice(if end.is_empty() { b"" } else { b"after" });
                    let (lines, totals) = cut(&text, block_bytes);
                    let count = if end.is_empty() { 2 } else { 3 };
                    assert_eq!(totals, (count, text.len() as u64, long), "{length} {end:?} {block_bytes}");
                    let searched = lines[1].2.iter().filter(|&&b| b == b'x').count();
                    assert_eq!(searched, length.min(LINE_BYTES_MAX));
                    if count == 3 {
                        assert_eq!(lines[2], (3, text.len() as u64 - 5, b"after".to_vec()));
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_block_size_returns_the_same_lines(
            text in prop::collection::vec(prop_oneof![3 => Just(b'\n'), 1 => Just(b'\r'), 9 => any::<u8>()], 0..2000),
            block_bytes in 1usize..300,
        ) {
            let (lines, totals) = cut(&text, block_bytes);
            let mut offset = 0;
            let expected: Vec<_> = text.split_inclusive(|&b| b == b'\n').zip(1..).map(|(line, number)| {
                offset += line.len() as u64;
                (number, offset - line.len() as u64, line.to_vec())
            }).collect();
            prop_assert_eq!(totals, (expected.len() as u64, text.len() as u64, 0));
            prop_assert_eq!(lines, expected);
        }
    }
}

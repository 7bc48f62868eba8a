//! AUTOSAR DLT files (storage header of version 1) become text: a line for each message, with its time, level, ECU,
//! application and context, and its payload.
//!
//! ```text
//! 2026-03-01T10:15:30.123000Z ERROR [ECU1] OTA.FLSH - slot b: DTC P0A1F-87 stored
//! ```
//!
//! A message whose length does not lead to the next one is damaged. The printable bytes up to the next header are then a
//! line of their own: nothing behind a bad place is lost, and no code in it.

use std::io::{self, Read};
use std::panic::catch_unwind;

use chrono::{DateTime, SecondsFormat};
use dlt_core::dlt::{Argument, LogLevel, Message, MessageType, PayloadContent, Value};
use dlt_core::parse::{ParsedMessage, dlt_message};
use memchr::memmem;

/// What each message of a file begins with.
pub const MARK: [u8; 4] = *b"DLT\x01";

/// The length of a storage header: the mark, the time and the ECU.
const STORAGE_HEADER: usize = 16;

/// The least length of a message, without its storage header.
const MESSAGE_MIN: usize = 4;

/// More than the longest message and the mark after it: the length of a message has 16 bits.
const WINDOW_BYTES: usize = 256 << 10;

/// Fewer printable characters of a damaged message are no line.
const PRINTABLE_MIN: usize = 4;

/// The text of a DLT file.
pub struct DltText<R> {
    input: R,
    window: Vec<u8>,
    /// Where in the window the next message begins.
    start: usize,
    is_at_end: bool,
    line: Vec<u8>,
    /// How much of the line was read.
    read: usize,
}

impl<R: Read> DltText<R> {
    /// The text of a file that begins with [`MARK`].
    pub fn new(input: R) -> DltText<R> {
        DltText { input, window: Vec::new(), start: 0, is_at_end: false, line: Vec::new(), read: 0 }
    }

    /// The bytes from the next message on: at least a message and the mark after it, or all that there are.
    fn fill(&mut self) -> io::Result<()> {
        if self.is_at_end || self.window.len() - self.start >= WINDOW_BYTES / 2 {
            return Ok(());
        }
        self.window.drain(..self.start);
        self.start = 0;
        let missing = WINDOW_BYTES - self.window.len();
        let read = self.input.by_ref().take(missing as u64).read_to_end(&mut self.window)?;
        self.is_at_end = read < missing;
        Ok(())
    }

    /// Makes the next line; false at the end.
    fn next_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        self.read = 0;
        while self.line.is_empty() {
            self.fill()?;
            let rest = &self.window[self.start..];
            if rest.is_empty() {
                return Ok(false);
            }
            let length = match whole_message(rest) {
                Some(length) => {
                    match parsed(&rest[..length]) {
                        Some(message) => write_message(&mut self.line, &message),
                        None => write_printable(&mut self.line, &rest[..length]),
                    }
                    length
                }
                None => {
                    // The next mark may be cut by the end of the window.
                    let kept = if self.is_at_end { 0 } else { MARK.len() - 1 };
                    let length = next_mark(rest).unwrap_or(rest.len() - kept);
                    write_printable(&mut self.line, &rest[..length]);
                    length
                }
            };
            self.start += length;
        }
        Ok(true)
    }
}

impl<R: Read> Read for DltText<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.line.len() && !self.next_line()? {
            return Ok(0);
        }
        let count = buffer.len().min(self.line.len() - self.read);
        buffer[..count].copy_from_slice(&self.line[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }
}

/// The length of the message at the beginning, if the next one or the end follows it. `None`: it is damaged, or cut off.
fn whole_message(rest: &[u8]) -> Option<usize> {
    // The length is in network order, from the third byte of the standard header.
    let length = rest.get(STORAGE_HEADER + 2..STORAGE_HEADER + 4)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    if !rest.starts_with(&MARK) || length < MESSAGE_MIN || STORAGE_HEADER + length > rest.len() {
        return None;
    }
    let end = STORAGE_HEADER + length;
    let is_followed = rest.len() == end || rest[end..].starts_with(&MARK);
    // A header within a payload is no damage; one that the length swallows is.
    let swallows = || next_mark(&rest[..end.min(rest.len())]).is_some();
    (is_followed || !swallows()).then_some(end)
}

/// Where the next message begins.
fn next_mark(rest: &[u8]) -> Option<usize> {
    let from = usize::from(rest.starts_with(&MARK));
    memmem::find(&rest[from..], &MARK).map(|at| from + at)
}

fn parsed(message: &[u8]) -> Option<Message> {
    // The lengths within a message come from strangers, and the crate is no code of ours: a panic must not end the worker.
    let parsed = catch_unwind(|| dlt_message(message, None, true).ok().map(|(_, parsed)| parsed)).ok()??;
    match parsed {
        ParsedMessage::Item(message) => Some(message),
        ParsedMessage::FilteredOut(_) | ParsedMessage::Invalid => None,
    }
}

fn write_message(line: &mut Vec<u8>, message: &Message) {
    let storage = message.storage_header.as_ref();
    let time = storage.and_then(|header| {
        let at = &header.timestamp;
        DateTime::from_timestamp(i64::from(at.seconds), at.microseconds.checked_mul(1000)?)
    });
    if let Some(time) = time {
        line.extend_from_slice(time.to_rfc3339_opts(SecondsFormat::Micros, true).as_bytes());
        line.push(b' ');
    }
    let extended = message.extended_header.as_ref();
    let level = match extended.map(|header| &header.message_type) {
        Some(MessageType::Log(LogLevel::Fatal)) => "FATAL ",
        Some(MessageType::Log(LogLevel::Error)) => "ERROR ",
        Some(MessageType::Log(LogLevel::Warn)) => "WARN ",
        Some(MessageType::Log(LogLevel::Info)) => "INFO ",
        Some(MessageType::Log(LogLevel::Debug)) => "DEBUG ",
        Some(MessageType::Log(LogLevel::Verbose)) => "TRACE ",
        _ => "",
    };
    line.extend_from_slice(level.as_bytes());
    let ecu = message.header.ecu_id.as_deref().or_else(|| storage.map(|header| header.ecu_id.as_str()));
    line.push(b'[');
    write_text(line, ecu.unwrap_or_default().trim_end_matches('\0').as_bytes());
    line.extend_from_slice(b"] ");
    if let Some(header) = extended {
        write_text(line, header.application_id.trim_end_matches('\0').as_bytes());
        line.push(b'.');
        write_text(line, header.context_id.trim_end_matches('\0').as_bytes());
        line.push(b' ');
    }
    line.extend_from_slice(b"- ");
    match &message.payload {
        PayloadContent::Verbose(arguments) => {
            for (index, argument) in arguments.iter().enumerate() {
                if index > 0 {
                    line.push(b' ');
                }
                write_argument(line, argument);
            }
        }
        PayloadContent::NonVerbose(id, payload) => {
            line.extend_from_slice(format!("[{id}] ").as_bytes());
            write_text(line, payload);
        }
        PayloadContent::ControlMsg(_, payload) => {
            line.extend_from_slice(b"control ");
            write_text(line, payload);
        }
        PayloadContent::NetworkTrace(slices) => {
            for slice in slices {
                write_text(line, slice);
                line.push(b' ');
            }
        }
    }
    line.push(b'\n');
}

fn write_argument(line: &mut Vec<u8>, argument: &Argument) {
    let text = match &argument.value {
        Value::StringVal(text) => return write_text(line, text.as_bytes()),
        Value::Raw(bytes) => return write_text(line, bytes),
        Value::Bool(value) => (*value != 0).to_string(),
        Value::U8(value) => value.to_string(),
        Value::U16(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::U128(value) => value.to_string(),
        Value::I8(value) => value.to_string(),
        Value::I16(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::I128(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
    };
    line.extend_from_slice(text.as_bytes());
}

/// A text without control characters, so that a message is one line.
fn write_text(line: &mut Vec<u8>, text: &[u8]) {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    line.extend(text.iter().map(|byte| if *byte < b' ' && *byte != b'\t' && *byte != 0x1b { b' ' } else { *byte }));
}

/// A line of the printable characters of damaged bytes, if there are some.
fn write_printable(line: &mut Vec<u8>, bytes: &[u8]) {
    let is_printable = |byte: &u8| matches!(byte, b' '..=b'~' | 0x80..);
    if bytes.iter().filter(|byte| is_printable(byte) && **byte != b' ').count() >= PRINTABLE_MIN {
        line.extend(bytes.iter().map(|byte| if is_printable(byte) { *byte } else { b' ' }));
        line.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message of a level (1: fatal) with a text, without a time and with one.
    fn message(level: u8, text: &str) -> Vec<u8> {
        let mut payload = 0x0000_0200_u32.to_le_bytes().to_vec();
        payload.extend((text.len() as u16 + 1).to_le_bytes());
        payload.extend(text.as_bytes());
        payload.push(0);
        let length = 4 + 4 + 10 + payload.len() as u16;
        let mut bytes = MARK.to_vec();
        bytes.extend(1_772_360_130_u32.to_le_bytes());
        bytes.extend(123_000_u32.to_le_bytes());
        bytes.extend(b"ECU1\x25\x07");
        bytes.extend(length.to_be_bytes());
        bytes.extend(b"ECU1");
        bytes.extend([(level << 4) | 1, 1]);
        bytes.extend(b"OTA\0FLSH");
        bytes.extend(payload);
        bytes
    }

    fn read(bytes: &[u8]) -> String {
        let mut text = Vec::new();
        DltText::new(bytes).read_to_end(&mut text).expect("reads");
        String::from_utf8_lossy(&text).into_owned()
    }

    const TIME: &str = "2026-03-01T10:15:30.123000Z";

    #[test]
    fn each_message_is_a_line_with_its_time_level_and_place() {
        let file = [message(2, "slot b: DTC P0A1F-87 stored"), message(1, "two\nlines"), message(4, "done")].concat();
        let expected = format!(
            "{TIME} ERROR [ECU1] OTA.FLSH - slot b: DTC P0A1F-87 stored\n{TIME} FATAL [ECU1] OTA.FLSH - two lines\n\
             {TIME} INFO [ECU1] OTA.FLSH - done\n"
        );
        assert_eq!(read(&file), expected);
    }

    #[test]
    fn a_header_within_a_payload_is_text() {
        let file = [message(2, "it holds DLT\u{1} E_INNER"), message(2, "E_NEXT")].concat();
        let text = read(&file);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("it holds DLT  E_INNER"), "{text}");
    }

    #[test]
    fn nothing_behind_damage_is_lost() {
        let (one, two, three) = (message(2, "E_ONE"), message(2, "E_TWO"), message(2, "E_THREE"));
        for at in 0..one.len() {
            for bit in 0..8 {
                let mut damaged = one.clone();
                damaged[at] ^= 1 << bit;
                let text = read(&[&two[..], &damaged, &two, &three].concat());
                assert_eq!(
                    (text.matches("E_TWO").count(), text.matches("E_THREE").count()),
                    (2, 1),
                    "{at} {bit}: {text}"
                );
            }
        }
        for length in 0..one.len() {
            let text = read(&[&two[..], &one[..length], &three].concat());
            assert!(text.contains("E_TWO") && text.contains("E_THREE"), "{length}: {text}");
            let cut = read(&[&two[..], &one[..length]].concat());
            assert!(cut.starts_with(&format!("{TIME} ERROR [ECU1] OTA.FLSH - E_TWO\n")), "{cut}");
        }
    }

    #[test]
    fn messages_longer_than_the_window_in_sum_are_all_read() {
        let long = "x".repeat(40_000);
        let file: Vec<u8> = (0..40).flat_map(|number| message(3, &format!("E_{number:03} {long}"))).collect();
        let text = read(&file);
        assert_eq!(text.lines().count(), 40);
        assert!((0..40).all(|number| text.contains(&format!("E_{number:03} "))));
    }

    #[test]
    fn a_mark_after_much_damage_is_found_wherever_it_is() {
        for length in WINDOW_BYTES - 8..WINDOW_BYTES + 8 {
            let text = read(&[&MARK[..], &vec![0; length], &message(2, "E_FOUND")].concat());
            assert!(text.ends_with("OTA.FLSH - E_FOUND\n"), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(
            parts in proptest::collection::vec(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                Just(MARK.to_vec()),
                Just(message(2, "E_FAIL")),
            ], 0..20)
        ) {
            let bytes: Vec<u8> = [MARK.to_vec(), parts.concat()].concat();
            let text = read(&bytes);
            prop_assert!(text.is_empty() || text.ends_with('\n'));
        }
    }
}

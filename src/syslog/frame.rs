//! Where messages begin and end in a stream: each is preceded by its length, or followed by a line feed (RFC 6587; over
//! TLS, RFC 5425).

use bytes::{Buf, Bytes, BytesMut};

/// The longest message (64 KiB). RFC 5425 asks for 8 KiB.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The digits of the longest length.
const DIGITS_MAX: usize = 5;

/// Why a stream cannot be read on: it is not known where the next message begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a message has more than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    #[error("a length is not a number followed by a blank")]
    Length,
}

/// Takes the next message from the received bytes; `None` until it has arrived whole. Empty messages are skipped.
pub(super) fn next(received: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    loop {
        let Some(&first) = received.first() else { return Ok(None) };
        let message = match first {
            b'1'..=b'9' => counted(received)?,
            // RFC 6587 also names NUL as an end, which some senders add to the line feed.
            b'\n' | b'\r' | 0 => {
                received.advance(1);
                continue;
            }
            _ => ended(received)?,
        };
        return Ok(message);
    }
}

/// The rest of the stream, which ends without a line feed.
pub(super) fn rest(received: &mut BytesMut) -> Option<Bytes> {
    let is_line = received.first().is_some_and(|first| !first.is_ascii_digit());
    is_line.then(|| received.split().freeze())
}

fn counted(received: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    let digits = received.iter().take(DIGITS_MAX + 1).take_while(|byte| byte.is_ascii_digit()).count();
    if digits > DIGITS_MAX {
        return Err(FrameError::TooLong);
    }
    match received.get(digits) {
        None => return Ok(None),
        Some(b' ') => {}
        Some(_) => return Err(FrameError::Length),
    }
    let length = received[..digits].iter().fold(0, |length, digit| 10 * length + usize::from(digit - b'0'));
    if length > MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLong);
    }
    if received.len() < digits + 1 + length {
        return Ok(None);
    }
    received.advance(digits + 1);
    Ok(Some(received.split_to(length).freeze()))
}

fn ended(received: &mut BytesMut) -> Result<Option<Bytes>, FrameError> {
    match memchr::memchr(b'\n', received) {
        Some(end) if end <= MESSAGE_BYTES_MAX => {
            let message = received.split_to(end).freeze();
            received.advance(1);
            Ok(Some(message))
        }
        None if received.len() <= MESSAGE_BYTES_MAX => Ok(None),
        _ => Err(FrameError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &[u8], chunk: usize) -> (Vec<String>, Result<(), FrameError>) {
        let (mut received, mut all) = (BytesMut::new(), Vec::new());
        for part in text.chunks(chunk) {
            received.extend_from_slice(part);
            loop {
                match next(&mut received) {
                    Ok(Some(message)) => all.push(String::from_utf8_lossy(&message).into_owned()),
                    Ok(None) => break,
                    Err(error) => return (all, Err(error)),
                }
            }
        }
        all.extend(rest(&mut received).map(|message| String::from_utf8_lossy(&message).into_owned()));
        (all, Ok(()))
    }

    #[test]
    fn both_framings_may_follow_each_other_in_pieces_of_any_length() {
        let text = b"<3>one\n12 <3>two\nlines<3>three\r\n\n\x005 <3>455 <3>55<3>end";
        for chunk in 1..text.len() {
            let (all, result) = messages(text, chunk);
            assert_eq!(all, ["<3>one", "<3>two\nlines", "<3>three\r", "<3>45", "<3>55", "<3>end"], "{chunk}");
            assert_eq!(result, Ok(()));
        }
    }

    #[test]
    fn what_has_no_end_is_an_error() {
        let long = vec![b'<'; MESSAGE_BYTES_MAX + 2];
        assert_eq!(messages(&long, 1000).1, Err(FrameError::TooLong));
        assert_eq!(messages(b"999999 x", 3).1, Err(FrameError::TooLong));
        assert_eq!(messages(b"65537 x", 3).1, Err(FrameError::TooLong));
        assert_eq!(messages(b"12x", 3).1, Err(FrameError::Length));
        // A length without its message is incomplete, not a message.
        assert_eq!(messages(b"12 <3>cut", 3), (Vec::new(), Ok(())));
    }
}

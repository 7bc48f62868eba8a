//! What the leader sends to a follower: frames, each with its length, its kind and its content.

use argus_sinks::Base;
use argus_sinks::feed::{FrameError, Step, decode, encode};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version of the protocol between the processes.
pub const PROTOCOL: u32 = 1;

/// A frame may have this many bytes (1 GiB): an epoch has at most 64 MiB of counts.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// What a process says of itself when it begins to follow. Processes that differ in any of these are not one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The version of Argus.
    pub version: String,
    /// The fingerprint of the rules.
    pub rules: String,
    /// The addresses of all processes.
    pub hosts: Vec<String>,
    /// The number of this process.
    pub process: usize,
    /// Tells two processes apart that say that they have the same number.
    pub instance: Uuid,
}

/// What a follower says again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// The number of the process.
    pub process: usize,
    /// Its instance.
    pub instance: Uuid,
    /// The number of its connection ([`Start`]).
    pub connection: u64,
    /// How many replacements of files it has followed on it whose old files nobody reads any more.
    pub released: u64,
}

/// Where a follower begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The tables.
    pub base: Base,
    /// Where the leader is.
    pub position: Position,
    /// Its term as the writer of the metadata.
    pub term: u64,
    /// The number of the connection.
    pub connection: u64,
}

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The epoch that readers see.
    pub epoch: u64,
    /// The number of the last change of the metadata that it knows.
    pub announced: u64,
}

impl Position {
    /// Whether it has reached another one.
    pub fn has_reached(&self, other: &Position) -> bool {
        self.epoch >= other.epoch && self.announced >= other.announced
    }
}

/// A frame.
#[derive(Debug)]
pub enum Frame {
    /// The leader is alive.
    Alive,
    /// The first frame.
    Start(Start),
    /// A step of the lake.
    Step(Box<Step>),
    /// The change of the metadata with this number: these batches.
    Changed(u64, Vec<Uuid>),
    /// The change of the metadata with this number: tokens.
    Tokens(u64),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Alive => 0,
            Frame::Start(_) => 1,
            Frame::Step(_) => 2,
            Frame::Changed(..) => 3,
            Frame::Tokens(_) => 4,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        let content: Bytes = match self {
            Frame::Alive => Bytes::new(),
            Frame::Start(start) => serde_json::to_vec(start)?.into(),
            Frame::Step(step) => encode(step)?,
            Frame::Changed(number, batches) => serde_json::to_vec(&(number, batches))?.into(),
            Frame::Tokens(number) => serde_json::to_vec(number)?.into(),
        };
        if content.len() >= FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(content.len()));
        }
        let mut bytes = BytesMut::with_capacity(content.len() + 5);
        bytes.put_u32(content.len() as u32 + 1);
        bytes.put_u8(self.kind());
        bytes.put_slice(&content);
        Ok(bytes.freeze())
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Adds the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame; `None` if its end has not arrived. A kind that a later version sends is skipped.
    pub fn take(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(length) = self.buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) else {
                return Ok(None);
            };
            if length == 0 {
                return Err(FrameError::CutOff);
            }
            if length > FRAME_BYTES_MAX {
                return Err(FrameError::TooLong(length));
            }
            if self.buffer.len() < 4 + length {
                self.buffer.reserve(4 + length - self.buffer.len());
                return Ok(None);
            }
            self.buffer.advance(4);
            let mut content = self.buffer.split_to(length).freeze();
            return Ok(Some(match content.get_u8() {
                0 => Frame::Alive,
                1 => Frame::Start(serde_json::from_slice(&content)?),
                2 => Frame::Step(Box::new(decode(content)?)),
                3 => {
                    let (number, batches) = serde_json::from_slice(&content)?;
                    Frame::Changed(number, batches)
                }
                4 => Frame::Tokens(serde_json::from_slice(&content)?),
                _ => continue,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_however_the_stream_is_cut() {
        let id = Uuid::from_u128(7);
        let position = Position { epoch: 5, announced: 1 };
        let sent = [
            Frame::Alive,
            Frame::Start(Start { base: Base::default(), position, term: 1, connection: 2 }),
            Frame::Changed(9, vec![id]),
        ];
        let mut stream: Vec<u8> = sent.iter().flat_map(|frame| frame.encode().expect("encodes")).collect();
        stream.extend([0, 0, 0, 2, 99, 1]);
        stream.extend(Frame::Tokens(10).encode().expect("encodes"));
        for piece in 1..stream.len() {
            let mut frames = Frames::default();
            let mut read = Vec::new();
            for bytes in stream.chunks(piece) {
                frames.push(bytes);
                while let Some(frame) = frames.take().expect("is a frame") {
                    read.push(frame);
                }
            }
            let kinds: Vec<u8> = read.iter().map(Frame::kind).collect();
            assert_eq!(kinds, [0, 1, 3, 4], "in pieces of {piece}");
            assert!(matches!(&read[1], Frame::Start(start) if start.position == position));
            assert!(matches!(&read[2], Frame::Changed(9, batches) if batches[..] == [id]));
        }
    }

    #[test]
    fn what_is_not_a_frame_is_an_error() {
        for bytes in [&[0, 0, 0, 0][..], &[255, 255, 255, 255, 1], &[0, 0, 0, 3, 1, b'x', b'y']] {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert!(frames.take().is_err(), "{bytes:?}");
        }
    }
}

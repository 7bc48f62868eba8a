//! A record of the topic of lines: what its headers must say.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders};
use uuid::Uuid;

use crate::domain::batch::{Invalid, check_name};
use crate::pipeline::streams::Sender;

/// The maximum length of a record (4 MiB).
pub(super) const BYTES_MAX: usize = 4 << 20;

/// Why a record is rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    #[error("it has no header {0}")]
    NoHeader(&'static str),
    #[error("its header {0} is not text in UTF-8")]
    NotText(&'static str),
    #[error("its header batch_id is {0:?}, which is not the id of a batch")]
    NotAnId(String),
    #[error("it has {0} bytes, and the limit is {BYTES_MAX}")]
    TooLong(usize),
    #[error("it is empty")]
    Empty,
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// A record as it came.
pub(super) struct Raw {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) headers: OwnedHeaders,
    pub(super) payload: Bytes,
}

/// A record whose headers are valid.
pub(super) struct Record {
    pub(super) raw: Raw,
    pub(super) target: Target,
    pub(super) file: String,
}

/// Where the lines of a record go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Batch(Uuid),
    Stream(Sender),
}

impl Raw {
    pub(super) fn of(message: &BorrowedMessage<'_>) -> Raw {
        Raw {
            partition: message.partition(),
            offset: message.offset(),
            headers: message.headers().map_or_else(OwnedHeaders::new, |headers| headers.detach()),
            payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        }
    }

    /// The last header of this name.
    fn header(&self, name: &'static str) -> Result<Option<&str>, Rejection> {
        let found = self.headers.iter().filter(|header| header.key == name).last();
        let text = found.and_then(|header| header.value).map(std::str::from_utf8).transpose();
        text.map_err(|_| Rejection::NotText(name))
    }
}

impl Record {
    /// Checks the headers and the length of a record; returns it with the reason if it cannot be counted.
    pub(super) fn check(raw: Raw) -> Result<Record, (Raw, Rejection)> {
        match parts_of(&raw) {
            Ok((target, file)) => Ok(Record { raw, target, file }),
            Err(rejection) => Err((raw, rejection)),
        }
    }
}

fn parts_of(raw: &Raw) -> Result<(Target, String), Rejection> {
    let required = |name| raw.header(name)?.map(str::to_owned).ok_or(Rejection::NoHeader(name));
    let target = match raw.header("batch_id")? {
        Some(id) => Target::Batch(id.parse().map_err(|_| Rejection::NotAnId(id.to_owned()))?),
        None => {
            let (vehicle_id, vin) = (required("vehicle_id")?, required("vin")?);
            let sender = Sender { vehicle_id, vin, platform: None, firmware: None };
            sender.batch("lines").check()?;
            Target::Stream(sender)
        }
    };
    let file = raw.header("file")?.map_or_else(|| raw.partition.to_string(), str::to_owned);
    check_name(&file)?;
    match raw.payload.len() {
        0 => Err(Rejection::Empty),
        length if length > BYTES_MAX => Err(Rejection::TooLong(length)),
        _ => Ok((target, file)),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Header;

    use super::*;

    fn check(headers: &[(&str, &[u8])], payload: &[u8]) -> Result<(Target, String), String> {
        let all = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let raw = Raw { partition: 3, offset: 7, headers: all, payload: Bytes::copy_from_slice(payload) };
        let checked = Record::check(raw).map_err(|(_, rejection)| rejection.to_string())?;
        Ok((checked.target, checked.file))
    }

    #[test]
    fn headers_name_the_target_and_the_file() {
        let vin: &[u8] = b"WVWZZZ1JZXW000001";
        let (vehicle_id, number) = ("v".to_owned(), "WVWZZZ1JZXW000001".to_owned());
        let stream = Target::Stream(Sender { vehicle_id, vin: number, platform: None, firmware: None });
        assert_eq!(check(&[("vehicle_id", b"v"), ("vin", vin)], b"x"), Ok((stream.clone(), "3".to_owned())));
        let named: &[(&str, &[u8])] = &[("vehicle_id", b"v"), ("vin", vin), ("file", b"a"), ("file", b"b.log")];
        assert_eq!(check(named, b"x"), Ok((stream, "b.log".to_owned())), "the last header counts");
        let id = Uuid::from_u128(7);
        let batch = check(&[("batch_id", id.to_string().as_bytes())], b"x");
        assert_eq!(batch, Ok((Target::Batch(id), "3".to_owned())));
        let long = vec![b'x'; BYTES_MAX + 1];
        for (headers, payload, reason) in [
            (&[("vin", &b"\xff"[..]), ("vehicle_id", b"v")][..], &b"x"[..], "vin is not text"),
            (&[("vehicle_id", b"v"), ("vin", vin)], b"", "empty"),
            (&[("vehicle_id", b"v"), ("vin", vin)], &long, "4194305 bytes"),
        ] {
            let rejection = check(headers, payload).expect_err(reason);
            assert!(rejection.contains(reason), "{rejection}");
        }
    }
}

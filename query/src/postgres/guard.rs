//! What a PostgreSQL client may send, and leave on the server.
//!
//! The crate that speaks the protocol reads a message of up to 1 GiB before it
//! looks at it, and keeps whatever is prepared. So each connection is read here
//! first, message by message, and what is within its limits goes on to the crate
//! through a pair of sockets:
//!
//! ```text
//!  client ──► guard ──► crate
//!     ◄───────────────────┘
//! ```
//!
//! The forms of messages are those of "Frontend/Backend Protocol, Message
//! Formats" in PostgreSQL's documentation.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};
use datafusion_postgres::pgwire::messages::Message;
use datafusion_postgres::pgwire::messages::response::ErrorResponse;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The longest message (256 KiB): a statement may have 64 KiB, and the rest is for its parameters.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// The longest first message (PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;
/// How long a client may take over its first message (PostgreSQL's `authentication_timeout`).
const GREETING_WAIT: Duration = Duration::from_secs(60);
/// Named statements and portals that a connection may keep.
const KEPT_MAX: usize = 1_000;
/// What the messages that made them may have together (8 MiB; JDBC keeps 5 MiB when nobody says otherwise).
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Codes in place of a protocol's version: one that ends another connection's query, and two that ask for encryption.
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("a message may have at most {0} bytes")]
    TooLong(usize),
    #[error("at most {KEPT_MAX} statements and portals of {KEPT_BYTES_MAX} bytes are kept; close some")]
    TooMany,
    #[error("the message is not one of PostgreSQL's")]
    Malformed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Passes on what a client sends within the limits, and what `answer` says to it. Ends when either has left.
pub(super) async fn guard<F>(mut client: TcpStream, answer: impl FnOnce(UnixStream) -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    client.set_nodelay(true)?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let (from_client, mut to_client) = client.split();
    let mut from_client = BufReader::new(from_client);
    let greeted = timeout(GREETING_WAIT, greet(&mut from_client, &mut to_client, &mut ours)).await;
    let greeting = match greeted.unwrap_or_else(|late| Err(Refused::Io(late.into()))) {
        Ok(greeting) => greeting,
        Err(refused) => return tell(refused, &mut to_client).await,
    };
    let (mut from_answer, mut to_answer) = ours.split();
    let answering = async {
        // What was said before it ended still goes out.
        let (answered, told) = tokio::join!(answer(theirs), copy(&mut from_answer, &mut to_client));
        answered.and(told.map(drop))
    };
    if greeting == CANCEL_REQUEST {
        // Who sends it says no more, and waits until the connection ends.
        to_answer.shutdown().await?;
        return answering.await;
    }
    let refused = tokio::select! {
        answered = answering => return answered,
        asked = pass_on(&mut from_client, &mut to_answer) => asked,
    };
    match refused {
        Ok(()) => Ok(()),
        Err(refused) => tell(refused, &mut to_client).await,
    }
}

/// Passes on the first message, and says its code. Encryption, which may be asked for before, is declined.
async fn greet(
    from: &mut (impl AsyncRead + Unpin),
    back: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<u32, Refused> {
    loop {
        let length = from.read_u32().await?;
        let body = body(from, length, STARTUP_BYTES_MAX).await?;
        match body.first_chunk().map(|code| u32::from_be_bytes(*code)).ok_or(Refused::Malformed)? {
            SSL_REQUEST | GSS_REQUEST => back.write_all(b"N").await?,
            code => {
                to.write_all(&length.to_be_bytes()).await?;
                to.write_all(&body).await?;
                return Ok(code);
            }
        }
    }
}

/// Passes on messages until the client has left.
async fn pass_on(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Refused> {
    let mut kept = Kept::default();
    loop {
        let kind = match from.read_u8().await {
            Ok(kind) => kind,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let length = from.read_u32().await?;
        let body = body(from, length, MESSAGE_BYTES_MAX).await?;
        kept.note(kind, &body)?;
        let [a, b, c, d] = length.to_be_bytes();
        to.write_all(&[kind, a, b, c, d]).await?;
        to.write_all(&body).await?;
    }
}

/// What follows a length, which counts itself.
async fn body(from: &mut (impl AsyncRead + Unpin), length: u32, bytes_max: usize) -> Result<Vec<u8>, Refused> {
    let bytes = length.checked_sub(4).ok_or(Refused::Malformed)? as usize;
    if bytes > bytes_max {
        return Err(Refused::TooLong(bytes_max));
    }
    let mut body = vec![0; bytes];
    from.read_exact(&mut body).await?;
    Ok(body)
}

/// The last that a client hears.
async fn tell(refused: Refused, client: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let state = match refused {
        Refused::TooLong(_) => "54000",
        Refused::TooMany => "53400",
        Refused::Malformed => "08P01",
        Refused::Io(error) => return Err(error),
    };
    let error = ErrorInfo::new("FATAL".to_owned(), state.to_owned(), refused.to_string());
    let mut message = BytesMut::new();
    ErrorResponse::from(error).encode(&mut message).map_err(|error: PgWireError| io::Error::other(error))?;
    client.write_all(&message).await?;
    client.shutdown().await
}

/// What a connection keeps: statements and portals by kind and name, with the bytes of what made them.
#[derive(Debug, Default)]
struct Kept {
    named: HashMap<(u8, Vec<u8>), usize>,
    bytes: usize,
}

impl Kept {
    /// Notes what a message makes or closes.
    fn note(&mut self, kind: u8, body: &[u8]) -> Result<(), Refused> {
        let (kind, name) = match (kind, body) {
            // Parse names its statement first, Bind its portal.
            (b'P', name) => (b'S', name),
            (b'B', name) => (b'P', name),
            (b'C', [kind, name @ ..]) => {
                self.bytes -= self.named.remove(&(*kind, text(name)?)).unwrap_or_default();
                return Ok(());
            }
            _ => return Ok(()),
        };
        let name = text(name)?;
        if name.is_empty() {
            // The one without a name is replaced by the next.
            return Ok(());
        }
        self.bytes += body.len();
        self.bytes -= self.named.insert((kind, name), body.len()).unwrap_or_default();
        let within = self.named.len() <= KEPT_MAX && self.bytes <= KEPT_BYTES_MAX;
        if within { Ok(()) } else { Err(Refused::TooMany) }
    }
}

/// The text that a message begins with, up to its zero.
fn text(body: &[u8]) -> Result<Vec<u8>, Refused> {
    let end = body.iter().position(|byte| *byte == 0).ok_or(Refused::Malformed)?;
    Ok(body[..end].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_counted_by_name_until_it_is_closed() {
        let mut kept = Kept::default();
        for _ in 0..2 {
            kept.note(b'P', b"a\0SELECT 1\0\0\0").expect("it is one statement");
            kept.note(b'B', b"a\0a\0").expect("and one portal");
            kept.note(b'P', b"\0SELECT 1\0\0\0").expect("without a name it is not kept");
        }
        assert_eq!((kept.named.len(), kept.bytes), (2, 13 + 4));
        kept.note(b'C', b"Sa\0").expect("it is closed");
        kept.note(b'C', b"Sb\0").expect("it was never there");
        assert_eq!((kept.named.len(), kept.bytes), (1, 4));
        let many = (0..=KEPT_MAX).map(|number| kept.note(b'P', format!("s{number}\0\0").as_bytes()));
        assert_eq!(many.filter(Result::is_err).count(), 2, "with the portal, two are too many");
        let mut kept = Kept::default();
        let long = [b"s\0", vec![b'x'; KEPT_BYTES_MAX].as_slice()].concat();
        assert!(matches!(kept.note(b'P', &long), Err(Refused::TooMany)));
        assert!(matches!(kept.note(b'P', b"no end"), Err(Refused::Malformed)));
    }

    #[tokio::test]
    async fn encryption_is_declined_and_lengths_are_held_to_limits() {
        let (mut back, mut to) = (Vec::new(), Vec::new());
        let startup = [&8_u32.to_be_bytes()[..], &196_608_u32.to_be_bytes()].concat();
        let ssl = [&8_u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        greet(&mut &[ssl, startup.clone()].concat()[..], &mut back, &mut to).await.expect("it is a greeting");
        assert_eq!((&back[..], &to), (&b"N"[..], &startup));
        let sent = |length: u32| [&b"Q"[..], &length.to_be_bytes()].concat();
        for (length, refusal) in
            [(3, "the message is not one of PostgreSQL's"), (1 << 30, "a message may have at most 262144 bytes")]
        {
            let refused =
                pass_on(&mut &sent(length)[..], &mut Vec::new()).await.expect_err("it is too short or too long");
            assert_eq!(refused.to_string(), refusal);
        }
        let (whole, mut to) = ([sent(6), b"x\0".to_vec()].concat(), Vec::new());
        pass_on(&mut &whole[..], &mut to).await.expect("it is a message");
        assert_eq!(to, whole);
    }
}

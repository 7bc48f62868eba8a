//! What a PostgreSQL client may send, and how long it may leave an answer unread.
//!
//! The crate that speaks the protocol reads a message of up to 1 GiB before it
//! looks at it. So each connection is read here first, message by message, and
//! what is within its limits goes on to the crate through a pair of sockets:
//!
//! ```text
//!  client ──► guard ──► crate
//!     ◄───────────────────┘
//! ```
//!
//! The forms of messages are those of "Frontend/Backend Protocol, Message
//! Formats" in PostgreSQL's documentation. A client that closes its half of the
//! connection has left, whatever it still waits for: that is how a query ends
//! whose client died. (One that has sent more than fits on the way to the crate
//! is seen to have left when the crate has read it.)

use std::future::pending;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError};
use datafusion_postgres::pgwire::messages::Message;
use datafusion_postgres::pgwire::messages::response::ErrorResponse;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, copy, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use super::arriving::Place;

/// The longest message (1 MiB): a statement may have half of it, and the rest is for its parameters.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What is read and thrown away of a client that is sent away (64 MiB): a system that has unread bytes of one would take
/// back what it was told.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;
/// The longest first message (PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;
/// How long a client may take over its first message (PostgreSQL's `authentication_timeout`).
const GREETING_WAIT: Duration = Duration::from_secs(60);
/// How long a client may leave what it is told unread, when no more fits on the way.
const UNREAD_WAIT: Duration = Duration::from_secs(120);
/// How long a client may be silent before the system asks whether it is there, and how often it asks then.
const IDLE_MAX: Duration = Duration::from_secs(300);
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How long what was asked before may still be answered when a client is sent away.
const FAREWELL_WAIT: Duration = Duration::from_secs(10);

/// Codes in place of a protocol's version: one that ends another connection's query, and two that ask for encryption.
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("a message may have at most {0} bytes")]
    TooLong(usize),
    #[error("there are as many clients as there may be; come again")]
    TooManyClients,
    #[error("the message is not one of PostgreSQL's")]
    Malformed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Passes on what a client sends within the limits, and what `answer` says to it, while there is room
/// among `clients`. `place` is its own until it has said what it wants; without it, it is sent away. Ends when either
/// has left.
pub(super) async fn guard<F>(
    client: TcpStream,
    mut place: Place,
    clients: &Semaphore,
    answer: impl FnOnce(UnixStream) -> F,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    client.set_nodelay(true)?;
    SockRef::from(&client).set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE_MAX).with_interval(PROBE_EVERY))?;
    let mut client = TimeoutStream::new(client);
    client.set_write_timeout(Some(UNREAD_WAIT));
    let (mut ours, theirs) = UnixStream::pair()?;
    let client = pin!(client);
    let (from_client, mut to_client) = split(client);
    let mut from_client = BufReader::new(from_client);
    let arrived = tokio::select! {
        arrived = arrive(&mut from_client, &mut to_client, &mut ours, clients) => arrived?,
        () = place.taken_away() => return Ok(()),
    };
    let (mut from_answer, mut to_answer) = ours.split();
    let _room = match arrived {
        Arrived::Client(room) => room,
        Arrived::Canceller => {
            // Who sends it says no more, and waits until the connection ends.
            to_answer.shutdown().await?;
            return answer(theirs).await;
        }
        Arrived::SentAway => return Ok(()),
    };
    drop(place);
    let refused = {
        let mut answering = pin!(async {
            let answered = async {
                if let Err(error) = answer(theirs).await {
                    tracing::debug!(%error, "an answer over PostgreSQL broke off");
                }
                // What was said before still goes out.
                pending().await
            };
            tokio::select! {
                told = copy(&mut from_answer, &mut to_client) => told.map(drop),
                never = answered => never,
            }
        });
        let refused = tokio::select! {
            answered = &mut answering => return answered,
            asked = pass_on(&mut from_client, &mut to_answer) => match asked {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            },
        };
        // The last word must not fall into another message.
        to_answer.shutdown().await?;
        match timeout(FAREWELL_WAIT, answering).await {
            Ok(answered) => answered?,
            Err(_) => return Ok(()),
        }
        refused
    };
    tell(refused, &mut to_client).await?;
    let mut rest = from_client.take(DISCARDED_BYTES_MAX);
    // Whoever does not stop talking is not waited for.
    let _ = timeout(FAREWELL_WAIT, copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}

/// What a connection is, by its first message.
enum Arrived<'c> {
    /// A client, with its room among the others.
    Client(SemaphorePermit<'c>),
    /// It ends another connection's query.
    Canceller,
    /// It has been told why.
    SentAway,
}

/// Takes the first message, and makes room for a client.
async fn arrive<'c>(
    from: &mut (impl AsyncRead + Unpin),
    back: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    clients: &'c Semaphore,
) -> io::Result<Arrived<'c>> {
    let greeted = timeout(GREETING_WAIT, greet(from, back, to)).await;
    let refused = match greeted.unwrap_or_else(|late| Err(Refused::Io(late.into()))) {
        Ok(CANCEL_REQUEST) => return Ok(Arrived::Canceller),
        Ok(_) => match clients.try_acquire() {
            Ok(room) => return Ok(Arrived::Client(room)),
            Err(_) => Refused::TooManyClients,
        },
        Err(refused) => refused,
    };
    tell(refused, back).await?;
    Ok(Arrived::SentAway)
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

/// Passes on messages until the client has left, or died.
async fn pass_on(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Refused> {
    loop {
        let (head, body) = match message(from).await {
            Ok(message) => message,
            Err(Refused::Io(_)) => return Ok(()),
            Err(refused) => return Err(refused),
        };
        to.write_all(&head).await?;
        to.write_all(&body).await?;
    }
}

/// A message: its kind and length, and the rest.
async fn message(from: &mut (impl AsyncRead + Unpin)) -> Result<([u8; 5], Vec<u8>), Refused> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    let [_, length @ ..] = head;
    let body = body(from, u32::from_be_bytes(length), MESSAGE_BYTES_MAX).await?;
    Ok((head, body))
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
        Refused::TooManyClients => "53300",
        Refused::Malformed => "08P01",
        Refused::Io(error) => return Err(error),
    };
    let error = ErrorInfo::new("FATAL".to_owned(), state.to_owned(), refused.to_string());
    let mut message = BytesMut::new();
    ErrorResponse::from(error).encode(&mut message).map_err(|error: PgWireError| io::Error::other(error))?;
    client.write_all(&message).await?;
    client.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn encryption_is_declined_and_lengths_are_held_to_limits() {
        let (mut back, mut to) = (Vec::new(), Vec::new());
        let startup = [&8_u32.to_be_bytes()[..], &196_608_u32.to_be_bytes()].concat();
        let ssl = [&8_u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        greet(&mut &[ssl, startup.clone()].concat()[..], &mut back, &mut to).await.expect("it is a greeting");
        assert_eq!((&back[..], &to), (&b"N"[..], &startup));
        let sent = |length: u32| [&b"Q"[..], &length.to_be_bytes()].concat();
        for (length, refusal) in
            [(3, "the message is not one of PostgreSQL's"), (1 << 30, "a message may have at most 1048576 bytes")]
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

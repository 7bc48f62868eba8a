//! Limits on the messages of PostgreSQL clients, and timeouts of their connections.
//!
//! The crate buffers a message of up to 1 GiB before it checks it. So each
//! connection is read here first, message by message, and messages within the
//! limits are forwarded to the crate through a pair of sockets:
//!
//! ```text
//!  client ──► guard ──► crate
//!     ◄───────────────────┘
//! ```
//!
//! The message formats are those of "Frontend/Backend Protocol, Message Formats"
//! in PostgreSQL's documentation. A client that closes its half of the connection
//! has left, even if it still waits for an answer: this ends the query of a client
//! that died. (If the sockets to the crate are full, this is noticed only after
//! the crate has read them.)

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

use super::CLIENTS_MAX;
use super::startup_slots::Slot;

/// The longest message (1 MiB): half of it for a statement, the rest for its parameters.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// How much is read and discarded from a rejected client (64 MiB): if unread bytes were left, closing the socket would
/// reset the connection, and the client could lose the error message.
const DISCARDED_BYTES_MAX: u64 = 64 << 20;
/// The longest first message (PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;
/// Time limit for a client's first message (PostgreSQL's `authentication_timeout`).
const STARTUP_TIMEOUT: Duration = Duration::from_secs(60);
/// Write timeout: how long a client may leave a full connection unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);
/// TCP keep-alive: the idle time before the first probe, and the interval of the next ones.
const IDLE_MAX: Duration = Duration::from_secs(300);
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// How long a rejected client may still receive answers to earlier requests.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Codes in place of the protocol version: one cancels another connection's query, two ask for encryption.
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

/// Why a client is rejected.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("the message is longer than {0} bytes; send a shorter statement or fewer parameters")]
    TooLong(usize),
    #[error("connection limit reached ({CLIENTS_MAX}); retry later")]
    TooManyClients,
    #[error("the message does not follow the PostgreSQL protocol")]
    Malformed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Forwards a client's messages within the limits to `answer`, and the answers to the client. The client needs a permit
/// of `clients`. Until its first message it occupies `slot`; if it is evicted, the connection is closed. Ends when either
/// side closes.
pub(super) async fn guard<F>(
    client: TcpStream,
    mut slot: Slot,
    clients: &Semaphore,
    answer: impl FnOnce(UnixStream) -> F,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    client.set_nodelay(true)?;
    SockRef::from(&client).set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE_MAX).with_interval(PROBE_EVERY))?;
    let mut client = TimeoutStream::new(client);
    client.set_write_timeout(Some(WRITE_TIMEOUT));
    let (mut ours, theirs) = UnixStream::pair()?;
    let client = pin!(client);
    let (from_client, mut to_client) = split(client);
    let mut from_client = BufReader::new(from_client);
    let arrived = tokio::select! {
        arrived = arrive(&mut from_client, &mut to_client, &mut ours, clients) => arrived?,
        () = slot.evicted() => return Ok(()),
    };
    let (mut from_answer, mut to_answer) = ours.split();
    let _permit = match arrived {
        Arrived::Client(permit) => permit,
        Arrived::CancelRequest => {
            // Its sender sends nothing else, and waits until the connection is closed.
            to_answer.shutdown().await?;
            return answer(theirs).await;
        }
        Arrived::Rejected => return Ok(()),
    };
    drop(slot);
    let refused = {
        let mut answering = pin!(async {
            let answered = async {
                if let Err(error) = answer(theirs).await {
                    tracing::debug!(%error, "a PostgreSQL answer failed");
                }
                // Earlier answers are still sent.
                pending().await
            };
            tokio::select! {
                copied = copy(&mut from_answer, &mut to_client) => copied.map(drop),
                never = answered => never,
            }
        });
        let refused = tokio::select! {
            answered = &mut answering => return answered,
            forwarded = forward(&mut from_client, &mut to_answer) => match forwarded {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            },
        };
        // The error message must not be sent inside another message.
        to_answer.shutdown().await?;
        match timeout(CLOSE_TIMEOUT, answering).await {
            Ok(answered) => answered?,
            Err(_) => return Ok(()),
        }
        refused
    };
    send_error(refused, &mut to_client).await?;
    let mut rest = from_client.take(DISCARDED_BYTES_MAX);
    // Do not wait for a client that keeps sending.
    let _ = timeout(CLOSE_TIMEOUT, copy(&mut rest, &mut tokio::io::sink())).await;
    Ok(())
}

/// The kind of a connection, by its first message.
enum Arrived<'c> {
    /// A client, with its permit.
    Client(SemaphorePermit<'c>),
    /// It cancels another connection's query.
    CancelRequest,
    /// It was sent an error.
    Rejected,
}

/// Reads the first message, and acquires a permit for a client.
async fn arrive<'c>(
    from: &mut (impl AsyncRead + Unpin),
    back: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    clients: &'c Semaphore,
) -> io::Result<Arrived<'c>> {
    let started = timeout(STARTUP_TIMEOUT, read_startup(from, back, to)).await;
    let refused = match started.unwrap_or_else(|timed_out| Err(Refused::Io(timed_out.into()))) {
        Ok(CANCEL_REQUEST) => return Ok(Arrived::CancelRequest),
        Ok(_) => match clients.try_acquire() {
            Ok(permit) => return Ok(Arrived::Client(permit)),
            Err(_) => Refused::TooManyClients,
        },
        Err(refused) => refused,
    };
    send_error(refused, back).await?;
    Ok(Arrived::Rejected)
}

/// Forwards the first message and returns its code. Declines encryption, which the client may request before.
async fn read_startup(
    from: &mut (impl AsyncRead + Unpin),
    back: &mut (impl AsyncWrite + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> Result<u32, Refused> {
    loop {
        let length = from.read_u32().await?;
        let body = read_body(from, length, STARTUP_BYTES_MAX).await?;
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

/// Forwards messages until the client has left or died.
async fn forward(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Refused> {
    loop {
        let (head, body) = match read_message(from).await {
            Ok(message) => message,
            Err(Refused::Io(_)) => return Ok(()),
            Err(refused) => return Err(refused),
        };
        to.write_all(&head).await?;
        to.write_all(&body).await?;
    }
}

/// Reads a message: its kind and length, and its body.
async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> Result<([u8; 5], Vec<u8>), Refused> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    let [_, length @ ..] = head;
    let body = read_body(from, u32::from_be_bytes(length), MESSAGE_BYTES_MAX).await?;
    Ok((head, body))
}

/// Reads a message's body. `length` includes its own four bytes.
async fn read_body(from: &mut (impl AsyncRead + Unpin), length: u32, bytes_max: usize) -> Result<Vec<u8>, Refused> {
    let bytes = length.checked_sub(4).ok_or(Refused::Malformed)? as usize;
    if bytes > bytes_max {
        return Err(Refused::TooLong(bytes_max));
    }
    let mut body = vec![0; bytes];
    from.read_exact(&mut body).await?;
    Ok(body)
}

/// Sends a last message and closes the connection.
async fn send_error(refused: Refused, client: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
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
    async fn encryption_is_declined_and_message_lengths_are_limited() {
        let (mut back, mut to) = (Vec::new(), Vec::new());
        let startup = [&8_u32.to_be_bytes()[..], &196_608_u32.to_be_bytes()].concat();
        let ssl = [&8_u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        read_startup(&mut &[ssl, startup.clone()].concat()[..], &mut back, &mut to).await.expect("a valid startup");
        assert_eq!((&back[..], &to), (&b"N"[..], &startup));
        let sent = |length: u32| [&b"Q"[..], &length.to_be_bytes()].concat();
        for (length, reason) in
            [(3, "does not follow the PostgreSQL protocol"), (1 << 30, "the message is longer than 1048576 bytes")]
        {
            let refused =
                forward(&mut &sent(length)[..], &mut Vec::new()).await.expect_err("it is too short or too long");
            assert!(refused.to_string().contains(reason), "{refused}");
        }
        let (whole, mut to) = ([sent(6), b"x\0".to_vec()].concat(), Vec::new());
        forward(&mut &whole[..], &mut to).await.expect("it is a message");
        assert_eq!(to, whole);
    }
}

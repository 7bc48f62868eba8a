//! Syslog over TCP (RFC 6587) and over TLS (RFC 5425).
//!
//! Messages join the open batch of their vehicle with the label `stream=syslog`.
//! The messages that have arrived together are counted in one epoch. Syslog has no
//! acknowledgements: while messages are counted, nothing is read from their connection,
//! so a sender waits; what it sent before a crash of the server, and what was not
//! counted, is lost.
//!
//! - [`frame`]: where messages begin and end; [`message`]: what they say of their sender

mod frame;
mod message;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use metrics::counter;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use self::frame::FrameError;
use crate::app::Service;
use crate::http::problem::Problem;
use crate::http::shipped::{Line, ShippedLines};
use crate::shutdown::{Stopping, stopped};
use crate::tls::HANDSHAKE_MAX;

/// The stream of these lines: the label `stream` of their batches.
const STREAM: &str = "syslog";

/// Connections at once; more wait until one closes.
const CONNECTIONS_MAX: usize = 1000;

/// A connection without a message is closed after this long.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// Bytes of messages that are counted together.
const ROUND_BYTES_MAX: usize = 1 << 20;

/// How long messages are tried to be counted while the server is busy or its disk is full.
const RETRY_MAX: Duration = Duration::from_secs(300);
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The pause after an error of `accept`, such as too many open files.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(100);

/// Receives messages. Clones share their batches.
#[derive(Clone)]
pub struct Receiver {
    shipped: ShippedLines,
    stopping: watch::Receiver<Stopping>,
}

impl Receiver {
    /// Counts messages with a service.
    pub fn new(service: &Service) -> Receiver {
        Receiver { shipped: ShippedLines::new(service, STREAM), stopping: service.stopping.clone() }
    }

    /// Receives on `listener`, over TLS if there is an acceptor, until the server stops. Returns when what has arrived is
    /// counted.
    pub async fn serve(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let mut stopping = self.stopping.clone();
        loop {
            let accepted = async {
                let permit = Arc::clone(&open).acquire_owned().await;
                (listener.accept().await, permit)
            };
            tokio::select! {
                (accepted, permit) = accepted => match accepted {
                    Ok((stream, peer)) => {
                        let (receiver, tls) = (self.clone(), tls.clone());
                        connections.spawn(async move {
                            let _permit = permit;
                            let done = match tls {
                                None => receiver.receive(stream).await,
                                Some(tls) => match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                                    Ok(Ok(stream)) => receiver.receive(stream).await,
                                    Ok(Err(error)) => Err(error.into()),
                                    Err(_) => Err(ReceiveError::Handshake),
                                },
                            };
                            if let Err(error) = done {
                                tracing::warn!(%peer, %error, "a syslog connection was closed");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection; retrying in {ACCEPT_RETRY_WAIT:?}");
                        sleep(ACCEPT_RETRY_WAIT).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                () = stopped(&mut stopping) => break,
            }
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    /// Receives the messages of a connection.
    async fn receive(mut self, mut stream: impl AsyncRead + Unpin) -> Result<(), ReceiveError> {
        let mut received = BytesMut::with_capacity(8 << 10);
        let mut has_warned = false;
        loop {
            let read = tokio::select! {
                read = timeout(IDLE_MAX, stream.read_buf(&mut received)) => read.map_err(|_| ReceiveError::Idle)??,
                () = stopped(&mut self.stopping) => return Ok(()),
            };
            let mut messages = Vec::new();
            let mut bytes = 0;
            let mut ended = Ok(());
            loop {
                match frame::next(&mut received) {
                    Ok(Some(message)) => {
                        bytes += message.len();
                        messages.push(message);
                        if bytes >= ROUND_BYTES_MAX {
                            self.count(std::mem::take(&mut messages), &mut has_warned).await?;
                            bytes = 0;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        ended = Err(ReceiveError::Frame(error));
                        break;
                    }
                }
            }
            if read == 0 {
                messages.extend(frame::rest(&mut received));
            }
            self.count(messages, &mut has_warned).await?;
            ended?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow() != Stopping::No
    }

    /// Counts messages; those without a vehicle are rejected.
    async fn count(&self, messages: Vec<Bytes>, has_warned: &mut bool) -> Result<(), ReceiveError> {
        let mut lines = Vec::with_capacity(messages.len());
        for message in &messages {
            match message::sender(message, STREAM) {
                Ok((sender, file)) => lines.push((sender, file, message)),
                Err(rejection) => {
                    counter!("argus_shipped_records_total", "outcome" => "rejected").increment(1);
                    // Once for a connection: its other messages are probably the same.
                    if !std::mem::replace(has_warned, true) {
                        tracing::warn!(%rejection, "a syslog message is not counted");
                    }
                }
            }
        }
        if lines.is_empty() {
            return Ok(());
        }
        let counted = lines.len() as u64;
        let deadline = Instant::now() + RETRY_MAX;
        loop {
            let lines = lines.iter().map(|(sender, file, message)| Line {
                sender: sender.clone(),
                file: file.clone(),
                text: message.to_vec(),
            });
            match self.shipped.count(lines.collect()).await {
                Ok(_) => break,
                Err(problem) if may_pass(&problem) && Instant::now() < deadline && !self.is_stopping() => {
                    sleep(RETRY_WAIT).await;
                }
                Err(problem) => {
                    counter!("argus_shipped_records_total", "outcome" => "rejected").increment(counted);
                    return Err(ReceiveError::NotCounted(problem.detail().to_owned()));
                }
            }
        }
        counter!("argus_shipped_records_total", "outcome" => "counted").increment(counted);
        Ok(())
    }
}

/// Whether a later attempt may succeed.
fn may_pass(problem: &Problem) -> bool {
    let status = problem.status();
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(transparent)]
    Connection(#[from] io::Error),
    #[error("the TLS handshake took more than {} s", HANDSHAKE_MAX.as_secs())]
    Handshake,
    #[error("it sent nothing for {} s", IDLE_MAX.as_secs())]
    Idle,
    #[error("{0}; messages must be preceded by their length or followed by a line feed")]
    Frame(FrameError),
    #[error("its messages could not be counted: {0}")]
    NotCounted(String),
}

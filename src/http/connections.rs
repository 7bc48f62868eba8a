//! HTTP connections: accepts them, serves requests, and closes them.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::shutdown::{Stopping, stopped};
use crate::tls::HANDSHAKE_MAX;

/// The limit of open connections; more wait until one closes.
const CONNECTIONS_MAX: usize = 32 << 10;

/// The timeouts of each connection.
const TIMEOUTS: Timeouts = Timeouts { head: Duration::from_secs(120), unread: Duration::from_secs(120) };

/// The pause after an error of `accept`, such as too many open files.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(100);

/// Listens on an address; port 0 picks a free one.
pub async fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Serves the requests of a connection.
pub trait Entrance:
    Service<Request<Incoming>, Response = axum::response::Response, Error = Infallible, Future: Send> + Send + 'static
{
    /// The same for the connection of a client.
    fn of_peer(&self, peer: IpAddr) -> Self;
}

/// Serves connections on `listener`, over TLS if there is an acceptor, until the service stops. Returns when all open
/// requests are answered.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    entrance: impl Entrance,
    mut stopping: watch::Receiver<Stopping>,
) {
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&open).acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            (accepted, permit) = accepted => match accepted {
                Ok((stream, peer)) => {
                    // A write must not wait for the acknowledgement of the previous one (Nagle's algorithm).
                    if stream.set_nodelay(true).is_err() {
                        continue;
                    }
                    let (tls, entrance, stopping) = (tls.clone(), entrance.of_peer(peer.ip()), stopping.clone());
                    connections.spawn(async move {
                        let _permit = permit;
                        match tls {
                            None => serve_connection(stream, entrance, TIMEOUTS, stopping).await,
                            Some(tls) => match timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                                Ok(Ok(stream)) => serve_connection(stream, entrance, TIMEOUTS, stopping).await,
                                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                                Err(_) => tracing::debug!("a TLS handshake took too long"),
                            },
                        }
                    });
                }
                // The client has closed the connection already.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; retrying in {ACCEPT_RETRY_WAIT:?}");
                    tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stopping) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// How long a connection waits for the client.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    /// For the head of a request; this also limits an idle connection.
    head: Duration,
    /// For the client to read, when the socket's buffers are full.
    unread: Duration,
}

/// Serves one connection until the client closes it, a timeout expires, or the service stops.
async fn serve_connection<S, B>(
    stream: impl AsyncRead + AsyncWrite,
    service: S,
    timeouts: Timeouts,
    mut stopping: watch::Receiver<Stopping>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(timeouts.unread));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.head)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    // An error of the connection concerns the client only.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(600);

    /// The response to a client that sends `request`. The client reads it only if `reads`.
    async fn response_to(request: &str, timeouts: Timeouts, reads: bool) -> String {
        let (mut client, server) = duplex(64);
        let (_running, stopping) = watch::channel(Stopping::No);
        let long = service_fn(async |_: Request<Incoming>| Ok(Response::new("x".repeat(1000))));
        let served = serve_connection(server, long, timeouts, stopping);
        let mut response = String::new();
        let exchange = async {
            client.write_all(request.as_bytes()).await.expect("it is short");
            if reads {
                client.read_to_string(&mut response).await.expect("text");
            }
        };
        let ended = tokio::time::timeout(LONG / 10, join(served, exchange)).await;
        assert!(ended.is_ok(), "the connection is closed");
        response
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_or_send_is_disconnected() {
        let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        response_to(request, Timeouts { head: LONG, unread: SHORT }, false).await;
        let response = response_to("GET / HTT", Timeouts { head: SHORT, unread: LONG }, true).await;
        assert_eq!(response, "");
        let response = response_to(request, Timeouts { head: SHORT, unread: LONG }, true).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("xxx"), "{response}");
    }

    #[tokio::test]
    async fn an_open_request_is_answered_before_the_connection_closes() {
        let (mut client, server) = duplex(64);
        let (stop, stopping) = watch::channel(Stopping::No);
        let service = service_fn(move |_: Request<Incoming>| {
            stop.send_replace(Stopping::Soon);
            async { Ok(Response::new("the answer".to_owned())) }
        });
        let timeouts = Timeouts { head: LONG, unread: LONG };
        let mut response = String::new();
        let exchange = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is short");
            client.read_to_string(&mut response).await.expect("text");
        };
        join(serve_connection(server, service, timeouts, stopping), exchange).await;
        assert!(response.ends_with("the answer"), "{response}");
    }
}

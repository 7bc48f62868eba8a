//! Connections: taken, answered on, and ended.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use crate::http::front::Front;
use crate::service::Stopping;

/// Connections that are open at once; more wait until one ends.
const CONNECTIONS_MAX: usize = 32 << 10;

/// How long each connection waits.
const PATIENCE: Patience = Patience { head: Duration::from_secs(120), unread: Duration::from_secs(120) };

/// How long no connection is taken after the system had no room for one.
const FULL_WAIT: Duration = Duration::from_millis(100);

/// Answers on `listener` until the service stops, and ends when what was asked until then is answered.
pub async fn serve(listener: TcpListener, front: Front, mut stopping: watch::Receiver<Stopping>) {
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let room = Arc::clone(&open).acquire_owned().await;
            (listener.accept().await, room)
        };
        tokio::select! {
            (accepted, room) = accepted => match accepted {
                Ok((stream, _)) => {
                    // What is written must not wait for the client to say that it has what came before.
                    if stream.set_nodelay(true).is_err() {
                        continue;
                    }
                    let answered = answer(stream, front.clone(), PATIENCE, stopping.clone());
                    connections.spawn(async move {
                        let _room = room;
                        answered.await;
                    });
                }
                // The client left again.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection can be taken for a moment");
                    tokio::time::sleep(FULL_WAIT).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = told(&mut stopping) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// How long a connection waits for its client.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For the head of a request; without one, a connection is kept so long.
    head: Duration,
    /// For an answer to be read, when no more of it fits on the way.
    unread: Duration,
}

/// Answers on one connection, until the client leaves or is out of patience, or the service stops.
async fn answer<S, B>(
    stream: impl AsyncRead + AsyncWrite,
    service: S,
    patience: Patience,
    mut stopping: watch::Receiver<Stopping>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience.unread));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.head)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = pin!(connection);
    // Whatever ends a connection early is the client's to see.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = told(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Waits until the service stops, or whoever would say so is gone.
async fn told(stopping: &mut watch::Receiver<Stopping>) {
    let _ = stopping.wait_for(|stopping| *stopping != Stopping::No).await;
}

#[cfg(test)]
mod tests {
    use futures::future::join;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(600);

    /// What a client hears that says `asked` and reads from then on, or not before it is sent away.
    async fn heard(asked: &str, patience: Patience, reads: bool) -> String {
        let (mut client, server) = duplex(64);
        let (_running, stopping) = watch::channel(Stopping::No);
        let long = service_fn(async |_: Request<Incoming>| Ok(Response::new("x".repeat(1000))));
        let answered = answer(server, long, patience, stopping);
        let mut said = String::new();
        let talk = async {
            client.write_all(asked.as_bytes()).await.expect("it is short");
            if reads {
                client.read_to_string(&mut said).await.expect("text");
            }
        };
        let ended = tokio::time::timeout(LONG / 10, join(answered, talk)).await;
        assert!(ended.is_ok(), "the connection ends");
        said
    }

    #[tokio::test]
    async fn who_does_not_read_or_ask_is_sent_away() {
        let asked = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        heard(asked, Patience { head: LONG, unread: SHORT }, false).await;
        let said = heard("GET / HTT", Patience { head: SHORT, unread: LONG }, true).await;
        assert_eq!(said, "");
        let said = heard(asked, Patience { head: SHORT, unread: LONG }, true).await;
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("xxx"), "{said}");
    }

    #[tokio::test]
    async fn what_is_asked_is_answered_before_it_stops() {
        let (mut client, server) = duplex(64);
        let (stop, stopping) = watch::channel(Stopping::No);
        let service = service_fn(move |_: Request<Incoming>| {
            stop.send_replace(Stopping::Soon);
            async { Ok(Response::new("the answer".to_owned())) }
        });
        let patience = Patience { head: LONG, unread: LONG };
        let mut said = String::new();
        let talk = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("it is short");
            client.read_to_string(&mut said).await.expect("text");
        };
        join(answer(server, service, patience, stopping), talk).await;
        assert!(said.ends_with("the answer"), "{said}");
    }
}

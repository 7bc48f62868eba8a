//! Connections: taken, answered on, and ended.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::http::front::Front;
use crate::service::Stopping;

/// Connections that are open at once; more wait until one ends.
const CONNECTIONS_MAX: usize = 32 << 10;

/// How long a client may take over the head of a request, or keep a connection on which it asks nothing.
const HEAD_WAIT: Duration = Duration::from_secs(120);

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
                    let answered = answer(stream, front.clone(), stopping.clone());
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

/// Answers on one connection.
async fn answer(stream: TcpStream, front: Front, mut stopping: watch::Receiver<Stopping>) {
    // What is written must not wait for the client to say that it has what came before.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .serve_connection(TokioIo::new(stream), front);
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

//! Connections of Flight SQL clients: how many there are, and when one counts as dead.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// Connections at once; more wait until one ends.
pub(super) const CONNECTIONS_MAX: usize = 100;
/// How often a client is asked for a sign of life.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a connection may give no sign of life, or take nothing of what is on its way.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(90);

/// Takes connections while there is room for `max`.
pub(super) fn incoming(listener: TcpListener, max: usize) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(max));
    stream::unfold((listener, room), |(listener, room)| async move {
        let place = Arc::clone(&room).acquire_owned().await.ok()?;
        loop {
            let accepted = listener.accept().await;
            if let Ok(stream) = accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
                return Some((Ok(Connection::new(stream, place)), (listener, room)));
            }
            // Too many open files, say: what closes makes room.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

/// A connection in its place.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit) -> Connection {
        let mut stream = TimeoutStream::new(stream);
        stream.set_read_timeout(Some(SILENCE_MAX));
        stream.set_write_timeout(Some(SILENCE_MAX));
        Connection { stream: Box::pin(stream), _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.get_ref().connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(context, to)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn one_more_than_there_is_room_for_waits_until_another_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let mut incoming = pin!(incoming(listener, 1));
        let _clients = [TcpStream::connect(address).await, TcpStream::connect(address).await];
        let first = incoming.next().await.expect("it goes on").expect("it is taken");
        assert!(incoming.next().now_or_never().is_none(), "there is no room");
        drop(first);
        incoming.next().await.expect("it goes on").expect("it is taken");
    }
}

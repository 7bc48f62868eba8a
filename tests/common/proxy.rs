//! A TCP proxy that drops, delays and truncates what a server sends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// New connections are closed at once, and existing ones too.
    Drop,
    /// The server's bytes are not passed on.
    Stall,
    /// Each connection is closed after this many more bytes of the server, in the middle of an answer.
    Truncate(usize),
    /// Each new connection is closed after some bytes of the client, a different number below this one.
    CutRequests(usize),
}

/// A running proxy; it ends with the test's runtime.
pub struct Proxy {
    address: SocketAddr,
    fault: watch::Sender<Fault>,
    ranges: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// Passes connections on to a port of this machine.
    pub async fn start(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (fault, faults) = watch::channel(Fault::None);
        let ranges = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&ranges);
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let (faults, ranges) = (faults.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    if *faults.borrow() != Fault::Drop
                        && let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await
                    {
                        let fault = *faults.borrow();
                        let until = match fault {
                            // A fixed sequence that looks random.
                            Fault::CutRequests(below) => Some(number.wrapping_mul(0x9E37_79B9) % below),
                            _ => None,
                        };
                        pass(client, server, faults, ranges, until).await;
                    }
                });
            }
        });
        Proxy { address, fault, ranges, connections }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on, this happens to connections.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many HTTP requests with a range have passed.
    pub fn ranges(&self) -> usize {
        self.ranges.load(Ordering::SeqCst)
    }
}

/// Passes bytes in both directions until one side ends or the fault ends it.
async fn pass(
    client: TcpStream,
    server: TcpStream,
    mut faults: watch::Receiver<Fault>,
    ranges: Arc<AtomicUsize>,
    until: Option<usize>,
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (cut, mut is_cut) = watch::channel(false);
    let upstream = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        let mut passed = 0;
        while let Ok(mut bytes @ 1..) = from_client.read(&mut buffer).await {
            let ends = until.is_some_and(|until| passed + bytes > until);
            if let (true, Some(until)) = (ends, until) {
                bytes = until - passed;
            }
            passed += bytes;
            let text = String::from_utf8_lossy(&buffer[..bytes]).to_ascii_lowercase();
            ranges.fetch_add(text.matches("\r\nrange: ").count(), Ordering::SeqCst);
            if to_server.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
            if ends {
                cut.send_replace(true);
                return;
            }
        }
    });
    let mut left = None;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let fault = *faults.borrow_and_update();
        match fault {
            Fault::None | Fault::CutRequests(_) => left = None,
            Fault::Drop => break,
            Fault::Truncate(bytes) => left = left.or(Some(bytes)),
            Fault::Stall => {
                if faults.changed().await.is_err() {
                    break;
                }
                continue;
            }
        }
        let end = left.unwrap_or(buffer.len()).min(buffer.len());
        if end == 0 {
            break;
        }
        tokio::select! {
            read = from_server.read(&mut buffer[..end]) => match read {
                Ok(bytes @ 1..) => {
                    if to_client.write_all(&buffer[..bytes]).await.is_err() {
                        break;
                    }
                    left = left.map(|left| left - bytes);
                }
                _ => break,
            },
            changed = faults.changed() => if changed.is_err() {
                break;
            },
            Ok(()) = is_cut.changed() => break,
        }
    }
    upstream.abort();
}

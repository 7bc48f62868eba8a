//! Slots for bodies that are taken in, and how slow a body may be.
//!
//! A body takes a slot only when its first bytes have come, so clients that send
//! nothing hold none. While others wait for a slot, a body whose client has
//! stalled is interrupted in their favour; and a body that falls below the
//! minimum rate is interrupted in any case. Only the time that a client lets us
//! wait counts, never the time that we let it wait.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A body takes a slot when this much of it has come (16 KiB), or all of it.
const FIRST_BYTES: usize = 16 << 10;

/// Bodies without a slot, whose first bytes are read or that wait; one more is refused.
const ARRIVING_MAX: usize = 2048;

/// The minimum rate of a body is so many bytes (4 KiB) in each [`Patience::rate`].
const RATE_BYTES: usize = 4 << 10;

/// How long bodies may take.
const PATIENCE: Patience = Patience {
    slot: Duration::from_secs(30),
    rate: Duration::from_secs(30),
    stalled: Duration::from_secs(3),
    interrupt: Duration::from_millis(250),
};

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// How long a body waits for a slot.
    slot: Duration,
    /// How long a client may let us wait for [`RATE_BYTES`].
    rate: Duration,
    /// A client that has sent less than [`RATE_BYTES`] for so long has stalled.
    stalled: Duration,
    /// How long a body waits before one that has stalled is interrupted for it, and then for each next one.
    interrupt: Duration,
}

/// Why a body came to no end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Interrupted {
    #[error("{0}")]
    Connection(String),
    #[error("fewer than {RATE_BYTES} bytes came in {} s", PATIENCE.rate.as_secs())]
    TooSlow,
    #[error("it had stalled while other uploads were waiting")]
    Stalled,
    #[error("the server is stopping")]
    Stopping,
    #[error("too many uploads at once")]
    Busy,
}

/// So many bodies at once. Clones share them.
#[derive(Debug, Clone)]
pub struct Slots {
    permits: Arc<Semaphore>,
    arriving: Arc<AtomicUsize>,
    taken: Arc<Mutex<Vec<Arc<Holder>>>>,
    patience: Patience,
}

/// A slot, given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    holder: Arc<Holder>,
    _permit: OwnedSemaphorePermit,
}

/// Who has a slot.
#[derive(Debug)]
struct Holder {
    pace: Mutex<Pace>,
    waits_for_client: AtomicBool,
    interrupt: Notify,
    is_interrupted: AtomicBool,
}

/// How fast a client sends.
#[derive(Debug)]
struct Pace {
    since: Instant,
    bytes: usize,
    /// Since when the client waits for us.
    client_waits: Option<Instant>,
}

impl Pace {
    fn new() -> Pace {
        Pace { since: Instant::now(), bytes: 0, client_waits: None }
    }

    /// Takes bytes that have come.
    fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= RATE_BYTES {
            *self = Pace::new();
        }
    }
}

/// The first part of a body, and whether it is all.
#[derive(Debug)]
pub struct FirstBytes {
    /// As they came.
    pub chunks: Vec<Bytes>,
    /// Whether nothing comes behind them.
    pub is_all: bool,
    _arriving: Arriving,
}

/// A place among the bodies without a slot.
#[derive(Debug)]
struct Arriving(Arc<AtomicUsize>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slots {
    /// So many bodies at once.
    pub fn new(slots: usize) -> Slots {
        Slots::with(slots, PATIENCE)
    }

    fn with(slots: usize, patience: Patience) -> Slots {
        Slots { permits: Arc::new(Semaphore::new(slots)), arriving: Arc::default(), taken: Arc::default(), patience }
    }

    /// Reads the first bytes of a body.
    pub async fn first_bytes<S>(&self, body: &mut S) -> Result<FirstBytes, Interrupted>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        let arriving = Arriving(Arc::clone(&self.arriving));
        if self.arriving.fetch_add(1, Ordering::Relaxed) >= ARRIVING_MAX {
            return Err(Interrupted::Busy);
        }
        let mut first = FirstBytes { chunks: Vec::new(), is_all: false, _arriving: arriving };
        let (mut bytes, mut pace) = (0, Pace::new());
        while bytes < FIRST_BYTES && !first.is_all {
            match tokio::time::timeout_at(pace.since + self.patience.rate, body.next()).await {
                Err(_) => return Err(Interrupted::TooSlow),
                Ok(None) => first.is_all = true,
                Ok(Some(Err(reason))) => return Err(Interrupted::Connection(reason)),
                Ok(Some(Ok(chunk))) => {
                    bytes += chunk.len();
                    pace.take(chunk.len());
                    first.chunks.push(chunk);
                }
            }
        }
        Ok(first)
    }

    /// Waits for a slot, at the cost of bodies that have stalled.
    pub async fn take(&self) -> Result<Slot, Interrupted> {
        let until = Instant::now() + self.patience.slot;
        let acquire = Arc::clone(&self.permits).acquire_owned();
        tokio::pin!(acquire);
        loop {
            match tokio::time::timeout(self.patience.interrupt, &mut acquire).await {
                Ok(Ok(permit)) => return Ok(self.slot(permit)),
                Ok(Err(_)) => return Err(Interrupted::Stopping),
                Err(_) if Instant::now() >= until => return Err(Interrupted::Busy),
                Err(_) => self.interrupt_stalled(),
            }
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        let holder = Arc::new(Holder {
            pace: Mutex::new(Pace::new()),
            waits_for_client: AtomicBool::new(false),
            interrupt: Notify::new(),
            is_interrupted: AtomicBool::new(false),
        });
        lock(&self.taken).push(Arc::clone(&holder));
        Slot { slots: self.clone(), holder, _permit: permit }
    }

    /// Interrupts the body that has stalled for longest.
    fn interrupt_stalled(&self) {
        let taken = lock(&self.taken);
        let stalled = |holder: &&Arc<Holder>| {
            holder.waits_for_client.load(Ordering::Relaxed)
                && !holder.is_interrupted.load(Ordering::Relaxed)
                && lock(&holder.pace).since.elapsed() >= self.patience.stalled
        };
        if let Some(holder) = taken.iter().filter(stalled).min_by_key(|holder| lock(&holder.pace).since) {
            holder.is_interrupted.store(true, Ordering::Relaxed);
            holder.interrupt.notify_one();
        }
    }
}

impl Slot {
    /// The next bytes of a body; `None` at its end.
    pub async fn next<S>(&self, body: &mut S) -> Result<Option<Bytes>, Interrupted>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        // What we took for the bytes before is not the client's time.
        let until = {
            let mut pace = lock(&self.holder.pace);
            if let Some(waits) = pace.client_waits.take() {
                pace.since += waits.elapsed();
            }
            self.holder.waits_for_client.store(true, Ordering::Relaxed);
            pace.since + self.slots.patience.rate
        };
        let next = tokio::select! {
            biased;
            chunk = body.next() => match chunk {
                Some(Ok(bytes)) => Ok(Some(bytes)),
                Some(Err(reason)) => Err(Interrupted::Connection(reason)),
                None => Ok(None),
            },
            () = self.holder.interrupt.notified() => Err(Interrupted::Stalled),
            () = tokio::time::sleep_until(until) => Err(Interrupted::TooSlow),
        };
        if let Ok(Some(bytes)) = &next {
            lock(&self.holder.pace).take(bytes.len());
        }
        next
    }

    /// Until the next call of [`Slot::next`] the client waits for us.
    pub fn client_waits(&self) {
        self.holder.waits_for_client.store(false, Ordering::Relaxed);
        lock(&self.holder.pace).client_waits.get_or_insert_with(Instant::now);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots.taken).retain(|holder| !Arc::ptr_eq(holder, &self.holder));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that could panic is done under the lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    type Body = stream::BoxStream<'static, Result<Bytes, String>>;

    /// A body that sends one byte every so often, for ever.
    fn drip(every: Duration) -> Body {
        stream::unfold((), move |()| async move {
            tokio::time::sleep(every).await;
            Some((Ok(Bytes::from_static(b"x")), ()))
        })
        .boxed()
    }

    fn whole(bytes: usize) -> Body {
        stream::iter([Ok(Bytes::from(vec![b'x'; bytes]))]).boxed()
    }

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_secs(600);

    fn slots(count: usize, patience: Patience) -> Slots {
        Slots::with(count, patience)
    }

    #[tokio::test]
    async fn a_body_that_drips_takes_no_slot_and_is_interrupted() {
        let slots = slots(1, Patience { rate: SHORT, ..PATIENCE });
        let first = slots.first_bytes(&mut drip(SHORT / 4)).await;
        assert_eq!(first.err(), Some(Interrupted::TooSlow));
        let first = slots.first_bytes(&mut whole(10)).await.expect("it is all there");
        assert!(first.is_all && slots.take().await.is_ok());
    }

    #[tokio::test]
    async fn a_body_below_the_minimum_rate_is_interrupted() {
        let slot = slots(1, Patience { rate: SHORT, ..PATIENCE }).take().await.expect("a free slot");
        let mut body = drip(SHORT / 4);
        let interrupted = loop {
            if let Err(interrupted) = slot.next(&mut body).await {
                break interrupted;
            }
        };
        assert_eq!(interrupted, Interrupted::TooSlow);
    }

    #[tokio::test]
    async fn a_stalled_body_is_interrupted_for_one_that_waits() {
        let slots = slots(1, Patience { slot: LONG, rate: LONG, stalled: SHORT, interrupt: SHORT });
        let stalled = slots.take().await.expect("a free slot");
        let stalls = tokio::spawn(async move { stalled.next(&mut drip(LONG)).await });
        slots.take().await.expect("the slot of the stalled one");
        assert_eq!(stalls.await.expect("ends"), Err(Interrupted::Stalled));
    }

    #[tokio::test]
    async fn a_body_whose_client_waits_for_us_is_not_interrupted() {
        let slots = slots(1, Patience { slot: SHORT * 4, rate: LONG, stalled: SHORT / 4, interrupt: SHORT / 4 });
        let busy = slots.take().await.expect("a free slot");
        busy.client_waits();
        assert_eq!(slots.take().await.err(), Some(Interrupted::Busy));
        assert_eq!(busy.next(&mut whole(1)).await.expect("goes on"), Some(Bytes::from_static(b"x")));
    }
}

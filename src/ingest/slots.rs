//! Slots limit the number of bodies that are received at once, and set a minimum rate.
//!
//! A body takes a slot only when its first bytes have arrived, so clients that send
//! nothing occupy none. While others wait for a slot, bodies whose clients have
//! stalled are interrupted. A body that falls below the minimum rate is always
//! interrupted. Only the time that the server waits for a client counts, not the time
//! that the client waits for the server.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use metrics::{Gauge, gauge};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// A body takes a slot when this much of it has arrived (16 KiB), or all of it.
const FIRST_BYTES: usize = 16 << 10;

/// The maximum number of bodies that have no slot yet; more are rejected.
const ARRIVING_MAX: usize = 2048;

/// The minimum rate: a body must send this many bytes (4 KiB) in each [`Timeouts::rate`].
const RATE_BYTES: usize = 4 << 10;

/// The timeouts of the server.
const TIMEOUTS: Timeouts = Timeouts {
    slot: Duration::from_secs(30),
    rate: Duration::from_secs(30),
    stalled: Duration::from_secs(3),
    interrupt: Duration::from_millis(250),
};

/// Timeouts of a body.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    /// How long a body waits for a slot.
    slot: Duration,
    /// How long the server waits for [`RATE_BYTES`].
    rate: Duration,
    /// A client that has sent less than [`RATE_BYTES`] for this long has stalled.
    stalled: Duration,
    /// How long a body waits for a slot before a stalled body is interrupted, and then before each further one.
    interrupt: Duration,
}

/// Why a body was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Interrupted {
    #[error("{0}")]
    Connection(String),
    #[error("fewer than {RATE_BYTES} bytes arrived in {} s", TIMEOUTS.rate.as_secs())]
    TooSlow,
    #[error("it stalled while other uploads were waiting")]
    Stalled,
    #[error("the server is stopping")]
    Stopping,
    #[error("the limit of concurrent uploads is reached")]
    Busy,
}

/// Limits the number of concurrent bodies. Clones share the limit.
#[derive(Debug, Clone)]
pub struct Slots {
    /// The name of the queue in the metrics.
    queue: &'static str,
    permits: Arc<Semaphore>,
    arriving: Arc<AtomicUsize>,
    taken: Arc<Mutex<Vec<Arc<Holder>>>>,
    timeouts: Timeouts,
}

/// A slot, released when it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    holder: Arc<Holder>,
    _permit: OwnedSemaphorePermit,
}

/// The state of a body that has a slot.
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
    /// Since when the client waits for the server.
    client_waits: Option<Instant>,
}

impl Pace {
    fn new() -> Pace {
        Pace { since: Instant::now(), bytes: 0, client_waits: None }
    }

    /// Adds received bytes.
    fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= RATE_BYTES {
            *self = Pace::new();
        }
    }
}

/// The first bytes of a body.
#[derive(Debug)]
pub struct FirstBytes {
    /// The chunks as received.
    pub chunks: Vec<Bytes>,
    /// Whether this is the whole body.
    pub is_all: bool,
    _arriving: Arriving,
}

/// Counts a body without a slot while it exists.
#[derive(Debug)]
struct Arriving {
    bodies: Arc<AtomicUsize>,
    queue_length: Gauge,
}

impl Arriving {
    /// Adds a body, unless there are too many.
    fn begin(slots: &Slots) -> Result<Arriving, Interrupted> {
        let bodies = Arc::clone(&slots.arriving);
        let queue_length = gauge!("argus_queue_length", "queue" => slots.queue);
        queue_length.increment(1.0);
        let arriving = Arriving { bodies, queue_length };
        match slots.arriving.fetch_add(1, Ordering::Relaxed) < ARRIVING_MAX {
            true => Ok(arriving),
            false => Err(Interrupted::Busy),
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.bodies.fetch_sub(1, Ordering::Relaxed);
        self.queue_length.decrement(1.0);
    }
}

impl Slots {
    /// Allows `slots` concurrent bodies. `queue` names in the metrics the queue of those that have no slot yet.
    pub fn new(queue: &'static str, slots: usize) -> Slots {
        Slots::with(queue, slots, TIMEOUTS)
    }

    fn with(queue: &'static str, slots: usize, timeouts: Timeouts) -> Slots {
        let (permits, arriving) = (Arc::new(Semaphore::new(slots)), Arc::default());
        Slots { queue, permits, arriving, taken: Arc::default(), timeouts }
    }

    /// Reads the first bytes of a body.
    pub async fn first_bytes<S>(&self, body: &mut S) -> Result<FirstBytes, Interrupted>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        let arriving = Arriving::begin(self)?;
        let mut first = FirstBytes { chunks: Vec::new(), is_all: false, _arriving: arriving };
        let (mut bytes, mut pace) = (0, Pace::new());
        while bytes < FIRST_BYTES && !first.is_all {
            match tokio::time::timeout_at(pace.since + self.timeouts.rate, body.next()).await {
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

    /// Waits for a slot. Meanwhile it interrupts stalled bodies.
    pub async fn take(&self) -> Result<Slot, Interrupted> {
        let until = Instant::now() + self.timeouts.slot;
        let acquire = Arc::clone(&self.permits).acquire_owned();
        tokio::pin!(acquire);
        loop {
            match tokio::time::timeout(self.timeouts.interrupt, &mut acquire).await {
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

    /// Interrupts the body that has been stalled for longest.
    fn interrupt_stalled(&self) {
        let taken = lock(&self.taken);
        let stalled = |holder: &&Arc<Holder>| {
            holder.waits_for_client.load(Ordering::Relaxed)
                && !holder.is_interrupted.load(Ordering::Relaxed)
                && lock(&holder.pace).since.elapsed() >= self.timeouts.stalled
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
        // The time that the client waited for the server does not count.
        let until = {
            let mut pace = lock(&self.holder.pace);
            if let Some(waits) = pace.client_waits.take() {
                pace.since += waits.elapsed();
            }
            self.holder.waits_for_client.store(true, Ordering::Relaxed);
            pace.since + self.slots.timeouts.rate
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

    /// Marks that the client waits for the server until the next call of [`Slot::next`].
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
    // No code under the lock can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    type Body = stream::BoxStream<'static, Result<Bytes, String>>;

    /// An endless body that sends one byte per interval.
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

    fn slots(count: usize, timeouts: Timeouts) -> Slots {
        Slots::with("test", count, timeouts)
    }

    #[tokio::test]
    async fn a_slow_body_is_interrupted_before_it_takes_a_slot() {
        let slots = slots(1, Timeouts { rate: SHORT, ..TIMEOUTS });
        let first = slots.first_bytes(&mut drip(SHORT / 4)).await;
        assert_eq!(first.err(), Some(Interrupted::TooSlow));
        let first = slots.first_bytes(&mut whole(10)).await.expect("a whole body");
        assert!(first.is_all && slots.take().await.is_ok());
    }

    #[tokio::test]
    async fn a_body_below_the_minimum_rate_is_interrupted() {
        let slot = slots(1, Timeouts { rate: SHORT, ..TIMEOUTS }).take().await.expect("a free slot");
        let mut body = drip(SHORT / 4);
        let interrupted = loop {
            if let Err(interrupted) = slot.next(&mut body).await {
                break interrupted;
            }
        };
        assert_eq!(interrupted, Interrupted::TooSlow);
    }

    #[tokio::test]
    async fn a_stalled_body_is_interrupted_when_another_waits() {
        let slots = slots(1, Timeouts { slot: LONG, rate: LONG, stalled: SHORT, interrupt: SHORT });
        let stalled = slots.take().await.expect("a free slot");
        let stalls = tokio::spawn(async move { stalled.next(&mut drip(LONG)).await });
        slots.take().await.expect("the slot of the stalled one");
        assert_eq!(stalls.await.expect("ends"), Err(Interrupted::Stalled));
    }

    #[tokio::test]
    async fn a_body_whose_client_waits_for_the_server_is_not_interrupted() {
        let slots = slots(1, Timeouts { slot: SHORT * 4, rate: LONG, stalled: SHORT / 4, interrupt: SHORT / 4 });
        let busy = slots.take().await.expect("a free slot");
        busy.client_waits();
        assert_eq!(slots.take().await.err(), Some(Interrupted::Busy));
        assert_eq!(busy.next(&mut whole(1)).await.expect("goes on"), Some(Bytes::from_static(b"x")));
    }
}

//! The way into the dataflow and out of it, and the workers behind it.
//!
//! Workers are threads that cannot be shared; only channels and wake-ups cross
//! into them. Blocks go to the worker with the least to do, changes to the
//! first, the seal of an epoch to all. The bytes between [`Dataflow::feed`]
//! and the reader of the sightings are bounded: at the limit, `feed` waits.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use timely::communication::WorkerGuards;
use timely::worker::Worker;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blocks::TextBlock;
use crate::fold::CodeLimits;
use crate::graph::{self, Block, Inputs};
use crate::plan::Plan;
use crate::rows::{Change, ClosedEpoch, Origin};
use crate::rules::RuleSet;
use crate::scan::{ScannedBlock, Scanner};

/// How the dataflow is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Worker threads, at least one.
    pub workers: usize,
    /// What is counted.
    pub rules: RuleSet,
    /// The first epoch to be sealed.
    pub first_epoch: u64,
    /// Bytes of text that may be on their way at once.
    pub in_flight_bytes: usize,
    /// Whether each sighting leaves, beside the counts.
    pub sightings: bool,
    /// How many different codes of an upload are counted by name.
    pub limits: CodeLimits,
}

/// How long a worker looks for more after a command before it sleeps. An epoch
/// passes between workers several times until it closes, and each would be a
/// wake-up of a sleeper otherwise.
const AWAKE: Duration = Duration::from_micros(300);

impl Config {
    /// Room for a few blocks per worker: enough to keep them busy, little to wait behind.
    pub const IN_FLIGHT_BYTES_DEFAULT: usize = 8 << 20;
}

/// What leaves the dataflow. All sightings of a generation leave before the epoch that admits it.
#[derive(Debug)]
pub enum Output {
    /// The sightings of a block, whose generation may yet be admitted or abandoned.
    Scanned(ScannedBlock),
    /// An epoch is complete.
    Closed(ClosedEpoch),
}

/// The workers have ended.
#[derive(Debug, thiserror::Error)]
#[error("the dataflow has stopped")]
pub struct DataflowGone;

/// A running dataflow. Clones are the same dataflow; the last one to go stops
/// it after everything that was sealed has left.
#[derive(Clone)]
pub struct Dataflow {
    inner: Arc<Inner>,
}

struct Inner {
    ports: Vec<Port>,
    room: Arc<Semaphore>,
    room_bytes: usize,
    /// Joined when dropped, behind the `Stop` that `Drop` sends.
    guards: Mutex<Option<WorkerGuards<()>>>,
}

/// The way to one worker.
struct Port {
    commands: Sender<Command>,
    thread: Thread,
    queued_bytes: Arc<AtomicUsize>,
}

enum Command {
    Block(Block),
    Changes(Vec<Change>),
    Seal { epoch: u64 },
    Stop,
}

/// The room that a block takes until its sightings have been read.
#[derive(Debug)]
pub(crate) struct InFlight {
    _room: OwnedSemaphorePermit,
    queued_bytes: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.queued_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Dataflow {
    /// Starts the workers. What they find arrives at the receiver, in an
    /// order that keeps the promise of [`Output`].
    pub fn start(config: Config) -> Result<(Dataflow, UnboundedReceiver<Output>), String> {
        let workers = config.workers.max(1);
        let (outputs, receiver) = unbounded_channel();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| channel()).unzip();
        let receivers: Mutex<Vec<Option<Receiver<Command>>>> = Mutex::new(receivers.into_iter().map(Some).collect());
        let (threads_in, threads) = channel();
        let threads_in = Mutex::new(threads_in);
        let Config { rules, first_epoch, sightings, limits, .. } = config;
        let plan = Plan::new(rules);
        let guards = timely::execute(timely::Config::process(workers), move |worker| {
            let index = worker.index();
            let commands = receivers.lock().unwrap_or_else(PoisonError::into_inner)[index].take();
            let commands = commands.expect("each worker runs once");
            let thread = std::thread::current();
            threads_in
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .send((index, thread))
                .expect("start waits for all workers");
            let _alarm = DeathAlarm;
            run(worker, &commands, Scanner::of(Arc::clone(&plan)), first_epoch, &outputs, sightings, limits);
        })?;
        let mut threads: Vec<(usize, Thread)> = threads.iter().take(workers).collect();
        threads.sort_by_key(|(index, _)| *index);
        let ports = senders
            .into_iter()
            .zip(threads)
            .map(|(commands, (_, thread))| Port { commands, thread, queued_bytes: Arc::default() })
            .collect();
        let room_bytes = config.in_flight_bytes.clamp(1, u32::MAX as usize);
        let inner =
            Inner { ports, room: Arc::new(Semaphore::new(room_bytes)), room_bytes, guards: Mutex::new(Some(guards)) };
        Ok((Dataflow { inner: Arc::new(inner) }, receiver))
    }

    /// Hands on a block of a generation, before the change that admits it.
    /// Waits while the bytes in flight are at their limit.
    pub async fn feed(&self, origin: &Arc<Origin>, text: TextBlock) -> Result<(), DataflowGone> {
        let bytes = text.text.len().clamp(1, self.inner.room_bytes);
        let room = Arc::clone(&self.inner.room).acquire_many_owned(bytes as u32).await.map_err(|_| DataflowGone)?;
        let least = self.inner.ports.iter().min_by_key(|port| port.queued_bytes.load(Ordering::Relaxed));
        let port = least.expect("there is at least one worker");
        port.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let room = Arc::new(InFlight { _room: room, queued_bytes: Arc::clone(&port.queued_bytes), bytes });
        port.send(Command::Block(Block { origin: Arc::clone(origin), text: Arc::new(text), room }))
    }

    /// Makes `changes` the content of `epoch` and seals it: nothing more will
    /// happen at it, and it closes as soon as it is counted. Epochs must come
    /// in ascending order and from one caller at a time.
    pub fn advance(&self, epoch: u64, changes: Vec<Change>) -> Result<(), DataflowGone> {
        self.inner.ports[0].send(Command::Changes(changes))?;
        self.inner.ports.iter().try_for_each(|port| port.send(Command::Seal { epoch }))
    }

    /// Stops the workers once everything that was sealed has left, whoever
    /// else still has a handle: their calls fail from now on.
    pub fn stop(&self) {
        self.inner.room.close();
        for port in &self.inner.ports {
            // A worker that has ended needs no stop.
            let _ = port.send(Command::Stop);
        }
    }

    /// Bytes of text between `feed` and the reader of the sightings.
    pub fn in_flight_bytes(&self) -> usize {
        self.inner.room_bytes - self.inner.room.available_permits()
    }
}

impl Port {
    fn send(&self, command: Command) -> Result<(), DataflowGone> {
        self.commands.send(command).map_err(|_| DataflowGone)?;
        self.thread.unpark();
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for port in &self.ports {
            // Stopped already, mostly.
            let _ = port.send(Command::Stop);
        }
        drop(self.guards.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A worker that dies leaves its epoch open for ever and its peers waiting:
/// the process ends at once, and a restart feeds again what was accepted.
struct DeathAlarm;

impl Drop for DeathAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn run(
    worker: &mut Worker,
    commands: &Receiver<Command>,
    scanner: Scanner,
    first_epoch: u64,
    outputs: &UnboundedSender<Output>,
    sightings: bool,
    limits: CodeLimits,
) {
    let closed = first_epoch.saturating_sub(1);
    let sealed = Rc::new(Cell::new(closed));
    let Inputs { mut blocks, mut changes } = worker
        .dataflow(|scope| graph::build(scope, scanner, closed, Rc::clone(&sealed), outputs.clone(), sightings, limits));
    blocks.advance_to(first_epoch);
    changes.advance_to(first_epoch);
    let mut awake_until = Instant::now();
    loop {
        let command = commands.try_recv();
        if command.is_ok() {
            awake_until = Instant::now() + AWAKE;
        }
        match command {
            Ok(Command::Block(block)) => {
                blocks.send(block);
                blocks.flush();
                // One block at a time: a seal behind it should not wait for a queue of them.
                worker.step();
            }
            Ok(Command::Changes(list)) => list.into_iter().for_each(|change| changes.send(change)),
            Ok(Command::Seal { epoch }) => {
                sealed.set(epoch);
                blocks.advance_to(epoch + 1);
                changes.advance_to(epoch + 1);
            }
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) if Instant::now() < awake_until => {
                worker.step();
                std::thread::yield_now();
            }
            // Whoever sends also unparks, so no command waits behind a parked worker.
            Err(TryRecvError::Empty) => {
                worker.step_or_park(None);
            }
        }
    }
}

//! The worker threads, and the handle that drives them.
//!
//! Timely workers cannot be shared between threads: the handle sends them commands
//! by channel and wakes them. A block goes to the worker with the fewest queued
//! bytes, changes to the first worker, the end of an epoch to all. The bytes between
//! [`Dataflow::insert`] and the reader of the occurrences are bounded: at the limit,
//! `insert` waits.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use timely::communication::WorkerGuards;
use timely::dataflow::Scope;
use timely::worker::Worker;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::counts::changes::Change;
use crate::counts::partial::{CodeLimits, PartialCounts};
use crate::counts::rows::Origin;
use crate::graph::{self, Block, Content, Inputs};
use crate::output::{InFlight, Output};
use crate::rules::RuleSet;
use crate::scan::Scanner;
use crate::scan::plan::Plan;
use crate::text::blocks::TextBlock;

/// Settings of the dataflow.
#[derive(Debug, Clone)]
pub struct Config {
    /// Worker threads, at least one.
    pub workers: usize,
    /// The rules that define the error codes.
    pub rules: RuleSet,
    /// The first epoch.
    pub first_epoch: u64,
    /// The maximum bytes of text in flight.
    pub in_flight_bytes: usize,
    /// Whether to output each occurrence, in addition to the counts.
    pub occurrences: bool,
    /// How many distinct codes of an upload are counted by name.
    pub limits: CodeLimits,
    /// Whether to output partial counts ([`Output::Counted`]) and occurrences only, for another process that admits them.
    pub scans_only: bool,
}

/// The approximate bytes of a count.
const COUNT_BYTES: usize = 256;

/// How long a worker polls after a command before it parks. To close an epoch,
/// workers exchange several messages; each would have to wake a parked thread otherwise.
const AWAKE: Duration = Duration::from_micros(300);

impl Config {
    /// A few blocks per worker: enough to keep them busy, with a short queue.
    pub const IN_FLIGHT_BYTES_DEFAULT: usize = 8 << 20;
}

/// The workers have stopped.
#[derive(Debug, thiserror::Error)]
#[error("the dataflow has stopped")]
pub struct DataflowStopped;

/// A running dataflow. Clones share it; dropping the last one stops it, after all
/// advanced epochs have been emitted.
#[derive(Clone)]
pub struct Dataflow {
    inner: Arc<Inner>,
}

struct Inner {
    ports: Vec<Port>,
    permits: Arc<Semaphore>,
    in_flight_bytes_max: usize,
    /// Joined on drop, after `Drop` has sent `Stop`.
    guards: Mutex<Option<WorkerGuards<()>>>,
}

/// The connection to one worker.
struct Port {
    commands: Sender<Command>,
    thread: Thread,
    queued_bytes: Arc<AtomicUsize>,
}

enum Command {
    Block(Block),
    Changes(Vec<Change>),
    Advance { epoch: u64 },
    Stop,
}

impl Dataflow {
    /// Starts the workers. The receiver gets their output, in the order that
    /// [`Output`] guarantees.
    pub fn start(config: Config) -> Result<(Dataflow, UnboundedReceiver<Output>), String> {
        let workers = config.workers.max(1);
        let (outputs, receiver) = unbounded_channel();
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| channel()).unzip();
        let receivers: Mutex<Vec<Option<Receiver<Command>>>> = Mutex::new(receivers.into_iter().map(Some).collect());
        let (threads_in, threads) = channel();
        let threads_in = Mutex::new(threads_in);
        let Config { rules, first_epoch, occurrences, limits, scans_only, .. } = config;
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
            let _abort_on_panic = AbortOnPanic;
            let scanner = Scanner::of(Arc::clone(&plan));
            run(worker, &commands, first_epoch, |scope, closed, last_advanced| match scans_only {
                true => graph::build_scan(scope, scanner, closed, last_advanced, outputs.clone(), limits),
                false => graph::build(scope, scanner, closed, last_advanced, outputs.clone(), occurrences, limits),
            });
        })?;
        let mut threads: Vec<(usize, Thread)> = threads.iter().take(workers).collect();
        threads.sort_by_key(|(index, _)| *index);
        let ports = senders
            .into_iter()
            .zip(threads)
            .map(|(commands, (_, thread))| Port { commands, thread, queued_bytes: Arc::default() })
            .collect();
        let in_flight_bytes_max = config.in_flight_bytes.clamp(1, u32::MAX as usize);
        let permits = Arc::new(Semaphore::new(in_flight_bytes_max));
        let inner = Inner { ports, permits, in_flight_bytes_max, guards: Mutex::new(Some(guards)) };
        Ok((Dataflow { inner: Arc::new(inner) }, receiver))
    }

    /// Inserts a block of a version, before the change that admits it.
    /// Waits while the bytes in flight are at their limit.
    pub async fn insert(&self, origin: &Arc<Origin>, text: TextBlock) -> Result<(), DataflowStopped> {
        let bytes = text.text.len();
        self.insert_content(origin, bytes, Content::Text(Arc::new(text))).await
    }

    /// Inserts what another process has counted in blocks of a version, before the change that admits it.
    pub async fn insert_counted(&self, origin: &Arc<Origin>, counts: PartialCounts) -> Result<(), DataflowStopped> {
        let texts: usize = counts.codes.values().map(|code| code.example_text.len()).sum();
        let bytes = COUNT_BYTES * (1 + counts.codes.len()) + texts;
        self.insert_content(origin, bytes, Content::Counted(Box::new(counts))).await
    }

    async fn insert_content(
        &self,
        origin: &Arc<Origin>,
        bytes: usize,
        content: Content,
    ) -> Result<(), DataflowStopped> {
        let bytes = bytes.clamp(1, self.inner.in_flight_bytes_max);
        let permit =
            Arc::clone(&self.inner.permits).acquire_many_owned(bytes as u32).await.map_err(|_| DataflowStopped)?;
        let least = self.inner.ports.iter().min_by_key(|port| port.queued_bytes.load(Ordering::Relaxed));
        let port = least.expect("there is at least one worker");
        port.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let in_flight = Arc::new(InFlight::new(permit, Arc::clone(&port.queued_bytes), bytes));
        port.send(Command::Block(Block { origin: Arc::clone(origin), content, in_flight }))
    }

    /// Inserts `changes` at `epoch` and advances the inputs past it: the epoch gets
    /// no more input and closes as soon as it is counted. Epochs must come in
    /// ascending order and from one caller at a time.
    pub fn advance(&self, epoch: u64, changes: Vec<Change>) -> Result<(), DataflowStopped> {
        self.inner.ports[0].send(Command::Changes(changes))?;
        self.inner.ports.iter().try_for_each(|port| port.send(Command::Advance { epoch }))
    }

    /// Stops the workers after all advanced epochs have been emitted. From now on,
    /// calls on any clone of the handle fail.
    pub fn stop(&self) {
        self.inner.permits.close();
        for port in &self.inner.ports {
            // Fails only if the worker has stopped already.
            let _ = port.send(Command::Stop);
        }
    }

    /// Bytes of text between `insert` and the reader of the occurrences.
    pub fn in_flight_bytes(&self) -> usize {
        self.inner.in_flight_bytes_max - self.inner.permits.available_permits()
    }
}

impl Port {
    fn send(&self, command: Command) -> Result<(), DataflowStopped> {
        self.commands.send(command).map_err(|_| DataflowStopped)?;
        self.thread.unpark();
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for port in &self.ports {
            // Fails if the worker has stopped already, which is the usual case.
            let _ = port.send(Command::Stop);
        }
        drop(self.guards.get_mut().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// A worker that panics would leave its epoch open forever and its peers waiting.
/// The process aborts instead; a restart replays what was accepted.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn run(
    worker: &mut Worker,
    commands: &Receiver<Command>,
    first_epoch: u64,
    build: impl FnOnce(Scope<'_, u64>, u64, Rc<Cell<u64>>) -> Inputs,
) {
    let closed = first_epoch.saturating_sub(1);
    let last_advanced = Rc::new(Cell::new(closed));
    let Inputs { mut blocks, mut changes } = worker.dataflow(|scope| build(scope, closed, Rc::clone(&last_advanced)));
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
                // One block per step: the end of an epoch should not wait for a queue of blocks.
                worker.step();
            }
            Ok(Command::Changes(list)) => list.into_iter().for_each(|change| changes.send(change)),
            Ok(Command::Advance { epoch }) => {
                last_advanced.set(epoch);
                blocks.advance_to(epoch + 1);
                changes.advance_to(epoch + 1);
            }
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) if Instant::now() < awake_until => {
                worker.step();
                std::thread::yield_now();
            }
            // A sender also unparks the thread, so no command waits for a parked worker.
            Err(TryRecvError::Empty) => {
                worker.step_or_park(None);
            }
        }
    }
}

//! The leader's side: which processes follow, and what each of them is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use argus_sinks::feed::{FrameError, Step};
use argus_sinks::snapshot::Lease;
use argus_sinks::{Feed, Snapshot};
use bytes::Bytes;
use futures::{Stream, stream};
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use super::frame::{Alive, Frame, Hello, Position, Start};
use super::intake::Intake;
use crate::pipeline::announcements::{Announcement, Announcements, Change};
use crate::shutdown::{Stopping, stopped};

/// How often a follower that gets nothing else learns that the leader is alive.
pub const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// A follower that has not said for this long that it is alive is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The longest query of a follower.
const QUERY_MAX: Duration = Duration::from_secs(600);

/// The leader. Clones share its followers.
#[derive(Clone)]
pub struct Leader {
    pub(super) leading: Arc<Leading>,
    followers: Arc<Mutex<HashMap<usize, Member>>>,
    /// The number of the next connection.
    connections: Arc<AtomicU64>,
    stopping: watch::Receiver<Stopping>,
}

/// What a leader has.
pub struct Leading {
    /// What it says of itself.
    pub own: Hello,
    /// Its term as the writer of the metadata.
    pub term: u64,
    /// The steps of its lake.
    pub feed: Feed,
    /// What its readers see.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The changes of the metadata.
    pub announcements: Announcements,
    /// What takes the uploads of followers.
    pub intake: Intake,
}

/// A process that follows.
#[derive(Debug)]
struct Member {
    instance: Uuid,
    seen: Instant,
    /// Its last connection, and how many replacements it has released on it.
    connection: u64,
    released: u64,
}

/// Why a process may not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum NotOneCluster {
    #[error(
        "process {process} has the {what} {theirs}, and the leader, process {leader}, has {ours}; start all processes with the same"
    )]
    Differs { what: &'static str, process: usize, theirs: String, leader: usize, ours: String },
    #[error("there is no process {process} of {processes}; processes are numbered from 0")]
    NoSuchNumber { process: usize, processes: usize },
    #[error("there are two processes with --process {0}; give each a number of its own")]
    SameNumber(usize),
}

impl Leader {
    /// The leader, until the server stops.
    pub fn new(leading: Leading, stopping: watch::Receiver<Stopping>) -> Leader {
        Leader { leading: Arc::new(leading), followers: Arc::default(), connections: Arc::default(), stopping }
    }

    /// Lets a process follow, unless it does not belong to the cluster. Returns the number of its connection.
    pub fn admit(&self, hello: &Hello) -> Result<u64, NotOneCluster> {
        let compared = [
            ("protocol version", hello.protocol.to_string(), self.leading.own.protocol.to_string()),
            ("version of argus", hello.version.clone(), self.leading.own.version.clone()),
            ("rules", hello.rules.clone(), self.leading.own.rules.clone()),
            ("number of processes", hello.hosts.len().to_string(), self.leading.own.hosts.len().to_string()),
            ("hosts", hello.hosts.join(","), self.leading.own.hosts.join(",")),
        ];
        if let Some((what, theirs, ours)) = compared.into_iter().find(|(_, theirs, ours)| theirs != ours) {
            let (process, leader) = (hello.process, self.leading.own.process);
            return Err(NotOneCluster::Differs { what, process, theirs, leader, ours });
        }
        if hello.process >= self.leading.own.hosts.len() {
            return Err(NotOneCluster::NoSuchNumber {
                process: hello.process,
                processes: self.leading.own.hosts.len(),
            });
        }
        let mut followers = self.lock();
        let is_taken = hello.process == self.leading.own.process
            || followers
                .get(&hello.process)
                .is_some_and(|member| member.instance != hello.instance && member.seen.elapsed() < SILENCE_MAX);
        if is_taken {
            return Err(NotOneCluster::SameNumber(hello.process));
        }
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        let member = Member { instance: hello.instance, seen: Instant::now(), connection, released: 0 };
        followers.insert(hello.process, member);
        Ok(connection)
    }

    /// What takes the uploads of followers.
    pub fn intake(&self) -> &Intake {
        &self.leading.intake
    }

    /// Notes that a follower is alive. Returns whether it follows.
    pub fn alive(&self, alive: &Alive) -> bool {
        match self.lock().get_mut(&alive.process) {
            Some(member) if member.instance == alive.instance => {
                member.seen = Instant::now();
                if member.connection == alive.connection {
                    member.released = alive.released;
                }
                true
            }
            _ => false,
        }
    }

    /// How far readers of this process are.
    pub fn position(&self) -> Position {
        Position { epoch: self.leading.snapshots.borrow().epoch, announced: self.leading.announcements.last() }
    }

    /// The number of processes that follow.
    pub fn followers(&self) -> usize {
        self.lock().values().filter(|member| member.seen.elapsed() < SILENCE_MAX).count()
    }

    /// The frames for a connection of a process that follows from now on. They end when the process is too far behind, or the
    /// server stops.
    pub fn frames(&self, hello: &Hello, connection: u64) -> impl Stream<Item = Result<Bytes, FrameError>> + use<> {
        // Announcements first: what is announced later is in a later step.
        let (last, announced) = self.leading.announcements.subscribe();
        let (base, steps) = self.leading.feed.follow();
        let position = Position { epoch: self.leading.snapshots.borrow().epoch, announced: last };
        let start = Frame::Start(Start { base, position, term: self.leading.term, connection });
        let (followers, process) = (Arc::clone(&self.followers), hello.process);
        let leases = Leases { followers, process, connection, replacements: 0, held: VecDeque::new() };
        let (pending, stopping) = (VecDeque::from([start]), self.stopping.clone());
        let sending = Sending { pending, announced, steps, leases, stopping };
        stream::unfold(sending, |mut sending| async move {
            let frame = sending.next().await?;
            Some((frame.encode(), sending))
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Member>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection to one follower.
struct Sending {
    pending: VecDeque<Frame>,
    announced: broadcast::Receiver<Announcement>,
    steps: argus_sinks::feed::Following,
    leases: Leases,
    stopping: watch::Receiver<Stopping>,
}

impl Sending {
    /// The next frame; `None` if the follower has to begin anew, or the server stops.
    async fn next(&mut self) -> Option<Frame> {
        if let Some(frame) = self.pending.pop_front() {
            return Some(frame);
        }
        self.leases.release();
        tokio::select! {
            () = stopped(&mut self.stopping) => None,
            announced = self.announced.recv() => announced.ok().map(of_announcement),
            step = self.steps.next() => {
                let (step, lease) = step.ok()??;
                // A change of metadata comes before the epoch in which readers see it.
                loop {
                    match self.announced.try_recv() {
                        Ok(announcement) => self.pending.push_back(of_announcement(announcement)),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Lagged(_) | TryRecvError::Closed) => return None,
                    }
                }
                if let Step::Committed { replaced: true, .. } = &*step {
                    self.leases.replaced(lease);
                }
                self.pending.push_back(Frame::Step(Box::new(Step::clone(&step))));
                self.pending.pop_front()
            },
            () = tokio::time::sleep(ALIVE_EVERY) => Some(Frame::Alive),
        }
    }
}

fn of_announcement(Announcement { number, change }: Announcement) -> Frame {
    match change {
        Change::Batches(batches) => Frame::Changed(number, batches.to_vec()),
        Change::Tokens => Frame::Tokens(number),
    }
}

/// The leases of replaced files that a follower may still read.
struct Leases {
    followers: Arc<Mutex<HashMap<usize, Member>>>,
    process: usize,
    connection: u64,
    replacements: u64,
    /// Those of replacements, with their numbers from 1.
    held: VecDeque<(u64, Lease)>,
}

impl Leases {
    /// A replacement is sent. It has no lease if nobody can read the files before it.
    fn replaced(&mut self, lease: Option<Lease>) {
        self.replacements += 1;
        self.held.extend(lease.map(|lease| (self.replacements, lease)));
    }

    /// Ends the leases of files that the follower no longer reads.
    fn release(&mut self) {
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        let member = followers.get(&self.process).filter(|member| member.connection == self.connection);
        let released = member.map_or(0, |member| member.released);
        drop(followers);
        while self.held.pop_front_if(|(number, _)| *number <= released).is_some() {}
    }
}

impl Drop for Leases {
    /// The queries of a follower go on when its connection ends.
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                tokio::time::sleep(QUERY_MAX).await;
                drop(held);
            });
        }
    }
}

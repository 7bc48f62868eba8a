//! The leader's side: which processes follow, and what each of them is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use argus_sinks::feed::{FrameError, Step};
use argus_sinks::snapshot::Lease;
use argus_sinks::{Feed, Snapshot};
use bytes::Bytes;
use futures::{Stream, stream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use uuid::Uuid;

use super::frame::{Alive, Frame, Hello, Position, Start};
use crate::pipeline::announcements::{Announcement, Announcements, Change};

/// How often a follower that gets nothing else learns that the leader is alive.
pub const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// A follower that has not said for this long that it is alive is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// The leader. Clones share its followers.
#[derive(Clone)]
pub struct Leader {
    own: Hello,
    feed: Feed,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    announcements: Announcements,
    followers: Arc<Mutex<HashMap<usize, Member>>>,
}

/// A process that follows.
#[derive(Debug)]
struct Member {
    instance: Uuid,
    seen: Instant,
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
    #[error("there are two processes with --process {0}; give each a number of its own")]
    SameNumber(usize),
}

impl Leader {
    /// The leader, whose lake has this feed.
    pub fn new(
        own: Hello,
        feed: Feed,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        announcements: Announcements,
    ) -> Leader {
        Leader { own, feed, snapshots, announcements, followers: Arc::default() }
    }

    /// Lets a process follow, unless it does not belong to the cluster.
    pub fn admit(&self, hello: &Hello) -> Result<(), NotOneCluster> {
        let compared = [
            ("protocol version", hello.protocol.to_string(), self.own.protocol.to_string()),
            ("version of argus", hello.version.clone(), self.own.version.clone()),
            ("rules", hello.rules.clone(), self.own.rules.clone()),
            ("number of processes", hello.hosts.len().to_string(), self.own.hosts.len().to_string()),
            ("hosts", hello.hosts.join(","), self.own.hosts.join(",")),
        ];
        if let Some((what, theirs, ours)) = compared.into_iter().find(|(_, theirs, ours)| theirs != ours) {
            let (process, leader) = (hello.process, self.own.process);
            return Err(NotOneCluster::Differs { what, process, theirs, leader, ours });
        }
        let mut followers = self.lock();
        let is_taken = hello.process == self.own.process
            || followers
                .get(&hello.process)
                .is_some_and(|member| member.instance != hello.instance && member.seen.elapsed() < SILENCE_MAX);
        if is_taken {
            return Err(NotOneCluster::SameNumber(hello.process));
        }
        let member = Member { instance: hello.instance, seen: Instant::now(), released: 0 };
        followers.insert(hello.process, member);
        Ok(())
    }

    /// Notes that a follower is alive. Returns whether it follows.
    pub fn alive(&self, alive: &Alive) -> bool {
        match self.lock().get_mut(&alive.process) {
            Some(member) if member.instance == alive.instance => {
                member.seen = Instant::now();
                member.released = alive.released;
                true
            }
            _ => false,
        }
    }

    /// How far readers of this process are.
    pub fn position(&self) -> Position {
        Position { epoch: self.snapshots.borrow().epoch, announced: self.announcements.last() }
    }

    /// The number of processes that follow.
    pub fn followers(&self) -> usize {
        self.lock().values().filter(|member| member.seen.elapsed() < SILENCE_MAX).count()
    }

    /// The frames for a process that follows from now on. It ends when the process is too far behind.
    pub fn frames(&self, hello: &Hello) -> impl Stream<Item = Result<Bytes, FrameError>> + use<> {
        // Announcements first: what is announced later is in a later step.
        let (last, announced) = self.announcements.subscribe();
        let lease = self.snapshots.borrow().lease();
        let (base, steps) = self.feed.follow();
        let position = Position { epoch: self.snapshots.borrow().epoch, announced: last };
        let start = Frame::Start(Start { base, position });
        let (leader, process, held) = (self.clone(), hello.process, VecDeque::new());
        let leases = Leases { leader, process, replacements: 0, held, last: lease };
        let sending = Sending { start: Some(start), announced, steps, leases };
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
    start: Option<Frame>,
    announced: broadcast::Receiver<Announcement>,
    steps: argus_sinks::feed::Following,
    leases: Leases,
}

impl Sending {
    /// The next frame; `None` if the follower has to begin anew, or the lake has stopped.
    async fn next(&mut self) -> Option<Frame> {
        if let Some(start) = self.start.take() {
            return Some(start);
        }
        self.leases.release();
        tokio::select! {
            biased;
            // A change of metadata comes before the epoch in which readers see it.
            announced = self.announced.recv() => match announced {
                Ok(Announcement { number, change: Change::Batches(batches) }) => {
                    Some(Frame::Changed(number, batches.to_vec()))
                }
                Ok(Announcement { number, change: Change::Tokens }) => Some(Frame::Tokens(number)),
                Err(RecvError::Lagged(_) | RecvError::Closed) => None,
            },
            step = self.steps.next() => {
                let step = step.ok()??;
                if let Step::Committed { replaced: true, .. } = &*step {
                    self.leases.replaced();
                }
                Some(Frame::Step(Box::new(Step::clone(&step))))
            },
            () = tokio::time::sleep(ALIVE_EVERY) => Some(Frame::Alive),
        }
    }
}

/// The leases of replaced files that a follower may still read. They end with the connection.
struct Leases {
    leader: Leader,
    process: usize,
    replacements: u64,
    /// Those of replacements, with their numbers from 1.
    held: VecDeque<(u64, Lease)>,
    /// Of the files that the follower reads now.
    last: Lease,
}

impl Leases {
    fn replaced(&mut self) {
        self.replacements += 1;
        let next = self.leader.snapshots.borrow().lease();
        self.held.push_back((self.replacements, std::mem::replace(&mut self.last, next)));
    }

    /// Ends the leases of files that the follower no longer reads.
    fn release(&mut self) {
        let released = self.leader.lock().get(&self.process).map_or(0, |member| member.released);
        while self.held.pop_front_if(|(number, _)| *number <= released).is_some() {}
    }
}

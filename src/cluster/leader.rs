//! The leader's side: which processes follow, and what each of them is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use argus_dataflow::{Dataflow, Origin, VersionId};
use argus_sinks::feed::{FrameError, Step};
use argus_sinks::occurrences::{OccurrencesError, take_frame};
use argus_sinks::snapshot::Lease;
use argus_sinks::{Feed, OccurrencesInput, Snapshot};
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use uuid::Uuid;

use super::frame::{Alive, Frame, Hello, Position, Start};
use super::handover::{By, HEADER_BYTES_MAX, HandedOver, Header};
use crate::domain::batch::StoredUpload;
use crate::ingest::raw_store::RawStore;
use crate::ingest::{Claim, Claims};
use crate::metadata::UploadKey;
use crate::pipeline::Pipeline;
use crate::pipeline::announcements::{Announcement, Announcements, Change};
use crate::shutdown::{Stopping, stopped};

/// How often a follower that gets nothing else learns that the leader is alive.
pub const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// A follower that has not said for this long that it is alive is gone.
pub const SILENCE_MAX: Duration = Duration::from_secs(5);

/// How long the next bytes of a handover may take.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// The longest query of a follower.
const QUERY_MAX: Duration = Duration::from_secs(600);

/// The leader. Clones share its followers.
#[derive(Clone)]
pub struct Leader {
    leading: Arc<Leading>,
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

/// What takes the uploads of followers.
#[derive(Clone)]
pub struct Intake {
    pub(crate) dataflow: Dataflow,
    pub(crate) occurrences: OccurrencesInput,
    pub(crate) claims: Claims,
    pub(crate) pipeline: Pipeline,
    pub(crate) raw: RawStore,
}

/// Why an upload could not be taken from a follower.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum IntakeError {
    #[error("the upload is cut off")]
    CutOff,
    #[error("the header of the upload is invalid: {0}")]
    Header(String),
    #[error(transparent)]
    Occurrences(#[from] OccurrencesError),
    #[error("the body of the upload cannot be read: {0}")]
    Body(String),
    #[error("the process that has scanned it has another version or other rules, or followed an earlier leader")]
    Another,
    #[error("its bytes are not in the raw store")]
    Missing,
    #[error("the raw store cannot be read: {0}")]
    Store(String),
    #[error("the server is stopping")]
    Stopping,
}

impl Leader {
    /// Takes an upload from a follower: its counts go to the dataflow, its occurrences to the lake. Its bytes are in the raw
    /// store already. If its claim is dropped, all of them are dropped.
    pub async fn take<E: std::fmt::Display>(
        &self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(StoredUpload, Claim, Option<UploadKey>), IntakeError> {
        let Leading { own, term, intake, .. } = &*self.leading;
        let mut buffer = BytesMut::new();
        let header = loop {
            if let Some(length) = buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) {
                if length > HEADER_BYTES_MAX {
                    return Err(IntakeError::Header(format!("it has {length} bytes")));
                }
                if buffer.len() >= 4 + length {
                    buffer.advance(4);
                    break buffer.split_to(length);
                }
            }
            buffer.extend_from_slice(&more(&mut body).await?.ok_or(IntakeError::CutOff)?);
        };
        let header: Header = serde_json::from_slice(&header).map_err(|error| IntakeError::Header(error.to_string()))?;
        let scanned_by =
            By { protocol: own.protocol, version: own.version.clone(), rules: own.rules.clone(), term: *term };
        if header.by != scanned_by {
            return Err(IntakeError::Another);
        }
        let taken = header.into_handed_over().ok_or_else(|| IntakeError::Header("the digest".to_owned()))?;
        let HandedOver { upload, key, counts } = taken;
        let claim = intake.claims.claim(upload.batch_id, upload.versions());
        // With a claim, they are no orphans any more.
        match intake.raw.exists(upload.batch_id, upload.version).await {
            Ok(true) => {}
            Ok(false) => return Err(IntakeError::Missing),
            Err(error) => return Err(IntakeError::Store(error.to_string())),
        }
        let open_line = upload.open_line.as_ref().map(|(version, _)| *version);
        let is_of_upload = |version: VersionId| version == upload.version || Some(version) == open_line;
        for (version, counts) in counts.into_iter().filter(|(version, _)| is_of_upload(*version)) {
            let StoredUpload { batch_id, uploaded_at, .. } = upload;
            let origin = Arc::new(Origin { batch_id, file: upload.name.clone(), version, uploaded_at });
            intake.dataflow.insert_counted(&origin, counts).await.map_err(|_| IntakeError::Stopping)?;
        }
        loop {
            while let Some((version, rows)) = take_frame(&mut buffer)? {
                if !is_of_upload(version) {
                    return Err(IntakeError::Header("occurrences of another version".to_owned()));
                }
                intake.occurrences.stage(version, rows).await.map_err(|_| IntakeError::Stopping)?;
            }
            match more(&mut body).await? {
                Some(bytes) => buffer.extend_from_slice(&bytes),
                None if buffer.is_empty() => return Ok((upload, claim, key)),
                None => return Err(IntakeError::CutOff),
            }
        }
    }
}

async fn more<E: std::fmt::Display>(
    body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
) -> Result<Option<Bytes>, IntakeError> {
    let next = timeout(BODY_WAIT, body.next()).await.map_err(|_| IntakeError::CutOff)?;
    next.transpose().map_err(|error| IntakeError::Body(error.to_string()))
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

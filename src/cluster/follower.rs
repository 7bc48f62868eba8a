//! The follower's side: finds the leader, and follows the steps of its lake.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use argus_dataflow::{Change, CodeLimits, Config, Dataflow, Output, RuleSet};
use argus_query::Engine;
use argus_query::reads::cells;
use argus_sinks::feed::Step;
use argus_sinks::{Base, Replica, Snapshot};
use futures::TryStreamExt;
use metrics::gauge;
use object_store::ObjectStore;
use reqwest::{Client, Response, StatusCode};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use url::Url;

use super::frame::{Alive, Frame, Frames, Hello, Position};
use super::leader::SILENCE_MAX;
use super::{ClusterConfig, ClusterKeys};
use crate::access::Access;
use crate::metadata::{Candidacy, Metadata};
use crate::pipeline::followers::Followers;

/// The header with the key of the cluster.
pub const KEY_HEADER: &str = "argus-cluster-key";

/// Where a process begins to follow.
pub const FOLLOW_PATH: &str = "/internal/v1/follow";
/// Where it hands over the uploads that it has scanned.
pub const UPLOADS_PATH: &str = "/internal/v1/uploads";

/// Where it says that it is alive.
pub const ALIVE_PATH: &str = "/internal/v1/alive";

/// How long a connection to another process may take.
pub const CONNECT_WAIT: Duration = Duration::from_millis(500);

/// Between two searches for the leader.
const SEARCH_EVERY: Duration = Duration::from_millis(200);

/// How often a follower says that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(1);

/// How long another process may seem to have the number of this one: it may be this one before a restart.
const SAME_NUMBER_WAIT: Duration = Duration::from_secs(8);

/// Why a connection is given up.
const SILENT: &str = "the leader is silent";

/// What a follower needs.
pub struct Follower {
    pub(crate) config: ClusterConfig,
    pub(crate) hello: Hello,
    pub(crate) keys: ClusterKeys,
    pub(crate) metadata: Metadata,
    pub(crate) engine: Engine,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) lake: Url,
    pub(crate) rules: RuleSet,
    /// What readers of this process see.
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    /// Are woken when their batch changes.
    pub(crate) followers: Followers,
    pub(crate) access: Access,
    pub(crate) state: watch::Sender<State>,
    /// What it tells the leader of replaced files.
    pub(crate) released: Arc<Mutex<Released>>,
}

/// Whom a process follows, and how far it is.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The address of the leader; `None` while there is none.
    pub leader: Option<String>,
    /// How far readers of this process are.
    pub position: Position,
    /// The term of the last leader.
    pub term: u64,
}

/// There is no leader, and this process may become it, as long as it has this.
#[derive(Debug, thiserror::Error)]
#[error("no process leads, and this one may")]
pub struct MayLead(pub Arc<Candidacy>);

impl Follower {
    /// Follows whichever process leads. `started` is signalled when readers see something. Ends when `closing` is, or
    /// with the error [`MayLead`].
    pub async fn run(self, started: oneshot::Sender<()>, mut closing: oneshot::Receiver<()>) -> Result<()> {
        let client = Client::builder().no_proxy().connect_timeout(CONNECT_WAIT).build()?;
        let mut started = Some(started);
        let mut refused_since: Option<Instant> = None;
        loop {
            for host in self.config.others() {
                let asked = tokio::select! {
                    asked = self.ask(&client, host) => asked,
                    _ = &mut closing => return Ok(()),
                };
                let response = match asked {
                    Ok(Some(response)) => response,
                    Ok(None) => continue,
                    Err(refusal) if refusal.is_same_number => {
                        let since = *refused_since.get_or_insert_with(Instant::now);
                        if since.elapsed() < SAME_NUMBER_WAIT {
                            continue;
                        }
                        bail!(refusal.text);
                    }
                    // Processes of another version wait until the last of this version has gone.
                    Err(refusal) if started.is_none() => {
                        tracing::warn!("{}", refusal.text);
                        continue;
                    }
                    Err(refusal) => bail!(refusal.text),
                };
                refused_since = None;
                tracing::info!(leader = host, "following the leader");
                let ended = tokio::select! {
                    ended = self.follow(&client, host, response, &mut started) => ended,
                    _ = &mut closing => return Ok(()),
                };
                self.state.send_modify(|state| state.leader = None);
                if let Err(error) = ended {
                    tracing::warn!(
                        leader = host,
                        error = format!("{error:#}"),
                        "no longer following; looking for a leader"
                    );
                }
            }
            // Nobody tells of revoked tokens now.
            if let Err(error) = self.reload_tokens().await {
                tracing::warn!(error = format!("{error:#}"), "a revoked token may still be valid here");
            }
            // An error is temporary: the metadata database is restarted, for example.
            if let Ok(Some(candidacy)) = self.metadata.candidacy().await {
                return Err(MayLead(Arc::new(candidacy)).into());
            }
            tokio::select! {
                () = tokio::time::sleep(SEARCH_EVERY) => {}
                _ = &mut closing => return Ok(()),
            }
        }
    }

    /// Asks a process for the steps of its lake; `None` if it does not lead.
    async fn ask(&self, client: &Client, host: &str) -> Result<Option<Response>, Refusal> {
        let request =
            client.post(format!("http://{host}{FOLLOW_PATH}")).header(KEY_HEADER, self.keys.processes.as_str());
        let sent = timeout(SILENCE_MAX, request.json(&self.hello).send()).await;
        let Ok(Ok(response)) = sent else { return Ok(None) };
        match response.status() {
            StatusCode::OK => Ok(Some(response)),
            StatusCode::SERVICE_UNAVAILABLE => Ok(None),
            status => {
                let problem: serde_json::Value = response.json().await.unwrap_or_default();
                let detail = problem["detail"].as_str().unwrap_or("without a reason");
                let is_same_number = problem["type"].as_str().is_some_and(|kind| kind.ends_with("same-process-number"));
                Err(Refusal {
                    text: format!("the leader at {host} refuses this process ({status}): {detail}"),
                    is_same_number,
                })
            }
        }
    }

    /// Follows a leader until the connection is lost.
    async fn follow(
        &self,
        client: &Client,
        host: &str,
        response: Response,
        started: &mut Option<oneshot::Sender<()>>,
    ) -> Result<()> {
        let mut frames = FrameReader { frames: Frames::default(), response, heard: Instant::now() };
        let first = timeout(SILENCE_MAX, frames.next()).await.context(SILENT)??;
        let Frame::Start(start) = first else { bail!("the leader does not say where to start") };
        // One that was paused does not know yet that it has been replaced.
        let term = self.metadata.term().await?;
        if start.term != term {
            bail!("its term {} as the writer is over: it is {term} now", start.term);
        }
        let shown = self.snapshots.borrow().epoch;
        if start.position.epoch < shown {
            bail!("it is at epoch {}, and this process has shown epoch {shown}", start.position.epoch);
        }
        let _alive = self.say_alive(client, host, start.connection);
        let mut lake = self.open(start.base).await?;
        self.reload_tokens().await?;
        self.state.send_modify(|state| {
            state.position.announced = start.position.announced;
            state.term = start.term;
        });
        let seen = start.position.epoch;
        let mut has_published = false;
        loop {
            if !has_published && lake.snapshots().borrow().epoch >= seen {
                has_published = true;
                self.publish(&lake, host);
                // What was cached or awaited may have changed while this process did not follow.
                self.metadata.changes().all_changed();
                self.followers.wake_all();
                if let Some(started) = started.take() {
                    // The server may be stopping.
                    let _ = started.send(());
                }
            }
            let silence = tokio::time::sleep_until(frames.heard + SILENCE_MAX);
            let frame = tokio::select! {
                biased;
                frame = frames.next() => frame?,
                () = silence => bail!(SILENT),
            };
            match frame {
                Frame::Alive | Frame::Start(_) => {}
                Frame::Changed(number, batches) => {
                    batches.iter().for_each(|batch_id| self.metadata.changes().changed(*batch_id));
                    self.state.send_modify(|state| state.position.announced = number);
                    self.followers.wake(batches);
                }
                Frame::Tokens(number) => {
                    self.reload_tokens().await?;
                    self.state.send_modify(|state| state.position.announced = number);
                }
                Frame::Step(step) => {
                    let woken = match &*step {
                        Step::Closed(closed) => closed.epoch.batches(),
                        _ => Default::default(),
                    };
                    if matches!(&*step, Step::Committed { replaced: true, .. }) {
                        self.released().replaced(&lake.snapshots().borrow());
                    }
                    lake.apply(*step).await?;
                    frames.heard = Instant::now();
                    if has_published {
                        self.publish(&lake, host);
                        self.followers.wake(woken);
                    }
                }
            }
        }
    }

    /// Says again and again that this process is alive, until the task is dropped.
    fn say_alive(&self, client: &Client, host: &str, connection: u64) -> AbortOnDrop {
        *self.released() = Released::default();
        let say = client.post(format!("http://{host}{ALIVE_PATH}")).header(KEY_HEADER, self.keys.processes.as_str());
        let say = say.timeout(ALIVE_EVERY);
        let (released, Hello { process, instance, .. }) = (Arc::clone(&self.released), self.hello.clone());
        AbortOnDrop(tokio::spawn(async move {
            loop {
                let released = released.lock().unwrap_or_else(PoisonError::into_inner).count();
                let alive = Alive { process, instance, connection, released };
                // The connection of the steps shows whether the leader is there.
                if let Some(say) = say.try_clone() {
                    drop(say.json(&alive).send().await);
                }
                tokio::time::sleep(ALIVE_EVERY).await;
            }
        }))
    }

    fn released(&self) -> MutexGuard<'_, Released> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lake at a base, with the totals of the fleet.
    async fn open(&self, base: Base) -> Result<Replica> {
        let opened = Replica::open(Arc::clone(&self.store), &self.lake, base).await;
        let mut replica = opened.context("cannot open the tables of the leader")?;
        if base.lake.epoch == 0 {
            return Ok(replica);
        }
        let snapshot = Arc::clone(&replica.snapshots().borrow());
        let restored = cells::cells(&self.engine, &snapshot).await?.map_ok(Change::RestoreCells);
        let restored = restored.try_collect().await.context("cannot read the cells of the fleet")?;
        let (dataflow, mut outputs) = Dataflow::start(Config {
            workers: 1,
            rules: self.rules.clone(),
            first_epoch: base.lake.epoch,
            in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
            occurrences: false,
            limits: CodeLimits::default(),
            scans_only: false,
        })
        .map_err(anyhow::Error::msg)?;
        dataflow.advance(base.lake.epoch, restored)?;
        while let Some(output) = outputs.recv().await {
            if let Output::Closed(closed) = output {
                replica.restore(&closed);
                break;
            }
        }
        Ok(replica)
    }

    /// Publishes the snapshot of the replica.
    fn publish(&self, lake: &Replica, host: &str) {
        let snapshot = Arc::clone(&lake.snapshots().borrow());
        let epoch = snapshot.epoch;
        self.snapshots.send_replace(snapshot);
        gauge!("argus_epoch").set(epoch as f64);
        gauge!("argus_closed_epoch").set(epoch as f64);
        self.state.send_modify(|state| {
            state.position.epoch = epoch;
            state.leader.get_or_insert_with(|| host.to_owned());
        });
    }

    /// Reads the tokens again. If that fails, a revoked one could be used further.
    async fn reload_tokens(&self) -> Result<()> {
        self.access.reload(&self.metadata).await.context("cannot read the tokens")
    }
}

/// A task that ends when it is dropped.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why the leader refuses a process.
struct Refusal {
    text: String,
    is_same_number: bool,
}

/// Reads the frames of a leader.
struct FrameReader {
    frames: Frames,
    response: Response,
    /// When it has sent something.
    heard: Instant,
}

impl FrameReader {
    async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.frames.take()? {
                return Ok(frame);
            }
            match self.response.chunk().await? {
                Some(bytes) => self.frames.push(&bytes),
                None => bail!("it has closed the connection"),
            }
            self.heard = Instant::now();
        }
    }
}

/// The snapshots that refer to replaced files.
#[derive(Debug, Default)]
pub struct Released {
    held: Vec<Weak<()>>,
    released: u64,
}

impl Released {
    /// Files of this snapshot are replaced.
    fn replaced(&mut self, snapshot: &Snapshot) {
        self.held.push(Arc::downgrade(&snapshot.lease()));
    }

    /// How many replacements there were whose files nobody reads any more, without those after one that is still read.
    fn count(&mut self) -> u64 {
        let gone = self.held.iter().take_while(|lease| lease.strong_count() == 0).count();
        self.held.drain(..gone);
        self.released += gone as u64;
        self.released
    }
}

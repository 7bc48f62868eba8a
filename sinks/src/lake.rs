//! All Delta tables together: takes closed epochs, publishes snapshots, commits in the background.
//!
//! ```text
//!  occurrences ──► staging ─┐
//!                           ▼
//!  closed epochs ──► open group ──► published snapshot = lake ∪ frozen ∪ open
//!                          │ every few seconds
//!                          ▼
//!                     frozen group ──► Delta commits, table by table
//! ```
//!
//! 1. A snapshot is published when its epoch is closed, before it is
//!    committed: readers never wait for a commit.
//! 2. One group is committed at a time. After the commit, one new snapshot
//!    drops its rows from memory and adds its files to the lake.
//! 3. `files` is committed last and with every group. After a crash, the epochs
//!    after its last commit are replayed; a table that already contains such an
//!    epoch skips it.
//! 4. Other operations on the tables ([`crate::maintenance`]) run between commits.
//! 5. While the rows in memory are at their limit, no output is received. This
//!    applies back pressure to the dataflow's input.

use std::sync::{Arc, Weak};
use std::time::Duration;

use argus_dataflow::{ClosedEpoch, Output, Row, VersionId};
use arrow::array::RecordBatch;
use deltalake_core::DeltaTableError;
use metrics::{counter, histogram};
use object_store::ObjectStore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::Instrument;
use url::Url;

use crate::crash;
use crate::error::{LakeError, failed};
use crate::feed::{Base, Closed, Feed, Step};
use crate::group::CommitGroup;
use crate::guide;
use crate::maintenance::{LakeMaintenance, Operation, Request};
use crate::schema::Table;
use crate::snapshot::{DataFile, Lease, Snapshot, TableSnapshot};
use crate::staging::Staging;
use crate::table::LakeTable;
use crate::visible::{Occurrences, Visible};

/// When the lake commits.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// The longest time between closing an epoch and starting its commit.
    pub commit_interval: Duration,
    /// A group with this many bytes of rows is committed immediately; at twice as many the input stops.
    pub group_bytes: usize,
    /// The term of this writer: makes commits of writers with a lower term fail. 0 if no other process can have the
    /// lake open.
    pub term: u64,
    /// Whether replicas in other processes follow the lake.
    pub has_replicas: bool,
}

impl Default for LakeConfig {
    fn default() -> Self {
        LakeConfig { commit_interval: Duration::from_secs(2), group_bytes: 16 << 20, term: 0, has_replicas: false }
    }
}

/// The committed state of the lake: the last committed epoch, and the Delta version of each table, in the order of
/// [`Table::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LakeState {
    /// The last committed epoch.
    pub epoch: u64,
    /// The Delta versions of the tables.
    pub versions: [u64; 5],
}

/// The lake of a server, open for writing by this process alone.
pub struct Lake {
    config: LakeConfig,
    /// `None` while a task commits or changes them.
    tables: Option<Tables>,
    maintenance: LakeMaintenance,
    requests: mpsc::Receiver<Request>,
    /// Requests that are answered when their epoch is committed.
    commit_waiters: Vec<(u64, Reply)>,
    /// The last epoch of each table when the lake was opened.
    held_epochs: [u64; 5],
    staging: Staging,
    visible: Visible,
    /// The last committed epoch when the lake was opened: the dataflow closes it once more, with what it has restored.
    restored: u64,
    committed: watch::Sender<LakeState>,
    /// The steps, if replicas may follow them.
    feed: Option<Feed>,
    occurrences: mpsc::Receiver<Arrived>,
    occurrences_in: OccurrencesInput,
}

/// Takes occurrences that other processes have found. Clones share the queue.
#[derive(Debug, Clone)]
pub struct OccurrencesInput(mpsc::Sender<Arrived>);

/// Occurrences of a version that another process has found.
#[derive(Debug)]
struct Arrived {
    version: VersionId,
    rows: Vec<RecordBatch>,
    staged: oneshot::Sender<()>,
}

/// The lake takes no more occurrences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lake has stopped")]
pub struct LakeStopped;

impl OccurrencesInput {
    /// Stages occurrences of a version. Returns when they are staged, so that an epoch which is accepted later may admit
    /// the version.
    pub async fn stage(&self, version: VersionId, rows: Vec<RecordBatch>) -> Result<(), LakeStopped> {
        let (staged, done) = oneshot::channel();
        self.0.send(Arrived { version, rows, staged }).await.map_err(|_| LakeStopped)?;
        done.await.map_err(|_| LakeStopped)
    }
}

/// The Delta tables in the order of their commits.
struct Tables([LakeTable; 5]);

type Reply = oneshot::Sender<Result<Weak<()>, LakeError>>;

/// A task that commits or changes the tables.
type TableTask = JoinHandle<(Tables, TaskResult)>;

/// What a task did to the tables, and its result.
enum TaskResult {
    /// It committed the frozen group.
    Commit(Result<(), LakeError>),
    /// It ran a maintenance request. `replaces`: the request replaced files.
    Request { result: Result<(), LakeError>, replaces: bool, reply: Reply },
}

impl Lake {
    /// Opens the lake at `root` and creates missing tables. With an `expected` state, fails if the lake is older, and
    /// then creates nothing.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        root: &Url,
        config: LakeConfig,
        expected: Option<LakeState>,
    ) -> Result<Lake, LakeError> {
        if let Some(expected) = expected {
            refuse_outdated(&store, root, expected).await?;
        }
        let mut tables = Vec::new();
        for table in Table::ALL {
            tables
                .push(LakeTable::open(Arc::clone(&store), root, table).await.map_err(|source| failed(table, source))?);
        }
        for opened in &tables {
            let table = opened.table();
            if let Some(column) = opened.missing_column().map_err(|source| failed(table, source))? {
                return Err(LakeError::EarlierVersion { table: table.name(), column });
            }
        }
        if config.term > 0 {
            for opened in &mut tables {
                let table = opened.table();
                opened.claim(config.term).await.map_err(|source| failed(table, source))?;
            }
        }
        // The tables do not depend on the guide.
        if let Err(error) = guide::write(&*store, root).await {
            tracing::warn!(%error, "cannot write the README and views of the lake");
        }
        let tables = Tables(tables.try_into().unwrap_or_else(|_| unreachable!("one table per name")));
        let (epoch, state) = (tables.committed_epoch(), tables.state());
        let (maintenance, requests) = LakeMaintenance::new(tables.0.clone());
        let base = Base { lake: state, since: tables.since() };
        let (occurrences_in, occurrences) = mpsc::channel(1);
        Ok(Lake {
            feed: config.has_replicas.then(|| Feed::new(base)),
            occurrences,
            occurrences_in: OccurrencesInput(occurrences_in),
            config,
            maintenance,
            requests,
            commit_waiters: Vec::new(),
            held_epochs: tables.0.each_ref().map(LakeTable::committed_epoch),
            visible: Visible::new(tables.files()?, epoch, tables.since(), 0),
            restored: epoch,
            staging: Staging::new(tables.0[Table::Errors as usize].clone()),
            tables: Some(tables),
            committed: watch::Sender::new(state),
        })
    }

    /// Reads the committed state of the lake at `root`; writes nothing.
    pub async fn read(store: Arc<dyn ObjectStore>, root: &Url) -> Result<Snapshot, LakeError> {
        let mut snapshots: [TableSnapshot; 5] = Default::default();
        let (mut epoch, mut since) = (0, 0);
        // `files` makes rows visible, so it is read first: if a server commits
        // meanwhile, the other tables may be ahead of `files`, never behind.
        for table in Table::ALL.into_iter().rev() {
            let opened = LakeTable::open_read_only(Arc::clone(&store), root, table).await;
            if let Some(opened) = opened.map_err(|source| failed(table, source))? {
                snapshots[table as usize].committed = opened.files().map_err(|source| failed(table, source))?;
                if table == Table::Files {
                    epoch = opened.committed_epoch();
                    since = opened.since();
                }
            }
        }
        Ok(Snapshot::new(epoch, snapshots).since(since, Lease::default()))
    }

    /// The last epoch that every table contains: later epochs must be replayed.
    pub fn committed_epoch(&self) -> u64 {
        self.visible.epoch()
    }

    /// The current snapshot; changes with every closed epoch.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.visible.subscribe()
    }

    /// The steps for replicas, if [`LakeConfig::has_replicas`].
    pub fn feed(&self) -> Option<Feed> {
        self.feed.clone()
    }

    /// Takes the occurrences that other processes have found.
    pub fn occurrences(&self) -> OccurrencesInput {
        self.occurrences_in.clone()
    }

    /// A handle for operations between commits.
    pub fn maintenance(&self) -> LakeMaintenance {
        self.maintenance.clone()
    }

    /// The committed state.
    pub fn committed(&self) -> watch::Receiver<LakeState> {
        self.committed.subscribe()
    }

    /// Consumes the dataflow's output to its end and commits all of it.
    /// Calls `published` with each closed epoch once readers can see it.
    pub async fn run(
        mut self,
        mut outputs: UnboundedReceiver<Output>,
        mut published: impl FnMut(&ClosedEpoch),
    ) -> Result<(), LakeError> {
        let mut task: Option<TableTask> = None;
        let mut due: Option<Instant> = None;
        loop {
            let has_room = self.visible.open().bytes() < 2 * self.config.group_bytes;
            let idle = task.is_none();
            tokio::select! {
                biased;
                (tables, result) = finished(&mut task), if !idle => {
                    task = None;
                    let retry = self.finish(tables, result)?;
                    let full = self.visible.open().bytes() >= self.config.group_bytes;
                    let now = !retry && (full || !self.commit_waiters.is_empty());
                    let wait = if now { Duration::ZERO } else { self.config.commit_interval };
                    let has_rows = self.visible.frozen().is_some() || !self.visible.open().is_empty();
                    due = has_rows.then(|| Instant::now() + wait);
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if idle && due.is_some() => {
                    due = None;
                    task = self.begin_commit();
                }
                // The retry of a partly committed group comes first.
                Some(request) = self.requests.recv(), if idle && self.visible.frozen().is_none() => match request.operation {
                    Operation::Commit if self.visible.open().is_empty() => self.reply(request.reply),
                    Operation::Commit => {
                        self.commit_waiters.push((self.visible.epoch(), request.reply));
                        due = Some(Instant::now());
                    }
                    operation => task = self.begin_request(operation, request.reply),
                },
                input = next_input(&mut outputs, &mut self.occurrences), if has_room => match input {
                    Input::Arrived(arrived) => self.stage(arrived).await?,
                    Input::Output(Some(Output::Scanned(block))) => {
                        self.staging.add(&block).await.map_err(|source| LakeError::Occurrences {
                            file: block.origin.file.clone(),
                            source: Box::new(source),
                        })?;
                    }
                    // Only a dataflow that admits nothing outputs counts.
                    Input::Output(Some(Output::Counted(..))) => {}
                    Input::Output(Some(Output::Closed(closed))) => {
                        // The epoch may abandon a version whose occurrences have just arrived.
                        while let Ok(arrived) = self.occurrences.try_recv() {
                            self.stage(arrived).await?;
                        }
                        let epoch = closed.epoch;
                        let closed = self.close(closed).await;
                        let closed = closed.map_err(|source| LakeError::Rows { epoch, source: Box::new(source) })?;
                        published(&closed);
                        let now = Instant::now();
                        if self.visible.open().bytes() >= self.config.group_bytes {
                            due = Some(now);
                        } else if due.is_none() && !self.visible.open().is_empty() {
                            due = Some(now + self.config.commit_interval);
                        }
                    }
                    Input::Output(None) => break,
                },
            }
        }
        self.commit_rest(task).await
    }

    /// Stages occurrences that another process has found.
    async fn stage(&mut self, arrived: Arrived) -> Result<(), LakeError> {
        let Arrived { version, rows, staged } = arrived;
        for rows in rows {
            self.staging.add_rows(version, rows).await.map_err(|source| failed(Table::Errors, source))?;
        }
        // The other process may be gone.
        let _ = staged.send(());
        Ok(())
    }

    /// Commits the remaining rows. A failure is final: the caller stops, and a restart replays them.
    async fn commit_rest(mut self, mut task: Option<TableTask>) -> Result<(), LakeError> {
        self.requests.close();
        loop {
            if task.is_none() {
                task = self.begin_commit();
            }
            if task.is_none() {
                return Ok(());
            }
            let (tables, result) = finished(&mut task).await;
            task = None;
            match result {
                TaskResult::Commit(Err(error)) => return Err(error),
                result => drop(self.finish(tables, result)?),
            }
        }
    }

    /// Adds a closed epoch and publishes it.
    async fn close(&mut self, closed: ClosedEpoch) -> Result<ClosedEpoch, DeltaTableError> {
        let held = self.held_epochs;
        let has = |table: Table| closed.epoch <= held[table as usize];
        let mut occurrences = Occurrences::default();
        for (row, _) in &closed.rows {
            match row {
                Row::File(file) if file.failure.is_some() => self.staging.abandon(file.version).await,
                Row::File(file) if file.live >= 0 => {
                    let taken = self.staging.take(file.version).await?;
                    if has(Table::Errors) {
                        // The table already has them in files that were written before the restart.
                        self.staging.errors().delete_unnamed(&taken.files).await;
                        continue;
                    }
                    occurrences.rows.extend(taken.rows);
                    let named = taken.files.into_iter().map(|add| (self.staging.data_file_of(&add), Some(add)));
                    occurrences.files.extend(named);
                }
                Row::Abandoned(version) => self.staging.abandon(*version).await,
                _ => {}
            }
        }
        let (rows, files) = match &self.feed {
            None => Default::default(),
            Some(_) => (occurrences.rows.clone(), occurrences.files.iter().map(|(file, _)| file.clone()).collect()),
        };
        self.visible.close(&closed, occurrences, has)?;
        crash::point("closed");
        // What is restored from the tables, a replica restores by itself.
        if let Some(feed) = &self.feed
            && closed.epoch > self.restored
        {
            let present = Table::ALL.map(has);
            feed.push(Step::Closed(Closed { epoch: closed.clone(), occurrences: rows, files, present }), None);
        }
        Ok(closed)
    }

    /// Freezes the open group, unless one is still frozen, and starts its commit.
    fn begin_commit(&mut self) -> Option<TableTask> {
        let was_frozen = self.visible.frozen().is_some();
        let group = self.visible.freeze()?;
        if !was_frozen {
            self.feed_step(Step::Frozen, None);
        }
        let mut tables = self.tables.take()?;
        let commit = async move {
            let began = Instant::now();
            let result = tables.commit(&group).await;
            histogram!("argus_commit_duration_seconds").record(began.elapsed().as_secs_f64());
            let outcome = if result.is_ok() { "committed" } else { "failed" };
            counter!("argus_commits_total", "outcome" => outcome).increment(1);
            (tables, TaskResult::Commit(result))
        };
        Some(tokio::spawn(commit.instrument(tracing::info_span!("commit"))))
    }

    fn feed_step(&self, step: Step, replaced: Option<Lease>) {
        if let Some(feed) = &self.feed {
            feed.push(step, replaced);
        }
    }

    /// Starts a maintenance operation.
    fn begin_request(&mut self, operation: Operation, reply: Reply) -> Option<TableTask> {
        let mut tables = self.tables.take()?;
        Some(tokio::spawn(async move {
            let replaces = matches!(operation, Operation::Replace { .. });
            let result = operation.run(&mut tables.0).await;
            (tables, TaskResult::Request { result, replaces, reply })
        }))
    }

    /// Handles the end of a task; returns whether the commit must be retried.
    fn finish(&mut self, tables: Tables, result: TaskResult) -> Result<bool, LakeError> {
        let files = tables.files()?;
        let (since, committed) = (tables.since(), tables.state());
        if let Some(fenced) = tables.0.iter().find(|table| table.is_fenced()) {
            return Err(LakeError::Fenced { table: fenced.table().name() });
        }
        self.tables = Some(tables);
        let request = match result {
            TaskResult::Commit(Err(error)) => {
                // The group stays frozen and readable, and the input stops when the next one is full.
                // Some tables may already contain it; their new files are not published, so no row appears twice.
                tracing::error!(error = &error as &dyn std::error::Error, "commit failed; retrying");
                return Ok(true);
            }
            TaskResult::Commit(Ok(())) => None,
            TaskResult::Request { result, replaces, reply } => Some((result, replaces, reply)),
        };
        let replaced = request.as_ref().is_some_and(|(_, replaces, _)| *replaces);
        let lease = self.visible.commit(files, committed.epoch, since, replaced);
        let step = Step::Committed { base: Base { lake: committed, since }, replaced };
        self.feed_step(step, replaced.then(|| Arc::clone(&lease)));
        self.committed.send_replace(committed);
        if let Some((result, _, reply)) = request {
            // The caller may have stopped waiting.
            let _ = reply.send(result.map(|()| Arc::downgrade(&lease)));
        }
        for (epoch, reply) in std::mem::take(&mut self.commit_waiters) {
            match epoch <= committed.epoch {
                true => self.reply(reply),
                false => self.commit_waiters.push((epoch, reply)),
            }
        }
        Ok(false)
    }

    fn reply(&self, reply: Reply) {
        let _ = reply.send(Ok(Arc::downgrade(self.visible.lease())));
    }
}

/// What the lake takes next.
enum Input {
    /// An output of the dataflow; `None` at its end.
    Output(Option<Output>),
    /// Occurrences of another process.
    Arrived(Arrived),
}

/// The next input. Neither source makes the other one wait.
async fn next_input(outputs: &mut UnboundedReceiver<Output>, occurrences: &mut mpsc::Receiver<Arrived>) -> Input {
    tokio::select! {
        output = outputs.recv() => Input::Output(output),
        Some(arrived) = occurrences.recv() => Input::Arrived(arrived),
    }
}

async fn finished(task: &mut Option<TableTask>) -> (Tables, TaskResult) {
    match task {
        Some(task) => match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("table tasks are never cancelled"),
            },
        },
        None => std::future::pending().await,
    }
}

impl Tables {
    async fn commit(&mut self, group: &CommitGroup) -> Result<(), LakeError> {
        for (table, opened) in Table::ALL.into_iter().zip(&mut self.0) {
            let spilled: Vec<_> = match table {
                Table::Errors => group.spilled().filter_map(|(_, add)| add.cloned()).collect(),
                _ => Vec::new(),
            };
            let rows = group.batches(table);
            if rows.is_empty() && spilled.is_empty() && table != Table::Files {
                continue;
            }
            opened.commit(group.last_epoch, rows, spilled).await.map_err(|source| failed(table, source))?;
            crash::point("delta committed");
        }
        Ok(())
    }

    fn committed_epoch(&self) -> u64 {
        self.0[Table::Files as usize].committed_epoch()
    }

    fn state(&self) -> LakeState {
        LakeState { epoch: self.committed_epoch(), versions: self.0.each_ref().map(LakeTable::version) }
    }

    fn since(&self) -> u64 {
        self.0[Table::Files as usize].since()
    }

    fn files(&self) -> Result<[Arc<[DataFile]>; 5], LakeError> {
        let mut files: [Arc<[DataFile]>; 5] = Default::default();
        for (table, opened) in Table::ALL.into_iter().zip(&self.0) {
            files[table as usize] = opened.files().map_err(|source| failed(table, source))?;
        }
        Ok(files)
    }
}

/// Fails if a table is older than the expected state.
async fn refuse_outdated(store: &Arc<dyn ObjectStore>, root: &Url, expected: LakeState) -> Result<(), LakeError> {
    for (table, version) in Table::ALL.into_iter().zip(expected.versions) {
        let opened = LakeTable::open_read_only(Arc::clone(store), root, table).await;
        let opened = opened.map_err(|source| failed(table, source))?;
        let found = match opened {
            Some(opened) if table == Table::Files && opened.committed_epoch() < expected.epoch => {
                format!("{} (epoch {})", opened.version(), opened.committed_epoch())
            }
            Some(opened) if opened.version() >= version => continue,
            Some(opened) => opened.version().to_string(),
            None => "none".to_owned(),
        };
        return Err(LakeError::Outdated { table: table.name(), found, expected: version, epoch: expected.epoch });
    }
    Ok(())
}

#[cfg(test)]
mod tests;

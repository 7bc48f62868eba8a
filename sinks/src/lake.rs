//! The four tables together: closed epochs in, snapshots out, commits beside.
//!
//! ```text
//!  sightings ──► staging ──┐
//!                          ▼
//!  closed epochs ──► open group ──► published snapshot = lake ∪ frozen ∪ open
//!                          │ every few seconds
//!                          ▼
//!                     frozen group ──► Delta commits, table by table
//! ```
//!
//! 1. A snapshot is published when its epoch is closed and before it is
//!    committed: readers never wait for a commit.
//! 2. One group is committed at a time. When it is, its rows leave memory and
//!    its files join the lake in the same snapshot.
//! 3. `files` is committed last and with every group. What it does not hold is
//!    fed again after a crash; a table that was further already takes nothing twice.
//! 4. What else is asked of the tables ([`crate::upkeep`]) is done between commits.
//! 5. While the rows in memory are at their limit, no output is taken, which
//!    stops the dataflow's feeders.

use std::sync::{Arc, Weak};
use std::time::Duration;

use argus_dataflow::{ClosedEpoch, Output, Row};
use deltalake_core::DeltaTableError;
use object_store::ObjectStore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use url::Url;

use crate::changes::Changes;
use crate::crash;
use crate::fleet::FleetView;
use crate::group::Group;
use crate::guide;
use crate::recent::Recent;
use crate::schema::Table;
use crate::snapshot::{DataFile, Lease, Snapshot, TableSnapshot};
use crate::staging::Staging;
use crate::table::LakeTable;
use crate::upkeep::{Request, Upkeep, What};

/// How the lake commits.
#[derive(Debug, Clone)]
pub struct LakeConfig {
    /// How long a closed epoch may wait for its commit to begin.
    pub commit_interval: Duration,
    /// A group with this many bytes of rows is committed at once; twice as many stop the input.
    pub group_bytes: usize,
}

impl Default for LakeConfig {
    fn default() -> Self {
        LakeConfig { commit_interval: Duration::from_secs(2), group_bytes: 16 << 20 }
    }
}

/// Why the lake stopped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum LakeError {
    #[error("table {table}")]
    Table { table: &'static str, source: Box<DeltaTableError> },
    #[error("the rows of epoch {epoch}")]
    Rows { epoch: u64, source: Box<DeltaTableError> },
    #[error("the sightings of {file:?}")]
    Sightings { file: String, source: Box<DeltaTableError> },
    #[error(
        "table {table} of the lake has no column {column}: an earlier version made it. Build the lake anew from the stored \
         files with `argus recount`"
    )]
    EarlierVersion { table: &'static str, column: &'static str },
    #[error(
        "table {table} of the lake is missing or older than it was: it has version {found}, and version {expected} was \
         committed (epoch {epoch}). Put the folder `lake` back as it was, or rebuild it from the stored files with \
         `argus recount`"
    )]
    Outdated { table: &'static str, found: String, expected: u64, epoch: u64 },
}

/// What the lake holds: the last epoch of its last commit, and the version of each table, in the order of
/// [`Table::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LakeState {
    /// The last committed epoch.
    pub epoch: u64,
    /// The tables' versions.
    pub versions: [u64; 5],
}

/// The lake of a server, open for writing by this process alone.
pub struct Lake {
    config: LakeConfig,
    /// Away while something is done to them.
    tables: Option<Tables>,
    upkeep: Upkeep,
    requests: mpsc::Receiver<Request>,
    /// Who waits until an epoch is committed.
    waiting: Vec<(u64, Reply)>,
    /// The epoch that each table held when the lake was opened.
    held_epochs: [u64; 5],
    committed_files: [Arc<[DataFile]>; 5],
    staging: Staging,
    open: Group,
    frozen: Option<Arc<Group>>,
    epoch: u64,
    horizon: u64,
    lease: Lease,
    fleet: FleetView,
    recent: Recent,
    changes: Changes,
    snapshots: watch::Sender<Arc<Snapshot>>,
    committed: watch::Sender<LakeState>,
}

/// The Delta tables in the order of their commits.
struct Tables([LakeTable; 5]);

type Reply = oneshot::Sender<Result<Weak<()>, LakeError>>;

/// Something that is being done to the tables.
type Doing = JoinHandle<(Tables, Done)>;

/// What was done to the tables, and how it went.
enum Done {
    /// The frozen group was committed.
    Commit(Result<(), LakeError>),
    /// Something was asked; whether it was to replace files.
    Request { result: Result<(), LakeError>, replaces: bool, reply: Reply },
}

impl Lake {
    /// Opens the lake at `root`, making its tables where they are not there. Where it is known what the lake held, one
    /// that has less is refused, and nothing is made.
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
            if let Some(column) = opened.lacks().map_err(|source| failed(table, source))? {
                return Err(LakeError::EarlierVersion { table: table.name(), column });
            }
        }
        // Without it, the tables are what they are.
        if let Err(error) = guide::write(&*store, root).await {
            tracing::warn!(%error, "the guide to the lake's tables could not be written");
        }
        let tables = Tables(tables.try_into().unwrap_or_else(|_| unreachable!("a table for each name")));
        let (epoch, state) = (tables.committed_epoch(), tables.state());
        let (upkeep, requests) = Upkeep::new(tables.0.clone());
        let lake = Lake {
            config,
            upkeep,
            requests,
            waiting: Vec::new(),
            horizon: tables.horizon(),
            lease: Lease::default(),
            fleet: FleetView::default(),
            recent: Recent::default(),
            changes: Changes::default(),
            held_epochs: tables.0.each_ref().map(LakeTable::committed_epoch),
            committed_files: tables.files()?,
            staging: Staging::new(tables.0[Table::Errors as usize].clone()),
            tables: Some(tables),
            open: Group::default(),
            frozen: None,
            epoch,
            snapshots: watch::Sender::new(Arc::new(Snapshot::default())),
            committed: watch::Sender::new(state),
        };
        lake.publish();
        Ok(lake)
    }

    /// What the lake at `root` held at its last commit; writes nothing.
    pub async fn read(store: Arc<dyn ObjectStore>, root: &Url) -> Result<Snapshot, LakeError> {
        let mut snapshots: [TableSnapshot; 5] = Default::default();
        let (mut epoch, mut horizon) = (0, 0);
        // What makes rows visible is read first: beside a server that commits,
        // the other tables may then be ahead of it and never behind.
        for table in Table::ALL.into_iter().rev() {
            let opened = LakeTable::open_read_only(Arc::clone(&store), root, table).await;
            if let Some(opened) = opened.map_err(|source| failed(table, source))? {
                snapshots[table as usize].committed = opened.files().map_err(|source| failed(table, source))?;
                if table == Table::Files {
                    epoch = opened.committed_epoch();
                    horizon = opened.horizon();
                }
            }
        }
        Ok(Snapshot::new(epoch, snapshots).since(horizon, Lease::default()))
    }

    /// The last epoch that every table holds: what comes after it must be fed again.
    pub fn committed_epoch(&self) -> u64 {
        self.epoch
    }

    /// What readers see; changes with every closed epoch.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// A way to ask for what is done beside commits.
    pub fn upkeep(&self) -> Upkeep {
        self.upkeep.clone()
    }

    /// What is committed.
    pub fn committed(&self) -> watch::Receiver<LakeState> {
        self.committed.subscribe()
    }

    /// Takes what leaves the dataflow until it ends, and commits all of it.
    /// `published` is called with each closed epoch once readers see it.
    pub async fn run(
        mut self,
        mut outputs: UnboundedReceiver<Output>,
        mut published: impl FnMut(&ClosedEpoch),
    ) -> Result<(), LakeError> {
        let mut doing: Option<Doing> = None;
        let mut due: Option<Instant> = None;
        loop {
            let has_room = self.open.bytes() < 2 * self.config.group_bytes;
            let idle = doing.is_none();
            tokio::select! {
                biased;
                (tables, done) = finished(&mut doing), if !idle => {
                    doing = None;
                    let retry = self.finish(tables, done)?;
                    let full = self.open.bytes() >= self.config.group_bytes;
                    let now = !retry && (full || !self.waiting.is_empty());
                    let wait = if now { Duration::ZERO } else { self.config.commit_interval };
                    due = (self.frozen.is_some() || !self.open.is_empty()).then(|| Instant::now() + wait);
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if idle && due.is_some() => {
                    due = None;
                    doing = self.begin_commit();
                }
                // A group that is committed in part and will be tried again comes first.
                Some(request) = self.requests.recv(), if idle && self.frozen.is_none() => match request.what {
                    What::Commit if self.open.is_empty() => self.reply(request.reply),
                    What::Commit => {
                        self.waiting.push((self.epoch, request.reply));
                        due = Some(Instant::now());
                    }
                    what => doing = self.begin_request(what, request.reply),
                },
                output = outputs.recv(), if has_room => match output {
                    Some(Output::Scanned(block)) => self.staging.add(&block).await.map_err(|source| {
                        LakeError::Sightings { file: block.origin.file.clone(), source: Box::new(source) }
                    })?,
                    Some(Output::Closed(closed)) => {
                        self.close(&closed).await.map_err(|source| {
                            LakeError::Rows { epoch: closed.epoch, source: Box::new(source) }
                        })?;
                        published(&closed);
                        let now = Instant::now();
                        if self.open.bytes() >= self.config.group_bytes {
                            due = Some(now);
                        } else if due.is_none() && !self.open.is_empty() {
                            due = Some(now + self.config.commit_interval);
                        }
                    }
                    None => break,
                },
            }
        }
        self.commit_rest(doing).await
    }

    /// Commits what is left. A failure here is final: the caller ends, and a restart feeds it again.
    async fn commit_rest(mut self, mut doing: Option<Doing>) -> Result<(), LakeError> {
        self.requests.close();
        loop {
            if doing.is_none() {
                doing = self.begin_commit();
            }
            if doing.is_none() {
                return Ok(());
            }
            let (tables, done) = finished(&mut doing).await;
            doing = None;
            match done {
                Done::Commit(Err(error)) => return Err(error),
                done => drop(self.finish(tables, done)?),
            }
        }
    }

    /// Adds a closed epoch and publishes it.
    async fn close(&mut self, closed: &ClosedEpoch) -> Result<(), DeltaTableError> {
        let held = self.held_epochs;
        let has = |table: Table| closed.epoch <= held[table as usize];
        self.open.append(closed, has)?;
        for (row, _) in &closed.rows {
            match row {
                Row::File(file) if file.failure.is_some() => self.staging.abandon(file.version).await,
                Row::File(file) if file.live >= 0 => {
                    let taken = self.staging.take(file.version).await?;
                    if has(Table::Errors) {
                        // The table has them in the files that were written before the restart.
                        self.staging.errors().delete_unnamed(&taken.files).await;
                        continue;
                    }
                    for rows in taken.rows {
                        self.open.push(Table::Errors, rows)?;
                    }
                    for add in taken.files {
                        self.open.push_spilled(self.staging.data_file_of(&add), add);
                    }
                }
                Row::Abandoned(version) => self.staging.abandon(*version).await,
                _ => {}
            }
        }
        let changes = closed.rows.iter().filter_map(|(row, count)| match row {
            Row::Fleet(row) => Some((row, *count)),
            _ => None,
        });
        self.fleet.apply(closed.epoch, changes);
        self.recent.apply(closed);
        self.changes.apply(closed);
        crash::point("closed");
        self.epoch = closed.epoch;
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        let tables = Table::ALL.map(|table| {
            let mut snapshot = TableSnapshot {
                committed: Arc::clone(&self.committed_files[table as usize]),
                ..TableSnapshot::default()
            };
            for group in self.frozen.as_deref().into_iter().chain([&self.open]) {
                snapshot.batches.extend_from_slice(group.batches(table));
                if table == Table::Errors {
                    snapshot.spilled.extend(group.spilled().map(|(file, _)| file.clone()));
                }
            }
            snapshot
        });
        let snapshot = Snapshot::new(self.epoch, tables).since(self.horizon, Arc::clone(&self.lease));
        let snapshot = snapshot.with_views(self.fleet.clone(), self.recent.view(), self.changes.clone());
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// Freezes the open group, unless one is frozen still, and begins its commit.
    fn begin_commit(&mut self) -> Option<Doing> {
        if self.frozen.is_none() {
            if self.open.is_empty() {
                return None;
            }
            self.frozen = Some(Arc::new(std::mem::take(&mut self.open)));
        }
        let group = Arc::clone(self.frozen.as_ref()?);
        let mut tables = self.tables.take()?;
        Some(tokio::spawn(async move {
            let result = tables.commit(&group).await;
            (tables, Done::Commit(result))
        }))
    }

    /// Begins what was asked of the tables.
    fn begin_request(&mut self, what: What, reply: Reply) -> Option<Doing> {
        let mut tables = self.tables.take()?;
        Some(tokio::spawn(async move {
            let replaces = matches!(what, What::Replace { .. });
            let result = what.run(&mut tables.0).await;
            (tables, Done::Request { result, replaces, reply })
        }))
    }

    /// Takes the outcome of what was done to the tables; says whether a commit must be tried again.
    fn finish(&mut self, tables: Tables, done: Done) -> Result<bool, LakeError> {
        let files = tables.files()?;
        let (horizon, committed) = (tables.horizon(), tables.state());
        self.tables = Some(tables);
        let asked = match done {
            Done::Commit(Err(error)) => {
                // The group stays frozen and readable, and the input stops when the next one is full.
                // What some tables may have of it by now is not shown beside it.
                tracing::error!(error = &error as &dyn std::error::Error, "commit failed; it will be tried again");
                return Ok(true);
            }
            Done::Commit(Ok(())) => None,
            Done::Request { result, replaces, reply } => Some((result, replaces, reply)),
        };
        self.committed_files = files;
        self.horizon = horizon;
        self.frozen = None;
        // Snapshots from now on do not name what was replaced. Nothing else ends a lease, for only
        // who replaces keeps it in mind.
        let replaced = asked.as_ref().is_some_and(|(_, replaces, _)| *replaces);
        let lease = if replaced { std::mem::take(&mut self.lease) } else { Arc::clone(&self.lease) };
        self.publish();
        self.committed.send_replace(committed);
        if let Some((result, _, reply)) = asked {
            // Whoever asked may have gone away.
            let _ = reply.send(result.map(|()| Arc::downgrade(&lease)));
        }
        for (epoch, reply) in std::mem::take(&mut self.waiting) {
            match epoch <= committed.epoch {
                true => self.reply(reply),
                false => self.waiting.push((epoch, reply)),
            }
        }
        Ok(false)
    }

    fn reply(&self, reply: Reply) {
        let _ = reply.send(Ok(Arc::downgrade(&self.lease)));
    }
}

async fn finished(doing: &mut Option<Doing>) -> (Tables, Done) {
    match doing {
        Some(task) => match task.await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => unreachable!("what is done to the tables is never cancelled"),
            },
        },
        None => std::future::pending().await,
    }
}

impl Tables {
    async fn commit(&mut self, group: &Group) -> Result<(), LakeError> {
        for (table, opened) in Table::ALL.into_iter().zip(&mut self.0) {
            let spilled: Vec<_> = match table {
                Table::Errors => group.spilled().map(|(_, add)| add.clone()).collect(),
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

    fn horizon(&self) -> u64 {
        self.0[Table::Files as usize].horizon()
    }

    fn files(&self) -> Result<[Arc<[DataFile]>; 5], LakeError> {
        let mut files: [Arc<[DataFile]>; 5] = Default::default();
        for (table, opened) in Table::ALL.into_iter().zip(&self.0) {
            files[table as usize] = opened.files().map_err(|source| failed(table, source))?;
        }
        Ok(files)
    }
}

/// An error where a table has less than it is known to have had.
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

pub(crate) fn failed(table: Table, source: DeltaTableError) -> LakeError {
    LakeError::Table { table: table.name(), source: Box::new(source) }
}

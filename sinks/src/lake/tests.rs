//! A lake over a store in memory whose writes fail on demand: what readers see before, during and after a commit.

use std::fmt;
use std::path::PathBuf;

use argus_dataflow::{
    BLOCK_BYTES_DEFAULT, BatchRow, BlockReader, Change, CodeLimits, Config, Dataflow, FileRow, Origin, RuleSet,
    VersionId,
};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use uuid::Uuid;

use super::*;
use crate::feed;
use crate::replica::Replica;

/// A store in memory that refuses to write below one folder.
#[derive(Debug)]
struct Refusing {
    inner: InMemory,
    folder: watch::Sender<Option<&'static str>>,
    refused: watch::Sender<usize>,
}

impl Refusing {
    fn new() -> Arc<Refusing> {
        Arc::new(Refusing { inner: InMemory::new(), folder: watch::Sender::new(None), refused: watch::Sender::new(0) })
    }

    /// From now on, writes below a folder fail, or none.
    fn refuse(&self, folder: Option<&'static str>) {
        self.folder.send_replace(folder);
    }

    /// Waits until this many writes have failed.
    async fn has_refused(&self, times: usize) {
        let mut refused = self.refused.subscribe();
        soon("a refused write", refused.wait_for(|refused| *refused >= times)).await.expect("the store is there");
    }

    async fn objects(&self, folder: &str) -> Vec<Path> {
        let listed = self.inner.list(Some(&Path::from(folder))).map_ok(|object| object.location);
        listed.try_collect().await.expect("lists")
    }
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Refusing")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Refusing {
    async fn put_opts(&self, to: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        let is_refused = self.folder.borrow().is_some_and(|folder| to.as_ref().contains(folder));
        if is_refused {
            self.refused.send_modify(|refused| *refused += 1);
            return Err(Error::Generic { store: "Refusing", source: "injected".into() });
        }
        self.inner.put_opts(to, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(to, options).await
    }

    async fn get_opts(&self, from: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(from, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, below: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(below)
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// Awaits what is to happen soon; fails with what did not.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let awaited = tokio::time::timeout(Duration::from_secs(60), future).await;
    awaited.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

fn root() -> Url {
    Url::parse("memory:///lake/").expect("a URL")
}

/// A configuration that commits only on request.
fn on_request() -> LakeConfig {
    LakeConfig { commit_interval: Duration::from_secs(3600), ..LakeConfig::default() }
}

/// A configuration that commits each epoch at once.
fn at_once() -> LakeConfig {
    LakeConfig { commit_interval: Duration::ZERO, ..LakeConfig::default() }
}

/// A running lake, and the input of its outputs.
struct Running {
    outputs: UnboundedSender<Output>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    committed: watch::Receiver<LakeState>,
    maintenance: LakeMaintenance,
    task: JoinHandle<Result<(), LakeError>>,
}

async fn open(store: &Arc<Refusing>, config: LakeConfig) -> Result<Lake, LakeError> {
    Lake::open(Arc::clone(store) as Arc<dyn ObjectStore>, &root(), config, None).await
}

impl Running {
    async fn start(store: &Arc<Refusing>, config: LakeConfig) -> Running {
        let lake = open(store, config).await.expect("opens");
        let (snapshots, committed, maintenance) = (lake.snapshots(), lake.committed(), lake.maintenance());
        let (outputs, receiver) = unbounded_channel();
        let task = tokio::spawn(lake.run(receiver, |_| {}));
        Running { outputs, snapshots, committed, maintenance, task }
    }

    /// Sends an epoch that creates a batch.
    fn close(&self, epoch: u64) {
        let rows = vec![(Row::Batch(batch(epoch)), 1)];
        self.outputs.send(Output::Closed(ClosedEpoch { epoch, rows })).expect("the lake runs");
    }

    async fn published(&mut self, epoch: u64) -> Arc<Snapshot> {
        let seen = soon("a snapshot", self.snapshots.wait_for(|snapshot| snapshot.epoch >= epoch)).await;
        Arc::clone(&seen.expect("the lake runs"))
    }

    async fn committed(&mut self, epoch: u64) {
        soon("a commit", self.committed.wait_for(|state| state.epoch >= epoch)).await.expect("the lake runs");
    }

    /// Ends the lake as a crash would: nothing more is committed.
    async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn batch(epoch: u64) -> BatchRow {
    BatchRow {
        batch_id: Uuid::from_u128(epoch.into()),
        vehicle_id: "veh-1".to_owned(),
        vin: "WVWZZZ1JZXW000001".to_owned(),
        platform: None,
        firmware: None,
        labels: None,
        created_at: 0,
        live: 1,
        completed: 0,
    }
}

async fn read(store: &Refusing, file: &DataFile) -> Vec<RecordBatch> {
    let bytes = store.inner.get(&file.path).await.expect("the file is there").bytes().await.expect("reads");
    let rows = ParquetRecordBatchReaderBuilder::try_new(bytes).expect("a Parquet file").build().expect("a reader");
    rows.collect::<Result<_, _>>().expect("rows")
}

/// The epochs of all rows of a table that a reader of a snapshot sees, in order.
async fn epochs(store: &Refusing, snapshot: &Snapshot, table: Table) -> Vec<i64> {
    let TableSnapshot { committed, spilled, batches } = &**snapshot.table(table);
    let mut rows = batches.clone();
    for file in committed.iter().chain(spilled) {
        rows.extend(read(store, file).await);
    }
    let column = |rows: &RecordBatch| {
        let epochs = rows.column_by_name("epoch").expect("each table has it").as_primitive::<Int64Type>();
        epochs.values().to_vec()
    };
    let visible = |epoch: &i64| *epoch <= snapshot.epoch as i64;
    let mut epochs: Vec<i64> = rows.iter().flat_map(column).filter(visible).collect();
    epochs.sort_unstable();
    epochs
}

#[tokio::test]
async fn a_closed_epoch_is_read_from_memory_before_its_commit_and_from_a_file_after_it() {
    let store = Refusing::new();
    let mut lake = Running::start(&store, on_request()).await;
    lake.close(1);
    let before = lake.published(1).await;
    assert!(before.table(Table::Batches).committed.is_empty());
    assert_eq!(epochs(&store, &before, Table::Batches).await, [1]);

    lake.maintenance.commit().await.expect("commits");
    let after = lake.published(1).await;
    assert!(after.table(Table::Batches).batches.is_empty());
    assert_eq!(epochs(&store, &after, Table::Batches).await, [1]);
    // A reader of the first snapshot still sees what it saw.
    assert_eq!(epochs(&store, &before, Table::Batches).await, [1]);
}

#[tokio::test]
async fn a_commit_that_fails_half_way_shows_each_row_once_and_is_repeated() {
    let store = Refusing::new();
    let mut lake = Running::start(&store, at_once()).await;
    // The table `batches` is committed before the table `files`, which makes the epoch committed.
    store.refuse(Some("lake/files/_delta_log"));
    lake.close(1);
    store.has_refused(2).await;
    assert!(!store.objects("lake/batches").await.is_empty());
    let snapshot = lake.published(1).await;
    assert_eq!(epochs(&store, &snapshot, Table::Batches).await, [1]);
    assert_eq!(lake.committed.borrow().epoch, 0);

    store.refuse(None);
    lake.committed(1).await;
    let snapshot = lake.published(1).await;
    assert_eq!(epochs(&store, &snapshot, Table::Batches).await, [1]);
}

#[tokio::test]
async fn an_epoch_that_some_tables_have_is_added_to_the_others_only_when_it_is_replayed() {
    let store = Refusing::new();
    let lake = Running::start(&store, at_once()).await;
    store.refuse(Some("lake/files/_delta_log"));
    lake.close(1);
    store.has_refused(1).await;
    lake.crash().await;

    store.refuse(None);
    let mut lake = Running::start(&store, at_once()).await;
    assert_eq!(lake.snapshots.borrow().epoch, 0, "it is not visible before it is replayed");
    lake.close(1);
    lake.close(2);
    lake.committed(2).await;
    let snapshot = lake.published(2).await;
    assert_eq!(epochs(&store, &snapshot, Table::Batches).await, [1, 2]);
}

#[tokio::test]
async fn no_output_is_taken_while_the_rows_in_memory_are_at_their_limit() {
    let store = Refusing::new();
    let mut lake = Running::start(&store, LakeConfig { group_bytes: 1, ..at_once() }).await;
    store.refuse(Some("lake/batches"));
    (1..=20).for_each(|epoch| lake.close(epoch));
    store.has_refused(1).await;
    // One group waits for its commit, and the next one has reached the limit with its first epoch.
    assert!(lake.snapshots.borrow().epoch <= 2);
    store.refuse(None);
    let snapshot = lake.published(20).await;
    lake.committed(20).await;
    assert_eq!(epochs(&store, &snapshot, Table::Batches).await, (1..=20).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_lake_that_is_older_than_the_metadata_expect_is_refused_and_nothing_is_created() {
    let store = Refusing::new();
    let mut lake = Running::start(&store, at_once()).await;
    lake.close(1);
    lake.committed(1).await;
    let expected = *lake.committed.borrow();
    lake.crash().await;
    let empty = Refusing::new();
    let opened = Lake::open(Arc::clone(&empty) as _, &root(), at_once(), Some(expected)).await;
    assert!(matches!(opened, Err(LakeError::Outdated { epoch: 1, .. })));
    assert!(empty.objects("lake").await.is_empty());
    let opened = Lake::open(Arc::clone(&store) as _, &root(), at_once(), Some(expected)).await;
    assert_eq!(opened.map(|lake| lake.committed_epoch()).expect("opens"), 1);
}

#[tokio::test]
async fn a_lake_that_another_writer_has_claimed_ends_with_an_error() {
    let store = Refusing::new();
    let first = Running::start(&store, LakeConfig { term: 1, ..at_once() }).await;
    let second = open(&store, LakeConfig { term: 2, ..at_once() }).await.expect("opens");
    first.close(1);
    let ended = soon("the end of the first writer", first.task).await.expect("does not panic");
    assert!(matches!(ended, Err(LakeError::Fenced { .. })), "{ended:?}");
    assert_eq!(second.committed_epoch(), 0);
}

/// Applies the steps that are there to a replica, each as the bytes that another process would get.
async fn follow(replica: &mut Replica, following: &mut feed::Following, until: impl Fn(&feed::Step) -> bool) {
    loop {
        let (step, _) = soon("a step", following.next()).await.expect("is not behind").expect("the lake runs");
        let bytes = feed::encode(&step).expect("encodes");
        replica.apply(feed::decode(bytes).expect("decodes")).await.expect("applies");
        if until(&step) {
            return;
        }
    }
}

#[tokio::test]
async fn a_replica_sees_at_each_epoch_what_the_writer_sees_whenever_it_begins() {
    let store = Refusing::new();
    let config = LakeConfig { has_replicas: true, ..on_request() };
    let lake = open(&store, config).await.expect("opens");
    let feed = lake.feed().expect("it has replicas");
    let (mut snapshots, maintenance) = (lake.snapshots(), lake.maintenance());
    let (outputs, receiver) = unbounded_channel();
    let _task = tokio::spawn(lake.run(receiver, |_| {}));
    let close = |epoch: u64| {
        let rows = vec![(Row::Batch(batch(epoch)), 1)];
        outputs.send(Output::Closed(ClosedEpoch { epoch, rows })).expect("the lake runs");
    };
    let start = async || {
        let (base, following) = feed.follow();
        let replica = Replica::open(Arc::clone(&store) as _, &root(), base).await.expect("opens");
        (replica, following)
    };
    let (mut first, mut first_follows) = start().await;
    let is_epoch =
        |epoch: u64| move |step: &feed::Step| matches!(step, feed::Step::Closed(closed) if closed.epoch.epoch == epoch);
    let is_commit = |step: &feed::Step| matches!(step, feed::Step::Committed { .. });
    for epoch in 1..=6 {
        close(epoch);
        soon("a snapshot", snapshots.wait_for(|snapshot| snapshot.epoch == epoch)).await.expect("the lake runs");
        follow(&mut first, &mut first_follows, is_epoch(epoch)).await;
        let seen = Arc::clone(&first.snapshots().borrow());
        assert_eq!(epochs(&store, &seen, Table::Batches).await, (1..=epoch as i64).collect::<Vec<_>>());
        if epoch % 2 == 0 {
            maintenance.commit().await.expect("commits");
            follow(&mut first, &mut first_follows, is_commit).await;
            let seen = Arc::clone(&first.snapshots().borrow());
            assert!(seen.table(Table::Batches).batches.is_empty(), "the rows are in files now");
            assert_eq!(epochs(&store, &seen, Table::Batches).await, (1..=epoch as i64).collect::<Vec<_>>());
        }
        // One that begins now.
        let (mut late, mut late_follows) = start().await;
        if epoch % 2 == 1 {
            follow(&mut late, &mut late_follows, is_epoch(epoch)).await;
        }
        let (seen, expected) = (Arc::clone(&late.snapshots().borrow()), Arc::clone(&snapshots.borrow()));
        assert_eq!(seen.epoch, expected.epoch);
        let (of_late, of_writer) =
            (epochs(&store, &seen, Table::Batches).await, epochs(&store, &expected, Table::Batches).await);
        assert_eq!(of_late, of_writer);
    }
}

/// A row that admits a version, or withdraws it.
fn file(version: VersionId, live: i8) -> FileRow {
    FileRow {
        batch_id: Uuid::nil(),
        file_id: version.0,
        version,
        name: "a.log".to_owned(),
        generation: 1,
        live,
        erased: 0,
        open_line: false,
        bytes: 0,
        lines: 0,
        long_lines: 0,
        last_line: 0,
        error_lines: 0,
        occurrences: 0,
        uploaded_at: 0,
        failure: None,
        binary: false,
        sha256: None,
        first_ts: None,
        last_ts: None,
        rules: None,
    }
}

#[tokio::test]
async fn occurrences_become_readable_with_the_epoch_that_admits_them_and_leave_nothing_if_they_are_abandoned() {
    /// More than a version may have in memory.
    const LINES: usize = 60_000;
    let store = Refusing::new();
    let lake = open(&store, on_request()).await.expect("opens");
    let (mut snapshots, maintenance) = (lake.snapshots(), lake.maintenance());
    let config = Config {
        workers: 1,
        rules: RuleSet::built_in().expect("the built-in rules"),
        first_epoch: 1,
        in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
        occurrences: true,
        limits: CodeLimits::default(),
        scans_only: false,
    };
    let (dataflow, outputs) = Dataflow::start(config).expect("starts");
    let task = tokio::spawn(lake.run(outputs, |_| {}));
    let text = "2026-03-01 10:15:30 ERROR ota: DTC P0301-07 stored, and what else this line says\n".repeat(LINES);
    let (admitted, abandoned) = (VersionId::new(), VersionId::new());
    for version in [admitted, abandoned] {
        let origin = Origin { batch_id: Uuid::nil(), file: "a.log".to_owned(), version, uploaded_at: 0 };
        let origin = Arc::new(origin);
        let mut blocks = BlockReader::new(text.as_bytes(), BLOCK_BYTES_DEFAULT);
        while let Some(block) = blocks.next_block().expect("reads from memory") {
            dataflow.insert(&origin, block).await.expect("runs");
        }
    }
    dataflow.advance(1, vec![Change::Admit(file(admitted, 1)), Change::Abandon(abandoned)]).expect("runs");
    let seen = soon("a snapshot", snapshots.wait_for(|snapshot| snapshot.epoch == 1)).await;
    let snapshot = Arc::clone(&seen.expect("the lake runs"));
    let spilled: Vec<PathBuf> =
        snapshot.table(Table::Errors).spilled.iter().map(|file| PathBuf::from(file.path.as_ref())).collect();
    assert!(!spilled.is_empty(), "a version of this size is in files");
    assert_eq!(epochs_of_occurrences(&store, &snapshot).await, LINES);
    maintenance.commit().await.expect("commits");
    let snapshot = Arc::clone(&snapshots.borrow());
    assert_eq!(epochs_of_occurrences(&store, &snapshot).await, LINES);
    let is_parquet = |path: &Path| path.as_ref().ends_with(".parquet");
    let files = store.objects("lake/errors").await.into_iter().filter(is_parquet).count();
    assert_eq!(files, snapshot.table(Table::Errors).committed.len(), "no file of the abandoned version is left");
    dataflow.stop();
    task.await.expect("does not panic").expect("ends");
}

/// The number of occurrences that a reader of a snapshot finds.
async fn epochs_of_occurrences(store: &Refusing, snapshot: &Snapshot) -> usize {
    let TableSnapshot { committed, spilled, batches } = &**snapshot.table(Table::Errors);
    let mut rows = batches.iter().map(RecordBatch::num_rows).sum();
    for file in committed.iter().chain(spilled) {
        rows += read(store, file).await.iter().map(RecordBatch::num_rows).sum::<usize>();
    }
    rows
}

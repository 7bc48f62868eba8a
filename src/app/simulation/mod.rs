//! Random histories of the whole service in one process: pipeline, dataflow, lake, maintenance and recovery over an
//! object store in memory. Requests run concurrently, operations of the store fail before or after they had their
//! effect, and the process crashes at any await. After each step, reports, the fleet's codes and SQL equal a plain
//! loop over the files.
//!
//! The seed decides requests, faults and crashes. Threads interleave as they like, so a seed reproduces a failure in
//! most runs, not in all. No test waits for time to pass: the lake commits at once, or only on request.
//!
//! `ARGUS_SIMULATIONS=5000 cargo test --lib simulation` runs more histories; `ARGUS_SIMULATION_SEED=7` runs one.

mod client;
mod model;
mod random;
mod store;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path as FsPath, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use argus_dataflow::RuleSet;
use argus_query::{FleetFilter, FleetRequest, GroupBy, Limits};
use argus_sinks::Snapshot;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use futures::future::join_all;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use url::Url;
use uuid::Uuid;

use self::client::{Operation, Outcome, outcome, request};
use self::model::{FIRMWARES, ModelBatch, VINS, fleet};
use self::random::Random;
use self::store::{Faults, FaultyStore};
use super::{Service, ServiceConfig};
use crate::answers::answer::AnswerError;
use crate::data_dir;
use crate::domain::batch::{Batch, NewBatch};
use crate::ingest::raw_store::RawStore;
use crate::maintenance::Thoroughness;
use crate::pipeline::PipelineError;
use crate::storage::Storage;

/// Histories in a run.
const HISTORIES: u64 = 10;

/// Steps in a history; each runs a few requests at once.
const STEPS: usize = 24;

/// Histories that run at once; most of the time of one is waiting for threads.
const THREADS: usize = 3;

/// How often a check runs SQL.
const SQL_ONE_IN: usize = 5;

/// A start that fails this often because of injected faults runs without faults.
const STARTS_MAX: usize = 3;

/// A crash happens at most after this many turns of the event loop.
const TURNS_MAX: usize = 1500;

/// Compiling them would take a tenth of a history.
static RULES: LazyLock<RuleSet> = LazyLock::new(|| RuleSet::built_in().expect("the built-in rules"));

/// A runtime that does not wait for its threads when it is dropped: those of a process that has crashed, or of a history
/// that has failed, never end.
struct Detached(Option<Runtime>);

impl Detached {
    fn new() -> Detached {
        Detached(Some(tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")))
    }

    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.0.as_ref().expect("it is there until it is dropped").block_on(future)
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running service.
struct Process {
    runtime: Detached,
    service: Service,
    faults: Faults,
}

impl Process {
    /// Whether the service has ended by itself, as after a failure that it cannot repair.
    fn is_dead(&self) -> bool {
        self.service.work.sequencer.as_ref().is_none_or(|sequencer| sequencer.is_finished())
            || self.service.work.lake.is_finished()
    }
}

fn storage(store: Arc<dyn ObjectStore>) -> Storage {
    let lake = Url::parse("memory:///history/lake/").expect("a URL");
    Storage { store, lake, raw: Path::from("history/raw"), part_bytes: 1 << 10, directory: None, unfinished: None }
}

/// One history: the stores, which survive crashes, and what must be in them.
struct History {
    seed: u64,
    random: Random,
    store: Arc<InMemory>,
    data: TempDir,
    /// How many of a thousand operations of the store fail.
    fault_rate: u32,
    batches: Vec<ModelBatch>,
    /// Batches whose request may have happened, each with its state if it did.
    undecided: Vec<(Uuid, Option<ModelBatch>)>,
    /// A batch that may have been created.
    undecided_create: Option<(&'static str, Option<&'static str>)>,
    /// The last epoch that a request was answered with.
    epoch: u64,
    log: Vec<String>,
}

impl History {
    fn new(seed: u64) -> History {
        let mut random = Random::new(seed);
        let fault_rate = random.pick(&[0, 0, 3, 30]);
        let data = tempfile::tempdir().expect("a temporary folder");
        History {
            seed,
            random,
            store: Arc::new(InMemory::new()),
            data,
            fault_rate,
            batches: Vec::new(),
            undecided: Vec::new(),
            undecided_create: None,
            epoch: 0,
            log: vec![format!("{fault_rate} of 1000 operations fail")],
        }
    }

    fn config(&mut self, faults: &Faults) -> ServiceConfig {
        let rules = RULES.clone();
        let mut config = ServiceConfig::new(self.data.path().to_owned(), rules, 1 + self.random.below(2));
        config.block_bytes = self.random.pick(&[64, 4096]);
        // A failed commit is retried after the interval, which nothing here waits for.
        let intervals = [Duration::ZERO, if self.fault_rate == 0 { Duration::from_secs(3600) } else { Duration::ZERO }];
        config.lake.commit_interval = self.random.pick(&intervals);
        config.lake.group_bytes = self.random.pick(&[1 << 10, 16 << 20]);
        config.retention = self.random.pick(&[Duration::ZERO, Duration::from_secs(3600)]);
        let store = FaultyStore { inner: Arc::clone(&self.store), faults: faults.clone() };
        config.storage = Some(storage(Arc::new(store)));
        config
    }

    /// Starts the service, again and again if faults are injected.
    fn start(&mut self) -> Process {
        for start in 0.. {
            let runtime = Detached::new();
            let faults = Faults::new(self.random.below(1 << 30) as u64);
            faults.set_rate(if start < STARTS_MAX { self.fault_rate } else { 0 });
            let config = self.config(&faults);
            match runtime.block_on(Service::open(config)) {
                Ok(service) => {
                    let process = Process { runtime, service, faults };
                    self.check(&process);
                    return process;
                }
                Err(error) if start < STARTS_MAX && self.fault_rate > 0 => {
                    self.log.push(format!("cannot start: {error:#}"));
                    self.cut(&faults);
                }
                Err(error) => panic!("the service does not start: {error:#}"),
            }
        }
        unreachable!("the last start has returned or panicked")
    }

    /// The state of the stores at this moment: what a process that crashes now leaves behind.
    fn cut(&mut self, faults: &Faults) {
        // The store first: a commit of the metadata never depends on a later write to the store.
        faults.crash();
        let data = tempfile::tempdir().expect("a temporary folder");
        let path = data_dir::metadata_path(self.data.path());
        // The threads of the database may be in the middle of a checkpoint, which moves pages from one file to the other.
        while !copied_at_rest(&path, &data_dir::metadata_path(data.path())) {}
        self.store = Arc::new(self.store.fork());
        self.data = data;
    }

    fn crash(&mut self, process: Process) {
        self.log.push("crash".to_owned());
        self.cut(&process.faults);
        let Process { runtime, service, .. } = process;
        service.dataflow.stop();
        drop(service);
        drop(runtime);
    }

    fn stop(&mut self, process: Process) {
        self.log.push("stop".to_owned());
        let Process { runtime, service, faults } = process;
        faults.set_rate(0);
        runtime.block_on(async {
            let Service { pipeline, work, metadata, .. } = service;
            drop(pipeline);
            work.finish().await.expect("stops");
            metadata.close().await;
        });
    }

    /// Runs a few requests at once, for different batches. Returns whether the process lives.
    fn step(&mut self, process: &Process, crashes: bool) -> bool {
        let service = &process.service;
        let mut requests = Vec::new();
        for index in 0..self.batches.len() {
            if self.random.one_in(2) {
                requests.push((index, Operation::random(&mut self.random)));
            }
        }
        let created = (self.batches.len() < 4 && self.random.one_in(2))
            .then(|| (self.random.pick(&VINS), self.random.pick(&FIRMWARES)));
        let turns = if crashes { 1 + self.random.below(TURNS_MAX) } else { usize::MAX };
        self.log.push(format!("requests {requests:?}, create {created:?}"));
        let ids: Vec<Uuid> = self.batches.iter().map(|batch| batch.id).collect();
        let mut outcomes = vec![Outcome::Unknown; requests.len()];
        let mut new_batch = Err(PipelineError::Stopping);
        let all = async {
            let create = async {
                let Some((vin, firmware)) = created else { return };
                let described = NewBatch {
                    vehicle_id: vin.to_lowercase(),
                    vin: vin.to_owned(),
                    firmware: firmware.map(str::to_owned),
                    platform: None,
                    expected_files: None,
                    labels: BTreeMap::new(),
                };
                new_batch = service.pipeline.create_batch(described, None).await;
            };
            let run = requests.iter().zip(&mut outcomes).map(|((index, operation), outcome)| {
                let id = ids[*index];
                async move { *outcome = request(service, id, operation).await }
            });
            tokio::join!(create, join_all(run));
        };
        let finished = process.runtime.block_on(within(turns, all));
        self.log.push(format!("outcomes {outcomes:?}, created {}", new_batch.is_ok()));
        let lives = finished && !process.is_dead();
        self.apply(requests, &outcomes);
        if let Some((vin, firmware)) = created {
            self.add(new_batch, vin, firmware);
        }
        lives
    }

    /// Applies the outcomes to the model. What is unknown is decided when the process has started again.
    fn apply(&mut self, requests: Vec<(usize, Operation)>, outcomes: &[Outcome]) {
        let mut deleted = Vec::new();
        for ((index, operation), outcome) in requests.into_iter().zip(outcomes) {
            let batch = &self.batches[index];
            let effect = operation.effect(batch);
            match (outcome, effect) {
                (Outcome::Done(_), _) if matches!(operation, Operation::Interrupt(..)) => {
                    panic!("an interrupted upload was accepted: {batch:?}")
                }
                (Outcome::Done(epoch), Ok(after)) => {
                    self.epoch = self.epoch.max(*epoch);
                    match after {
                        Some(after) => self.batches[index] = after,
                        None => deleted.push(batch.id),
                    }
                }
                (Outcome::Done(_), Err(())) => panic!("{operation:?} is not possible, and was done: {batch:?}"),
                (Outcome::Refused, Ok(_)) => panic!("{operation:?} is possible, and was refused: {batch:?}"),
                (Outcome::Refused, Err(())) | (Outcome::Failed, _) => {}
                (Outcome::Unknown, Err(())) => {}
                (Outcome::Unknown, Ok(after)) => self.undecided.push((batch.id, after)),
            }
        }
        self.batches.retain(|batch| !deleted.contains(&batch.id));
    }

    /// Adds a created batch to the model.
    fn add(&mut self, created: Result<Batch, PipelineError>, vin: &'static str, firmware: Option<&'static str>) {
        match created.map(|batch| (batch.id, batch.epoch)) {
            Ok((id, epoch)) => {
                self.epoch = self.epoch.max(epoch);
                self.batches.push(ModelBatch { id, vin, firmware, is_completed: false, files: BTreeMap::new() });
            }
            Err(error) => match outcome(Err(error)) {
                Outcome::Unknown => self.undecided_create = Some((vin, firmware)),
                Outcome::Failed => {}
                other => panic!("a batch was not created: {other:?}"),
            },
        }
    }

    /// Finds out what happened to the requests that a crash interrupted: one of two states, nothing between.
    async fn decide(&mut self, service: &Service, snapshot: &Snapshot) {
        for (id, after) in std::mem::take(&mut self.undecided) {
            let index = self.batches.iter().position(|batch| batch.id == id).expect("a batch of the model");
            let actual = actual(service, id).await;
            let expected = |batch: &ModelBatch| Some(expected(batch));
            if actual == after.as_ref().and_then(expected) {
                match after {
                    Some(after) => self.batches[index] = after,
                    None => drop(self.batches.remove(index)),
                }
            }
        }
        let created = self.undecided_create.take();
        for batch in service.metadata.batches_after(Uuid::nil(), 1000).await.expect("reads") {
            if self.batches.iter().all(|known| known.id != batch.id) {
                let (vin, firmware) = created.expect("a batch that nobody created");
                assert_eq!((batch.described.vin.as_str(), batch.described.firmware.as_deref()), (vin, firmware));
                assert!(batch.epoch <= snapshot.epoch);
                let batch = ModelBatch { id: batch.id, vin, firmware, is_completed: false, files: BTreeMap::new() };
                self.batches.push(batch);
            }
        }
    }

    /// Compares everything that readers see with the model.
    fn check(&mut self, process: &Process) {
        process.faults.set_rate(0);
        process.runtime.block_on(self.compare(&process.service));
        process.faults.set_rate(self.fault_rate);
    }

    async fn compare(&mut self, service: &Service) {
        let mut snapshots = service.snapshots.clone();
        let epoch = self.epoch;
        let Ok(snapshot) = snapshots.wait_for(|snapshot| snapshot.epoch >= epoch).await.map(|seen| Arc::clone(&seen))
        else {
            // The service has just ended; the next start checks.
            return;
        };
        self.decide(service, &snapshot).await;
        for batch in &self.batches {
            assert_eq!(actual(service, batch.id).await, Some(expected(batch)), "the report of {batch:?}");
        }
        let request = FleetRequest { group_by: GroupBy::Firmware, filter: FleetFilter::default(), limit: 1000 };
        let codes = request.read(&service.engine, &snapshot).await.expect("reads").codes;
        let codes: BTreeMap<_, _> = codes
            .into_iter()
            .map(|code| ((code.group, code.code), (code.count.0, code.batches, code.vehicles)))
            .collect();
        assert_eq!(codes, fleet(&self.batches), "the codes of the fleet");
        // Planning a query takes most of the time of a check.
        if !self.random.one_in(SQL_ONE_IN) {
            return;
        }
        let counts = "SELECT batch_id || ' ' || code, CAST(sum(count) AS BIGINT) FROM error_counts GROUP BY 1";
        let lines = "SELECT batch_id || ' ' || code, count(*) FROM errors GROUP BY 1";
        for sql in [counts, lines] {
            assert_eq!(sums(service, &snapshot, sql).await, self.counts(), "{sql}");
        }
    }

    fn counts(&self) -> BTreeMap<String, i64> {
        let of_batch = |batch: &ModelBatch| {
            let id = batch.id;
            batch.counts().into_iter().map(move |(code, count)| (format!("{id} {code}"), count as i64))
        };
        self.batches.iter().flat_map(of_batch).collect()
    }

    fn maintain(&mut self, process: &mut Process, thoroughness: Thoroughness) {
        self.log.push(format!("maintenance {thoroughness:?}"));
        let done =
            process.runtime.block_on(process.service.maintainer.as_mut().expect("it maintains").run(thoroughness));
        assert!(done.failures.is_empty() || self.fault_rate > 0, "{done:?}");
    }

    fn run(&mut self) {
        let mut process = self.start();
        for _ in 0..STEPS {
            let crashes = self.random.one_in(5);
            let lives = self.step(&process, crashes);
            if !lives {
                self.crash(process);
                process = self.start();
                continue;
            }
            self.check(&process);
            match self.random.below(10) {
                0 => self.maintain(&mut process, Thoroughness::Scheduled),
                1 => {
                    self.stop(process);
                    process = self.start();
                }
                _ => {}
            }
        }
        self.fault_rate = 0;
        process.faults.set_rate(0);
        self.crash(process);
        process = self.start();
        self.maintain(&mut process, Thoroughness::Full);
        self.check(&process);
        let raw = RawStore::new(&storage(Arc::clone(&self.store) as Arc<dyn ObjectStore>));
        process.runtime.block_on(nothing_is_left_over(&process.service, &raw));
        self.stop(process);
    }
}

/// Copies the metadata and its log. Returns `false` if either changed meanwhile.
fn copied_at_rest(from: &FsPath, to: &FsPath) -> bool {
    let with = |path: &FsPath, ending: &str| {
        let mut path = path.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    };
    let files = ["", "-wal"].map(|ending| (with(from, ending), with(to, ending)));
    let state =
        || files.each_ref().map(|(from, _)| from.metadata().and_then(|file| Ok((file.len(), file.modified()?))).ok());
    let before = state();
    for (from, to) in &files {
        match std::fs::copy(from, to) {
            // A log that was there in the last attempt may be gone.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => drop(std::fs::remove_file(to)),
            copied => drop(copied.expect("copies")),
        }
    }
    before == state()
}

/// What a report says, as far as the model knows it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    is_completed: bool,
    total_files: u64,
    total_lines: u64,
    counts: BTreeMap<String, u64>,
}

fn expected(batch: &ModelBatch) -> Seen {
    Seen {
        is_completed: batch.is_completed,
        total_files: batch.files.len() as u64,
        total_lines: batch.total_lines(),
        counts: batch.counts(),
    }
}

/// The report of a batch; `None` if there is no such batch.
async fn actual(service: &Service, id: Uuid) -> Option<Seen> {
    let answer = match service.reports.present(id, None).await {
        Err(AnswerError::NoBatch(_)) => return None,
        answer => answer.expect("a report").0,
    };
    let report: serde_json::Value = serde_json::from_slice(answer.body()).expect("JSON");
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let codes = report["codes"].as_array().expect("a list").iter();
    let counts = codes.map(|code| (code["code"].as_str().expect("a text").to_owned(), number(&code["count"])));
    Some(Seen {
        is_completed: report["status"] == "completed",
        total_files: number(&report["total_files"]),
        total_lines: number(&report["total_lines"]),
        counts: counts.collect(),
    })
}

/// The rows of a query with a text and a number.
async fn sums(service: &Service, snapshot: &Arc<Snapshot>, sql: &str) -> BTreeMap<String, i64> {
    let limits = Limits { rows: 100_000, time: Duration::from_secs(60) };
    let mut rows = service.engine.ask(snapshot, sql, limits).await.expect("a query");
    let mut sums = BTreeMap::new();
    while let Some(batch) = rows.next().await {
        let batch = batch.expect("rows");
        let keys = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).expect("texts");
        let (keys, numbers) = (keys.as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
        sums.extend((0..batch.num_rows()).map(|row| (keys.value(row).to_owned(), numbers.value(row))));
    }
    sums
}

/// Every object of the raw store belongs to a file.
async fn nothing_is_left_over(service: &Service, raw: &RawStore) {
    let objects: Vec<_> = raw.list().try_collect().await.expect("lists");
    for object in objects {
        let (batch, version) = RawStore::named(&object.location).expect("an object of a file");
        let known = service.metadata.versions(batch).await.expect("reads");
        assert!(known.contains(&version), "{} belongs to no file", object.location);
    }
}

/// Runs a future for a number of turns of the event loop. Returns whether it has finished.
async fn within(turns: usize, future: impl Future<Output = ()>) -> bool {
    let mut future = pin!(future);
    for _ in 0..turns {
        tokio::select! {
            biased;
            () = &mut future => return true,
            () = tokio::task::yield_now() => {}
        }
    }
    false
}

/// Prints how to run a history again, if it panics.
struct Reproduce(History);

impl Drop for Reproduce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut text = String::new();
            for line in &self.0.log {
                let _ = writeln!(text, "  {line:.300}");
            }
            eprintln!("the history was\n{text}run it again with ARGUS_SIMULATION_SEED={}", self.0.seed);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn everything_equals_a_plain_loop_over_the_files_whatever_fails_or_crashes() {
    let seeds = match number("ARGUS_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ARGUS_SIMULATIONS").unwrap_or(HISTORIES),
    };
    let next = AtomicU64::new(seeds.start);
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let mut history = Reproduce(History::new(seed));
            history.0.run();
        }
    };
    std::thread::scope(|threads| {
        let others: Vec<_> = (1..THREADS).map(|_| threads.spawn(run)).collect();
        run();
        others.into_iter().for_each(|other| other.join().expect("a history holds"));
    });
}

//! Reports of batches as they stand, kept.
//!
//! What a report says comes from three places, each of which says when it
//! changed:
//!
//! 1. the batch's files and counts: by the epoch of its last change;
//! 2. its status and the files that are on their way: by the metadata's count of its changes;
//! 3. what the fleet says of its codes: by the snapshot's epoch.
//!
//! The first two are the key that a report is kept under. The third changes with
//! every upload of any vehicle and is read off memory, so it is told anew to a
//! kept report when somebody asks at a later epoch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argus_query::cache::{Flights, Found, Redis};
use argus_query::{BatchFacts, Engine, QueryError, Report};
use argus_sinks::{FleetView, Snapshot};
use metrics::counter;
use tokio::sync::watch;
use uuid::Uuid;

use crate::http::answer::{Answer, JSON};
use crate::http::problem::Problem;
use crate::metadata::Metadata;
use crate::model::NewBatch;

/// Reports may take this much memory (64 MiB).
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// What stands where the epoch goes in.
const EPOCH_PLACE: &[u8] = b"\"epoch\":0,";

/// Makes and keeps reports. Clones share them.
#[derive(Clone)]
pub struct Reports {
    metadata: Metadata,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    flights: Flights<Key, Arc<Kept>, Problem>,
    redis: Option<Redis>,
}

/// A batch as it stood: both numbers are the same as long as nothing of it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    id: Uuid,
    data: u64,
    metadata: u64,
}

/// A report, without what the fleet says.
struct Kept {
    report: Report,
    facts: BatchFacts,
    total_files: u64,
    is_final: bool,
    bytes: usize,
    /// As it was last told whole.
    whole: Mutex<Option<Told>>,
    /// As it was last told with some of its codes.
    cut: Mutex<Option<Told>>,
}

#[derive(Clone)]
struct Told {
    epoch: u64,
    top: Option<usize>,
    answer: Arc<Answer>,
}

impl Reports {
    /// Reports of what a snapshot shows.
    pub fn new(
        metadata: Metadata,
        engine: Engine,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        redis: Option<Redis>,
    ) -> Reports {
        let bytes_of = |_: &Key, kept: &Arc<Kept>| kept.bytes;
        let flights = Flights::new(REPORT_BYTES_MAX, bytes_of);
        Reports { metadata, engine, snapshots, flights, redis }
    }

    /// The whole report of a batch at the epoch that readers see, where it is kept.
    pub fn kept(&self, id: Uuid) -> Option<Arc<Answer>> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        // Whoever made it may have seen more than the snapshot of this request shows.
        let kept = self.flights.kept(&self.key(id, &snapshot)).filter(|kept| kept.facts.epoch <= snapshot.epoch)?;
        kept.told(&snapshot, None).ok()
    }

    /// What a batch's report is kept under. Read before anything else is: what is read then is at least as new.
    fn key(&self, id: Uuid, snapshot: &Snapshot) -> Key {
        Key { id, data: snapshot.changes.last(id), metadata: self.metadata.changes().count(id) }
    }

    /// The report of a batch with at most `top` codes, at the epoch that readers see or a later one.
    pub async fn present(&self, id: Uuid, top: Option<usize>) -> Result<(Arc<Answer>, Found), Problem> {
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow());
            let key = self.key(id, &snapshot);
            let maker = || {
                let reports = self.clone();
                async move { reports.make(id).await.map(Arc::new) }
            };
            let (kept, found) = self.flights.get(key, maker).await;
            let kept = kept?;
            // Whoever made it saw more than this request did, which must then see as much.
            if kept.facts.epoch <= snapshot.epoch {
                return Ok((kept.told(&snapshot, top)?, found));
            }
        }
    }

    /// The status first, then what readers see: a status that says "gathered" is never ahead of its counts.
    async fn make(&self, id: Uuid) -> Result<Kept, Problem> {
        let (batch, total_files) = self.metadata.batch_and_files(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let report = match &self.redis {
            // What is not all there yet, or has more than its name says, would be named wrongly.
            Some(redis) if snapshot.epoch >= batch.epoch && snapshot.changes.last(id) <= batch.epoch => {
                let compute = async { to_json(&self.count(&snapshot, id).await?) };
                let json = redis.get(&format!("report/{id}/{}", batch.epoch), compute).await?;
                match serde_json::from_slice(&json) {
                    Ok(report) => report,
                    // Another build put it there.
                    Err(_) => self.count(&snapshot, id).await?,
                }
            }
            _ => self.count(&snapshot, id).await?,
        };
        let status = batch.status_at(snapshot.epoch);
        let (is_final, status) = (status.is_gathered(), status.word().to_owned());
        let NewBatch { vehicle_id, vin, platform, firmware, .. } = batch.described;
        let (created_at, epoch) = (batch.created_at, snapshot.epoch);
        let facts = BatchFacts { id, vehicle_id, vin, platform, firmware, created_at, status, epoch };
        let mut kept =
            Kept { report, facts, total_files, is_final, bytes: 0, whole: Mutex::default(), cut: Mutex::default() };
        let answer = kept.tell(fleet(&snapshot)?, epoch, None)?;
        // The texts, and the values beside them, roughly.
        kept.bytes = 5 * answer.bytes() + 1024;
        kept.whole = Mutex::new(Some(Told { epoch, top: None, answer: Arc::new(answer) }));
        Ok(kept)
    }

    async fn count(&self, snapshot: &Snapshot, id: Uuid) -> Result<Report, QueryError> {
        counter!("argus_computed_total", "kind" => "report").increment(1);
        Report::of_batch(&self.engine, snapshot, id).await
    }
}

impl Kept {
    /// The report as it is told at the epoch of a snapshot that shows the batch as it is kept, or was at a later one.
    fn told(&self, snapshot: &Snapshot, top: Option<usize>) -> Result<Arc<Answer>, Problem> {
        let told = if top.is_some() { &self.cut } else { &self.whole };
        let last = lock(told).clone();
        if let Some(last) = last
            && last.epoch >= snapshot.epoch
            && last.top == top
        {
            return Ok(last.answer);
        }
        let answer = Arc::new(self.tell(fleet(snapshot)?, snapshot.epoch, top)?);
        let mut last = lock(told);
        if last.as_ref().is_none_or(|last| last.epoch <= snapshot.epoch) {
            *last = Some(Told { epoch: snapshot.epoch, top, answer: Arc::clone(&answer) });
        }
        Ok(answer)
    }

    fn tell(&self, view: &FleetView, epoch: u64, top: Option<usize>) -> Result<Answer, Problem> {
        let mut report = self.report.clone();
        // The epoch moves with every batch's changes; the rest of a report only with what it says.
        report.tell_fleet(view, BatchFacts { epoch: 0, ..self.facts.clone() }, self.total_files, self.is_final);
        if let Some(top) = top {
            report.cut(top);
        }
        let said = to_json(&report)?;
        let place = memchr::memmem::find(&said, EPOCH_PLACE);
        let (before, after) = said.split_at(place.map_or(0, |place| place + EPOCH_PLACE.len() - 2));
        let body = [before, epoch.to_string().as_bytes(), &after[1..]].concat();
        Ok(Answer::saying(&said, JSON, body))
    }
}

fn lock(told: &Mutex<Option<Told>>) -> MutexGuard<'_, Option<Told>> {
    // Nothing that could panic is done under the lock.
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_json(report: &Report) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(report).map_err(|error| Problem::internal(&error))
}

fn fleet(snapshot: &Snapshot) -> Result<&FleetView, Problem> {
    // Only a snapshot of the past has none.
    snapshot.fleet.as_ref().ok_or_else(|| Problem::busy("the server is starting; try again"))
}

//! Reports of batches at the current epoch, cached.
//!
//! A report has three sources, each with its own version:
//!
//! 1. the files and counts of the batch: the epoch of its last change;
//! 2. its status and the files being uploaded: the number of its changes in the metadata;
//! 3. the fleet's counts of its codes, and what stands out among them: the epoch of the snapshot.
//!
//! The first two versions are the cache key of a report. The third changes with
//! every upload of any vehicle. It is in memory, so a cached report is rendered
//! again with it when a request comes at a later epoch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argus_query::cache::{Found, Redis, SingleFlight};
use argus_query::{BatchFacts, Engine, QueryError, RaisedCodes, Report, findings};
use argus_sinks::{FleetView, Snapshot};
use metrics::counter;
use tokio::sync::watch;
use uuid::Uuid;

use crate::answers::answer::{Answer, AnswerError};
use crate::answers::report_changes::{CodeCounts, ReportChanges};
use crate::domain::batch::NewBatch;
use crate::metadata::Metadata;

/// The memory limit of cached reports (64 MiB).
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// Computes and caches reports. Clones share the cache.
#[derive(Clone)]
pub struct Reports {
    metadata: Metadata,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    cache: SingleFlight<ReportKey, Arc<CachedReport>, AnswerError>,
    redis: Option<Redis>,
    raised: RaisedCodes,
}

/// The version of a batch: both numbers stay the same as long as the batch does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ReportKey {
    id: Uuid,
    data: u64,
    metadata: u64,
}

/// A report without the fleet's counts, and its last renderings.
pub struct CachedReport {
    report: Report,
    facts: BatchFacts,
    /// The epoch of the snapshot that the report was read from.
    epoch: u64,
    total_files: u64,
    is_final: bool,
    bytes: usize,
    /// The last rendering of the whole report.
    whole: Mutex<Option<Rendered>>,
    /// The last rendering with a limit of codes.
    cut: Mutex<Option<Rendered>>,
}

#[derive(Clone)]
struct Rendered {
    epoch: u64,
    top: Option<usize>,
    answer: Arc<Answer>,
}

impl Reports {
    /// An empty cache of the reports at the latest snapshot.
    pub fn new(
        metadata: Metadata,
        engine: Engine,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        redis: Option<Redis>,
    ) -> Reports {
        let bytes_of = |_: &ReportKey, cached: &Arc<CachedReport>| cached.bytes;
        let cache = SingleFlight::new(REPORT_BYTES_MAX, bytes_of);
        Reports { metadata, engine, snapshots, cache, redis, raised: RaisedCodes::new() }
    }

    /// The whole report of a batch at the epoch that readers see, if it is cached.
    pub fn cached(&self, id: Uuid) -> Option<Arc<Answer>> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        // The request that computed it may have had a later snapshot than this request.
        let cached = self.cache.cached(&self.key(id, &snapshot)).filter(|cached| cached.epoch <= snapshot.epoch)?;
        cached.rendered(&snapshot, &self.raised, None).ok()
    }

    /// The cache key of a batch's report. Read it before the data: then the data is at least as new as the key.
    fn key(&self, id: Uuid, snapshot: &Snapshot) -> ReportKey {
        ReportKey { id, data: snapshot.changes.last(id), metadata: self.metadata.changes().count(id) }
    }

    /// The report of a batch with at most `top` codes, at the epoch that readers see or a later one.
    pub async fn present(&self, id: Uuid, top: Option<usize>) -> Result<(Arc<Answer>, Found), AnswerError> {
        let (cached, snapshot, found) = self.current(id).await?;
        Ok((cached.rendered(&snapshot, &self.raised, top)?, found))
    }

    /// The report of a batch without the fleet's counts, at the epoch that readers see or a later one.
    pub async fn counted(&self, id: Uuid) -> Result<Arc<CachedReport>, AnswerError> {
        Ok(self.current(id).await?.0)
    }

    /// The codes that firmwares raise, which all reports and diagnoses share.
    pub fn raised(&self) -> &RaisedCodes {
        &self.raised
    }

    async fn current(&self, id: Uuid) -> Result<(Arc<CachedReport>, Arc<Snapshot>, Found), AnswerError> {
        loop {
            let snapshot = Arc::clone(&self.snapshots.borrow());
            let key = self.key(id, &snapshot);
            let compute = || {
                let reports = self.clone();
                async move { reports.compute(id).await.map(Arc::new) }
            };
            let (cached, found) = self.cache.get(key, compute).await;
            let cached = cached?;
            // If the request that computed it had a later snapshot, retry with one at least as late.
            if cached.epoch <= snapshot.epoch {
                return Ok((cached, snapshot, found));
            }
        }
    }

    /// Reads the status first, then the snapshot: so the counts are complete if the status is "gathered".
    async fn compute(&self, id: Uuid) -> Result<CachedReport, AnswerError> {
        let (batch, total_files) = self.metadata.batch_and_files(id).await?.ok_or(AnswerError::NoBatch(id))?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let report = match &self.redis {
            // Redis has the counts at the batch's epoch: skip it if the snapshot is older, or has later changes.
            Some(redis) if snapshot.epoch >= batch.epoch && snapshot.changes.last_known(id) <= batch.epoch => {
                let compute = async { to_json(&self.count(&snapshot, id).await?) };
                let json = redis.get(&format!("report/{id}/{}", batch.epoch), compute).await?;
                match serde_json::from_slice(&json) {
                    Ok(report) => report,
                    // Another build of Argus stored it in another format.
                    Err(_) => self.count(&snapshot, id).await?,
                }
            }
            _ => self.count(&snapshot, id).await?,
        };
        let status = batch.status_at(snapshot.epoch);
        let (is_final, status) = (status.is_gathered(), status.as_str().to_owned());
        let NewBatch { vehicle_id, vin, platform, firmware, .. } = batch.described;
        let (created_at, epoch) = (batch.created_at, snapshot.epoch);
        let facts = BatchFacts { id, vehicle_id, vin, platform, firmware, created_at, status };
        let mut cached = CachedReport {
            report,
            facts,
            epoch,
            total_files,
            is_final,
            bytes: 0,
            whole: Mutex::default(),
            cut: Mutex::default(),
        };
        let answer = cached.render(&snapshot, &self.raised, None)?;
        // Roughly the rendered texts and the values.
        cached.bytes = 5 * answer.bytes() + 1024;
        cached.whole = Mutex::new(Some(Rendered { epoch, top: None, answer: Arc::new(answer) }));
        Ok(cached)
    }

    async fn count(&self, snapshot: &Snapshot, id: Uuid) -> Result<Report, QueryError> {
        counter!("argus_computed_total", "kind" => "report").increment(1);
        Report::of_batch(&self.engine, snapshot, id).await
    }
}

impl CachedReport {
    /// The epoch that it was read at.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How it differs from the counts of an earlier report of the batch.
    pub fn changes_since(&self, before: &CodeCounts) -> ReportChanges {
        ReportChanges::between(before, &self.report, self.is_final)
    }

    /// The counts of its codes.
    pub fn counts(&self) -> CodeCounts {
        CodeCounts::of(&self.report)
    }

    /// The report at the epoch of a snapshot with this version of the batch, or a cached rendering at a later epoch.
    fn rendered(
        &self,
        snapshot: &Snapshot,
        raised: &RaisedCodes,
        top: Option<usize>,
    ) -> Result<Arc<Answer>, AnswerError> {
        let last_rendered = if top.is_some() { &self.cut } else { &self.whole };
        let last = lock(last_rendered).clone();
        if let Some(last) = last
            && last.epoch >= snapshot.epoch
            && last.top == top
        {
            return Ok(last.answer);
        }
        let answer = Arc::new(self.render(snapshot, raised, top)?);
        let mut last = lock(last_rendered);
        if last.as_ref().is_none_or(|last| last.epoch <= snapshot.epoch) {
            *last = Some(Rendered { epoch: snapshot.epoch, top, answer: Arc::clone(&answer) });
        }
        Ok(answer)
    }

    fn render(&self, snapshot: &Snapshot, raised: &RaisedCodes, top: Option<usize>) -> Result<Answer, AnswerError> {
        let view = fleet(snapshot)?;
        let mut report = self.report.clone();
        report.set_fleet(view, self.facts.clone(), self.total_files, self.is_final);
        if self.is_final {
            let raised = raised.of(snapshot.epoch, view, &self.facts);
            report.diagnosis = Some(findings(&report, &self.facts, view, raised.as_ref().as_ref()).in_short());
        }
        if let Some(top) = top {
            report.cut(top);
        }
        Answer::at_epoch(&report, snapshot.epoch)
    }
}

fn lock(last_rendered: &Mutex<Option<Rendered>>) -> MutexGuard<'_, Option<Rendered>> {
    // The lock is not poisoned: no code under it panics.
    last_rendered.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_json(report: &Report) -> Result<Vec<u8>, AnswerError> {
    serde_json::to_vec(report).map_err(AnswerError::write)
}

fn fleet(snapshot: &Snapshot) -> Result<&FleetView, AnswerError> {
    // Only a snapshot of a past epoch has no fleet.
    snapshot.fleet.as_ref().ok_or(AnswerError::Starting)
}

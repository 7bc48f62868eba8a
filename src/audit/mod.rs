//! The audit log: who created, replaced, deleted, queried, exported and logged in.
//!
//! Records are appended to files in the data directory, one JSON object a line, and each
//! has the SHA-256 of the line before it ([`chain`]): a record that is changed, removed or
//! inserted breaks the chain. Records of uploads follow their receipts, and are durable
//! within a second. A record names paths and tokens, and never a VIN: the log outlives
//! the erasure of a vehicle.
//!
//! - [`record`]: what is recorded; [`chain`]: the files, and how they are verified
//! - this file: the queue and its writer

pub mod chain;
pub mod record;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use metrics::counter;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::time::timeout;

use self::chain::Chain;
use self::record::Record;

/// Records that wait to be written.
const QUEUE_MAX: usize = 10_000;

/// How long a response waits for its record if the queue is full. Then the record is lost, and counted.
const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// Between the write of a record and its durability.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Refused requests that are recorded in a second.
const REFUSED_PER_SECOND: u32 = 20;

/// Records that are written at once.
const RECORDS_AT_ONCE: usize = 1000;

/// How long records are gathered before they are written.
const WRITE_EVERY: Duration = Duration::from_millis(50);

/// Between attempts to write.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The folder of the audit log in a data directory.
pub fn folder(data: &Path) -> PathBuf {
    data.join("audit")
}

/// The audit log of a server. Clones share it.
#[derive(Clone)]
pub struct AuditLog {
    /// `None` is the end.
    queue: mpsc::Sender<Option<Record>>,
    lost: Arc<AtomicU64>,
    /// The last second since `opened` with refused requests, and how many were recorded in it.
    refused: Arc<AtomicU64>,
    opened: Instant,
}

/// Writes the records.
pub struct AuditWriter {
    thread: thread::JoinHandle<()>,
    queue: mpsc::Sender<Option<Record>>,
}

impl AuditLog {
    /// Opens the log in a folder, which is created, and starts its writer.
    pub fn open(folder: &Path, keep: Option<Duration>) -> io::Result<(AuditLog, AuditWriter)> {
        let mut chain = Chain::open(folder, keep)?;
        if let Some(bytes) = chain.torn_bytes() {
            chain.append(&[Record::of_server(&format!(
                "recovered: {bytes} bytes of an unfinished record were dropped"
            ))])?;
        }
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let of_writer = Arc::clone(&lost);
        let thread =
            thread::Builder::new().name("audit".to_owned()).spawn(move || write(chain, records, &of_writer))?;
        Ok((
            AuditLog { queue: queue.clone(), lost, refused: Arc::default(), opened: Instant::now() },
            AuditWriter { thread, queue },
        ))
    }

    /// Appends a record. It waits while the queue is full.
    pub async fn record(&self, record: Record) {
        if !matches!(timeout(QUEUE_WAIT, self.queue.send(Some(record))).await, Ok(Ok(()))) {
            self.count_lost();
        }
    }

    /// Appends a record without waiting, where a thread must not wait.
    pub fn record_now(&self, record: Record) {
        if self.queue.try_send(Some(record)).is_err() {
            self.count_lost();
        }
    }

    /// Appends the record of a refused request; of a flood of them only some, so that strangers cannot fill the disk.
    pub fn record_refused(&self, record: impl FnOnce() -> Record) {
        let second = self.opened.elapsed().as_secs();
        // The number of the second, and the records in it.
        let noted = self.refused.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |noted| match noted {
            noted if noted >> 32 != second => Some(second << 32 | 1),
            noted if noted as u32 >= REFUSED_PER_SECOND => None,
            noted => Some(noted + 1),
        });
        match noted {
            Ok(_) => self.record_now(record()),
            Err(_) => counter!("argus_audit_refused_unrecorded_total").increment(1),
        }
    }

    fn count_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        counter!("argus_audit_lost_total").increment(1);
    }
}

impl AuditWriter {
    /// Takes no more records, and returns when all before are durable. It blocks.
    pub fn finish(self) {
        // A writer that has ended has written them; it does not panic.
        let _ = self.queue.blocking_send(None);
        let _ = self.thread.join();
    }
}

fn write(mut chain: Chain, mut records: mpsc::Receiver<Option<Record>>, lost: &AtomicU64) {
    let (mut synced, mut is_dirty, mut is_last, mut is_full) = (Instant::now(), false, false, false);
    while !is_last {
        let mut some = Vec::new();
        if !is_dirty {
            match records.blocking_recv().flatten() {
                Some(first) => some.push(first),
                None => break,
            }
        }
        // Others follow at once on a busy server: waking up for each would take time from requests.
        if !is_full {
            thread::sleep(WRITE_EVERY);
        }
        while some.len() < RECORDS_AT_ONCE && !is_last {
            match records.try_recv() {
                Ok(Some(record)) => some.push(record),
                Ok(None) | Err(TryRecvError::Disconnected) => is_last = true,
                Err(TryRecvError::Empty) => break,
            }
        }
        is_full = some.len() == RECORDS_AT_ONCE;
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let detail = format!("lost: {missing} records, because they could not be written in time");
            some.insert(0, Record::of_server(&detail));
        }
        if !some.is_empty() {
            until_written(|| chain.append(&some));
            is_dirty = true;
        }
        if is_dirty && (is_last || synced.elapsed() >= SYNC_EVERY) {
            until_written(|| chain.sync());
            (synced, is_dirty) = (Instant::now(), false);
        }
    }
}

/// Repeats until there is no error: meanwhile the queue fills, and responses wait for it.
fn until_written(mut action: impl FnMut() -> io::Result<()>) {
    while let Err(error) = action() {
        tracing::error!(%error, "cannot write the audit log; retrying in {RETRY_WAIT:?}");
        thread::sleep(RETRY_WAIT);
    }
}

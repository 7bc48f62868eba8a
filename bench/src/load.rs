//! Uploads at a steady rate, as other vehicles would send them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tempfile::TempDir;

use crate::client::Connection;
use crate::generate::usual_log;

const FILE_BYTES: u64 = 8 << 20;
/// A batch has this many files, and then it is completed.
const FILES_A_BATCH: u64 = 8;
/// Uploads that may be under way at once: a server that is slow for a moment is not spared by it.
const CONNECTIONS: usize = 4;

/// Uploads that go on until they are stopped.
pub struct Load {
    begun: Instant,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    // Holds the file that all of them send.
    _folder: TempDir,
}

struct Shared {
    address: String,
    log: PathBuf,
    pause: Duration,
    stop: AtomicBool,
    /// Uploads that have been begun, and so the time at which the next is due.
    begun: AtomicU64,
    taken: AtomicU64,
}

impl Load {
    /// Begins uploads of 8 MiB at a rate in bytes a second.
    pub fn start(address: &str, bytes_per_second: f64) -> Result<Load> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("load.log");
        let bytes = usual_log(&log, FILE_BYTES, 99)?.bytes;
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            log,
            pause: Duration::from_secs_f64(bytes as f64 / bytes_per_second),
            stop: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        });
        let begun = Instant::now();
        let threads = (0..CONNECTIONS).map(|vehicle| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.upload(100 + vehicle, begun))
        });
        Ok(Load { begun, threads: threads.collect(), shared, _folder: folder })
    }

    /// Stops it; says how many bytes a second were taken.
    pub fn stop(self) -> Result<f64> {
        let taken = self.shared.taken.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64();
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("the load panicked"))??;
        }
        Ok(taken)
    }
}

impl Shared {
    fn upload(&self, vehicle: usize, start: Instant) -> Result<()> {
        let mut connection = Connection::open(&self.address)?;
        let (mut batch, mut files) = (connection.new_batch(vehicle, "7.2.0")?, 0);
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            let due = start + self.pause.mul_f64(number as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let answer = connection.put_file(&format!("/api/v1/batches/{batch}/files/{number}.log"), &self.log)?;
            self.taken.fetch_add(answer["bytes"].as_u64().unwrap_or_default(), Ordering::Relaxed);
            files += 1;
            if files == FILES_A_BATCH {
                connection.complete(&batch)?;
                (batch, files) = (connection.new_batch(vehicle, "7.2.0")?, 0);
            }
        }
        Ok(())
    }
}

//! Background load: uploads at a steady rate, as from other vehicles.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tempfile::TempDir;

use crate::client::Connection;
use crate::generate::default_log;

const FILE_BYTES: u64 = 8 << 20;
/// A batch is completed after this many files.
const FILES_PER_BATCH: u64 = 8;
/// Concurrent uploads, so that a short delay of the server does not reduce the load.
const CONNECTIONS: usize = 4;

/// Uploads that continue until they are stopped.
pub struct Load {
    begun: Instant,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
    // Contains the file that all uploads send.
    _folder: TempDir,
}

struct Shared {
    address: String,
    log: PathBuf,
    pause: Duration,
    stop: AtomicBool,
    /// The number of started uploads; determines when the next one is due.
    begun: AtomicU64,
    taken: AtomicU64,
}

impl Load {
    /// Starts uploads of 8 MiB at a rate in bytes per second.
    pub fn start(address: &str, bytes_per_second: f64) -> Result<Load> {
        let folder = tempfile::tempdir()?;
        let log = folder.path().join("load.log");
        let bytes = default_log(&log, FILE_BYTES, 99)?.bytes;
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

    /// Stops the uploads; returns the uploaded bytes per second.
    pub fn stop(self) -> Result<f64> {
        let taken = self.shared.taken.load(Ordering::Relaxed) as f64 / self.begun.elapsed().as_secs_f64();
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("an upload of the background load panicked"))??;
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
            let response = connection.put_file(&format!("/api/v1/batches/{batch}/files/{number}.log"), &self.log)?;
            self.taken.fetch_add(response["bytes"].as_u64().unwrap_or_default(), Ordering::Relaxed);
            files += 1;
            if files == FILES_PER_BATCH {
                connection.complete(&batch)?;
                (batch, files) = (connection.new_batch(vehicle, "7.2.0")?, 0);
            }
        }
        Ok(())
    }
}

//! The state that all tasks of a soak test share: the server's address, the model, the texts, and observations.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::{RwLock, watch};

use crate::soak::model::Model;
use crate::soak::texts::Texts;

/// The number of failures that are listed; further ones are only counted.
const FAILURES_MAX: usize = 100;

/// The shared state.
pub struct State {
    /// When the load began.
    pub begun: Instant,
    /// The seed of all random choices.
    pub seed: u64,
    /// The texts to upload.
    pub texts: Texts,
    /// A read lock is held during each request, the write lock during a comparison.
    pub gate: RwLock<()>,
    /// The last epoch of a response.
    pub epoch: AtomicU64,
    /// Set when the load ends.
    pub stop: AtomicBool,
    /// Host and port of the server while it listens.
    address: watch::Sender<Option<String>>,
    /// How often the server was killed or exited by itself.
    killed: AtomicU64,
    model: Mutex<Model>,
    observations: Mutex<Observations>,
}

/// Observations during the run.
#[derive(Default)]
pub struct Observations {
    /// Requests by kind, and by status or other outcome.
    pub requests: BTreeMap<(&'static str, String), u64>,
    /// 5xx responses by kind of request, status, and the last part of the problem type.
    pub server_errors: BTreeMap<(&'static str, u16, String), u64>,
    /// The longest response times by kind.
    pub longest: BTreeMap<&'static str, Duration>,
    /// The listed failures.
    pub failures: Vec<String>,
    /// The number of all failures.
    pub failure_count: u64,
}

impl State {
    /// The initial state.
    pub fn new(seed: u64, codes_per_rule: usize) -> Result<State> {
        Ok(State {
            begun: Instant::now(),
            seed,
            texts: Texts::generate(seed, codes_per_rule)?,
            gate: RwLock::new(()),
            epoch: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            address: watch::Sender::new(None),
            killed: AtomicU64::new(0),
            model: Mutex::default(),
            observations: Mutex::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The observations.
    pub fn observations(&self) -> MutexGuard<'_, Observations> {
        self.observations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host and port of the server, once it listens.
    pub async fn address(&self) -> String {
        let mut addresses = self.address.subscribe();
        let address = addresses.wait_for(Option::is_some).await.map(|address| address.clone());
        // The sender lives in `self`.
        address.ok().flatten().unwrap_or_default()
    }

    /// Sets the address of the listening server.
    pub fn set_address(&self, address: &str) {
        self.address.send_replace(Some(address.to_owned()));
    }

    /// Call before each kill of the server: from now on, missing responses are allowed.
    pub fn count_kill(&self) {
        self.address.send_replace(None);
        self.killed.fetch_add(1, Ordering::SeqCst);
    }

    /// How often the server was killed.
    pub fn killed(&self) -> u64 {
        self.killed.load(Ordering::SeqCst)
    }

    /// Whether the load ends.
    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Records the epoch of a response.
    pub fn saw_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Records and prints a failure.
    pub fn fail(&self, failure: impl Into<String>) {
        let failure = failure.into();
        let mut observed = self.observations();
        observed.failure_count += 1;
        if observed.failures.len() < FAILURES_MAX {
            let seconds = self.begun.elapsed().as_secs();
            let failure = format!("{}:{:02} {failure}", seconds / 60, seconds % 60);
            eprintln!("FAILED {failure}");
            observed.failures.push(failure);
        }
    }

    /// Counts the outcome of a request.
    pub fn count(&self, kind: &'static str, outcome: impl Into<String>) {
        *self.observations().requests.entry((kind, outcome.into())).or_default() += 1;
    }
}

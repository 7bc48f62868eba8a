//! What all tasks of a soak share: where the server is, the model, the pool of texts, and what was seen.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::{RwLock, watch};

use crate::soak::model::Model;
use crate::soak::texts::Texts;

/// Failures that are reported one by one; of more, only the number is.
const FAILURES_MAX: usize = 100;

/// What all tasks share.
pub struct State {
    /// When the load began.
    pub begun: Instant,
    /// Names the run's random choices.
    pub seed: u64,
    /// What can be sent.
    pub texts: Texts,
    /// Clients hold it for reading while they send a request; whoever compares holds it for writing.
    pub gate: RwLock<()>,
    /// The last epoch of an answer.
    pub epoch: AtomicU64,
    /// Set when the load is to end.
    pub stop: AtomicBool,
    /// Host and port of the server, while it listens.
    address: watch::Sender<Option<String>>,
    /// How often the server was killed, or ended otherwise.
    killed: AtomicU64,
    model: Mutex<Model>,
    seen: Mutex<Seen>,
}

/// What was seen.
#[derive(Default)]
pub struct Seen {
    /// Requests by kind, and by status or what else became of them.
    pub requests: BTreeMap<(&'static str, String), u64>,
    /// 5xx answers by kind of request, status, and the last part of the problem's type.
    pub server_errors: BTreeMap<(&'static str, u16, String), u64>,
    /// The longest times to an answer, by kind.
    pub longest: BTreeMap<&'static str, Duration>,
    /// What was wrong.
    pub failures: Vec<String>,
    /// How often something was wrong.
    pub failure_count: u64,
}

impl State {
    /// Nothing has happened.
    pub fn new(seed: u64, codes_per_rule: usize) -> Result<State> {
        Ok(State {
            begun: Instant::now(),
            seed,
            texts: Texts::make(seed, codes_per_rule)?,
            gate: RwLock::new(()),
            epoch: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            address: watch::Sender::new(None),
            killed: AtomicU64::new(0),
            model: Mutex::default(),
            seen: Mutex::default(),
        })
    }

    /// The model.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host and port of the server, once it listens.
    pub async fn address(&self) -> String {
        let mut addresses = self.address.subscribe();
        let address = addresses.wait_for(Option::is_some).await.map(|address| address.clone());
        // The sender lives in `self`.
        address.ok().flatten().unwrap_or_default()
    }

    /// The server listens there.
    pub fn listens(&self, address: &str) {
        self.address.send_replace(Some(address.to_owned()));
    }

    /// The server is about to be killed: answers that do not come from now on are lost.
    pub fn is_killed(&self) {
        self.address.send_replace(None);
        self.killed.fetch_add(1, Ordering::SeqCst);
    }

    /// How often the server was killed.
    pub fn killed(&self) -> u64 {
        self.killed.load(Ordering::SeqCst)
    }

    /// Whether the load is to end.
    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Takes in the epoch of an answer.
    pub fn saw_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Something is wrong.
    pub fn fail(&self, failure: impl Into<String>) {
        let failure = failure.into();
        let mut seen = self.seen();
        seen.failure_count += 1;
        if seen.failures.len() < FAILURES_MAX {
            let seconds = self.begun.elapsed().as_secs();
            let failure = format!("{}:{:02} {failure}", seconds / 60, seconds % 60);
            eprintln!("FAILED {failure}");
            seen.failures.push(failure);
        }
    }

    /// Counts what became of a request.
    pub fn count(&self, kind: &'static str, outcome: impl Into<String>) {
        *self.seen().requests.entry((kind, outcome.into())).or_default() += 1;
    }
}

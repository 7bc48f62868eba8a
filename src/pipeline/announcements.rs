//! What other processes must learn beside the steps of the lake: which batches have changed in the metadata, so that cached
//! answers are not used any more and followers are woken.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;
use uuid::Uuid;

/// Announcements that a receiver may be behind; one that is further behind begins anew.
const BEHIND_MAX: usize = 8192;

/// A change of the metadata.
#[derive(Debug, Clone)]
pub enum Change {
    /// These batches have changed.
    Batches(Arc<[Uuid]>),
    /// Tokens have changed.
    Tokens,
}

/// A change, and its number from 1.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The number.
    pub number: u64,
    /// The change.
    pub change: Change,
}

/// Tells receivers of changes. Clones share the receivers.
#[derive(Debug, Clone)]
pub struct Announcements {
    receivers: broadcast::Sender<Announcement>,
    /// Of the last change.
    number: Arc<Mutex<u64>>,
}

impl Default for Announcements {
    fn default() -> Announcements {
        Announcements { receivers: broadcast::Sender::new(BEHIND_MAX), number: Arc::default() }
    }
}

impl Announcements {
    /// Tells of a change after its commit, and before the epoch in which readers see it is closed.
    pub fn announce(&self, change: Change) {
        let mut number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        *number += 1;
        // Fails without receivers.
        let _ = self.receivers.send(Announcement { number: *number, change });
    }

    /// The number of the last change.
    pub fn last(&self) -> u64 {
        *self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives the changes from now on. Also returns the number of the last one.
    pub fn subscribe(&self) -> (u64, broadcast::Receiver<Announcement>) {
        let number = self.number.lock().unwrap_or_else(PoisonError::into_inner);
        (*number, self.receivers.subscribe())
    }
}

//! What other processes must learn beside the steps of the lake: which batches have changed in the metadata, so that cached
//! answers are not used any more and followers are woken.

use std::sync::Arc;

use tokio::sync::broadcast;
use uuid::Uuid;

/// Announcements that a receiver may be behind; one that is further behind begins anew.
const BEHIND_MAX: usize = 8192;

/// A change of the metadata.
#[derive(Debug, Clone)]
pub enum Announcement {
    /// These batches have changed.
    Changed(Arc<[Uuid]>),
    /// Tokens have changed.
    Tokens,
}

/// Tells receivers of changes. Clones share the receivers.
#[derive(Debug, Clone)]
pub struct Announcements(broadcast::Sender<Announcement>);

impl Default for Announcements {
    fn default() -> Announcements {
        Announcements(broadcast::Sender::new(BEHIND_MAX))
    }
}

impl Announcements {
    /// Tells of a change after its commit, and before the epoch in which readers see it is closed.
    pub fn announce(&self, announcement: impl FnOnce() -> Announcement) {
        if self.0.receiver_count() > 0 {
            // The last receiver may have gone.
            let _ = self.0.send(announcement());
        }
    }

    /// Receives the changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Announcement> {
        self.0.subscribe()
    }
}

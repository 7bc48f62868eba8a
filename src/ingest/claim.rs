//! The resources of an upload until it is accepted.
//!
//! From its first byte on, an upload has bytes in the raw store, and occurrences
//! and counts in the dataflow. They belong to its [`Claim`]. If the claim is dropped
//! before it is accepted, the dataflow drops the versions and the bytes are deleted.
//! While the claim exists, the bytes are known to be in use, independent of any clock.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argus_dataflow::VersionId;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::domain::batch::Versions;

/// The uploads that are neither accepted nor discarded. Clones share them.
#[derive(Debug, Clone)]
pub struct Claims {
    open: Arc<Mutex<HashSet<VersionId>>>,
    dropped: mpsc::UnboundedSender<Option<Dropped>>,
}

/// An upload that is not accepted yet.
#[derive(Debug)]
pub struct Claim {
    claims: Claims,
    batch_id: Uuid,
    versions: Versions,
    is_accepted: bool,
}

/// An upload to discard.
#[derive(Debug)]
struct Dropped {
    batch_id: Uuid,
    versions: Versions,
}

/// The uploads whose claims are dropped.
pub struct Reclaimer {
    claims: Claims,
    dropped: mpsc::UnboundedReceiver<Option<Dropped>>,
}

impl Claims {
    /// No claims, and the reclaimer for dropped ones.
    pub fn new() -> (Claims, Reclaimer) {
        let (dropped, receiver) = mpsc::unbounded_channel();
        let claims = Claims { open: Arc::default(), dropped };
        (claims.clone(), Reclaimer { claims, dropped: receiver })
    }

    /// Claims the versions of an upload that begins.
    pub fn claim(&self, batch_id: Uuid, versions: Versions) -> Claim {
        self.lock().insert(versions.whole_lines);
        Claim { claims: self.clone(), batch_id, versions, is_accepted: false }
    }

    /// Whether the bytes of a version belong to an upload that is under way.
    pub fn is_open(&self, version: VersionId) -> bool {
        self.lock().contains(&version)
    }

    /// Makes the reclaimer end after it has processed the claims dropped before.
    pub fn close(&self) {
        // A reclaimer that has ended needs no message.
        let _ = self.dropped.send(None);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<VersionId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The upload is accepted: its bytes and counts now belong to the batch.
    pub fn accepted(mut self) {
        self.is_accepted = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_accepted {
            self.claims.lock().remove(&self.versions.whole_lines);
            return;
        }
        let Claim { batch_id, versions, .. } = *self;
        // If the server has stopped, the next start deletes the bytes.
        let _ = self.claims.dropped.send(Some(Dropped { batch_id, versions }));
    }
}

impl Reclaimer {
    /// The next upload to discard, with its batch; `None` when the claims are closed.
    pub async fn next(&mut self) -> Option<(Uuid, Versions)> {
        self.dropped.recv().await?.map(|Dropped { batch_id, versions }| (batch_id, versions))
    }

    /// An upload is discarded: nothing of it is left.
    pub fn discarded(&self, versions: Versions) {
        self.claims.lock().remove(&versions.whole_lines);
    }
}

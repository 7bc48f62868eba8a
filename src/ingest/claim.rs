//! What belongs to an upload until it is accepted.
//!
//! From its first byte on, an upload has bytes in the raw store, and occurrences
//! and counts in the dataflow. All of that belongs to its [`Claim`]: dropped
//! without having been accepted, wherever that happens, the dataflow forgets the
//! versions and the bytes are deleted. While the claim is there the bytes are
//! known to be in use, whatever any clock says.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argus_dataflow::VersionId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::model::Versions;
use crate::pipeline::WeakPipeline;
use crate::raw::RawStore;

/// The uploads that are neither accepted nor forgotten. Clones are the same.
#[derive(Debug, Clone)]
pub struct Claims {
    open: Arc<Mutex<HashSet<VersionId>>>,
    dropped: mpsc::UnboundedSender<Option<Dropped>>,
}

/// An upload that nobody has accepted yet.
#[derive(Debug)]
pub struct Claim {
    claims: Claims,
    batch_id: Uuid,
    versions: Versions,
    is_accepted: bool,
}

/// An upload that nobody will accept.
#[derive(Debug)]
struct Dropped {
    batch_id: Uuid,
    versions: Versions,
}

/// Forgets what was dropped.
pub struct Reclaimer {
    claims: Claims,
    dropped: mpsc::UnboundedReceiver<Option<Dropped>>,
}

impl Claims {
    /// No claims, and who forgets those that are dropped.
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

    /// Has the reclaimer end when it has forgotten what was dropped before.
    pub fn close(&self) {
        // One that has ended is closed.
        let _ = self.dropped.send(None);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<VersionId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The upload is accepted: its bytes and counts are the batch's now.
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
        // A server that has stopped finds the bytes when it starts again.
        let _ = self.claims.dropped.send(Some(Dropped { batch_id, versions }));
    }
}

impl Reclaimer {
    /// Forgets what is dropped, until the claims are closed.
    pub fn start(mut self, pipeline: WeakPipeline, raw: RawStore) -> JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(Some(Dropped { batch_id, versions })) = self.dropped.recv().await {
                let Versions { whole_lines, open_line } = versions;
                pipeline.abandon(whole_lines).await;
                pipeline.abandon(open_line).await;
                if let Err(error) = raw.delete(batch_id, whole_lines).await {
                    tracing::warn!(%error, "the bytes of an upload that was not accepted stay until the next clean-up");
                }
                self.claims.lock().remove(&whole_lines);
            }
        })
    }
}

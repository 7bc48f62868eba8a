//! Files that could not be counted since the start, for the operator of the server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use argus_dataflow::{FileRow, VersionId};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use uuid::Uuid;

/// How many of the last failures are listed; reports contain all of them.
const LAST_MAX: usize = 100;

/// A file that could not be counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FailedFile {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub file: String,
    /// The reason.
    pub failure: String,
}

/// Receives the recorded failures: each version with the reason.
pub type NotedFailures = mpsc::UnboundedReceiver<(VersionId, String)>;

/// The last files that failed. Clones share the list.
#[derive(Debug, Clone)]
pub struct Failures {
    last: Arc<Mutex<VecDeque<FailedFile>>>,
    noted: mpsc::UnboundedSender<(VersionId, String)>,
}

impl Failures {
    /// An empty list, and the receiver of the recorded failures.
    pub fn new() -> (Failures, NotedFailures) {
        let (noted, receiver) = mpsc::unbounded_channel();
        (Failures { last: Arc::default(), noted }, receiver)
    }

    /// Logs and records a failed file. Does nothing if the row has no failure.
    pub fn note(&self, row: &FileRow) {
        let Some(failure) = &row.failure else { return };
        tracing::error!(batch.id = %row.batch_id, file.name = row.name, failure, "a file could not be counted");
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == LAST_MAX {
            last.pop_front();
        }
        // If the server is stopping, the failure is recorded after the next start or is in the lake.
        let _ = self.noted.send((row.version, failure.clone()));
        last.push_back(FailedFile { batch_id: row.batch_id, file: row.name.clone(), failure: failure.clone() });
    }

    /// The last failures, oldest first.
    pub fn last(&self) -> Vec<FailedFile> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

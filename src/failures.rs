//! Files that could not be counted since the start, for whoever operates the server.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use argus_dataflow::{FileRow, VersionId};
use serde::Serialize;
use tokio::sync::mpsc;
use utoipa::ToSchema;
use uuid::Uuid;

/// So many are remembered, the last ones; reports name them all.
const REMEMBERED_MAX: usize = 100;

/// A file that could not be counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FailedFile {
    /// The batch.
    pub batch_id: Uuid,
    /// The file's name.
    pub file: String,
    /// Why.
    pub failure: String,
}

/// The last files that failed. Clones are the same.
#[derive(Debug, Clone)]
pub struct Failures {
    last: Arc<Mutex<VecDeque<FailedFile>>>,
    noted: mpsc::UnboundedSender<(VersionId, String)>,
}

impl Failures {
    /// None so far, and where those go that are noted: each version, with the reason.
    pub fn new() -> (Failures, mpsc::UnboundedReceiver<(VersionId, String)>) {
        let (noted, receiver) = mpsc::unbounded_channel();
        (Failures { last: Arc::default(), noted }, receiver)
    }

    /// Logs and remembers a file whose row says that it failed.
    pub fn note(&self, row: &FileRow) {
        let Some(failure) = &row.failure else { return };
        tracing::error!(batch.id = %row.batch_id, file.name = row.name, failure, "a file failed: it has no counts");
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == REMEMBERED_MAX {
            last.pop_front();
        }
        // A server that stops notes it after the next start, or the lake says it.
        let _ = self.noted.send((row.version, failure.clone()));
        last.push_back(FailedFile { batch_id: row.batch_id, file: row.name.clone(), failure: failure.clone() });
    }

    /// Those that are remembered, oldest first.
    pub fn last(&self) -> Vec<FailedFile> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

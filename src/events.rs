//! What happens to batches, as events.
//!
//! Events are written in the same transaction as what they tell, so none is
//! missing and none tells of something that did not happen. Those that tell of
//! counts are written ahead: they hold when the frontier has passed their epoch,
//! which alone decides it, and are told then ([`EventKind::waits_for_frontier`]).

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::status::BatchStatus;

/// Something that happened to a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Later in order than those of all events before it.
    pub event_id: Uuid,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// Of the event's form.
    pub version: u32,
    /// The batch.
    pub batch_id: Uuid,
    /// The last epoch that was accepted when it happened.
    pub epoch: u64,
    /// RFC 3339, UTC.
    pub occurred_at: String,
}

/// What can happen to a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event_type")]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum EventKind {
    BatchCreated,
    BatchStatusChanged { from: BatchStatus, to: BatchStatus },
    FileUploaded { file: String, generation: u32, bytes: u64, lines: u64 },
    FileReplaced { file: String, generation: u32, bytes: u64, lines: u64 },
    FileDeleted { file: String, generation: u32 },
    FileParsed { file: String, generation: u32 },
    AllFilesScattered,
    AllFilesGathered { total_lines: u64, error_codes: u64 },
    DiagnosisCompleted,
}

impl EventKind {
    /// Whether it is told only when the frontier has passed the event's epoch.
    pub fn waits_for_frontier(&self) -> bool {
        match self {
            EventKind::FileParsed { .. } | EventKind::AllFilesGathered { .. } | EventKind::DiagnosisCompleted => true,
            EventKind::BatchStatusChanged { to, .. } => to.is_gathered(),
            _ => false,
        }
    }
}

impl Event {
    /// An event that happens now.
    pub fn new(batch_id: Uuid, epoch: u64, kind: EventKind, now: i64) -> Event {
        let occurred_at = DateTime::<Utc>::from_timestamp_micros(now).unwrap_or_default();
        Event {
            event_id: Uuid::now_v7(),
            kind,
            version: 1,
            batch_id,
            epoch,
            occurred_at: occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true),
        }
    }
}

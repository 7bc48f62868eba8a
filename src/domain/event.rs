//! The events of batches.
//!
//! An event is written in the same transaction as its change, so that events and changes
//! always match. Events about counts are written in advance, and are published only
//! when the frontier has passed their epoch ([`EventKind::waits_for_frontier`]).

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::status::BatchStatus;

/// Something that happened to a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its id. Ids increase in the order of the events.
    pub event_id: Uuid,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// The version of the event format.
    pub version: u32,
    /// The batch.
    pub batch_id: Uuid,
    /// The epoch of the change.
    pub epoch: u64,
    /// When it happened: RFC 3339, UTC.
    pub occurred_at: String,
}

/// What can happen to a batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event_type")]
#[expect(missing_docs, reason = "the names explain the variants")]
pub enum EventKind {
    BatchCreated,
    BatchStatusChanged {
        from: BatchStatus,
        to: BatchStatus,
    },
    FileUploaded {
        file: String,
        generation: u32,
        bytes: u64,
        lines: u64,
    },
    FileReplaced {
        file: String,
        generation: u32,
        bytes: u64,
        lines: u64,
    },
    FileDeleted {
        file: String,
        generation: u32,
    },
    FileParsed {
        file: String,
        generation: u32,
    },
    AllFilesScattered,
    AllFilesGathered {
        total_lines: u64,
        error_codes: u64,
    },
    DiagnosisCompleted {
        /// In a sentence.
        #[serde(default)]
        summary: String,
        /// The codes that stand out, those that say most first.
        #[serde(default)]
        top_codes: Vec<String>,
        /// Tokens of a language model.
        #[serde(default)]
        tokens: u64,
        /// What they cost; null without prices.
        #[serde(default)]
        cost: Option<f64>,
    },
}

impl EventKind {
    /// A diagnosis of the findings alone. Its summary and codes are filled in when it is published.
    pub fn diagnosis_of_findings() -> EventKind {
        EventKind::DiagnosisCompleted { summary: String::new(), top_codes: Vec::new(), tokens: 0, cost: None }
    }

    /// Whether it is published only when the frontier has passed the event's epoch.
    pub fn waits_for_frontier(&self) -> bool {
        match self {
            EventKind::FileParsed { .. }
            | EventKind::AllFilesGathered { .. }
            | EventKind::DiagnosisCompleted { .. } => true,
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

//! What happens to batches, as events.
//!
//! Events are written in the same transaction as what they tell, so none is
//! missing and none tells of something that did not happen. Readers in this
//! process wait on [`EventLog::changed`] and read on from where they were.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
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

/// Says when there are new events. Clones say the same.
#[derive(Debug, Clone)]
pub struct EventLog {
    rounds: watch::Receiver<u64>,
}

/// The end of an [`EventLog`] that its writer has.
#[derive(Debug)]
pub struct EventLogWriter {
    rounds: watch::Sender<u64>,
}

impl EventLog {
    /// A log and its writer's end.
    pub fn new() -> (EventLogWriter, EventLog) {
        let (sender, rounds) = watch::channel(0);
        (EventLogWriter { rounds: sender }, EventLog { rounds })
    }

    /// Waits until events were written since the last call; false when there will be no more.
    pub async fn changed(&mut self) -> bool {
        self.rounds.changed().await.is_ok()
    }
}

impl EventLogWriter {
    /// Tells readers that events have been written, durably.
    pub fn written(&self) {
        self.rounds.send_modify(|rounds| *rounds += 1);
    }
}

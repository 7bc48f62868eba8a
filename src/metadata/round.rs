//! Changes that are accepted together, at one epoch.

mod batches;
mod files;

use std::collections::HashSet;

use argus_dataflow::{Change, FileRow, Recall, VersionId};
use argus_sinks::LakeState;
use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{Sqlite, Transaction};
use uuid::Uuid;

pub use self::files::{Accepted, UploadKey};
use crate::events::{Event, EventKind};
use crate::metadata::changes::Changes;
use crate::metadata::rows::{json, read_batch};
use crate::metadata::{JournalEntry, Lines, MetadataError, Refused, Text};
use crate::model::Batch;

// Each call of the connection is a walk to its thread and back, so statements that belong together go in one.

const JOURNAL: &str = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)";

/// The last entry, and the epoch itself. The last epoch has its time, and of those before a row a second is enough.
const JOURNAL_END: &str = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?); \
    DELETE FROM epochs WHERE epoch = (SELECT max(epoch) FROM epochs) \
    AND at < (SELECT at FROM epochs ORDER BY epoch DESC LIMIT 1 OFFSET 1) + 1000000; \
    INSERT INTO epochs VALUES (?, ?); UPDATE clock SET epoch = ?";

/// Events that are forgotten in one round at the most.
const EVENTS_FORGOTTEN_MAX: u32 = 10_000;

/// Changes that are accepted together, at one epoch.
pub struct Round<'c> {
    transaction: Transaction<'c, Sqlite>,
    epoch: u64,
    entries: Vec<JournalEntry>,
    /// The entries whose lines nobody has fed yet.
    unfed: Vec<usize>,
    events: Vec<Event>,
    changes: &'c Changes,
    changed: HashSet<Uuid>,
}

/// What the lake holds, and what of that was erased from the raw store.
#[derive(Debug, Clone)]
pub struct Erased {
    /// The epoch that the lake holds, and its tables' versions.
    pub lake: LakeState,
    /// Versions whose bytes are gone.
    pub versions: Vec<VersionId>,
    /// Epoch and position of the entries of the journal whose bytes could not be deleted yet.
    pub pending: Vec<(u64, u64)>,
}

/// What a committed round leaves to do.
#[derive(Debug)]
pub struct Committed {
    /// To feed at the round's epoch. With none, the epoch was not used and the next round has it again.
    pub changes: Vec<Change>,
    /// Lines to feed before, each with the change that admits it.
    pub lines: Vec<(FileRow, Text)>,
    /// The batches with new events.
    pub told: HashSet<Uuid>,
}

impl<'c> Round<'c> {
    pub(super) fn new(transaction: Transaction<'c, Sqlite>, epoch: u64, changes: &'c Changes) -> Round<'c> {
        let (entries, unfed, events) = (Vec::new(), Vec::new(), Vec::new());
        Round { transaction, epoch, entries, unfed, events, changes, changed: HashSet::new() }
    }

    /// The epoch of what this round accepts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Tells the dataflow of a batch that nothing happened to for a while, before something does.
    pub fn recall(&mut self, recall: Recall) {
        self.enter(Change::Recall(Box::new(recall)), Lines::None);
    }

    /// Has the dataflow forget a generation, at this round's epoch.
    pub fn abandon(&mut self, version: VersionId) {
        self.enter(Change::Abandon(version), Lines::None);
    }

    /// Forgets idempotency keys, and events and times of epochs, from before these times. Says whether there are
    /// more events to forget.
    pub async fn forget_before(&mut self, keys: i64, past: i64) -> Result<bool, MetadataError> {
        sqlx::query("DELETE FROM idempotency WHERE at < ?").bind(keys).execute(&mut *self.transaction).await?;
        // Events are in order of time, so the oldest say whether there is anything to forget.
        let before = DateTime::<Utc>::from_timestamp_micros(past).unwrap_or_default();
        let forgotten = sqlx::query(
            "DELETE FROM events WHERE position IN (SELECT position FROM events ORDER BY position LIMIT ?) \
             AND json_extract(event, '$.occurred_at') < ?",
        )
        .bind(EVENTS_FORGOTTEN_MAX)
        .bind(before.to_rfc3339_opts(SecondsFormat::Micros, true))
        .execute(&mut *self.transaction)
        .await?;
        // The last one before the time still says what the horizon is.
        sqlx::query("DELETE FROM epochs WHERE epoch < (SELECT max(epoch) FROM epochs WHERE at < ?)")
            .bind(past)
            .execute(&mut *self.transaction)
            .await?;
        Ok(forgotten.rows_affected() == u64::from(EVENTS_FORGOTTEN_MAX))
    }

    /// The lake holds everything up to an epoch: the journal up to it is forgotten, but for what is yet to be erased.
    pub async fn lake_committed(&mut self, erased: &Erased) -> Result<(), MetadataError> {
        for version in &erased.versions {
            sqlx::query("DELETE FROM appended WHERE version = ?")
                .bind(version.0.to_string())
                .execute(&mut *self.transaction)
                .await?;
        }
        sqlx::query(
            "DELETE FROM journal WHERE epoch <= ?1 AND (epoch, position) NOT IN \
             (SELECT kept.value ->> 0, kept.value ->> 1 FROM json_each(?2) AS kept)",
        )
        .bind(erased.lake.epoch as i64)
        .bind(json(&erased.pending)?)
        .execute(&mut *self.transaction)
        .await?;
        sqlx::query("INSERT OR REPLACE INTO lake VALUES (1, ?, ?)")
            .bind(erased.lake.epoch as i64)
            .bind(json(&erased.lake.versions)?)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// Makes the round durable.
    pub async fn commit(mut self) -> Result<Committed, MetadataError> {
        for event in &self.events {
            sqlx::query("INSERT INTO events (batch_id, event) VALUES (?, ?)")
                .bind(event.batch_id.to_string())
                .bind(json(event)?)
                .execute(&mut *self.transaction)
                .await?;
        }
        for (position, entry) in self.entries.iter().enumerate() {
            let (encoding, text) = match &entry.lines {
                Lines::None => (None, None),
                Lines::Stored(encoding) => (Some(json(encoding)?), None),
                Lines::Here(text) => (None, Some(text)),
            };
            let is_last = position + 1 == self.entries.len();
            let mut query = sqlx::query(if is_last { JOURNAL_END } else { JOURNAL })
                .bind(self.epoch as i64)
                .bind(position as i64)
                .bind(json(&entry.change)?)
                .bind(encoding)
                .bind(text.map(|text| &text.text[..]))
                .bind(text.map(|text| text.lines_before as i64))
                .bind(text.map(|text| text.bytes_before as i64));
            if is_last {
                query = query.bind(self.epoch as i64).bind(Utc::now().timestamp_micros()).bind(self.epoch as i64);
            }
            query.execute(&mut *self.transaction).await?;
        }
        let committed = self.transaction.commit().await;
        // Also after an error, which does not say that nothing happened.
        self.changed.iter().for_each(|batch_id| self.changes.changed(*batch_id));
        committed?;
        let unfed = self.unfed.iter().filter_map(|&index| match &self.entries[index] {
            JournalEntry { change: Change::Admit(file), lines: Lines::Here(text) } => {
                Some((file.clone(), text.clone()))
            }
            _ => None,
        });
        let lines = unfed.collect();
        let changes = self.entries.into_iter().map(|entry| entry.change).collect();
        Ok(Committed { changes, lines, told: self.changed })
    }

    fn tell(&mut self, batch_id: Uuid, kind: EventKind, now: i64) {
        self.changed.insert(batch_id);
        self.events.push(Event::new(batch_id, self.epoch, kind, now));
    }

    async fn batch(&mut self, id: Uuid) -> Result<Batch, Refused> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        let row = row.fetch_optional(&mut *self.transaction).await?.ok_or(Refused::BatchNotFound(id))?;
        Ok(read_batch(&row)?)
    }

    fn enter(&mut self, change: Change, lines: Lines) {
        self.entries.push(JournalEntry { change, lines });
    }

    async fn touch(&mut self, id: Uuid, now: i64) -> Result<(), sqlx::Error> {
        self.changed.insert(id);
        sqlx::query("UPDATE batches SET updated_at = ?, epoch = ? WHERE id = ?")
            .bind(now)
            .bind(self.epoch as i64)
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

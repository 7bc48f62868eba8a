//! A round: changes that commit in one transaction, at one epoch.

mod batches;
mod files;

use std::collections::HashSet;

use argus_dataflow::{Change, FileRow, LoadedBatch, VersionId};
use argus_sinks::LakeState;
use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{Sqlite, Transaction};
use uuid::Uuid;

pub use self::files::UploadKey;
use crate::domain::batch::Batch;
use crate::domain::event::{Event, EventKind};
use crate::metadata::changes::ChangeCounters;
use crate::metadata::rows::{json, read_batch};
use crate::metadata::{JournalEntry, Lines, MetadataError, Refused, Text};

// Each call is a round trip to the thread of the connection, so statements that belong together are sent as one.

const JOURNAL: &str = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)";

/// Inserts the last entry and the epoch. One row per second is enough for earlier epochs, so the newest of them is
/// deleted if it is less than 1 s after the one before it.
const JOURNAL_END: &str = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?); \
    DELETE FROM epochs WHERE epoch = (SELECT max(epoch) FROM epochs) \
    AND at < (SELECT at FROM epochs ORDER BY epoch DESC LIMIT 1 OFFSET 1) + 1000000; \
    INSERT INTO epochs VALUES (?, ?); UPDATE clock SET epoch = ?";

/// The maximum number of events that one round deletes.
const EVENTS_DELETED_MAX: u32 = 10_000;

/// Changes that commit in one transaction, at one epoch.
pub struct Round<'c> {
    transaction: Transaction<'c, Sqlite>,
    epoch: u64,
    entries: Vec<JournalEntry>,
    /// Indexes of the entries whose lines are not yet inserted into the dataflow.
    not_inserted: Vec<usize>,
    events: Vec<Event>,
    changes: &'c ChangeCounters,
    changed: HashSet<Uuid>,
}

/// A commit of the lake, and what was then erased from the raw store.
#[derive(Debug, Clone)]
pub struct Erased {
    /// The committed epoch, and the versions of the tables.
    pub lake: LakeState,
    /// Versions whose bytes were deleted.
    pub versions: Vec<VersionId>,
    /// Epoch and position of the journal entries whose bytes could not be deleted yet.
    pub pending: Vec<(u64, u64)>,
}

/// What remains to be done after the commit of a round.
#[derive(Debug)]
pub struct Committed {
    /// The changes at the round's epoch. If there are none, the epoch is unused and the next round gets it.
    pub changes: Vec<Change>,
    /// Lines to insert before the epoch is advanced, each with the row that admits them.
    pub lines: Vec<(FileRow, Text)>,
    /// The batches that changed.
    pub changed: HashSet<Uuid>,
}

impl<'c> Round<'c> {
    pub(super) fn new(transaction: Transaction<'c, Sqlite>, epoch: u64, changes: &'c ChangeCounters) -> Round<'c> {
        let (entries, not_inserted, events) = (Vec::new(), Vec::new(), Vec::new());
        Round { transaction, epoch, entries, not_inserted, events, changes, changed: HashSet::new() }
    }

    /// The epoch of the changes in this round.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Loads a batch into the dataflow before it changes.
    pub fn load_batch(&mut self, loaded: LoadedBatch) {
        self.add_entry(Change::LoadBatch(Box::new(loaded)), Lines::None);
    }

    /// Makes the dataflow drop a version that was not accepted, at this round's epoch.
    pub fn abandon(&mut self, version: VersionId) {
        self.add_entry(Change::Abandon(version), Lines::None);
    }

    /// Deletes idempotency keys from before `keys`, and events and epoch times from before `past` (microseconds since
    /// 1970). Returns whether there are more events to delete.
    pub async fn forget_before(&mut self, keys: i64, past: i64) -> Result<bool, MetadataError> {
        sqlx::query("DELETE FROM idempotency WHERE at < ?").bind(keys).execute(&mut *self.transaction).await?;
        // Events are in order of time, so only the oldest need to be checked.
        let before = DateTime::<Utc>::from_timestamp_micros(past).unwrap_or_default();
        let deleted = sqlx::query(
            "DELETE FROM events WHERE position IN (SELECT position FROM events ORDER BY position LIMIT ?) \
             AND json_extract(event, '$.occurred_at') < ?",
        )
        .bind(EVENTS_DELETED_MAX)
        .bind(before.to_rfc3339_opts(SecondsFormat::Micros, true))
        .execute(&mut *self.transaction)
        .await?;
        // The last epoch before the time stays: it is the `since` of the tables.
        sqlx::query("DELETE FROM epochs WHERE epoch < (SELECT max(epoch) FROM epochs WHERE at < ?)")
            .bind(past)
            .execute(&mut *self.transaction)
            .await?;
        Ok(deleted.rows_affected() == u64::from(EVENTS_DELETED_MAX))
    }

    /// Records a commit of the lake. Deletes the journal up to its epoch, except entries whose bytes are pending.
    pub async fn lake_committed(&mut self, erased: &Erased) -> Result<(), MetadataError> {
        for version in &erased.versions {
            sqlx::query("DELETE FROM appended WHERE version = ?")
                .bind(version.0.to_string())
                .execute(&mut *self.transaction)
                .await?;
        }
        sqlx::query(
            "DELETE FROM journal WHERE epoch <= ?1 AND (epoch, position) NOT IN \
             (SELECT pending.value ->> 0, pending.value ->> 1 FROM json_each(?2) AS pending)",
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

    /// Commits the round; it is durable when this returns.
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
                Lines::Inline(text) => (None, Some(text)),
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
        // Also after an error: the commit may have happened.
        self.changed.iter().for_each(|batch_id| self.changes.changed(*batch_id));
        committed?;
        let not_inserted = self.not_inserted.iter().filter_map(|&index| match &self.entries[index] {
            JournalEntry { change: Change::Admit(file), lines: Lines::Inline(text) } => {
                Some((file.clone(), text.clone()))
            }
            _ => None,
        });
        let lines = not_inserted.collect();
        let changes = self.entries.into_iter().map(|entry| entry.change).collect();
        Ok(Committed { changes, lines, changed: self.changed })
    }

    fn add_event(&mut self, batch_id: Uuid, kind: EventKind, now: i64) {
        self.changed.insert(batch_id);
        self.events.push(Event::new(batch_id, self.epoch, kind, now));
    }

    async fn batch(&mut self, id: Uuid) -> Result<Batch, Refused> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        let row = row.fetch_optional(&mut *self.transaction).await?.ok_or(Refused::BatchNotFound(id))?;
        Ok(read_batch(&row)?)
    }

    fn add_entry(&mut self, change: Change, lines: Lines) {
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

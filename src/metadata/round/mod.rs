//! A round: changes that commit in one transaction, at one epoch.

mod batches;
mod catalog;
mod documents;
mod files;
mod records;

use std::collections::HashSet;

use argus_dataflow::{Change, FileRow, LoadedBatch, VersionId};
use argus_sinks::LakeState;
use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{Any, Transaction};
use uuid::Uuid;

pub use self::documents::EventAt;
pub use self::files::UploadKey;
pub use self::records::{Consumed, RefusedPart};
use crate::domain::batch::{Batch, Encoding};
use crate::domain::event::{Event, EventKind};
use crate::metadata::changes::ChangeCounters;
use crate::metadata::dialect::{Dialect, Statements};
use crate::metadata::rows::{count, json, read_batch};
use crate::metadata::{JournalEntry, Lines, MetadataError, Refused, Text};

const JOURNAL: &str = "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)";

/// One row per second is enough for earlier epochs: deletes the newest of them if it is less than 1 s after the one
/// before it.
const DELETE_EPOCH: &str = "DELETE FROM epochs WHERE epoch = (SELECT max(epoch) FROM epochs) \
    AND at < (SELECT at FROM epochs ORDER BY epoch DESC LIMIT 1 OFFSET 1) + 1000000";

/// The maximum number of events that one round deletes.
const EVENTS_DELETED_MAX: u32 = 10_000;

/// Changes that commit in one transaction, at one epoch.
pub struct Round<'c> {
    transaction: Transaction<'c, Any>,
    dialect: Dialect,
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
    pub(super) fn new(
        transaction: Transaction<'c, Any>,
        dialect: Dialect,
        epoch: u64,
        changes: &'c ChangeCounters,
    ) -> Round<'c> {
        let (entries, not_inserted, events) = (Vec::new(), Vec::new(), Vec::new());
        Round { transaction, dialect, epoch, entries, not_inserted, events, changes, changed: HashSet::new() }
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
        self.dialect.query("DELETE FROM idempotency WHERE at < ?").bind(keys).execute(&mut *self.transaction).await?;
        // Events are in order of time, so only the oldest need to be checked.
        let before = DateTime::<Utc>::from_timestamp_micros(past).unwrap_or_default();
        let delete = match self.dialect {
            Dialect::Sqlite => {
                "DELETE FROM events WHERE position IN (SELECT position FROM events ORDER BY position LIMIT ?) \
                 AND json_extract(event, '$.occurred_at') < ?"
            }
            Dialect::Postgres => {
                "DELETE FROM events WHERE position IN (SELECT position FROM events ORDER BY position LIMIT ?) \
                 AND CAST(event AS JSONB) ->> 'occurred_at' < ?"
            }
        };
        let deleted = self
            .dialect
            .query(delete)
            .bind(i64::from(EVENTS_DELETED_MAX))
            .bind(before.to_rfc3339_opts(SecondsFormat::Micros, true))
            .execute(&mut *self.transaction)
            .await?;
        // The last epoch before the time stays: it is the `since` of the tables.
        self.dialect
            .query("DELETE FROM epochs WHERE epoch < (SELECT max(epoch) FROM epochs WHERE at < ?)")
            .bind(past)
            .execute(&mut *self.transaction)
            .await?;
        Ok(deleted.rows_affected() == u64::from(EVENTS_DELETED_MAX))
    }

    /// Records the position of the last event that was published to Kafka.
    pub async fn events_published(&mut self, position: i64) -> Result<(), MetadataError> {
        let save = "INSERT INTO published VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET position = excluded.position";
        self.dialect.query(save).bind(position).execute(&mut *self.transaction).await?;
        Ok(())
    }

    /// Records a commit of the lake. Deletes the journal up to its epoch, except entries whose bytes are pending.
    pub async fn lake_committed(&mut self, erased: &Erased) -> Result<(), MetadataError> {
        for version in &erased.versions {
            self.dialect
                .query("DELETE FROM appended WHERE version = ?")
                .bind(version.0.to_string())
                .execute(&mut *self.transaction)
                .await?;
        }
        let committed = erased.lake.epoch as i64;
        // Only those of withdrawals can be pending.
        let (delete, withdrawals) = (
            "DELETE FROM journal WHERE epoch <= ? AND change NOT LIKE '{\"Withdraw\"%'",
            "SELECT epoch, position FROM journal WHERE epoch <= ?",
        );
        let delete = if erased.pending.is_empty() { "DELETE FROM journal WHERE epoch <= ?" } else { delete };
        self.dialect.query(delete).bind(committed).execute(&mut *self.transaction).await?;
        if !erased.pending.is_empty() {
            let withdrawals = self.dialect.query(withdrawals).bind(committed).fetch_all(&mut *self.transaction).await?;
            for row in &withdrawals {
                let position = (count(row, "epoch")?, count(row, "position")?);
                if !erased.pending.contains(&position) {
                    let delete = self.dialect.query("DELETE FROM journal WHERE epoch = ? AND position = ?");
                    let delete = delete.bind(position.0 as i64).bind(position.1 as i64);
                    delete.execute(&mut *self.transaction).await?;
                }
            }
        }
        self.dialect.query("INSERT INTO lake VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, versions = excluded.versions")
            .bind(erased.lake.epoch as i64)
            .bind(json(&erased.lake.versions)?)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// Commits the round; it is durable when this returns.
    pub async fn commit(mut self) -> Result<Committed, MetadataError> {
        for event in &self.events {
            self.dialect
                .query("INSERT INTO events (batch_id, event) VALUES (?, ?)")
                .bind(event.batch_id.to_string())
                .bind(json(event)?)
                .execute(&mut *self.transaction)
                .await?;
        }
        for (position, entry) in self.entries.iter().enumerate() {
            let (encoding, text) = match &entry.lines {
                Lines::None => (None, None),
                Lines::Stored(encoding) => (Some(json(encoding)?), None),
                // An encoding marks compressed text.
                Lines::Inline(text) => (text.packed.as_ref().map(|_| json(&Encoding::Zstd)).transpose()?, Some(text)),
            };
            let mut statements = Statements::new(self.dialect);
            statements
                .add(JOURNAL)
                .bind(self.epoch as i64)
                .bind(position as i64)
                .bind(json(&entry.change)?)
                .bind(encoding)
                .bind(text.map(|text| text.packed.as_ref().unwrap_or(&text.text).to_vec()))
                .bind(text.map(|text| text.lines_before as i64))
                .bind(text.map(|text| text.bytes_before as i64));
            if position + 1 == self.entries.len() {
                statements
                    .add(DELETE_EPOCH)
                    .add("INSERT INTO epochs VALUES (?, ?)")
                    .bind(self.epoch as i64)
                    .bind(Utc::now().timestamp_micros())
                    .add("UPDATE clock SET epoch = ?")
                    .bind(self.epoch as i64);
            }
            statements.run(&mut self.transaction).await?;
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
        let row = self.dialect.query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        let row = row.fetch_optional(&mut *self.transaction).await?.ok_or(Refused::BatchNotFound(id))?;
        Ok(read_batch(&row)?)
    }

    fn add_entry(&mut self, change: Change, lines: Lines) {
        self.entries.push(JournalEntry { change, lines });
    }

    async fn touch(&mut self, id: Uuid, now: i64) -> Result<(), sqlx::Error> {
        self.changed.insert(id);
        self.dialect
            .query("UPDATE batches SET updated_at = ?, epoch = ? WHERE id = ?")
            .bind(now)
            .bind(self.epoch as i64)
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

//! What is known of batches and files, and the journal of accepted changes.
//!
//! SQLite in one file. One connection writes, in transactions that are on the
//! disk when they return; others read. The journal holds every accepted change
//! until its epoch is in the lake, so that a restart can feed it again.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use argus_dataflow::{BatchRow, Change, FileRow, VersionId};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Connection, Row, Sqlite, SqliteConnection, SqlitePool, Transaction};
use uuid::Uuid;

use crate::events::{Event, EventKind};
use crate::model::{Batch, Encoding, FileTotals, NewBatch, Receipt, StoredUpload};
use crate::status::{BatchEvent, BatchStatus, IllegalTransition};

/// Connections that read at once.
const READERS: u32 = 4;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY, described TEXT NOT NULL, vehicle_id TEXT NOT NULL, vin TEXT NOT NULL, firmware TEXT,
    status TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    epoch INTEGER NOT NULL, completed_epoch INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batches_by_status ON batches (status, id);
CREATE INDEX IF NOT EXISTS batches_by_vin ON batches (vin, id);
CREATE TABLE IF NOT EXISTS files (
    batch_id TEXT NOT NULL, name TEXT NOT NULL, file_id TEXT NOT NULL, generation INTEGER NOT NULL,
    version TEXT NOT NULL, encoding TEXT NOT NULL, bytes INTEGER NOT NULL, lines INTEGER NOT NULL,
    sha256 TEXT NOT NULL, uploaded_at INTEGER NOT NULL, epoch INTEGER NOT NULL,
    PRIMARY KEY (batch_id, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
    epoch INTEGER NOT NULL, position INTEGER NOT NULL, change TEXT NOT NULL, encoding TEXT,
    PRIMARY KEY (epoch, position)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, batch_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    position INTEGER PRIMARY KEY AUTOINCREMENT, batch_id TEXT NOT NULL, event TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_by_batch ON events (batch_id, position);
CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO clock VALUES (1, 0);
";

/// Why metadata could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum MetadataError {
    #[error("the metadata could not be read or written")]
    Database(#[from] sqlx::Error),
    #[error("the metadata holds something that this version does not know: {0}")]
    Unreadable(String),
}

/// Why a change was not accepted. Nothing of it happened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum Refused {
    #[error("there is no batch {0}")]
    BatchNotFound(Uuid),
    #[error("batch {batch} is {status}, so its files cannot change; reopen it (POST …/reopen), or make a new batch")]
    NotPending { batch: Uuid, status: BatchStatus },
    #[error("batch {batch} has no file {name:?}")]
    FileNotFound { batch: Uuid, name: String },
    #[error("the idempotency key was used with another request")]
    KeyReused,
    #[error(transparent)]
    Transition(#[from] IllegalTransition),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Refused::Metadata(error.into())
    }
}

/// A change of the journal, with how its raw bytes are stored where it has some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// What happened.
    pub change: Change,
    /// How the bytes of an admitted generation are stored.
    pub encoding: Option<Encoding>,
}

/// Which batches a listing wants.
#[derive(Debug, Clone, Default)]
pub struct BatchFilter {
    /// Only of this status.
    pub status: Option<BatchStatus>,
    /// Only of this vehicle identification number.
    pub vin: Option<String>,
    /// Only of this vehicle.
    pub vehicle_id: Option<String>,
    /// Only with this firmware.
    pub firmware: Option<String>,
    /// Only batches made before this one.
    pub before: Option<Uuid>,
    /// At most so many.
    pub limit: u32,
}

/// Reads metadata. Clones share connections.
#[derive(Debug, Clone)]
pub struct Metadata {
    readers: SqlitePool,
}

/// The one writer of metadata.
#[derive(Debug)]
pub struct MetadataWriter {
    connection: SqliteConnection,
}

impl Metadata {
    /// Opens the database at `path`, made when it is not there.
    pub async fn open(path: &Path) -> Result<(Metadata, MetadataWriter), MetadataError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        let readers = SqlitePoolOptions::new().max_connections(READERS).connect_with(options.read_only(true)).await?;
        Ok((Metadata { readers }, MetadataWriter { connection }))
    }

    /// A batch by its id.
    pub async fn batch(&self, id: Uuid) -> Result<Option<Batch>, MetadataError> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        row.fetch_optional(&self.readers).await?.as_ref().map(read_batch).transpose()
    }

    /// Batches, newest first.
    pub async fn batches(&self, filter: &BatchFilter) -> Result<Vec<Batch>, MetadataError> {
        let rows = sqlx::query(
            "SELECT * FROM batches WHERE (?1 IS NULL OR status = ?1) AND (?2 IS NULL OR vin = ?2) \
             AND (?3 IS NULL OR vehicle_id = ?3) AND (?4 IS NULL OR firmware = ?4) AND (?5 IS NULL OR id < ?5) \
             ORDER BY id DESC LIMIT ?6",
        )
        .bind(filter.status.map(BatchStatus::word))
        .bind(filter.vin.as_deref())
        .bind(filter.vehicle_id.as_deref())
        .bind(filter.firmware.as_deref())
        .bind(filter.before.map(|id| id.to_string()))
        .bind(filter.limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(read_batch).collect()
    }

    /// Batches that something has yet to happen to by itself.
    pub async fn unfinished(&self) -> Result<Vec<Batch>, MetadataError> {
        let mut all = Vec::new();
        for status in BatchStatus::ALL.into_iter().filter(|status| !status.is_at_rest()) {
            let row = sqlx::query("SELECT * FROM batches WHERE status = ? ORDER BY id").bind(status.word());
            for row in row.fetch_all(&self.readers).await? {
                all.push(read_batch(&row)?);
            }
        }
        Ok(all)
    }

    /// How the files of a batch stand when `epoch` is what readers see.
    pub async fn file_totals(&self, id: Uuid, epoch: u64) -> Result<FileTotals, MetadataError> {
        let row = sqlx::query(
            "SELECT count(*), coalesce(sum(epoch <= ?2), 0), coalesce(sum(bytes), 0), \
             coalesce(sum(bytes * (epoch <= ?2)), 0), coalesce(sum(lines * (epoch <= ?2)), 0) \
             FROM files WHERE batch_id = ?1",
        )
        .bind(id.to_string())
        .bind(epoch as i64)
        .fetch_one(&self.readers)
        .await?;
        let number = |index| row.try_get::<i64, _>(index).map(|value| value.max(0) as u64);
        Ok(FileTotals {
            total_files: number(0)?,
            parsed_files: number(1)?,
            bytes_received: number(2)?,
            bytes_parsed: number(3)?,
            lines: number(4)?,
        })
    }

    /// The events of a batch behind a position, in order, each with its position.
    pub async fn events(&self, id: Uuid, after: i64, limit: u32) -> Result<Vec<(i64, Event)>, MetadataError> {
        let rows = sqlx::query(
            "SELECT position, event FROM events WHERE batch_id = ? AND position > ? ORDER BY position LIMIT ?",
        )
        .bind(id.to_string())
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, from_json(row.try_get(1)?)?))).collect()
    }

    /// The last epoch that was accepted.
    pub async fn last_epoch(&self) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT epoch FROM clock").fetch_one(&self.readers).await?;
        Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
    }

    /// What was accepted at an epoch, in order; empty once it is in the lake.
    pub async fn journal(&self, epoch: u64) -> Result<Vec<JournalEntry>, MetadataError> {
        let rows = sqlx::query("SELECT change, encoding FROM journal WHERE epoch = ? ORDER BY position")
            .bind(epoch as i64)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_entry).collect()
    }
}

impl MetadataWriter {
    /// Begins a round of changes. Nothing of it is there until it is committed.
    pub async fn begin(&mut self) -> Result<Round<'_>, MetadataError> {
        let mut transaction = self.connection.begin().await?;
        let row = sqlx::query("SELECT epoch FROM clock").fetch_one(&mut *transaction).await?;
        let epoch = row.try_get::<i64, _>(0)?.max(0) as u64 + 1;
        Ok(Round { transaction, epoch, entries: Vec::new(), events: Vec::new() })
    }

    /// The last epoch that was accepted, as this connection sees it.
    pub async fn last_epoch(&mut self) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT epoch FROM clock").fetch_one(&mut self.connection).await?;
        Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
    }

    /// Generations that were withdrawn up to `epoch`: their bytes are of no use any more.
    pub async fn withdrawn(&mut self, epoch: u64) -> Result<Vec<(Uuid, VersionId)>, MetadataError> {
        let rows =
            sqlx::query("SELECT change, encoding FROM journal WHERE epoch <= ? AND change LIKE '{\"Withdraw\"%'")
                .bind(epoch as i64)
                .fetch_all(&mut self.connection)
                .await?;
        let mut gone = Vec::new();
        for row in &rows {
            if let Change::Withdraw(file) = read_entry(row)?.change {
                gone.push((file.batch_id, file.version));
            }
        }
        Ok(gone)
    }

    /// Forgets the journal up to `epoch`, which the lake holds.
    pub async fn forget_journal(&mut self, epoch: u64) -> Result<(), MetadataError> {
        sqlx::query("DELETE FROM journal WHERE epoch <= ?").bind(epoch as i64).execute(&mut self.connection).await?;
        Ok(())
    }
}

/// A file that was accepted, or was there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// A name that was not there.
    Created(Receipt),
    /// A new generation of a file.
    Replaced(Receipt),
    /// The same bytes as the current generation: nothing changed.
    Unchanged(Receipt),
}

/// Changes that are accepted together, at one epoch.
pub struct Round<'c> {
    transaction: Transaction<'c, Sqlite>,
    epoch: u64,
    entries: Vec<JournalEntry>,
    events: Vec<Event>,
}

/// What a committed round leaves to do.
#[derive(Debug)]
pub struct Committed {
    /// To feed at the round's epoch. With none, the epoch was not used and the next round has it again.
    pub changes: Vec<Change>,
    /// Whether there are new events.
    pub has_events: bool,
}

impl Round<'_> {
    /// The epoch of what this round accepts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes a batch; with a key that was used before, says the batch it made then.
    pub async fn create_batch(&mut self, described: NewBatch, key: Option<&str>, now: i64) -> Result<Batch, Refused> {
        let request = json(&described)?;
        if let Some(key) = key {
            let before = sqlx::query("SELECT request, batch_id FROM idempotency WHERE key = ?").bind(key);
            if let Some(row) = before.fetch_optional(&mut *self.transaction).await? {
                if row.try_get::<String, _>(0)? != request {
                    return Err(Refused::KeyReused);
                }
                return self.batch(uuid(row.try_get(1)?)?).await;
            }
        }
        let batch = Batch {
            id: Uuid::now_v7(),
            described,
            status: BatchStatus::Pending,
            created_at: now,
            updated_at: now,
            epoch: self.epoch,
            completed_epoch: None,
        };
        sqlx::query(
            "INSERT INTO batches (id, described, vehicle_id, vin, firmware, status, created_at, updated_at, epoch) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8)",
        )
        .bind(batch.id.to_string())
        .bind(&request)
        .bind(&batch.described.vehicle_id)
        .bind(&batch.described.vin)
        .bind(batch.described.firmware.as_deref())
        .bind(batch.status.word())
        .bind(now)
        .bind(self.epoch as i64)
        .execute(&mut *self.transaction)
        .await?;
        if let Some(key) = key {
            sqlx::query("INSERT INTO idempotency VALUES (?, ?, ?)")
                .bind(key)
                .bind(request)
                .bind(batch.id.to_string())
                .execute(&mut *self.transaction)
                .await?;
        }
        self.entries.push(JournalEntry { change: Change::Batch(batch_row(&batch, 1, 0)), encoding: None });
        self.tell(batch.id, EventKind::BatchCreated, now);
        Ok(batch)
    }

    /// Accepts an upload into a pending batch. The generation before it, where
    /// there is one, goes at the same epoch.
    pub async fn accept_file(&mut self, upload: &StoredUpload) -> Result<Accepted, Refused> {
        self.pending(upload.batch_id).await?;
        let before = sqlx::query("SELECT * FROM files WHERE batch_id = ? AND name = ?")
            .bind(upload.batch_id.to_string())
            .bind(&upload.name)
            .fetch_optional(&mut *self.transaction)
            .await?;
        let mut file_id = Uuid::now_v7();
        let mut generation = 1;
        if let Some(row) = &before {
            let current = read_receipt(row)?;
            if current.sha256 == upload.sha256 {
                return Ok(Accepted::Unchanged(current));
            }
            file_id = current.file_id;
            generation = current.generation + 1;
            self.withdraw(upload.batch_id, row)?;
        }
        sqlx::query("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(upload.batch_id.to_string())
            .bind(&upload.name)
            .bind(file_id.to_string())
            .bind(generation)
            .bind(upload.version.0.to_string())
            .bind(json(&upload.encoding)?)
            .bind(upload.bytes as i64)
            .bind(upload.lines as i64)
            .bind(&upload.sha256)
            .bind(upload.uploaded_at)
            .bind(self.epoch as i64)
            .execute(&mut *self.transaction)
            .await?;
        self.touch(upload.batch_id, upload.uploaded_at).await?;
        let admitted = file_row(upload, file_id, generation);
        self.entries.push(JournalEntry { change: Change::Admit(admitted), encoding: Some(upload.encoding) });
        let receipt = Receipt {
            file_id,
            name: upload.name.clone(),
            generation,
            bytes: upload.bytes,
            lines: upload.lines,
            sha256: upload.sha256.clone(),
            epoch: self.epoch,
        };
        let (file, bytes, lines) = (upload.name.clone(), upload.bytes, upload.lines);
        Ok(if before.is_some() {
            let replaced = EventKind::FileReplaced { file, generation, bytes, lines };
            self.tell(upload.batch_id, replaced, upload.uploaded_at);
            Accepted::Replaced(receipt)
        } else {
            let uploaded = EventKind::FileUploaded { file, generation, bytes, lines };
            self.tell(upload.batch_id, uploaded, upload.uploaded_at);
            Accepted::Created(receipt)
        })
    }

    /// Takes a file out of a pending batch.
    pub async fn delete_file(&mut self, batch_id: Uuid, name: &str, now: i64) -> Result<(), Refused> {
        self.pending(batch_id).await?;
        let row = sqlx::query("DELETE FROM files WHERE batch_id = ? AND name = ? RETURNING *")
            .bind(batch_id.to_string())
            .bind(name)
            .fetch_optional(&mut *self.transaction)
            .await?
            .ok_or_else(|| Refused::FileNotFound { batch: batch_id, name: name.to_owned() })?;
        let Receipt { generation, .. } = self.withdraw(batch_id, &row)?;
        self.touch(batch_id, now).await?;
        self.tell(batch_id, EventKind::FileDeleted { file: name.to_owned(), generation }, now);
        Ok(())
    }

    /// Takes a batch with all its files out, and what was told of it.
    pub async fn delete_batch(&mut self, id: Uuid) -> Result<(), Refused> {
        let batch = self.batch(id).await?;
        let files = sqlx::query("DELETE FROM files WHERE batch_id = ? RETURNING *")
            .bind(id.to_string())
            .fetch_all(&mut *self.transaction)
            .await?;
        for row in &files {
            self.withdraw(id, row)?;
        }
        for forget in [
            "DELETE FROM batches WHERE id = ?",
            "DELETE FROM events WHERE batch_id = ?",
            "DELETE FROM idempotency WHERE batch_id = ?",
        ] {
            sqlx::query(forget).bind(id.to_string()).execute(&mut *self.transaction).await?;
        }
        self.events.retain(|event| event.batch_id != id);
        let completed = if batch.completed_epoch.is_some() { -1 } else { 0 };
        self.entries.push(JournalEntry { change: Change::Batch(batch_row(&batch, -1, completed)), encoding: None });
        Ok(())
    }

    /// Opens a completed batch again; says the batch, unchanged when it is open.
    pub async fn reopen(&mut self, id: Uuid, now: i64) -> Result<Batch, Refused> {
        let mut batch = self.batch(id).await?;
        let status = batch.status.after(BatchEvent::Reopen)?;
        if status == batch.status {
            return Ok(batch);
        }
        self.touch(id, now).await?;
        sqlx::query("UPDATE batches SET status = ?, completed_epoch = NULL WHERE id = ?")
            .bind(status.word())
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        self.entries.push(JournalEntry { change: Change::Batch(batch_row(&batch, 0, -1)), encoding: None });
        self.tell(id, EventKind::BatchStatusChanged { from: batch.status, to: status }, now);
        batch.status = status;
        batch.updated_at = now;
        batch.epoch = self.epoch;
        batch.completed_epoch = None;
        Ok(batch)
    }

    /// Completes a pending batch; says the batch, unchanged when it was completed before.
    pub async fn complete(&mut self, id: Uuid, now: i64) -> Result<Batch, Refused> {
        let mut batch = self.batch(id).await?;
        let status = batch.status.after(BatchEvent::Complete)?;
        if status == batch.status {
            return Ok(batch);
        }
        self.touch(id, now).await?;
        sqlx::query("UPDATE batches SET status = ?, completed_epoch = ? WHERE id = ?")
            .bind(status.word())
            .bind(self.epoch as i64)
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        self.entries.push(JournalEntry { change: Change::Batch(batch_row(&batch, 0, 1)), encoding: None });
        self.tell(id, EventKind::BatchStatusChanged { from: batch.status, to: status }, now);
        batch.status = status;
        batch.updated_at = now;
        batch.epoch = self.epoch;
        batch.completed_epoch = Some(self.epoch);
        Ok(batch)
    }

    /// Passes a batch through the statuses that `events` lead to, one after
    /// another. What an event tells beside the status is told with it.
    pub async fn pass(
        &mut self,
        id: Uuid,
        events: &[(BatchEvent, Option<EventKind>)],
        now: i64,
    ) -> Result<(), Refused> {
        let mut status = self.batch(id).await?.status;
        for (event, told) in events {
            let after = status.after(*event)?;
            if after == status {
                continue;
            }
            self.tell(id, EventKind::BatchStatusChanged { from: status, to: after }, now);
            if let Some(told) = told {
                self.tell(id, told.clone(), now);
            }
            status = after;
            tracing::debug!(batch.id = %id, %status, "batch status");
            sqlx::query("UPDATE batches SET status = ?, updated_at = ? WHERE id = ?")
                .bind(status.word())
                .bind(now)
                .bind(id.to_string())
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    /// Has the dataflow forget a generation, at this round's epoch.
    pub fn abandon(&mut self, version: VersionId) {
        self.entries.push(JournalEntry { change: Change::Abandon(version), encoding: None });
    }

    /// Tells that a generation of a file is counted, unless its batch is gone by now.
    pub async fn parsed(
        &mut self,
        batch_id: Uuid,
        file: String,
        generation: u32,
        now: i64,
    ) -> Result<(), MetadataError> {
        match self.batch(batch_id).await {
            Ok(_) => self.tell(batch_id, EventKind::FileParsed { file, generation }, now),
            Err(Refused::Metadata(error)) => return Err(error),
            Err(_) => {}
        }
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
            sqlx::query("INSERT INTO journal VALUES (?, ?, ?, ?)")
                .bind(self.epoch as i64)
                .bind(position as i64)
                .bind(json(&entry.change)?)
                .bind(entry.encoding.map(|encoding| json(&encoding)).transpose()?)
                .execute(&mut *self.transaction)
                .await?;
        }
        if !self.entries.is_empty() {
            let clock = sqlx::query("UPDATE clock SET epoch = ?").bind(self.epoch as i64);
            clock.execute(&mut *self.transaction).await?;
        }
        self.transaction.commit().await?;
        let changes = self.entries.into_iter().map(|entry| entry.change).collect();
        Ok(Committed { changes, has_events: !self.events.is_empty() })
    }

    fn tell(&mut self, batch_id: Uuid, kind: EventKind, now: i64) {
        self.events.push(Event::new(batch_id, self.epoch, kind, now));
    }

    async fn batch(&mut self, id: Uuid) -> Result<Batch, Refused> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        let row = row.fetch_optional(&mut *self.transaction).await?.ok_or(Refused::BatchNotFound(id))?;
        Ok(read_batch(&row)?)
    }

    async fn pending(&mut self, id: Uuid) -> Result<(), Refused> {
        match self.batch(id).await?.status {
            BatchStatus::Pending => Ok(()),
            status => Err(Refused::NotPending { batch: id, status }),
        }
    }

    /// The generation of a row of `files` is live no more; says what it was.
    fn withdraw(&mut self, batch_id: Uuid, row: &SqliteRow) -> Result<Receipt, MetadataError> {
        let receipt = read_receipt(row)?;
        let withdrawn = FileRow {
            batch_id,
            file_id: receipt.file_id,
            version: VersionId(uuid(row.try_get("version")?)?),
            name: receipt.name.clone(),
            generation: receipt.generation,
            live: -1,
            // What it measured goes with it, so nothing is taken back piece by piece.
            bytes: 0,
            lines: 0,
            long_lines: 0,
            error_lines: 0,
            sightings: 0,
            uploaded_at: row.try_get("uploaded_at")?,
        };
        self.entries.push(JournalEntry { change: Change::Withdraw(withdrawn), encoding: None });
        Ok(receipt)
    }

    async fn touch(&mut self, id: Uuid, now: i64) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE batches SET updated_at = ?, epoch = ? WHERE id = ?")
            .bind(now)
            .bind(self.epoch as i64)
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

fn batch_row(batch: &Batch, live: i8, completed: i8) -> BatchRow {
    BatchRow {
        batch_id: batch.id,
        vehicle_id: batch.described.vehicle_id.clone(),
        vin: batch.described.vin.clone(),
        platform: batch.described.platform.clone(),
        firmware: batch.described.firmware.clone(),
        created_at: batch.created_at,
        live,
        completed,
    }
}

fn file_row(upload: &StoredUpload, file_id: Uuid, generation: u32) -> FileRow {
    FileRow {
        batch_id: upload.batch_id,
        file_id,
        version: upload.version,
        name: upload.name.clone(),
        generation,
        live: 1,
        bytes: upload.bytes,
        lines: upload.lines,
        long_lines: upload.long_lines,
        error_lines: 0,
        sightings: 0,
        uploaded_at: upload.uploaded_at,
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, MetadataError> {
    serde_json::to_string(value).map_err(|error| MetadataError::Unreadable(error.to_string()))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, MetadataError> {
    serde_json::from_str(text).map_err(|error| MetadataError::Unreadable(error.to_string()))
}

fn uuid(text: &str) -> Result<Uuid, MetadataError> {
    Uuid::from_str(text).map_err(|error| MetadataError::Unreadable(error.to_string()))
}

fn read_batch(row: &SqliteRow) -> Result<Batch, MetadataError> {
    let status: &str = row.try_get("status")?;
    Ok(Batch {
        id: uuid(row.try_get("id")?)?,
        described: from_json(row.try_get("described")?)?,
        status: status.parse().map_err(|_| MetadataError::Unreadable(format!("status {status:?}")))?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        epoch: row.try_get::<i64, _>("epoch")?.max(0) as u64,
        completed_epoch: row.try_get::<Option<i64>, _>("completed_epoch")?.map(|epoch| epoch.max(0) as u64),
    })
}

fn read_receipt(row: &SqliteRow) -> Result<Receipt, MetadataError> {
    Ok(Receipt {
        file_id: uuid(row.try_get("file_id")?)?,
        name: row.try_get("name")?,
        generation: row.try_get("generation")?,
        bytes: row.try_get::<i64, _>("bytes")?.max(0) as u64,
        lines: row.try_get::<i64, _>("lines")?.max(0) as u64,
        sha256: row.try_get("sha256")?,
        epoch: row.try_get::<i64, _>("epoch")?.max(0) as u64,
    })
}

fn read_entry(row: &SqliteRow) -> Result<JournalEntry, MetadataError> {
    Ok(JournalEntry {
        change: from_json(row.try_get("change")?)?,
        encoding: row.try_get::<Option<&str>, _>("encoding")?.map(from_json).transpose()?,
    })
}

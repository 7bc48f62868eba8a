//! What happens to batches in a round.

use argus_dataflow::{Change, VersionId};
use sqlx::Row;
use uuid::Uuid;

use super::Round;
use crate::events::EventKind;
use crate::metadata::rows::{batch_row, json, read_file, uuid};
use crate::metadata::{Lines, Refused};
use crate::model::{Batch, NewBatch};
use crate::status::{BatchEvent, BatchStatus};

impl Round<'_> {
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
            sqlx::query("INSERT INTO idempotency VALUES (?, ?, ?, NULL, ?)")
                .bind(key)
                .bind(request)
                .bind(batch.id.to_string())
                .bind(now)
                .execute(&mut *self.transaction)
                .await?;
        }
        self.enter(Change::Batch(batch_row(&batch, 1, 0)), Lines::None);
        self.tell(batch.id, EventKind::BatchCreated, now);
        Ok(batch)
    }

    /// Takes a batch with all its files out, and what was told of it.
    pub async fn delete_batch(&mut self, id: Uuid) -> Result<(), Refused> {
        let batch = self.batch(id).await?;
        let files = sqlx::query("DELETE FROM files WHERE batch_id = ? RETURNING *")
            .bind(id.to_string())
            .fetch_all(&mut *self.transaction)
            .await?;
        for row in &files {
            self.withdraw(&read_file(row)?, true);
        }
        for forget in [
            "DELETE FROM batches WHERE id = ?",
            "DELETE FROM events WHERE batch_id = ?",
            "DELETE FROM idempotency WHERE batch_id = ?",
        ] {
            sqlx::query(forget).bind(id.to_string()).execute(&mut *self.transaction).await?;
        }
        self.events.retain(|event| event.batch_id != id);
        self.changed.insert(id);
        let completed = if batch.completed_epoch.is_some() { -1 } else { 0 };
        self.enter(Change::Batch(batch_row(&batch, -1, completed)), Lines::None);
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
        self.enter(Change::Batch(batch_row(&batch, 0, -1)), Lines::None);
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
        sqlx::query("UPDATE batches SET status = ?, completed_epoch = ? WHERE id = ?")
            .bind(BatchStatus::Completed.word())
            .bind(self.epoch as i64)
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        // No part can come any more that a last line could wait for.
        let waiting = sqlx::query("SELECT * FROM files WHERE batch_id = ? AND open_bytes > 0 AND open_version IS NULL")
            .bind(id.to_string())
            .fetch_all(&mut *self.transaction)
            .await?;
        for row in &waiting {
            let mut record = read_file(row)?;
            record.epoch = self.epoch;
            self.unfed.push(self.entries.len());
            self.admit_open_line(&mut record, VersionId::new());
            self.keep(&record).await?;
        }
        self.touch(id, now).await?;
        self.enter(Change::Batch(batch_row(&batch, 0, 1)), Lines::None);
        self.tell_statuses(id, batch.status, now)?;
        // What the request itself led to; the rest is the frontier's.
        batch.status = status;
        batch.updated_at = now;
        batch.epoch = self.epoch;
        batch.completed_epoch = Some(self.epoch);
        Ok(batch)
    }

    /// Tells of all statuses that a completed batch passes. The later ones are told when the frontier has passed this
    /// epoch (see [`crate::events`]): until then the batch is gathering, and nothing else decides that it is not.
    fn tell_statuses(&mut self, id: Uuid, before: BatchStatus, now: i64) -> Result<(), Refused> {
        let events = [
            (BatchEvent::Complete, None),
            (BatchEvent::ScatterBegan, None),
            (BatchEvent::AllFilesScattered, Some(EventKind::AllFilesScattered)),
            (BatchEvent::GatherBegan, None),
            (BatchEvent::AllFilesGathered, Some(EventKind::AllFilesGathered { total_lines: 0, error_codes: 0 })),
            // Nothing makes a diagnosis yet, so it is done, without one, at once.
            (BatchEvent::DiagnosisBegan, None),
            (BatchEvent::DiagnosisCompleted, None),
        ];
        let mut status = before;
        for (event, told) in events {
            let after = status.after(event)?;
            self.tell(id, EventKind::BatchStatusChanged { from: status, to: after }, now);
            if let Some(told) = told {
                self.tell(id, told, now);
            }
            status = after;
        }
        Ok(())
    }
}

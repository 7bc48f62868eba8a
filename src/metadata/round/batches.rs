//! Changes of batches in a round.

use argus_dataflow::{Change, VersionId};
use sqlx::Row;
use uuid::Uuid;

use super::Round;
use crate::domain::batch::{Batch, NewBatch};
use crate::domain::event::EventKind;
use crate::domain::status::{BatchEvent, BatchStatus};
use crate::metadata::rows::{batch_row, json, read_file, uuid};
use crate::metadata::{Lines, Refused};

impl Round<'_> {
    /// Creates a batch. If the key was used before, returns the batch that was created then.
    pub async fn create_batch(&mut self, described: NewBatch, key: Option<&str>, now: i64) -> Result<Batch, Refused> {
        let request = json(&described)?;
        if let Some(key) = key {
            let before = self.dialect.query("SELECT request, batch_id FROM idempotency WHERE key = ?").bind(key);
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
        self.dialect
            .query(
                "INSERT INTO batches (id, described, vehicle_id, vin, firmware, status, created_at, updated_at, epoch) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?8)",
            )
            .bind(batch.id.to_string())
            .bind(&request)
            .bind(&batch.described.vehicle_id)
            .bind(&batch.described.vin)
            .bind(batch.described.firmware.as_deref())
            .bind(batch.status.as_str())
            .bind(now)
            .bind(self.epoch as i64)
            .execute(&mut *self.transaction)
            .await?;
        if let Some(key) = key {
            self.dialect
                .query("INSERT INTO idempotency VALUES (?, ?, ?, NULL, ?)")
                .bind(key)
                .bind(request)
                .bind(batch.id.to_string())
                .bind(now)
                .execute(&mut *self.transaction)
                .await?;
        }
        self.add_entry(Change::Batch(batch_row(&batch, 1, 0)), Lines::None);
        self.add_event(batch.id, EventKind::BatchCreated, now);
        Ok(batch)
    }

    /// Deletes a batch with its files, events, documents and idempotency keys.
    pub async fn delete_batch(&mut self, id: Uuid) -> Result<(), Refused> {
        let batch = self.batch(id).await?;
        let files = self
            .dialect
            .query("DELETE FROM files WHERE batch_id = ? RETURNING *")
            .bind(id.to_string())
            .fetch_all(&mut *self.transaction)
            .await?;
        for row in &files {
            self.withdraw(&read_file(row)?, true);
        }
        for delete in [
            "DELETE FROM batches WHERE id = ?",
            "DELETE FROM events WHERE batch_id = ?",
            "DELETE FROM idempotency WHERE batch_id = ?",
        ] {
            self.dialect.query(delete).bind(id.to_string()).execute(&mut *self.transaction).await?;
        }
        self.delete_documents_of(&id.to_string()).await?;
        self.events.retain(|event| event.batch_id != id);
        self.changed.insert(id);
        let completed = if batch.completed_epoch.is_some() { -1 } else { 0 };
        self.add_entry(Change::Batch(batch_row(&batch, -1, completed)), Lines::None);
        Ok(())
    }

    /// Reopens a completed or failed batch. Returns the batch, unchanged if it is pending.
    pub async fn reopen(&mut self, id: Uuid, now: i64) -> Result<Batch, Refused> {
        let mut batch = self.batch(id).await?;
        let status = batch.status.after(BatchEvent::Reopen)?;
        if status == batch.status {
            return Ok(batch);
        }
        self.touch(id, now).await?;
        self.dialect
            .query("UPDATE batches SET status = ?, completed_epoch = NULL WHERE id = ?")
            .bind(status.as_str())
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        self.add_entry(Change::Batch(batch_row(&batch, 0, -1)), Lines::None);
        self.add_event(id, EventKind::BatchStatusChanged { from: batch.status, to: status }, now);
        batch.status = status;
        batch.updated_at = now;
        batch.epoch = self.epoch;
        batch.completed_epoch = None;
        Ok(batch)
    }

    /// Completes a pending batch. Returns the batch, unchanged if it was completed before.
    pub async fn complete(&mut self, id: Uuid, now: i64) -> Result<Batch, Refused> {
        let mut batch = self.batch(id).await?;
        let status = batch.status.after(BatchEvent::Complete)?;
        if status == batch.status {
            return Ok(batch);
        }
        self.dialect
            .query("UPDATE batches SET status = ?, completed_epoch = ? WHERE id = ?")
            .bind(BatchStatus::Completed.as_str())
            .bind(self.epoch as i64)
            .bind(id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        // Nothing more can be appended, so the open lines are counted.
        let waiting = self
            .dialect
            .query("SELECT * FROM files WHERE batch_id = ? AND open_bytes > 0 AND open_version IS NULL")
            .bind(id.to_string())
            .fetch_all(&mut *self.transaction)
            .await?;
        for row in &waiting {
            let mut record = read_file(row)?;
            record.epoch = self.epoch;
            self.not_inserted.push(self.entries.len());
            self.admit_open_line(&mut record, VersionId::new());
            self.save_file(&record).await?;
        }
        self.touch(id, now).await?;
        self.add_entry(Change::Batch(batch_row(&batch, 0, 1)), Lines::None);
        self.add_status_events(id, batch.status, now)?;
        // The status after the request itself; the later ones depend on the frontier.
        batch.status = status;
        batch.updated_at = now;
        batch.epoch = self.epoch;
        batch.completed_epoch = Some(self.epoch);
        Ok(batch)
    }

    /// Adds the events of all statuses that a completed batch passes. The later ones are published when the frontier
    /// has passed this epoch (see [`crate::domain::event`]): until then the batch is gathering.
    fn add_status_events(&mut self, id: Uuid, before: BatchStatus, now: i64) -> Result<(), Refused> {
        let events = [
            (BatchEvent::Complete, None),
            (BatchEvent::ScatterBegan, None),
            (BatchEvent::AllFilesScattered, Some(EventKind::AllFilesScattered)),
            (BatchEvent::GatherBegan, None),
            (BatchEvent::AllFilesGathered, Some(EventKind::AllFilesGathered { total_lines: 0, error_codes: 0 })),
            // The findings are a read of the counts, so this step completes at once.
            (BatchEvent::DiagnosisBegan, None),
            (BatchEvent::DiagnosisCompleted, Some(EventKind::diagnosis_of_findings())),
        ];
        let mut status = before;
        for (event, kind) in events {
            let after = status.after(event)?;
            self.add_event(id, EventKind::BatchStatusChanged { from: status, to: after }, now);
            if let Some(kind) = kind {
                self.add_event(id, kind, now);
            }
            status = after;
        }
        Ok(())
    }
}

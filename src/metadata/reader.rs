//! What is asked of the metadata.

use std::collections::HashSet;

use argus_dataflow::VersionId;
use futures::TryStreamExt;
use sqlx::{Row, SqlitePool};
use uuid::Uuid;

use crate::events::Event;
use crate::metadata::changes::Changes;
use crate::metadata::round::Accepted;
use crate::metadata::rows::{count, from_json, read_answer, read_batch, read_entry, uuid};
use crate::metadata::{Deployment, JournalEntry, MetadataError, Refused};
use crate::model::{Batch, FileTotals};
use crate::status::BatchStatus;

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
    pub(super) readers: SqlitePool,
    pub(super) changes: Changes,
}

impl Metadata {
    /// Which batches changed. A count goes up before whoever changed the batch is answered.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// What the processes of this deployment share.
    pub async fn deployment(&self) -> Result<Deployment, MetadataError> {
        let row = sqlx::query("SELECT id, secret FROM deployment").fetch_one(&self.readers).await?;
        let secret: &[u8] = row.try_get("secret")?;
        let secret = secret.try_into().map_err(|_| MetadataError::Unreadable("a secret of another length".into()))?;
        Ok(Deployment { id: uuid(row.try_get("id")?)?, secret })
    }

    /// A batch by its id.
    pub async fn batch(&self, id: Uuid) -> Result<Option<Batch>, MetadataError> {
        let row = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        row.fetch_optional(&self.readers).await?.as_ref().map(read_batch).transpose()
    }

    /// The batch of that id, and how many files it has.
    pub async fn batch_and_files(&self, id: Uuid) -> Result<Option<(Batch, u64)>, MetadataError> {
        let row = sqlx::query(
            "SELECT *, (SELECT count(*) FROM files WHERE batch_id = batches.id) AS total_files \
             FROM batches WHERE id = ?",
        );
        let row = row.bind(id.to_string()).fetch_optional(&self.readers).await?;
        row.as_ref().map(|row| Ok((read_batch(row)?, count(row, "total_files")?))).transpose()
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
             coalesce(sum(bytes * (epoch <= ?2)), 0), \
             coalesce(sum((lines + (open_version IS NOT NULL)) * (epoch <= ?2)), 0) \
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
        let rows = sqlx::query("SELECT * FROM journal WHERE epoch = ? ORDER BY position")
            .bind(epoch as i64)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_entry).collect()
    }

    /// What was answered to an upload with this key; an error when the key was used with another request.
    pub async fn answered(&self, key: &str, request: &str) -> Result<Option<Accepted>, Refused> {
        let row = sqlx::query("SELECT request, answer FROM idempotency WHERE key = ?").bind(key);
        let Some(row) = row.fetch_optional(&self.readers).await? else { return Ok(None) };
        read_answer(&row, request).map(Some)
    }

    /// The last epoch that was accepted before a time (microseconds since 1970); 0 when there is none.
    pub async fn epoch_before(&self, time: i64) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT coalesce(max(epoch), 0) FROM epochs WHERE at < ?").bind(time);
        Ok(row.fetch_one(&self.readers).await?.try_get::<i64, _>(0)?.max(0) as u64)
    }

    /// The versions of a batch's files.
    pub async fn versions(&self, batch_id: Uuid) -> Result<HashSet<VersionId>, MetadataError> {
        let rows = sqlx::query("SELECT version FROM files WHERE batch_id = ?").bind(batch_id.to_string());
        rows.fetch_all(&self.readers).await?.iter().map(|row| Ok(VersionId(uuid(row.try_get(0)?)?))).collect()
    }

    /// Versions whose appended bytes should leave the metadata: `enough` of them, or of a batch that is not open.
    pub async fn versions_with_parts(&self, enough: u64) -> Result<Vec<(Uuid, VersionId)>, MetadataError> {
        let rows = sqlx::query(
            "SELECT a.batch_id, a.version FROM appended a LEFT JOIN batches b ON b.id = a.batch_id \
             WHERE a.bytes IS NOT NULL GROUP BY a.batch_id, a.version \
             HAVING sum(length(a.bytes)) >= ? OR max(b.status) <> 'pending'",
        )
        .bind(enough as i64)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((uuid(row.try_get(0)?)?, VersionId(uuid(row.try_get(1)?)?)))).collect()
    }

    /// The first bytes that were appended to a version up to an epoch and are
    /// in the metadata, up to about `enough`.
    pub async fn parts(&self, version: VersionId, epoch: u64, enough: u64) -> Result<Option<Parts>, MetadataError> {
        let mut rows = sqlx::query(
            "SELECT start, bytes FROM appended WHERE version = ? AND epoch <= ? AND bytes IS NOT NULL ORDER BY start",
        )
        .bind(version.0.to_string())
        .bind(epoch as i64)
        .fetch(&self.readers);
        let mut parts: Option<Parts> = None;
        while let Some(row) = rows.try_next().await? {
            let start = count(&row, "start")?;
            let bytes: &[u8] = row.try_get("bytes")?;
            let parts = parts.get_or_insert(Parts { start, last_start: start, bytes: Vec::new() });
            parts.last_start = start;
            parts.bytes.extend_from_slice(bytes);
            if parts.bytes.len() as u64 >= enough {
                break;
            }
        }
        Ok(parts)
    }
}

/// Bytes that were appended one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Where the first begins.
    pub start: u64,
    /// Where the last begins.
    pub last_start: u64,
    /// All of them.
    pub bytes: Vec<u8>,
}

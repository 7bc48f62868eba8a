//! Queries of the metadata.

use std::collections::{BTreeMap, HashMap, HashSet};

use argus_dataflow::{Change, VersionId};
use argus_sinks::LakeState;
use bytes::Bytes;
use futures::TryStreamExt;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, AnyPool, AssertSqlSafe, Row};
use uuid::Uuid;

use crate::domain::batch::{Batch, FileTotals, NewBatch};
use crate::domain::catalog::CatalogEntry;
use crate::domain::event::Event;
use crate::domain::status::BatchStatus;
use crate::metadata::changes::ChangeCounters;
use crate::metadata::dialect::{Dialect, numbered};
use crate::metadata::packed::Joined;
use crate::metadata::rows::{
    FileRecord, count, from_json, read_appended, read_batch, read_entry, read_file, unreadable_text, uuid,
};
use crate::metadata::{Deployment, DocumentKind, JournalEntry, MetadataError};

/// Selects the batches of a listing.
#[derive(Debug, Clone, Default)]
pub struct BatchFilter {
    /// Only with this status.
    pub status: Option<BatchStatus>,
    /// Only with this vehicle identification number.
    pub vin: Option<String>,
    /// Only of this vehicle.
    pub vehicle_id: Option<String>,
    /// Only with this firmware.
    pub firmware: Option<String>,
    /// Only of this platform. No index serves this, nor labels: the newest batches are looked through.
    pub platform: Option<String>,
    /// Only with all these labels.
    pub labels: BTreeMap<String, String>,
    /// Only created at or after this, in microseconds since 1970.
    pub since: Option<i64>,
    /// Only created before this.
    pub until: Option<i64>,
    /// Only batches created before this one.
    pub before: Option<Uuid>,
    /// The maximum number of batches.
    pub limit: u32,
}

impl BatchFilter {
    /// Builds the statement. It has conditions for the given filters only, so that an index can serve it.
    fn query(&self, dialect: Dialect, seen: u64) -> Query<'_, Any, AnyArguments> {
        let mut text = "SELECT batches.*, count(files.batch_id) AS total_files, \
             count(*) FILTER (WHERE files.epoch <= ?) AS parsed_files, \
             CAST(coalesce(sum(files.bytes), 0) AS BIGINT) AS bytes_received, \
             CAST(coalesce(sum(files.bytes) FILTER (WHERE files.epoch <= ?), 0) AS BIGINT) AS bytes_parsed, \
             CAST(coalesce(sum(files.lines + CASE WHEN files.open_version IS NULL THEN 0 ELSE 1 END) \
             FILTER (WHERE files.epoch <= ?), 0) AS BIGINT) AS lines FROM (SELECT * FROM batches WHERE TRUE"
            .to_owned();
        // A completed batch is gathering until readers see the epoch at which it was completed.
        let status = self.status.map(|status| match status {
            BatchStatus::Gathering => (BatchStatus::Completed, Some(" AND completed_epoch > ?")),
            BatchStatus::Completed => (BatchStatus::Completed, Some(" AND completed_epoch <= ?")),
            status => (status, None),
        });
        let before = self.before.map(|before| before.to_string());
        let conditions = [
            self.vin.is_some().then_some(" AND vin = ?"),
            self.vehicle_id.is_some().then_some(" AND vehicle_id = ?"),
            self.firmware.is_some().then_some(" AND firmware = ?"),
            status.map(|_| " AND status = ?"),
            status.and_then(|(_, when)| when),
            before.as_ref().map(|_| " AND id < ?"),
            self.since.map(|_| " AND created_at >= ?"),
            self.until.map(|_| " AND created_at < ?"),
            self.platform.as_ref().map(|_| match dialect {
                Dialect::Sqlite => " AND json_extract(described, '$.platform') = ?",
                Dialect::Postgres => " AND CAST(described AS JSONB) ->> 'platform' = ?",
            }),
        ];
        text.extend(conditions.into_iter().flatten());
        for _ in &self.labels {
            text.push_str(match dialect {
                Dialect::Sqlite => {
                    " AND EXISTS (SELECT 1 FROM json_each(described, '$.labels') AS label \
                     WHERE label.key = ? AND label.value = ?)"
                }
                Dialect::Postgres => " AND CAST(described AS JSONB) -> 'labels' ->> ? = ?",
            });
        }
        text.push_str(" ORDER BY id DESC LIMIT ?) AS batches LEFT JOIN files ON files.batch_id = batches.id GROUP BY ");
        text.push_str(match dialect {
            Dialect::Sqlite => "batches.id",
            Dialect::Postgres => {
                "batches.id, batches.described, batches.vehicle_id, batches.vin, batches.firmware, batches.status, \
                 batches.created_at, batches.updated_at, batches.epoch, batches.completed_epoch"
            }
        });
        text.push_str(" ORDER BY batches.id DESC");
        if dialect == Dialect::Postgres {
            text = numbered(&text);
        }
        let seen = seen as i64;
        let mut query = sqlx::query(AssertSqlSafe(text)).bind(seen).bind(seen).bind(seen);
        for value in [&self.vin, &self.vehicle_id, &self.firmware].into_iter().flatten() {
            query = query.bind(value);
        }
        if let Some((status, when)) = status {
            query = query.bind(status.as_str());
            if when.is_some() {
                query = query.bind(seen);
            }
        }
        if let Some(before) = before {
            query = query.bind(before);
        }
        for time in [self.since, self.until].into_iter().flatten() {
            query = query.bind(time);
        }
        if let Some(platform) = &self.platform {
            query = query.bind(platform);
        }
        for (name, value) in &self.labels {
            query = query.bind(name).bind(value);
        }
        query.bind(i64::from(self.limit))
    }
}

/// Reads metadata. Clones share connections.
#[derive(Debug, Clone)]
pub struct Metadata {
    pub(super) dialect: Dialect,
    pub(super) readers: AnyPool,
    pub(super) changes: ChangeCounters,
}

impl Metadata {
    /// The change counters of batches. A change is counted before its request is answered.
    pub fn changes(&self) -> &ChangeCounters {
        &self.changes
    }

    /// The id and secret of this deployment.
    pub async fn deployment(&self) -> Result<Deployment, MetadataError> {
        let row = self.dialect.query("SELECT id, secret FROM deployment").fetch_one(&self.readers).await?;
        let secret: &[u8] = row.try_get("secret")?;
        let secret = secret.try_into().map_err(|_| MetadataError::Unreadable("a secret of the wrong length".into()))?;
        Ok(Deployment { id: uuid(row.try_get("id")?)?, secret })
    }

    /// A batch by its id.
    pub async fn batch(&self, id: Uuid) -> Result<Option<Batch>, MetadataError> {
        let row = self.dialect.query("SELECT * FROM batches WHERE id = ?").bind(id.to_string());
        row.fetch_optional(&self.readers).await?.as_ref().map(read_batch).transpose()
    }

    /// A batch by its id, and the number of its files.
    pub async fn batch_and_files(&self, id: Uuid) -> Result<Option<(Batch, u64)>, MetadataError> {
        let row = self.dialect.query(
            "SELECT *, (SELECT count(*) FROM files WHERE batch_id = batches.id) AS total_files \
             FROM batches WHERE id = ?",
        );
        let row = row.bind(id.to_string()).fetch_optional(&self.readers).await?;
        row.as_ref().map(|row| Ok((read_batch(row)?, count(row, "total_files")?))).transpose()
    }

    /// Batches, newest first, each with its file totals at `seen`, the epoch that readers see. One statement, which an
    /// index serves with any filter.
    pub async fn batches(&self, filter: &BatchFilter, seen: u64) -> Result<Vec<(Batch, FileTotals)>, MetadataError> {
        let rows = filter.query(self.dialect, seen).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok((read_batch(row)?, read_totals(row)?))).collect()
    }

    /// The other batches of the vehicle that are aggregated in the same fleet cells as `batch`.
    pub async fn others_of_vehicle(&self, batch: &Batch) -> Result<Vec<(Uuid, i64)>, MetadataError> {
        let rows = self.dialect.query(
            "SELECT id, described, created_at FROM batches WHERE vin = ?1 AND vehicle_id = ?2 AND firmware IS NOT DISTINCT FROM ?3 AND id <> ?4",
        )
        .bind(&batch.described.vin)
        .bind(&batch.described.vehicle_id)
        .bind(batch.described.firmware.as_deref())
        .bind(batch.id.to_string())
        .fetch_all(&self.readers)
        .await?;
        let mut others = Vec::new();
        for row in &rows {
            let described: NewBatch = from_json(row.try_get("described")?)?;
            if described.platform == batch.described.platform {
                others.push((uuid(row.try_get("id")?)?, row.try_get("created_at")?));
            }
        }
        Ok(others)
    }

    /// A page of all batches, in order of their ids: those after `after`.
    pub async fn batches_after(&self, after: Uuid, limit: u32) -> Result<Vec<Batch>, MetadataError> {
        let rows = self.dialect.query("SELECT * FROM batches WHERE id > ? ORDER BY id LIMIT ?").bind(after.to_string());
        rows.bind(i64::from(limit)).fetch_all(&self.readers).await?.iter().map(read_batch).collect()
    }

    /// The names of a batch's files, each with the epoch of its last accepted change.
    pub async fn file_epochs(&self, batch_id: Uuid) -> Result<Vec<(String, u64)>, MetadataError> {
        let rows = self.dialect.query("SELECT name, epoch FROM files WHERE batch_id = ?").bind(batch_id.to_string());
        let rows = rows.fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok((row.try_get("name")?, count(row, "epoch")?))).collect()
    }

    /// The files of a batch, with where they are stored.
    pub async fn stored_files(&self, batch_id: Uuid) -> Result<Vec<StoredFile>, MetadataError> {
        let rows =
            self.dialect.query("SELECT * FROM files WHERE batch_id = ? ORDER BY name").bind(batch_id.to_string());
        let mut files = Vec::new();
        for row in rows.fetch_all(&self.readers).await? {
            files.push(self.stored(read_file(&row)?).await?);
        }
        Ok(files)
    }

    /// A file of a batch, with where it is stored.
    pub async fn stored_file(&self, batch_id: Uuid, name: &str) -> Result<Option<StoredFile>, MetadataError> {
        let row = self.dialect.query("SELECT * FROM files WHERE batch_id = ? AND name = ?").bind(batch_id.to_string());
        match row.bind(name).fetch_optional(&self.readers).await? {
            Some(row) => Ok(Some(self.stored(read_file(&row)?).await?)),
            None => Ok(None),
        }
    }

    async fn stored(&self, record: FileRecord) -> Result<StoredFile, MetadataError> {
        let first = self.dialect.query("SELECT min(start) FROM appended WHERE version = ?");
        let first: Option<i64> = first.bind(record.version.0.to_string()).fetch_one(&self.readers).await?.try_get(0)?;
        // A part that was appended after the record was read is not of it.
        let appended_from = first.map(|start| start.max(0) as u64).filter(|start| *start < record.bytes);
        Ok(StoredFile { record, appended_from })
    }

    /// A page of a batch's files, in order of their names: those after `after`.
    pub async fn files_after(
        &self,
        batch_id: Uuid,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<FileRecord>, MetadataError> {
        let rows = self.dialect.query("SELECT * FROM files WHERE batch_id = ? AND name > ? ORDER BY name LIMIT ?");
        // A name is never empty.
        let rows = rows.bind(batch_id.to_string()).bind(after.unwrap_or_default()).bind(i64::from(limit));
        rows.fetch_all(&self.readers).await?.iter().map(read_file).collect()
    }

    /// The part that was appended to a version and contains an offset: where it begins, and its bytes, unless they are in
    /// the raw store.
    pub async fn appended_at(
        &self,
        version: VersionId,
        offset: u64,
    ) -> Result<Option<(u64, Option<Vec<u8>>)>, MetadataError> {
        let row =
            self.dialect.query("SELECT * FROM appended WHERE version = ? AND start <= ? ORDER BY start DESC LIMIT 1");
        let row = row.bind(version.0.to_string()).bind(offset as i64).fetch_optional(&self.readers).await?;
        row.map(|row| Ok((count(&row, "start")?, read_appended(&row)?))).transpose()
    }

    /// The last recorded commit of the lake; `None` before its first commit.
    pub async fn lake(&self) -> Result<Option<LakeState>, MetadataError> {
        let Some(row) = self.dialect.query("SELECT epoch, versions FROM lake").fetch_optional(&self.readers).await?
        else {
            return Ok(None);
        };
        Ok(Some(LakeState { epoch: count(&row, "epoch")?, versions: from_json(row.try_get("versions")?)? }))
    }

    /// The versions withdrawn up to `epoch`, which the lake has committed: their bytes can be deleted.
    pub async fn withdrawn(&self, epoch: u64) -> Result<Vec<Withdrawn>, MetadataError> {
        let rows = self
            .dialect
            .query("SELECT * FROM journal WHERE epoch <= ? AND change LIKE '{\"Withdraw\"%'")
            .bind(epoch as i64)
            .fetch_all(&self.readers)
            .await?;
        let mut withdrawn = Vec::new();
        for row in &rows {
            let JournalEntry { change: Change::Withdraw(file), .. } = read_entry(row)? else { continue };
            let parts = self.dialect.query("SELECT start FROM appended WHERE version = ? AND bytes IS NULL");
            let parts = parts.bind(file.version.0.to_string()).fetch_all(&self.readers).await?;
            let parts: Result<Vec<u64>, sqlx::Error> = parts.iter().map(|row| count(row, "start")).collect();
            let position = (count(row, "epoch")?, count(row, "position")?);
            withdrawn.push(Withdrawn { position, batch_id: file.batch_id, version: file.version, parts: parts? });
        }
        Ok(withdrawn)
    }

    /// The file totals of a batch at `epoch`, the epoch that readers see.
    pub async fn file_totals(&self, id: Uuid, epoch: u64) -> Result<FileTotals, MetadataError> {
        let row = self
            .dialect
            .query(
                "SELECT count(*) AS total_files, count(*) FILTER (WHERE epoch <= ?2) AS parsed_files, \
             CAST(coalesce(sum(bytes), 0) AS BIGINT) AS bytes_received, \
             CAST(coalesce(sum(bytes) FILTER (WHERE epoch <= ?2), 0) AS BIGINT) AS bytes_parsed, \
             CAST(coalesce(sum(lines + CASE WHEN open_version IS NULL THEN 0 ELSE 1 END) \
             FILTER (WHERE epoch <= ?2), 0) AS BIGINT) AS lines FROM files WHERE batch_id = ?1",
            )
            .bind(id.to_string())
            .bind(epoch as i64)
            .fetch_one(&self.readers)
            .await?;
        Ok(read_totals(&row)?)
    }

    /// The events of a batch after a position, in order, each with its position.
    pub async fn events(&self, id: Uuid, after: i64, limit: u32) -> Result<Vec<(i64, Event)>, MetadataError> {
        let rows = self
            .dialect
            .query("SELECT position, event FROM events WHERE batch_id = ? AND position > ? ORDER BY position LIMIT ?")
            .bind(id.to_string())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, from_json(row.try_get(1)?)?))).collect()
    }

    /// The events of all batches after a position, in order, each with its position.
    pub async fn all_events(&self, after: i64, limit: u32) -> Result<Vec<(i64, Event)>, MetadataError> {
        let rows =
            self.dialect.query("SELECT position, event FROM events WHERE position > ? ORDER BY position LIMIT ?");
        let rows = rows.bind(after).bind(i64::from(limit)).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, from_json(row.try_get(1)?)?))).collect()
    }

    /// The position of the last event; 0 if there is none.
    pub async fn last_event(&self) -> Result<i64, MetadataError> {
        let row = self.dialect.query("SELECT coalesce(max(position), 0) FROM events");
        Ok(row.fetch_one(&self.readers).await?.try_get(0)?)
    }

    /// The term of the current writer, in PostgreSQL.
    pub async fn term(&self) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT term FROM writer").fetch_one(&self.readers).await?;
        Ok(count(&row, "term")?)
    }

    /// The position of the last event that was published to Kafka; 0 if there is none.
    pub async fn published(&self) -> Result<i64, MetadataError> {
        let row = sqlx::query("SELECT position FROM published").fetch_optional(&self.readers).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.unwrap_or(0))
    }

    /// Users' entries of the catalogue for a code.
    pub async fn catalog_of(&self, code: &str) -> Result<Vec<CatalogEntry>, MetadataError> {
        let rows = self.dialect.query("SELECT entry FROM catalog WHERE code = ? ORDER BY platform, firmware");
        let rows = rows.bind(code.to_owned()).fetch_all(&self.readers).await?;
        rows.iter().map(|row| from_json(row.try_get(0)?)).collect()
    }

    /// At most `limit` of users' entries of the catalogue for which `selects` is true, by code.
    pub async fn catalog(
        &self,
        limit: usize,
        selects: impl Fn(&CatalogEntry) -> bool,
    ) -> Result<Vec<CatalogEntry>, MetadataError> {
        let rows = self.dialect.query("SELECT entry FROM catalog ORDER BY code, platform, firmware");
        let (mut rows, mut found) = (rows.fetch(&self.readers), Vec::new());
        while let Some(row) = rows.try_next().await? {
            let entry = from_json(row.try_get(0)?)?;
            if selects(&entry) {
                found.push(entry);
                if found.len() == limit {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// A document.
    pub async fn document<T: DeserializeOwned>(
        &self,
        kind: DocumentKind,
        id: &str,
    ) -> Result<Option<T>, MetadataError> {
        let row = self.dialect.query("SELECT body FROM documents WHERE kind = ? AND id = ?");
        let row = row.bind(kind.as_str()).bind(id.to_owned()).fetch_optional(&self.readers).await?;
        row.map(|row| from_json(row.try_get(0)?)).transpose()
    }

    /// All documents of a kind, by id.
    pub async fn documents<T: DeserializeOwned>(&self, kind: DocumentKind) -> Result<Vec<(String, T)>, MetadataError> {
        let rows = self.dialect.query("SELECT id, body FROM documents WHERE kind = ? ORDER BY id");
        let rows = rows.bind(kind.as_str()).fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, from_json(row.try_get(1)?)?))).collect()
    }

    /// The next offset of each partition of a topic that lines were consumed from.
    pub async fn offsets(&self, topic: &str) -> Result<HashMap<i32, i64>, MetadataError> {
        let rows =
            self.dialect.query("SELECT kafka_partition, next FROM offsets WHERE topic = ?").bind(topic.to_owned());
        let rows = rows.fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok((row.try_get::<i64, _>(0)? as i32, row.try_get(1)?))).collect()
    }

    /// The last accepted epoch.
    pub async fn last_epoch(&self) -> Result<u64, MetadataError> {
        let row = self.dialect.query("SELECT epoch FROM clock").fetch_one(&self.readers).await?;
        Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
    }

    /// The changes accepted at an epoch, in order; empty once the lake has committed the epoch.
    pub async fn journal(&self, epoch: u64) -> Result<Vec<JournalEntry>, MetadataError> {
        let rows = self
            .dialect
            .query("SELECT * FROM journal WHERE epoch = ? ORDER BY position")
            .bind(epoch as i64)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(read_entry).collect()
    }

    /// The last epoch accepted before a time (microseconds since 1970); 0 if there is none.
    pub async fn epoch_before(&self, time: i64) -> Result<u64, MetadataError> {
        let row = self.dialect.query("SELECT coalesce(max(epoch), 0) FROM epochs WHERE at < ?").bind(time);
        Ok(row.fetch_one(&self.readers).await?.try_get::<i64, _>(0)?.max(0) as u64)
    }

    /// The versions of a batch whose bytes are needed: those of its files, and those that a restart would replay.
    pub async fn versions(&self, batch_id: Uuid) -> Result<HashSet<VersionId>, MetadataError> {
        let rows = self.dialect.query(match self.dialect {
            Dialect::Sqlite => {
                "SELECT version FROM files WHERE batch_id = ?1 UNION \
                 SELECT coalesce(change ->> '$.Admit.version', change ->> '$.Withdraw.version') FROM journal \
                 WHERE coalesce(change ->> '$.Admit.batch_id', change ->> '$.Withdraw.batch_id') = ?1"
            }
            Dialect::Postgres => {
                "SELECT version FROM files WHERE batch_id = ?1 UNION \
                 SELECT coalesce(change -> 'Admit', change -> 'Withdraw') ->> 'version' \
                 FROM (SELECT CAST(change AS JSONB) AS change FROM journal) AS journal \
                 WHERE coalesce(change -> 'Admit', change -> 'Withdraw') ->> 'batch_id' = ?1"
            }
        });
        let rows = rows.bind(batch_id.to_string());
        rows.fetch_all(&self.readers).await?.iter().map(|row| Ok(VersionId(uuid(row.try_get(0)?)?))).collect()
    }

    /// Versions whose appended bytes should move to the raw store: those with at least `enough` bytes, and those of
    /// batches that are not pending.
    pub async fn versions_with_parts(&self, enough: u64) -> Result<Vec<(Uuid, VersionId)>, MetadataError> {
        let rows = self
            .dialect
            .query(
                "SELECT a.batch_id, a.version FROM appended a LEFT JOIN batches b ON b.id = a.batch_id \
             WHERE a.bytes IS NOT NULL GROUP BY a.batch_id, a.version \
             HAVING sum(coalesce(a.text_bytes, length(a.bytes))) >= ? OR max(b.status) <> 'pending'",
            )
            .bind(enough as i64)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok((uuid(row.try_get(0)?)?, VersionId(uuid(row.try_get(1)?)?)))).collect()
    }

    /// The first bytes that were appended to a version up to an epoch and are still
    /// in the metadata, about `enough` bytes of text at most.
    pub async fn parts(
        &self,
        version: VersionId,
        epoch: u64,
        enough: u64,
    ) -> Result<Option<AppendedParts>, MetadataError> {
        let mut rows = self
            .dialect
            .query("SELECT * FROM appended WHERE version = ? AND epoch <= ? AND bytes IS NOT NULL ORDER BY start")
            .bind(version.0.to_string())
            .bind(epoch as i64)
            .fetch(&self.readers);
        let (mut found, mut joined) = (None, Joined::default());
        while let Some(row) = rows.try_next().await? {
            let last = count(&row, "start")?;
            found = Some((found.map_or(last, |(first, _)| first), last));
            let bytes: &[u8] = row.try_get("bytes")?;
            match row.try_get::<Option<i64>, _>("text_bytes")? {
                Some(text_bytes) => joined.add_packed(bytes, text_bytes.max(0) as u64).map_err(unreadable_text)?,
                None => joined.add(bytes),
            }
            if joined.text_bytes() >= enough {
                break;
            }
        }
        let Some((start, last_start)) = found else { return Ok(None) };
        Ok(Some(AppendedParts { start, last_start, compressed: joined.finish().map_err(unreadable_text)?.into() }))
    }
}

/// A file and where its bytes are stored.
#[derive(Debug, Clone)]
pub struct StoredFile {
    /// Its current generation.
    pub record: FileRecord,
    /// The offset in its text from which its bytes were appended; `None` if it was uploaded as a whole.
    pub appended_from: Option<u64>,
}

/// A version whose bytes can be deleted.
#[derive(Debug, Clone)]
pub struct Withdrawn {
    /// Epoch and position of its journal entry, which is deleted after the bytes.
    pub position: (u64, u64),
    /// Its batch.
    pub batch_id: Uuid,
    /// The version.
    pub version: VersionId,
    /// The offsets of its objects of appended bytes.
    pub parts: Vec<u64>,
}

fn read_totals(row: &AnyRow) -> Result<FileTotals, sqlx::Error> {
    Ok(FileTotals {
        total_files: count(row, "total_files")?,
        parsed_files: count(row, "parsed_files")?,
        bytes_received: count(row, "bytes_received")?,
        bytes_parsed: count(row, "bytes_parsed")?,
        lines: count(row, "lines")?,
    })
}

/// Consecutive appended parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendedParts {
    /// The offset of the first part.
    pub start: u64,
    /// The offset of the last part.
    pub last_start: u64,
    /// The bytes of all parts, compressed with zstd.
    pub compressed: Bytes,
}

#[cfg(test)]
mod tests {
    use sqlx::Execute;

    use super::*;
    use crate::metadata::Location;

    /// The query plan of SQLite for a listing.
    async fn plan(metadata: &Metadata, filter: BatchFilter) -> String {
        let query = filter.query(Dialect::Sqlite, 7);
        let explained = format!("EXPLAIN QUERY PLAN {}", query.sql().as_str());
        let rows = sqlx::query(AssertSqlSafe(explained)).fetch_all(&metadata.readers).await.expect("is valid");
        rows.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("; ")
    }

    #[tokio::test]
    async fn an_index_serves_every_listing_of_batches() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (metadata, _writer) =
            Metadata::open(&Location::File(folder.path().join("a.db"))).await.expect("a new database");
        let filter = |limit| BatchFilter { limit, ..BatchFilter::default() };
        let some = || Some("x".to_owned());
        for (filter, index) in [
            (BatchFilter { vin: some(), ..filter(5) }, "SEARCH batches USING INDEX batches_by_vin"),
            (BatchFilter { vehicle_id: some(), ..filter(5) }, "SEARCH batches USING INDEX batches_by_vehicle"),
            (BatchFilter { firmware: some(), ..filter(5) }, "SEARCH batches USING INDEX batches_by_firmware"),
            (
                BatchFilter { status: Some(BatchStatus::Pending), ..filter(5) },
                "SEARCH batches USING INDEX batches_by_status",
            ),
            (BatchFilter { before: Some(Uuid::now_v7()), ..filter(5) }, "SEARCH batches USING PRIMARY KEY"),
        ] {
            let plan = plan(&metadata, filter).await;
            assert!(plan.contains(index), "{plan} should contain {index}");
            assert!(plan.contains("SEARCH files USING PRIMARY KEY"), "{plan}");
        }
        let all = plan(&metadata, filter(5)).await;
        assert!(!all.contains("TEMP B-TREE FOR ORDER BY"), "{all}");
    }
}

//! What happens to files in a round: each change keeps how the file stands, and enters what the dataflow is to know.

use argus_dataflow::text::looks_binary;
use argus_dataflow::{Change, FileRow, LINE_BYTES_MAX, VersionId};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, Sqlite};
use uuid::Uuid;

use super::Round;
use crate::digest::Digest;
use crate::events::EventKind;
use crate::metadata::rows::{FileRecord, batch_row, json, read_answer, read_batch, read_file, read_status, uuid};
use crate::metadata::{Lines, MetadataError, Refused, Text};
use crate::model::{Batch, OpenLine, Part, Receipt, SameFile, StoredUpload};
use crate::pipeline::now;
use crate::status::BatchStatus;

/// A file that was accepted, or was there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accepted {
    /// A name that was not there.
    Created(Receipt),
    /// A new generation of a file.
    Replaced(Receipt),
    /// More lines of a file.
    Grown(Receipt),
    /// The same bytes as the current generation: nothing changed.
    Unchanged(Receipt),
}

impl Accepted {
    /// The receipt.
    pub fn receipt(&self) -> &Receipt {
        let (Accepted::Created(receipt)
        | Accepted::Replaced(receipt)
        | Accepted::Grown(receipt)
        | Accepted::Unchanged(receipt)) = self;
        receipt
    }
}

/// What makes a retry of an upload known as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadKey {
    /// The client's key.
    pub key: String,
    /// What was asked with it; asking something else with it is refused.
    pub request: String,
}

type SqliteQuery<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// How a file stands now, and that its batch has changed.
const KEEP_FILE: &str = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL); \
    UPDATE batches SET updated_at = ?, epoch = ? WHERE id = ?";

/// The same after a part of the file, in one call of the connection.
const KEEP_APPENDED: &str = "INSERT INTO appended VALUES (?, ?, ?, ?, ?); \
    INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL); \
    UPDATE batches SET updated_at = ?, epoch = ? WHERE id = ?";

impl Round<'_> {
    /// Accepts an upload into a pending batch. The generation before it, where
    /// there is one, goes at the same epoch.
    pub async fn accept_file(&mut self, upload: &StoredUpload, key: Option<&UploadKey>) -> Result<Accepted, Refused> {
        self.not_answered(key, Some(&upload.digest)).await?;
        let before = self.file_of_pending(upload.batch_id, &upload.name).await?;
        let mut record = FileRecord {
            batch_id: upload.batch_id,
            file_id: Uuid::now_v7(),
            name: upload.name.clone(),
            generation: 1,
            version: upload.version,
            bytes: upload.bytes,
            whole_lines: upload.lines,
            digest: upload.digest.clone(),
            open_line: OpenLine::default(),
            open_version: None,
            uploaded_at: upload.uploaded_at,
            epoch: self.epoch,
            encoding: Some(upload.encoding),
            is_failed: false,
        };
        if let Some(current) = &before {
            let all_counts = current.open_line.is_empty() || current.open_version.is_some();
            if all_counts && !current.is_failed && current.digest == upload.digest {
                let answer = Accepted::Unchanged(current.receipt());
                self.remember(key, upload.batch_id, &answer, upload.uploaded_at).await?;
                return Ok(answer);
            }
            record.file_id = current.file_id;
            record.generation = current.generation + 1;
            self.withdraw(current, false);
        }
        self.admit(upload, &mut record);
        self.keep(&record).await?;
        let receipt = Receipt { same_as: self.same_bytes(upload).await?, ..record.receipt() };
        let Receipt { generation, bytes, lines, .. } = receipt;
        let file = record.name;
        let parsed = EventKind::FileParsed { file: file.clone(), generation };
        let (kind, answer) = match before {
            Some(_) => (EventKind::FileReplaced { file, generation, bytes, lines }, Accepted::Replaced(receipt)),
            None => (EventKind::FileUploaded { file, generation, bytes, lines }, Accepted::Created(receipt)),
        };
        self.tell(upload.batch_id, kind, upload.uploaded_at);
        self.tell(upload.batch_id, parsed, upload.uploaded_at);
        self.remember(key, upload.batch_id, &answer, upload.uploaded_at).await?;
        Ok(answer)
    }

    /// Takes what a file was counted to again, whatever the status of its batch, in the place of a version with so many
    /// bytes. `false`, and nothing, when the file is another one by now.
    pub async fn recount_file(
        &mut self,
        upload: &StoredUpload,
        version: VersionId,
        bytes: u64,
    ) -> Result<bool, Refused> {
        let Some((batch, current)) = self.batch_and_file(upload.batch_id, &upload.name).await? else {
            return Ok(false);
        };
        if current.version != version || current.bytes != bytes {
            return Ok(false);
        }
        let mut record = FileRecord {
            version: upload.version,
            whole_lines: upload.lines,
            open_line: OpenLine::default(),
            open_version: None,
            epoch: self.epoch,
            encoding: Some(upload.encoding),
            is_failed: false,
            ..current.clone()
        };
        self.withdraw(&current, false);
        self.admit(upload, &mut record);
        if batch.completed_epoch.is_some() {
            // It is completed again, and what its vehicle says of it with it.
            self.enter(Change::Batch(batch_row(&batch, 0, -1)), Lines::None);
            self.enter(Change::Batch(batch_row(&batch, 0, 1)), Lines::None);
        }
        self.keep(&record).await?;
        let parsed = EventKind::FileParsed { file: record.name, generation: record.generation };
        self.tell(upload.batch_id, parsed, now());
        Ok(true)
    }

    /// Has the lines of an upload count.
    fn admit(&mut self, upload: &StoredUpload, record: &mut FileRecord) {
        let open_bytes = upload.open_line.as_ref().map_or(0, |(_, line)| line.bytes);
        let admitted = FileRow {
            bytes: upload.bytes - open_bytes,
            lines: upload.lines,
            long_lines: upload.long_lines,
            last_line: upload.lines,
            binary: upload.binary,
            ..record.row(upload.version, 1)
        };
        self.enter(Change::Admit(admitted), Lines::Stored(upload.encoding));
        if let Some((version, line)) = &upload.open_line {
            record.open_line = line.clone();
            self.admit_open_line(record, *version);
        }
    }

    /// Another file with the same bytes, in whatever batch.
    async fn same_bytes(&mut self, upload: &StoredUpload) -> Result<Option<SameFile>, Refused> {
        if upload.bytes == 0 {
            return Ok(None);
        }
        let same = sqlx::query(
            "SELECT batch_id, name FROM files WHERE digest = ? AND NOT (batch_id = ? AND name = ?) ORDER BY batch_id LIMIT 1",
        )
        .bind(upload.digest.put_down())
        .bind(upload.batch_id.to_string())
        .bind(&upload.name);
        let row = same.fetch_optional(&mut *self.transaction).await?;
        row.map(|row| Ok(SameFile { batch_id: uuid(row.try_get("batch_id")?)?, name: row.try_get("name")? }))
            .transpose()
    }

    /// Appends to a file of a pending batch, made when it is not there. Its
    /// whole lines count from this round's epoch; a last line without its line
    /// feed waits for the next part. Where `offset` is said, it must be the bytes of the file so far.
    pub async fn append(
        &mut self,
        part: &Part,
        offset: Option<u64>,
        key: Option<&UploadKey>,
    ) -> Result<Accepted, Refused> {
        self.not_answered(key, None).await?;
        let before = self.file_of_pending(part.batch_id, &part.name).await?;
        let is_new = before.is_none();
        let mut record = before.unwrap_or_else(|| FileRecord {
            batch_id: part.batch_id,
            file_id: Uuid::now_v7(),
            name: part.name.clone(),
            generation: 1,
            version: VersionId::new(),
            bytes: 0,
            whole_lines: 0,
            digest: Digest::default(),
            open_line: OpenLine::default(),
            open_version: None,
            uploaded_at: part.uploaded_at,
            epoch: self.epoch,
            encoding: None,
            is_failed: false,
        });
        if offset.is_some_and(|offset| offset != record.bytes) {
            return Err(Refused::OffsetDiffers { name: record.name, actual: record.bytes });
        }
        if part.bytes.is_empty() && !is_new {
            return Ok(Accepted::Unchanged(record.receipt()));
        }
        let open_bytes = record.open_line.bytes;
        let Some((whole, open_line)) = record.open_line.go_on(&part.bytes) else {
            return Err(Refused::OpenLineTooLong { name: record.name });
        };
        if let Some(version) = record.open_version.take() {
            self.enter(Change::Withdraw(record.row(version, -1)), Lines::None);
        }
        let (lines, long_lines) = count_lines(&whole);
        let bytes_before = record.bytes - open_bytes;
        let start = record.bytes;
        let lines_before = record.whole_lines;
        record.bytes += part.bytes.len() as u64;
        record.digest.update(&part.bytes);
        record.whole_lines += lines;
        record.open_line = open_line;
        record.uploaded_at = part.uploaded_at;
        record.epoch = self.epoch;
        let grown = FileRow {
            bytes: whole.len() as u64,
            lines,
            long_lines,
            last_line: lines,
            binary: looks_binary(&part.bytes),
            ..record.row(record.version, i8::from(is_new))
        };
        self.feed(Change::Admit(grown), Text { text: whole, lines_before, bytes_before });
        match &part.bytes[..] {
            [] => self.keep(&record).await?,
            bytes => self.keep_appended(&record, start, bytes).await?,
        }
        let receipt = record.receipt();
        let answer = if is_new {
            let Receipt { generation, bytes, lines, .. } = receipt;
            let uploaded = EventKind::FileUploaded { file: record.name.clone(), generation, bytes, lines };
            self.tell(part.batch_id, uploaded, part.uploaded_at);
            self.tell(part.batch_id, EventKind::FileParsed { file: record.name, generation }, part.uploaded_at);
            Accepted::Created(receipt)
        } else {
            Accepted::Grown(receipt)
        };
        self.remember(key, part.batch_id, &answer, part.uploaded_at).await?;
        Ok(answer)
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
        let gone = read_file(&row)?;
        self.withdraw(&gone, true);
        self.touch(batch_id, now).await?;
        let generation = gone.generation;
        self.tell(batch_id, EventKind::FileDeleted { file: gone.name, generation }, now);
        Ok(())
    }

    /// Notes that a version of a file could not be counted.
    pub async fn file_failed(&mut self, version: VersionId, failure: &str) -> Result<(), MetadataError> {
        sqlx::query("UPDATE files SET failure = ? WHERE version = ?")
            .bind(failure)
            .bind(version.0.to_string())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// The raw store holds what was appended to a version from `start` to the part at
    /// `last_start`; says whether the version is still known.
    pub async fn parts_are_stored(&mut self, version: VersionId, start: u64, last_start: u64) -> Result<bool, Refused> {
        let stored = sqlx::query("DELETE FROM appended WHERE version = ?1 AND start > ?2 AND start <= ?3")
            .bind(version.0.to_string())
            .bind(start as i64)
            .bind(last_start as i64);
        stored.execute(&mut *self.transaction).await?;
        let first = sqlx::query("UPDATE appended SET bytes = NULL WHERE version = ? AND start = ?")
            .bind(version.0.to_string())
            .bind(start as i64);
        Ok(first.execute(&mut *self.transaction).await?.rows_affected() > 0)
    }

    async fn pending(&mut self, id: Uuid) -> Result<(), Refused> {
        match self.batch(id).await?.status {
            BatchStatus::Pending => Ok(()),
            status => Err(Refused::NotPending { batch: id, status }),
        }
    }

    /// The file of that name in a pending batch, where there is one.
    async fn file_of_pending(&mut self, batch_id: Uuid, name: &str) -> Result<Option<FileRecord>, Refused> {
        let row = sqlx::query(
            "SELECT batches.status, files.* FROM batches \
             LEFT JOIN files ON files.batch_id = batches.id AND files.name = ? WHERE batches.id = ?",
        )
        .bind(name)
        .bind(batch_id.to_string())
        .fetch_optional(&mut *self.transaction)
        .await?
        .ok_or(Refused::BatchNotFound(batch_id))?;
        match read_status(&row)? {
            BatchStatus::Pending => {}
            status => return Err(Refused::NotPending { batch: batch_id, status }),
        }
        let is_there = row.try_get::<Option<&str>, _>("batch_id")?.is_some();
        Ok(is_there.then(|| read_file(&row)).transpose()?)
    }

    /// A file and its batch, whatever the status of that.
    async fn batch_and_file(&mut self, batch_id: Uuid, name: &str) -> Result<Option<(Batch, FileRecord)>, Refused> {
        let id = batch_id.to_string();
        let batch = sqlx::query("SELECT * FROM batches WHERE id = ?").bind(&id);
        let Some(batch) = batch.fetch_optional(&mut *self.transaction).await? else { return Ok(None) };
        let file = sqlx::query("SELECT * FROM files WHERE batch_id = ? AND name = ?").bind(&id).bind(name);
        let file = file.fetch_optional(&mut *self.transaction).await?;
        let batch = read_batch(&batch)?;
        Ok(file.map(|file| read_file(&file)).transpose()?.map(|file| (batch, file)))
    }

    /// Keeps how a file stands now, and that its batch has changed.
    pub(super) async fn keep(&mut self, record: &FileRecord) -> Result<(), sqlx::Error> {
        self.keep_by(sqlx::query(KEEP_FILE), record).await
    }

    /// The same, and the bytes that were appended at `start` of it.
    async fn keep_appended(&mut self, record: &FileRecord, start: u64, bytes: &[u8]) -> Result<(), sqlx::Error> {
        let appended = sqlx::query(KEEP_APPENDED)
            .bind(record.batch_id.to_string())
            .bind(record.version.0.to_string())
            .bind(start as i64)
            .bind(record.epoch as i64)
            .bind(bytes);
        self.keep_by(appended, record).await
    }

    async fn keep_by<'q>(&mut self, query: SqliteQuery<'q>, record: &'q FileRecord) -> Result<(), sqlx::Error> {
        self.changed.insert(record.batch_id);
        query
            .bind(record.batch_id.to_string())
            .bind(&record.name)
            .bind(record.file_id.to_string())
            .bind(record.generation)
            .bind(record.version.0.to_string())
            .bind(record.bytes as i64)
            .bind(record.whole_lines as i64)
            .bind(record.digest.put_down())
            .bind(&record.open_line.text)
            .bind(record.open_line.bytes as i64)
            .bind(record.open_version.map(|version| version.0.to_string()))
            .bind(record.uploaded_at)
            .bind(record.epoch as i64)
            .bind(
                record
                    .encoding
                    .map(|encoding| json(&encoding))
                    .transpose()
                    .map_err(|e| sqlx::Error::Encode(e.into()))?,
            )
            .bind(record.uploaded_at)
            .bind(self.epoch as i64)
            .bind(record.batch_id.to_string())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// The versions of a file are live no more.
    pub(super) fn withdraw(&mut self, record: &FileRecord, erased: bool) {
        for version in [Some(record.version), record.open_version].into_iter().flatten() {
            // What it measured goes with it, so nothing is taken back piece by piece.
            let row = FileRow { erased: i8::from(erased), ..record.row(version, -1) };
            self.enter(Change::Withdraw(row), Lines::None);
        }
    }

    /// The open line of a file counts as one, under a version of its own, so
    /// that it can be taken back when it goes on.
    pub(super) fn admit_open_line(&mut self, record: &mut FileRecord, version: VersionId) {
        record.open_version = Some(version);
        let OpenLine { text, bytes } = record.open_line.clone();
        let row = FileRow {
            open_line: true,
            bytes,
            lines: 1,
            long_lines: u64::from(bytes > LINE_BYTES_MAX as u64),
            last_line: record.whole_lines + 1,
            ..record.row(version, 1)
        };
        let text = Text { text, lines_before: record.whole_lines, bytes_before: record.bytes - bytes };
        self.enter(Change::Admit(row), Lines::Here(text));
    }

    /// Enters a change whose lines nobody has fed yet.
    fn feed(&mut self, change: Change, text: Text) {
        self.unfed.push(self.entries.len());
        self.enter(change, Lines::Here(text));
    }

    /// Nothing when the key is new. A retry is answered as before; one with another body is refused, and one of a file
    /// that was deleted since is a new request.
    async fn not_answered(&mut self, key: Option<&UploadKey>, digest: Option<&Digest>) -> Result<(), Refused> {
        let Some(UploadKey { key, request }) = key else { return Ok(()) };
        let row = sqlx::query("SELECT batch_id, request, answer FROM idempotency WHERE key = ?").bind(key);
        let Some(row) = row.fetch_optional(&mut *self.transaction).await? else { return Ok(()) };
        let answer = read_answer(&row, request)?;
        let Receipt { file_id, name, sha256, .. } = answer.receipt();
        let there = sqlx::query("SELECT 1 FROM files WHERE batch_id = ? AND name = ? AND file_id = ?")
            .bind(row.try_get::<&str, _>("batch_id")?)
            .bind(name)
            .bind(file_id.to_string());
        if there.fetch_optional(&mut *self.transaction).await?.is_none() {
            sqlx::query("DELETE FROM idempotency WHERE key = ?").bind(key).execute(&mut *self.transaction).await?;
            return Ok(());
        }
        match digest {
            Some(digest) if digest.hex() != *sha256 => Err(Refused::KeyReused),
            _ => Err(Refused::AnsweredBefore(Box::new(answer))),
        }
    }

    async fn remember(
        &mut self,
        key: Option<&UploadKey>,
        batch_id: Uuid,
        answer: &Accepted,
        now: i64,
    ) -> Result<(), MetadataError> {
        let Some(UploadKey { key, request }) = key else { return Ok(()) };
        sqlx::query("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)")
            .bind(key)
            .bind(request)
            .bind(batch_id.to_string())
            .bind(json(answer)?)
            .bind(now)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}

/// Lines of a text that ends with a line feed, and how many of them are long.
fn count_lines(text: &[u8]) -> (u64, u64) {
    let lines = memchr::memchr_iter(b'\n', text).count() as u64;
    let is_long = |line: &&[u8]| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.strip_suffix(b"\r").unwrap_or(line).len() > LINE_BYTES_MAX
    };
    let long_lines = match text.len() > LINE_BYTES_MAX {
        true => text.split_inclusive(|&byte| byte == b'\n').filter(is_long).count() as u64,
        false => 0,
    };
    (lines, long_lines)
}

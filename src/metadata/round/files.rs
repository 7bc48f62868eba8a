//! Changes of files in a round. Each saves the new state of the file and adds journal entries for the dataflow.

use argus_dataflow::text::looks_binary;
use argus_dataflow::{Change, FileRow, LINE_BYTES_MAX, VersionId};
use sqlx::Row;
use uuid::Uuid;

use super::Round;
use crate::domain::batch::{Accepted, Batch, OpenLine, Part, Receipt, SameFile, StoredUpload};
use crate::domain::clock::now;
use crate::domain::digest::Digest;
use crate::domain::event::EventKind;
use crate::domain::status::BatchStatus;
use crate::metadata::dialect::Statements;
use crate::metadata::rows::{FileRecord, batch_row, json, read_answer, read_batch, read_file, read_status, uuid};
use crate::metadata::{Lines, MetadataError, Refused, Text};

/// Identifies a retry of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadKey {
    /// The client's idempotency key.
    pub key: String,
    /// The request that it was used with; any other request with this key is rejected.
    pub request: String,
}

const SAVE_FILE: &str = "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL) \
    ON CONFLICT (batch_id, name) DO UPDATE SET file_id = excluded.file_id, generation = excluded.generation, \
    version = excluded.version, bytes = excluded.bytes, lines = excluded.lines, digest = excluded.digest, \
    open_text = excluded.open_text, open_bytes = excluded.open_bytes, open_version = excluded.open_version, \
    uploaded_at = excluded.uploaded_at, epoch = excluded.epoch, encoding = excluded.encoding, failure = NULL";

impl Round<'_> {
    /// Accepts an upload into a pending batch. It replaces the previous generation,
    /// if there is one, at the same epoch.
    pub async fn accept_file(&mut self, upload: &StoredUpload, key: Option<&UploadKey>) -> Result<Accepted, Refused> {
        self.check_key(key, Some(&upload.digest)).await?;
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
            let all_counted = current.open_line.is_empty() || current.open_version.is_some();
            if all_counted && !current.is_failed && current.digest == upload.digest {
                let answer = Accepted::Unchanged(current.receipt());
                self.save_answer(key, upload.batch_id, &answer, upload.uploaded_at).await?;
                return Ok(answer);
            }
            record.file_id = current.file_id;
            record.generation = current.generation + 1;
            self.withdraw(current, false);
        }
        self.admit(upload, &mut record);
        self.save_file(&record).await?;
        let receipt = Receipt { same_as: self.same_bytes(upload).await?, ..record.receipt() };
        let Receipt { generation, bytes, lines, .. } = receipt;
        let file = record.name;
        let parsed = EventKind::FileParsed { file: file.clone(), generation };
        let (kind, answer) = match before {
            Some(_) => (EventKind::FileReplaced { file, generation, bytes, lines }, Accepted::Replaced(receipt)),
            None => (EventKind::FileUploaded { file, generation, bytes, lines }, Accepted::Created(receipt)),
        };
        self.add_event(upload.batch_id, kind, upload.uploaded_at);
        self.add_event(upload.batch_id, parsed, upload.uploaded_at);
        self.save_answer(key, upload.batch_id, &answer, upload.uploaded_at).await?;
        Ok(answer)
    }

    /// Replaces the counts of a file with those of a new scan, whatever the status of its batch. Returns `false` and
    /// changes nothing if the file no longer has this version and this number of bytes.
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
            // Completed again, so that the rows of its vehicle are computed again.
            self.add_entry(Change::Batch(batch_row(&batch, 0, -1)), Lines::None);
            self.add_entry(Change::Batch(batch_row(&batch, 0, 1)), Lines::None);
        }
        self.save_file(&record).await?;
        let parsed = EventKind::FileParsed { file: record.name, generation: record.generation };
        self.add_event(upload.batch_id, parsed, now());
        Ok(true)
    }

    /// Admits the lines of an upload.
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
        self.add_entry(Change::Admit(admitted), Lines::Stored(upload.encoding));
        if let Some((version, line)) = &upload.open_line {
            record.open_line = line.clone();
            self.admit_open_line(record, *version);
        }
    }

    /// Another file with the same bytes, in any batch.
    async fn same_bytes(&mut self, upload: &StoredUpload) -> Result<Option<SameFile>, Refused> {
        if upload.bytes == 0 {
            return Ok(None);
        }
        let same = self.dialect.query(
            "SELECT batch_id, name FROM files WHERE digest = ? AND NOT (batch_id = ? AND name = ?) ORDER BY batch_id LIMIT 1",
        )
        .bind(upload.digest.to_bytes())
        .bind(upload.batch_id.to_string())
        .bind(&upload.name);
        let row = same.fetch_optional(&mut *self.transaction).await?;
        row.map(|row| Ok(SameFile { batch_id: uuid(row.try_get("batch_id")?)?, name: row.try_get("name")? }))
            .transpose()
    }

    /// Appends to a file of a pending batch; creates the file if it does not exist. Its
    /// whole lines are counted from this round's epoch on; a last line without a line
    /// feed waits for the next part. `offset`, if given, must be the current length of the file.
    pub async fn append(
        &mut self,
        part: &Part,
        offset: Option<u64>,
        key: Option<&UploadKey>,
    ) -> Result<Accepted, Refused> {
        self.check_key(key, None).await?;
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
        let Some((whole, open_line)) = record.open_line.append(&part.bytes) else {
            return Err(Refused::OpenLineTooLong { name: record.name });
        };
        if let Some(version) = record.open_version.take() {
            self.add_entry(Change::Withdraw(record.row(version, -1)), Lines::None);
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
        // The journal has the same text, unless an open line is before or after the whole ones.
        let packed = part.packed.clone().filter(|_| open_bytes == 0 && record.open_line.is_empty());
        self.add_entry_with_lines(Change::Admit(grown), Text { text: whole, packed, lines_before, bytes_before });
        match part.bytes.is_empty() {
            true => self.save_file(&record).await?,
            false => self.save_appended(&record, start, part).await?,
        }
        let receipt = record.receipt();
        let answer = if is_new {
            let Receipt { generation, bytes, lines, .. } = receipt;
            let uploaded = EventKind::FileUploaded { file: record.name.clone(), generation, bytes, lines };
            self.add_event(part.batch_id, uploaded, part.uploaded_at);
            self.add_event(part.batch_id, EventKind::FileParsed { file: record.name, generation }, part.uploaded_at);
            Accepted::Created(receipt)
        } else {
            Accepted::Grown(receipt)
        };
        self.save_answer(key, part.batch_id, &answer, part.uploaded_at).await?;
        Ok(answer)
    }

    /// Deletes a file of a pending batch.
    pub async fn delete_file(&mut self, batch_id: Uuid, name: &str, now: i64) -> Result<(), Refused> {
        self.pending(batch_id).await?;
        let row = self
            .dialect
            .query("DELETE FROM files WHERE batch_id = ? AND name = ? RETURNING *")
            .bind(batch_id.to_string())
            .bind(name)
            .fetch_optional(&mut *self.transaction)
            .await?
            .ok_or_else(|| Refused::FileNotFound { batch: batch_id, name: name.to_owned() })?;
        let deleted = read_file(&row)?;
        self.withdraw(&deleted, true);
        self.touch(batch_id, now).await?;
        let generation = deleted.generation;
        self.add_event(batch_id, EventKind::FileDeleted { file: deleted.name, generation }, now);
        Ok(())
    }

    /// Records that a version of a file could not be counted.
    pub async fn file_failed(&mut self, version: VersionId, failure: &str) -> Result<(), MetadataError> {
        self.dialect
            .query("UPDATE files SET failure = ? WHERE version = ?")
            .bind(failure)
            .bind(version.0.to_string())
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }

    /// Records that the raw store contains the parts of a version from `start` to the one at
    /// `last_start`. Returns whether the version still exists.
    pub async fn parts_are_stored(&mut self, version: VersionId, start: u64, last_start: u64) -> Result<bool, Refused> {
        let stored = self
            .dialect
            .query("DELETE FROM appended WHERE version = ?1 AND start > ?2 AND start <= ?3")
            .bind(version.0.to_string())
            .bind(start as i64)
            .bind(last_start as i64);
        stored.execute(&mut *self.transaction).await?;
        let first = self
            .dialect
            .query("UPDATE appended SET bytes = NULL WHERE version = ? AND start = ?")
            .bind(version.0.to_string())
            .bind(start as i64);
        Ok(first.execute(&mut *self.transaction).await?.rows_affected() > 0)
    }

    /// Fails if there is no such batch, or if it is not pending.
    pub async fn pending(&mut self, id: Uuid) -> Result<(), Refused> {
        match self.batch(id).await?.status {
            BatchStatus::Pending => Ok(()),
            status => Err(Refused::NotPending { batch: id, status }),
        }
    }

    /// The file with this name in a pending batch, if there is one.
    async fn file_of_pending(&mut self, batch_id: Uuid, name: &str) -> Result<Option<FileRecord>, Refused> {
        let row = self
            .dialect
            .query(
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
        let exists = row.try_get::<Option<&str>, _>("batch_id")?.is_some();
        Ok(exists.then(|| read_file(&row)).transpose()?)
    }

    /// A file and its batch, whatever the status of the batch.
    async fn batch_and_file(&mut self, batch_id: Uuid, name: &str) -> Result<Option<(Batch, FileRecord)>, Refused> {
        let id = batch_id.to_string();
        let batch = self.dialect.query("SELECT * FROM batches WHERE id = ?").bind(&id);
        let Some(batch) = batch.fetch_optional(&mut *self.transaction).await? else { return Ok(None) };
        let file = self.dialect.query("SELECT * FROM files WHERE batch_id = ? AND name = ?").bind(&id).bind(name);
        let file = file.fetch_optional(&mut *self.transaction).await?;
        let batch = read_batch(&batch)?;
        Ok(file.map(|file| read_file(&file)).transpose()?.map(|file| (batch, file)))
    }

    /// Saves a file, and marks its batch as changed.
    pub(super) async fn save_file(&mut self, record: &FileRecord) -> Result<(), sqlx::Error> {
        let statements = Statements::new(self.dialect);
        self.save_with(statements, record).await
    }

    /// Saves a file, and the part that was appended to it at `start`.
    async fn save_appended(&mut self, record: &FileRecord, start: u64, part: &Part) -> Result<(), sqlx::Error> {
        let mut statements = Statements::new(self.dialect);
        statements
            .add("INSERT INTO appended VALUES (?, ?, ?, ?, ?, ?)")
            .bind(record.batch_id.to_string())
            .bind(record.version.0.to_string())
            .bind(start as i64)
            .bind(record.epoch as i64)
            .bind(part.packed.as_ref().unwrap_or(&part.bytes).to_vec())
            .bind(part.packed.as_ref().map(|_| part.bytes.len() as i64));
        self.save_with(statements, record).await
    }

    async fn save_with(&mut self, mut statements: Statements, record: &FileRecord) -> Result<(), sqlx::Error> {
        self.changed.insert(record.batch_id);
        let encoding = record.encoding.map(|encoding| json(&encoding)).transpose();
        statements
            .add(SAVE_FILE)
            .bind(record.batch_id.to_string())
            .bind(record.name.clone())
            .bind(record.file_id.to_string())
            .bind(i64::from(record.generation))
            .bind(record.version.0.to_string())
            .bind(record.bytes as i64)
            .bind(record.whole_lines as i64)
            .bind(record.digest.to_bytes())
            .bind(record.open_line.text.clone())
            .bind(record.open_line.bytes as i64)
            .bind(record.open_version.map(|version| version.0.to_string()))
            .bind(record.uploaded_at)
            .bind(record.epoch as i64)
            .bind(encoding.map_err(|error| sqlx::Error::Encode(error.into()))?)
            .add("UPDATE batches SET updated_at = ?, epoch = ? WHERE id = ?")
            .bind(record.uploaded_at)
            .bind(self.epoch as i64)
            .bind(record.batch_id.to_string());
        statements.run(&mut self.transaction).await
    }

    /// Withdraws the versions of a file.
    pub(super) fn withdraw(&mut self, record: &FileRecord, erased: bool) {
        for version in [Some(record.version), record.open_version].into_iter().flatten() {
            // The dataflow retracts all that belongs to a version, so the row needs no measures.
            let row = FileRow { erased: i8::from(erased), ..record.row(version, -1) };
            self.add_entry(Change::Withdraw(row), Lines::None);
        }
    }

    /// Admits the open line of a file, under a version of its own, so that
    /// it can be withdrawn when the line is continued.
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
        let text = Text {
            text: text.into(),
            packed: None,
            lines_before: record.whole_lines,
            bytes_before: record.bytes - bytes,
        };
        self.add_entry(Change::Admit(row), Lines::Inline(text));
    }

    /// Adds a change whose lines are not yet inserted into the dataflow.
    fn add_entry_with_lines(&mut self, change: Change, text: Text) {
        self.not_inserted.push(self.entries.len());
        self.add_entry(change, Lines::Inline(text));
    }

    /// Returns `Ok` if the request is new. A retry gets the stored answer, as an error; a retry with another body is
    /// rejected. If the file was deleted since, the request counts as new.
    async fn check_key(&mut self, key: Option<&UploadKey>, digest: Option<&Digest>) -> Result<(), Refused> {
        let Some(UploadKey { key, request }) = key else { return Ok(()) };
        let row = self.dialect.query("SELECT batch_id, request, answer FROM idempotency WHERE key = ?").bind(key);
        let Some(row) = row.fetch_optional(&mut *self.transaction).await? else { return Ok(()) };
        let answer = read_answer(&row, request)?;
        let Receipt { file_id, name, sha256, .. } = answer.receipt();
        let file = self
            .dialect
            .query("SELECT 1 FROM files WHERE batch_id = ? AND name = ? AND file_id = ?")
            .bind(row.try_get::<&str, _>("batch_id")?)
            .bind(name)
            .bind(file_id.to_string());
        if file.fetch_optional(&mut *self.transaction).await?.is_none() {
            self.dialect
                .query("DELETE FROM idempotency WHERE key = ?")
                .bind(key)
                .execute(&mut *self.transaction)
                .await?;
            return Ok(());
        }
        match digest {
            Some(digest) if digest.hex() != *sha256 => Err(Refused::KeyReused),
            _ => Err(Refused::AnsweredBefore(Box::new(answer))),
        }
    }

    async fn save_answer(
        &mut self,
        key: Option<&UploadKey>,
        batch_id: Uuid,
        answer: &Accepted,
        now: i64,
    ) -> Result<(), MetadataError> {
        let Some(UploadKey { key, request }) = key else { return Ok(()) };
        self.dialect
            .query("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?)")
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

/// The number of lines of a text that ends with a line feed, and the number of long ones.
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

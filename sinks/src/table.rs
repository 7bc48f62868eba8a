//! One Delta table and its exactly-once commit.
//!
//! The last epoch of a group is stored as the table's application transaction
//! version (Delta `txn` action). delta-rs does not reject a repeated transaction
//! version, so we check before each commit. There is one committer, so the check
//! is enough.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Once};
use std::time::Duration;

use arrow::array::RecordBatch;
use chrono::Utc;
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties, TableReference};
use deltalake_core::kernel::{Action, Add, LogicalFileView, StructType, Transaction, Version};
use deltalake_core::logstore::{
    LogStore, LogStoreFactory, ObjectStoreRef, StorageConfig, default_logstore, logstore_factories,
};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::checkpoints::{cleanup_expired_logs_for, create_checkpoint};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::writer::{DeltaWriter, RecordBatchWriter};
use deltalake_core::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::convert::encode;
use crate::crash;
use crate::schema::Table;
use crate::snapshot::DataFile;

/// The application id of our transactions.
const APPLICATION: &str = "argus";

/// The application id whose transaction version is `since`, the oldest epoch that can be queried.
const SINCE: &str = "argus-since";

/// The application id whose transaction version is the term of the last writer.
const WRITER: &str = "argus-writer";

/// A claim is repeated this often when another writer commits at the same time.
const CLAIMS_MAX: u32 = 10;

/// A log that others may read is shortened when this many versions were added since the last checkpoint.
const LOG_VERSIONS: Version = 50;

/// Rows in a row group: limits the memory of a writer to tens of MiB.
const ROW_GROUP_ROWS: usize = 64 * 1024;

/// Encoded bytes in a row group (8 MiB): a row may have 1 KiB of text.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// Rows in a page: a look-up of one batch reads one page of each column.
const PAGE_ROWS: usize = 2048;

/// The number of distinct keys that the bloom filter of a row group is sized for.
const GROUP_KEYS: u64 = 8192;

/// An open Delta table.
#[derive(Clone)]
pub struct LakeTable {
    table: Table,
    delta: DeltaTable,
    folder: Path,
    committed_epoch: u64,
    since: u64,
    /// The term of this writer; 0 if no other process can have the table open.
    term: u64,
    /// The term of the last writer that claimed the table.
    claimed: u64,
    /// The version of the last checkpoint.
    checkpoint_version: Version,
}

/// A written file that is not part of its table yet.
pub type NewFile = Add;

impl LakeTable {
    /// Opens the table in its folder below `lake`; creates it if it does not exist.
    /// Paths in `store` begin at the root of `lake`'s scheme.
    pub async fn open(store: Arc<dyn ObjectStore>, lake: &Url, table: Table) -> Result<LakeTable, DeltaTableError> {
        register_log_stores();
        let url = folder_url(lake, table);
        let folder = Path::from_url_path(url.path())?;
        let mut delta = DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(store, url).build()?;
        if delta.verify_deltatable_existence().await? {
            delta.load().await?;
        } else {
            let schema: StructType = table.schema().as_ref().try_into_kernel()?;
            delta = CreateBuilder::new()
                .with_log_store(delta.log_store())
                .with_table_name(table.name())
                .with_comment(table.comment())
                .with_columns(schema.fields().cloned())
                .await?;
        }
        let mut table = LakeTable::new(table, delta, folder);
        table.read_transactions().await?;
        Ok(table)
    }

    /// Opens the table for reading; `None` if it does not exist.
    pub async fn open_read_only(
        store: Arc<dyn ObjectStore>,
        lake: &Url,
        table: Table,
    ) -> Result<Option<LakeTable>, DeltaTableError> {
        register_log_stores();
        let url = folder_url(lake, table);
        let delta = DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(Arc::clone(&store), url).build()?;
        match delta.verify_deltatable_existence().await? {
            true => LakeTable::open(store, lake, table).await.map(Some),
            false => Ok(None),
        }
    }

    /// Opens a version of the table for reading.
    pub async fn open_at(
        store: Arc<dyn ObjectStore>,
        lake: &Url,
        table: Table,
        version: u64,
    ) -> Result<LakeTable, DeltaTableError> {
        register_log_stores();
        let url = folder_url(lake, table);
        let folder = Path::from_url_path(url.path())?;
        let mut delta = DeltaTableBuilder::from_url(url.clone())?.with_storage_backend(store, url).build()?;
        delta.load_version(version).await?;
        Ok(LakeTable::new(table, delta, folder))
    }

    /// Reads a later version of the table.
    pub async fn load(&mut self, version: u64) -> Result<(), DeltaTableError> {
        self.delta.update_incremental(Some(version)).await
    }

    fn new(table: Table, delta: DeltaTable, folder: Path) -> LakeTable {
        LakeTable { table, delta, folder, committed_epoch: 0, since: 0, term: 0, claimed: 0, checkpoint_version: 0 }
    }

    /// Makes this process the writer, by a commit with its term: a commit of an earlier writer, which does not know of
    /// it, then fails.
    pub async fn claim(&mut self, term: u64) -> Result<(), DeltaTableError> {
        for claim in 1.. {
            self.refresh().await?;
            self.term = term;
            self.check_term()?;
            if self.claimed == term {
                return Ok(());
            }
            let transaction = Transaction::new(WRITER, term as i64);
            let operation = DeltaOperation::Optimize { predicate: None, target_size: 0 };
            match self.commit_actions(Vec::new(), Some(transaction), operation).await {
                // An earlier writer may have committed first.
                Err(error) if claim == CLAIMS_MAX => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a later writer has claimed the table: this process can commit nothing more.
    pub fn is_fenced(&self) -> bool {
        self.term > 0 && self.claimed > self.term
    }

    fn check_term(&self) -> Result<(), DeltaTableError> {
        match self.is_fenced() {
            true => Err(DeltaTableError::Generic(format!(
                "another process, writer {}, has taken over the table; this one is writer {}",
                self.claimed, self.term
            ))),
            false => Ok(()),
        }
    }

    /// The last epoch whose rows the table contains; 0 before the first.
    pub fn committed_epoch(&self) -> u64 {
        self.committed_epoch
    }

    /// Which table it is.
    pub fn table(&self) -> Table {
        self.table
    }

    /// The first missing column, if an earlier version of Argus created the table.
    pub fn missing_column(&self) -> Result<Option<&'static str>, DeltaTableError> {
        let schema = self.delta.snapshot()?.schema();
        let has = |name: &str| schema.fields().any(|field| field.name() == name);
        Ok(self.table.columns().find(|column| !has(column)))
    }

    /// The version of the Delta table.
    pub fn version(&self) -> u64 {
        self.delta.version().unwrap_or_default()
    }

    /// The oldest epoch that can be queried, if this table records it (`files` does).
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The files of the table's current version.
    pub fn files(&self) -> Result<Arc<[DataFile]>, DeltaTableError> {
        let snapshot = self.delta.snapshot()?;
        let file = |file: LogicalFileView| self.data_file(&file.path(), file.size(), file.stats().as_deref());
        Ok(snapshot.log_data().iter().map(file).collect())
    }

    /// A written file of this table, committed or not.
    pub fn data_file_of(&self, add: &Add) -> DataFile {
        self.data_file(&add.path, add.size, add.stats.as_deref())
    }

    fn data_file(&self, path: &str, size: i64, stats: Option<&str>) -> DataFile {
        let keys = stats.and_then(|stats| key_range(stats, self.table.sort_columns().first()?));
        DataFile { path: self.path(path), bytes: size.max(0) as u64, keys }
    }

    fn path(&self, path: &str) -> Path {
        path.split('/').fold(self.folder.clone(), |folder, part| folder.join(part))
    }

    /// Deletes written files that no version of the table refers to. A file that cannot be deleted is left for the
    /// maintenance after the next start.
    pub async fn delete_unnamed(&self, files: &[Add]) {
        let store = self.delta.log_store().object_store(None);
        for file in files {
            if let Err(error) = store.delete(&Path::from(file.path.as_str())).await {
                tracing::warn!(table = self.table.name(), file = file.path, %error, "cannot delete an unused file");
            }
        }
    }

    /// A writer of files for this table; the files become part of the table when they are committed.
    pub fn writer(&self) -> Result<RecordBatchWriter, DeltaTableError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
            .set_data_page_row_count_limit(PAGE_ROWS)
            .set_write_batch_size(PAGE_ROWS);
        // Rows of one key are adjacent, so the bloom filter excludes most files and row groups without reading them.
        let properties = self.table.sort_columns().iter().take(1).fold(properties, |properties, key| {
            let key = ColumnPath::from(*key);
            properties
                .set_column_bloom_filter_enabled(key.clone(), true)
                .set_column_bloom_filter_max_ndv(key, GROUP_KEYS)
        });
        // A column with a different value in nearly every row would have a dictionary as large as its data,
        // and a look-up of one row would read all of it.
        let properties = self.table.distinct_columns().iter().fold(properties, |properties, column| {
            properties.set_column_dictionary_enabled(ColumnPath::from(*column), false)
        });
        let properties = properties.build();
        Ok(RecordBatchWriter::for_table(&self.delta)?.with_writer_properties(properties))
    }

    /// Writes `rows` and commits them with the files `spilled`, exactly once:
    /// does nothing if the table already contains `epoch`. After an error the
    /// commit may or may not have happened; call it again.
    pub async fn commit(&mut self, epoch: u64, rows: &[RecordBatch], spilled: Vec<Add>) -> Result<(), DeltaTableError> {
        self.refresh().await?;
        if self.committed_epoch >= epoch {
            return Ok(());
        }
        let mut adds = spilled;
        if !rows.is_empty() {
            let all_rows = arrow::compute::concat_batches(&self.table.schema(), rows)?;
            let mut writer = self.writer()?;
            writer.write(encode::sorted(self.table, &all_rows)?).await?;
            adds.extend(writer.flush().await?);
        }
        crash::point("delta staged");
        let transaction = Transaction::new(APPLICATION, epoch as i64);
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None };
        self.commit_actions(adds.into_iter().map(Action::Add).collect(), Some(transaction), operation).await?;
        self.committed_epoch = epoch;
        Ok(())
    }

    /// Commits a new `since`: epochs before it can no longer be queried separately. Must precede the consolidation of
    /// rows.
    pub async fn advance_since(&mut self, since: u64) -> Result<(), DeltaTableError> {
        self.refresh().await?;
        if self.since >= since {
            return Ok(());
        }
        let transaction = Transaction::new(SINCE, since as i64);
        let operation = DeltaOperation::Optimize { predicate: None, target_size: 0 };
        self.commit_actions(Vec::new(), Some(transaction), operation).await?;
        self.since = since;
        Ok(())
    }

    /// Replaces the files `removed` with `added`, in one version of the table.
    /// Readers of older versions still find the removed files until they are
    /// deleted.
    pub async fn replace(&mut self, removed: &HashSet<Path>, added: Vec<NewFile>) -> Result<(), DeltaTableError> {
        self.refresh().await?;
        let mut actions: Vec<Action> = added.into_iter().map(Action::Add).collect();
        for file in self.delta.snapshot()?.log_data().iter() {
            if removed.contains(&self.path(&file.path())) {
                actions.push(Action::Remove(file.remove_action(true)));
            }
        }
        let operation = DeltaOperation::Optimize { predicate: None, target_size: 0 };
        self.commit_actions(actions, None, operation).await
    }

    /// Writes a checkpoint and deletes earlier log entries that are older than `age`.
    pub async fn shorten_log(&mut self, age: Duration) -> Result<(), DeltaTableError> {
        self.refresh().await?;
        let Some(version) = self.delta.version() else { return Ok(()) };
        if version < self.checkpoint_version + if age.is_zero() { 1 } else { LOG_VERSIONS } {
            return Ok(());
        }
        create_checkpoint(&self.delta, None).await?;
        let before = Utc::now().timestamp_millis() - age.as_millis() as i64;
        cleanup_expired_logs_for(version, &*self.delta.log_store(), before, None).await?;
        // The loaded state refers to log files that no longer exist.
        self.delta.state = None;
        self.delta.load().await?;
        self.checkpoint_version = version;
        Ok(())
    }

    /// Parquet files in the table's folder that its current version does not refer to.
    pub async fn unreferenced_files(&mut self, store: &dyn ObjectStore) -> Result<Vec<ObjectMeta>, DeltaTableError> {
        self.refresh().await?;
        let named: HashSet<Path> = self.files()?.iter().map(|file| file.path.clone()).collect();
        let all: Vec<ObjectMeta> = store.list(Some(&self.folder)).try_collect().await?;
        let is_data = |file: &ObjectMeta| file.location.extension() == Some("parquet");
        let log = self.folder.clone().join("_delta_log");
        Ok(all
            .into_iter()
            .filter(|file| is_data(file) && !file.location.prefix_matches(&log) && !named.contains(&file.location))
            .collect())
    }

    async fn commit_actions(
        &mut self,
        actions: Vec<Action>,
        transaction: Option<Transaction>,
        operation: DeltaOperation,
    ) -> Result<(), DeltaTableError> {
        // A conflict is never resolved by a new attempt: only this process should commit.
        let properties = CommitProperties::default().with_max_retries(0);
        let properties = match transaction {
            Some(transaction) => properties.with_application_transaction(transaction),
            None => properties,
        };
        let state = self.delta.snapshot()?.clone();
        let commit = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(&state as &dyn TableReference), self.delta.log_store(), operation)
            .await?;
        self.delta.state = Some(commit.snapshot());
        Ok(())
    }

    /// Reads the log again: a commit may have succeeded although it returned an error.
    async fn refresh(&mut self) -> Result<(), DeltaTableError> {
        self.delta.update_state().await?;
        self.read_transactions().await?;
        self.check_term()
    }

    async fn read_transactions(&mut self) -> Result<(), DeltaTableError> {
        let (snapshot, log) = (self.delta.snapshot()?, self.delta.log_store());
        let committed = snapshot.transaction_version(&*log, APPLICATION).await?;
        let since = snapshot.transaction_version(&*log, SINCE).await?;
        self.committed_epoch = committed.unwrap_or(0).max(0) as u64;
        let claimed = snapshot.transaction_version(&*log, WRITER).await?;
        self.since = since.unwrap_or(0).max(0) as u64;
        self.claimed = claimed.unwrap_or(0).max(0) as u64;
        Ok(())
    }
}

/// Logs in S3, with conditional puts.
struct LogsInS3;

impl LogStoreFactory for LogsInS3 {
    fn with_options(
        &self,
        prefixed_store: ObjectStoreRef,
        root_store: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> Result<Arc<dyn LogStore>, DeltaTableError> {
        Ok(default_logstore(prefixed_store, root_store, location, options))
    }
}

/// Makes tables in S3 known to delta-rs, which knows files and memory by itself.
fn register_log_stores() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        if let Ok(scheme) = Url::parse("s3://") {
            logstore_factories().insert(scheme, Arc::new(LogsInS3));
        }
    });
}

/// The minimum and maximum of a text column from a file's statistics in JSON (Delta protocol,
/// per-file statistics). Writers may truncate long strings, but not strings of our keys' lengths.
fn key_range(stats: &str, column: &str) -> Option<RangeInclusive<Arc<str>>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statistics {
        min_values: HashMap<String, Value>,
        max_values: HashMap<String, Value>,
    }
    let stats: Statistics = serde_json::from_str(stats).ok()?;
    let key = |values: &HashMap<String, Value>| values.get(column)?.as_str().map(Arc::from);
    Some(key(&stats.min_values)?..=key(&stats.max_values)?)
}

fn folder_url(lake: &Url, table: Table) -> Url {
    let mut url = lake.clone();
    url.set_path(&format!("{}/{}", lake.path().trim_end_matches('/'), table.name()));
    url
}

#[cfg(test)]
mod tests {
    use deltalake_core::kernel::StructType;
    use object_store::local::LocalFileSystem;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_table_created_by_an_earlier_version_has_a_missing_column() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = Url::from_directory_path(folder.path()).expect("a folder");
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
        let url = folder_url(&root, Table::Files);
        let builder = DeltaTableBuilder::from_url(url.clone()).expect("a valid URL");
        let delta = builder.with_storage_backend(Arc::clone(&store), url).build().expect("a table");
        let schema: StructType = Table::Files.schema().as_ref().try_into_kernel().expect("a schema");
        let columns = schema.fields().filter(|field| field.name() != "failure").cloned();
        CreateBuilder::new()
            .with_log_store(delta.log_store())
            .with_columns(columns)
            .await
            .expect("the table is created");
        let opened = LakeTable::open(Arc::clone(&store), &root, Table::Files).await.expect("opens");
        assert_eq!(opened.missing_column().expect("has a schema"), Some("failure"));
        let complete = LakeTable::open(store, &root, Table::Batches).await.expect("the table is created");
        assert_eq!(complete.missing_column().expect("has a schema"), None);
    }

    #[tokio::test]
    async fn a_replaced_writer_can_commit_nothing() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let root = Url::parse("memory:///lake/").expect("a URL");
        let open = async || LakeTable::open(Arc::clone(&store), &root, Table::Files).await.expect("opens");
        let mut first = open().await;
        first.claim(1).await.expect("is the writer");
        first.commit(1, &[], Vec::new()).await.expect("commits");
        let mut second = open().await;
        second.claim(2).await.expect("takes over");
        let since = first.advance_since(1).await;
        assert!(since.is_err_and(|error| error.to_string().contains("writer 2")));
        assert!(first.commit(2, &[], Vec::new()).await.is_err() && first.is_fenced());
        assert!(first.replace(&HashSet::new(), Vec::new()).await.is_err());
        assert!(first.claim(1).await.is_err());
        second.commit(2, &[], Vec::new()).await.expect("commits");
        assert_eq!((second.committed_epoch(), second.is_fenced()), (2, false));
    }
}

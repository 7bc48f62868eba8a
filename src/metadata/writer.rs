//! The one who writes metadata.

use argus_dataflow::{Change, VersionId};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use crate::metadata::changes::Changes;
use crate::metadata::round::Round;
use crate::metadata::rows::read_entry;
use crate::metadata::{JournalEntry, MetadataError};

/// The one writer of metadata.
#[derive(Debug)]
pub struct MetadataWriter {
    pub(super) options: SqliteConnectOptions,
    pub(super) connection: SqliteConnection,
    pub(super) changes: Changes,
}

impl MetadataWriter {
    /// Begins a round of changes after `last_epoch`, the last that was
    /// accepted. Nothing of it is there until it is committed.
    pub async fn begin(&mut self, last_epoch: u64) -> Result<Round<'_>, MetadataError> {
        Ok(Round::new(self.connection.begin().await?, last_epoch + 1, &self.changes))
    }

    /// Begins anew after an error, which may have left a transaction open that
    /// later ones would be a part of: they would be answered and never durable.
    pub async fn reopen(&mut self) -> Result<(), MetadataError> {
        self.connection = SqliteConnection::connect_with(&self.options).await?;
        Ok(())
    }

    /// The last epoch that was accepted, as this connection sees it.
    pub async fn last_epoch(&mut self) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT epoch FROM clock").fetch_one(&mut self.connection).await?;
        Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
    }

    /// Versions that were withdrawn up to `epoch`: their bytes are of no use any more.
    pub async fn withdrawn(&mut self, epoch: u64) -> Result<Vec<(Uuid, VersionId)>, MetadataError> {
        let rows = sqlx::query("SELECT * FROM journal WHERE epoch <= ? AND change LIKE '{\"Withdraw\"%'")
            .bind(epoch as i64)
            .fetch_all(&mut self.connection)
            .await?;
        let mut gone = Vec::new();
        for row in &rows {
            if let JournalEntry { change: Change::Withdraw(file), .. } = read_entry(row)? {
                gone.push((file.batch_id, file.version));
            }
        }
        Ok(gone)
    }

    /// Where the objects begin that hold bytes which were appended to a version.
    pub async fn appended_objects(&mut self, version: VersionId) -> Result<Vec<u64>, MetadataError> {
        let rows = sqlx::query("SELECT start FROM appended WHERE version = ? AND bytes IS NULL")
            .bind(version.0.to_string())
            .fetch_all(&mut self.connection)
            .await?;
        rows.iter().map(|row| Ok(row.try_get::<i64, _>(0)?.max(0) as u64)).collect()
    }

    /// Forgets what was appended to a version.
    pub async fn forget_appended(&mut self, version: VersionId) -> Result<(), MetadataError> {
        let forget = sqlx::query("DELETE FROM appended WHERE version = ?").bind(version.0.to_string());
        forget.execute(&mut self.connection).await?;
        Ok(())
    }

    /// Forgets the journal up to `epoch`, which the lake holds.
    pub async fn forget_journal(&mut self, epoch: u64) -> Result<(), MetadataError> {
        sqlx::query("DELETE FROM journal WHERE epoch <= ?").bind(epoch as i64).execute(&mut self.connection).await?;
        Ok(())
    }
}

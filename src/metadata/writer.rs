//! The one who writes metadata.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row, SqliteConnection};

use crate::metadata::MetadataError;
use crate::metadata::changes::Changes;
use crate::metadata::round::Round;

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
}

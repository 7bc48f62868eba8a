//! The write connection.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Row, SqliteConnection};

use crate::metadata::MetadataError;
use crate::metadata::changes::ChangeCounters;
use crate::metadata::round::Round;

/// The only writer of metadata.
#[derive(Debug)]
pub struct MetadataWriter {
    pub(super) options: SqliteConnectOptions,
    pub(super) connection: SqliteConnection,
    pub(super) changes: ChangeCounters,
}

impl MetadataWriter {
    /// Begins a round of changes after `last_epoch`, the last accepted
    /// epoch. Readers see none of its changes before it commits.
    pub async fn begin(&mut self, last_epoch: u64) -> Result<Round<'_>, MetadataError> {
        Ok(Round::new(self.connection.begin().await?, last_epoch + 1, &self.changes))
    }

    /// Opens a new connection after an error. The old one may have an open transaction: later
    /// changes would become part of it, and would be acknowledged without being durable.
    pub async fn reopen(&mut self) -> Result<(), MetadataError> {
        self.connection = SqliteConnection::connect_with(&self.options).await?;
        Ok(())
    }

    /// The last accepted epoch, as this connection sees it.
    pub async fn last_epoch(&mut self) -> Result<u64, MetadataError> {
        let row = sqlx::query("SELECT epoch FROM clock").fetch_one(&mut self.connection).await?;
        Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
    }
}

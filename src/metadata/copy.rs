//! A copy of the metadata in SQLite, made in one transaction while a server goes on.

use std::collections::HashSet;
use std::path::Path;

use argus_dataflow::VersionId;
use argus_sinks::LakeState;
use futures::TryStreamExt;
use sqlx::Row;
use uuid::Uuid;

use super::database::Database;
use super::rows::uuid;
use super::{Location, Metadata, MetadataError};

/// The copy, open.
pub struct MetadataCopy {
    metadata: Metadata,
    database: Database,
}

impl MetadataCopy {
    /// Copies a database to a file that does not exist.
    pub async fn make(database: &Path, to: &Path) -> Result<MetadataCopy, MetadataError> {
        let mut connection = Database::new(&Location::File(database.to_owned()))?.connect().await?;
        sqlx::query("VACUUM INTO ?").bind(to.display().to_string()).execute(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        let to = Location::File(to.to_owned());
        let (metadata, _) = Metadata::open(&to).await?;
        Ok(MetadataCopy { metadata, database: Database::new(&to)? })
    }

    /// The last accepted epoch.
    pub async fn epoch(&self) -> Result<u64, MetadataError> {
        self.metadata.last_epoch().await
    }

    /// The last recorded commit of the lake.
    pub async fn lake(&self) -> Result<Option<LakeState>, MetadataError> {
        self.metadata.lake().await
    }

    /// The versions of a batch whose bytes are needed.
    pub async fn versions(&self, batch_id: Uuid) -> Result<HashSet<VersionId>, MetadataError> {
        self.metadata.versions(batch_id).await
    }

    /// Whether all objects that a server may read are among these: versions, and parts that were appended to them, each with
    /// its start.
    pub async fn names_only(&self, found: &HashSet<(VersionId, Option<u64>)>) -> Result<bool, MetadataError> {
        let mut rows = sqlx::query(
            "SELECT version, -1 FROM files WHERE encoding IS NOT NULL \
             UNION ALL SELECT version, start FROM appended WHERE bytes IS NULL \
             UNION ALL SELECT change ->> '$.Admit.version', -1 FROM journal WHERE encoding IS NOT NULL AND text IS NULL",
        )
        .fetch(&self.metadata.readers);
        while let Some(row) = rows.try_next().await? {
            let start: i64 = row.try_get(1)?;
            let object = (VersionId(uuid(row.try_get(0)?)?), u64::try_from(start).ok());
            if !found.contains(&object) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Closes it: then the file is the whole database. Each server that starts with it is a deployment of its own: its epochs are
    /// not those of the original, whose answers a shared cache may still have.
    pub async fn close(self) -> Result<(), MetadataError> {
        self.metadata.close().await;
        let mut connection = self.database.connect().await?;
        sqlx::query("DELETE FROM deployment").execute(&mut connection).await?;
        sqlx::Connection::close(connection).await?;
        Ok(())
    }
}

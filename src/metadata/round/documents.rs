//! Documents in a round.

use sqlx::Row;
use uuid::Uuid;

use super::Round;
use crate::domain::clock::now;
use crate::domain::event::{Event, EventKind};
use crate::metadata::documents::{Document, DocumentKind};
use crate::metadata::{MetadataError, Refused};

/// An event of a batch about the counts at an epoch, which readers see already.
#[derive(Debug, Clone)]
pub struct EventAt {
    /// The batch.
    pub batch_id: Uuid,
    /// The epoch.
    pub epoch: u64,
    /// What happened.
    pub kind: EventKind,
}

impl Round<'_> {
    /// Adds documents, or replaces those of the same kind and id; with an event of a batch, which must exist.
    pub async fn put_documents(&mut self, documents: &[Document], event: Option<&EventAt>) -> Result<(), Refused> {
        if let Some(EventAt { batch_id, epoch, kind }) = event {
            self.batch(*batch_id).await?;
            self.changed.insert(*batch_id);
            self.events.push(Event::new(*batch_id, *epoch, kind.clone(), now()));
        }
        for document in documents {
            let Document { kind, id, body } = document;
            if DocumentKind::OF_BATCHES.contains(kind) {
                // It may be deleted meanwhile.
                let batch_id = Uuid::parse_str(id).map_err(|_| MetadataError::Unreadable(id.clone()))?;
                self.batch(batch_id).await?;
            }
            if let Some(limit) = kind.limit() {
                let others = "SELECT count(*) FROM documents WHERE kind = ? AND id <> ?";
                let others = self.dialect.query(others).bind(kind.as_str()).bind(id.clone());
                let others: i64 = others.fetch_one(&mut *self.transaction).await?.try_get(0)?;
                if others >= limit {
                    return Err(Refused::TooManyDocuments { kind: kind.as_str(), limit });
                }
            }
            let put = "INSERT INTO documents VALUES (?, ?, ?) \
                       ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body";
            let put = self.dialect.query(put).bind(kind.as_str()).bind(id.clone()).bind(body.clone());
            put.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }

    /// Deletes a document; whether there was one.
    pub async fn delete_document(&mut self, kind: DocumentKind, id: &str) -> Result<bool, Refused> {
        let delete = self.dialect.query("DELETE FROM documents WHERE kind = ? AND id = ?");
        let delete = delete.bind(kind.as_str()).bind(id.to_owned());
        Ok(delete.execute(&mut *self.transaction).await?.rows_affected() > 0)
    }

    /// Deletes the documents of a batch.
    pub(super) async fn delete_documents_of(&mut self, batch_id: &str) -> Result<(), MetadataError> {
        for kind in DocumentKind::OF_BATCHES {
            let delete = self.dialect.query("DELETE FROM documents WHERE kind = ? AND id = ?");
            let delete = delete.bind(kind.as_str()).bind(batch_id.to_owned());
            delete.execute(&mut *self.transaction).await?;
        }
        Ok(())
    }
}

//! An inbox: objects that appear in a bucket or in a folder become batches, each once.
//!
//! An object becomes a batch under an idempotency key of its path and its tag, and is
//! remembered in the metadata when the batch is complete: a crash between the two counts
//! nothing twice. An object with other content under the same path becomes another batch.
//! Objects stay where they are; one that is deleted is forgotten.
//!
//! - [`object`]: what an object says of its vehicle

pub mod object;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use metrics::counter;
use object_store::path::Path;
use object_store::{GetResult, ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use self::object::{Unknown, described, is_archive};
use crate::domain::batch::{Encoding, StoredUpload};
use crate::domain::clock::now;
use crate::domain::status::BatchStatus;
use crate::ingest::archive::ArchiveError;
use crate::ingest::{BodyPart, Claim, Ingest, IngestError};
use crate::metadata::{Document, DocumentKind, Metadata, MetadataError, Refused};
use crate::pipeline::backlog::weight_of_text;
use crate::pipeline::{Pipeline, PipelineError};
use crate::shutdown::{Stopping, stopped};
use crate::storage::Storage;

/// How often the inbox is listed.
const LIST_EVERY: Duration = Duration::from_secs(5);

/// In a folder, a file that was written to more lately may not be complete.
const REST: TimeDelta = TimeDelta::seconds(3);

/// Objects that are read at once.
const READ_MAX: usize = 4;

/// The memory limit of the files of an archive, as for a form (1 GiB).
const ARCHIVE_WEIGHT_MAX: u64 = 1 << 30;

/// An inbox.
pub struct Inbox {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Whether objects may be incomplete.
    is_folder: bool,
    ingest: Ingest,
    pipeline: Pipeline,
    metadata: Metadata,
}

/// What became of an object.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    /// The version of the object.
    tag: String,
    /// Why it was not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<String>,
}

/// Why an object could not be counted.
#[derive(Debug, thiserror::Error)]
enum InboxError {
    #[error(transparent)]
    Unknown(#[from] Unknown),
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

impl InboxError {
    /// Whether the same object fails again.
    fn is_of_the_object(&self) -> bool {
        match self {
            InboxError::Unknown(_) => true,
            InboxError::Ingest(error) => error.is_of_the_bytes(),
            InboxError::Archive(error) => error.is_of_the_archive(),
            InboxError::Pipeline(_) | InboxError::Metadata(_) | InboxError::Store(_) => false,
        }
    }
}

impl Inbox {
    /// The inbox at a location: a folder, or `s3://BUCKET/PREFIX`. Lists it, so that a wrong location is an error.
    pub async fn open(location: &str, ingest: Ingest, pipeline: Pipeline, metadata: Metadata) -> Result<Inbox> {
        let (store, prefix, is_folder) = Storage::inbox(location)?;
        let inbox = Inbox { store, prefix, is_folder, ingest, pipeline, metadata };
        let listed = inbox.store.list_with_delimiter(Some(&inbox.prefix)).await;
        listed.map_err(|error| anyhow::anyhow!("cannot list the inbox {location}: {error}"))?;
        Ok(inbox)
    }

    /// Turns objects into batches until the server stops.
    pub async fn run(self, mut stopping: watch::Receiver<Stopping>) {
        let work = async {
            let mut done = loop {
                match self.metadata.documents::<Done>(DocumentKind::Object).await {
                    Ok(done) => break done.into_iter().collect::<HashMap<String, Done>>(),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot read what the inbox has done");
                        tokio::time::sleep(LIST_EVERY).await;
                    }
                }
            };
            loop {
                if let Err(error) = self.look(&mut done).await {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot list the inbox; retrying");
                }
                tokio::time::sleep(LIST_EVERY).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stopped(&mut stopping) => {}
        }
    }

    /// Lists the inbox, and counts what is new.
    async fn look(&self, done: &mut HashMap<String, Done>) -> Result<(), InboxError> {
        let mut listed = HashSet::new();
        let mut new = Vec::new();
        let mut objects = self.store.list(Some(&self.prefix));
        while let Some(object) = objects.try_next().await? {
            let path = object.location.to_string();
            let is_done = done.get(&path).is_some_and(|done| done.tag == tag(&object));
            listed.insert(path);
            if !is_done && self.is_complete(&object) {
                new.push(object);
            }
        }
        let counted = futures::stream::iter(new)
            .map(|object| async move { (self.count(&object).await, object) })
            .buffer_unordered(READ_MAX);
        let counted: Vec<_> = counted.collect().await;
        for (outcome, object) in counted {
            let path = object.location.to_string();
            let (rejected, label) = match outcome {
                Ok(()) => (None, "counted"),
                Err(error) if error.is_of_the_object() => {
                    tracing::warn!(path, %error, "an object of the inbox is not counted");
                    (Some(error.to_string()), "rejected")
                }
                Err(error) => {
                    tracing::warn!(
                        path,
                        error = &error as &dyn std::error::Error,
                        "an object of the inbox is tried again"
                    );
                    continue;
                }
            };
            counter!("argus_inbox_objects_total", "outcome" => label).increment(1);
            let entry = Done { tag: tag(&object), rejected };
            let document = Document::new(DocumentKind::Object, path.clone(), &entry)?;
            self.pipeline.put_documents(vec![document], None).await?;
            done.insert(path, entry);
        }
        let gone: Vec<String> = done.keys().filter(|path| !listed.contains(*path)).cloned().collect();
        for path in gone {
            self.pipeline.delete_document(DocumentKind::Object, path.clone()).await?;
            done.remove(&path);
        }
        Ok(())
    }

    fn is_complete(&self, object: &ObjectMeta) -> bool {
        !self.is_folder || Utc::now() - object.last_modified >= REST
    }

    /// Makes a batch of an object, and completes it.
    async fn count(&self, object: &ObjectMeta) -> Result<(), InboxError> {
        self.ingest.check_room()?;
        let got = self.store.get(&object.location).await?;
        // It may have been replaced since it was listed: then its new version comes with the next list.
        if tag(&got.meta) != tag(object) {
            return Err(object_store::Error::Precondition {
                path: object.location.to_string(),
                source: "it was replaced while it was read".into(),
            }
            .into());
        }
        let (batch, name) = described(&object.location, &self.prefix, &got.attributes)?;
        let digest = Sha256::digest(format!("{}\n{}", object.location, tag(object)).as_bytes());
        let key = format!("inbox/{}", hex::encode(digest));
        let batch = self.pipeline.create_batch(batch, Some(key)).await?;
        // Completed before a crash.
        if batch.status != BatchStatus::Pending {
            return Ok(());
        }
        let counted = self.count_files(batch.id, name, got).await;
        if counted.as_ref().is_err_and(InboxError::is_of_the_object) {
            self.pipeline.delete_batch(batch.id).await?;
        }
        counted
    }

    /// Counts the file of a batch, or those of an archive, and completes it.
    async fn count_files(&self, batch_id: Uuid, name: String, got: GetResult) -> Result<(), InboxError> {
        let stored = match is_archive(&name) {
            false => {
                let (body, stored) = self.ingest.begin(batch_id, name, Encoding::Identity, now());
                send(got.into_stream(), body).await?;
                vec![stored.await?]
            }
            true => {
                let mut weight = 0;
                let fits = move |upload: &StoredUpload| {
                    weight += weight_of_text(upload.bytes);
                    weight <= ARCHIVE_WEIGHT_MAX
                };
                let (body, stored) = self.ingest.begin_archive(batch_id, Encoding::Identity, now(), Box::new(fits));
                send(got.into_stream(), body).await?;
                stored.await?
            }
        };
        self.accept(stored).await?;
        self.pipeline.complete(batch_id).await?;
        Ok(())
    }

    async fn accept(&self, stored: Vec<(StoredUpload, Claim)>) -> Result<(), InboxError> {
        for (upload, claim) in stored {
            match self.pipeline.accept_file(upload, claim, None).await {
                Ok(_) | Err(PipelineError::Refused(Refused::AnsweredBefore(_))) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Sends the bytes of an object to the ingest. A body that ends without its end is interrupted.
async fn send(
    mut bytes: impl futures::Stream<Item = object_store::Result<Bytes>> + Unpin,
    body: mpsc::Sender<BodyPart>,
) -> Result<(), InboxError> {
    while let Some(bytes) = bytes.try_next().await? {
        // The ingest has failed, and says why.
        if body.send(BodyPart::Bytes(bytes)).await.is_err() {
            return Ok(());
        }
    }
    let _ = body.send(BodyPart::End).await;
    Ok(())
}

/// Identifies the content of an object.
fn tag(object: &ObjectMeta) -> String {
    let modified = object.last_modified.timestamp_micros();
    match &object.e_tag {
        Some(tag) => format!("{tag} {}", object.size),
        None => format!("{} {modified}", object.size),
    }
}

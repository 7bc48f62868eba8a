//! How the leader takes the uploads that followers have stored and scanned.

use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::{Dataflow, Origin, VersionId};
use argus_sinks::OccurrencesInput;
use argus_sinks::occurrences::{OccurrencesError, take_frame};
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use tokio::time::timeout;

use super::handover::{By, HEADER_BYTES_MAX, HandedOver, Header};
use super::leader::{Leader, Leading};
use crate::domain::batch::StoredUpload;
use crate::ingest::raw_store::RawStore;
use crate::ingest::{Claim, Claims};
use crate::metadata::UploadKey;
use crate::pipeline::Pipeline;

/// How long the next bytes of a handover may take.
const BODY_WAIT: Duration = Duration::from_secs(30);

/// What takes the uploads of followers.
#[derive(Clone)]
pub struct Intake {
    pub(crate) dataflow: Dataflow,
    pub(crate) occurrences: OccurrencesInput,
    pub(crate) claims: Claims,
    pub(crate) pipeline: Pipeline,
    pub(crate) raw: RawStore,
}

/// Why an upload could not be taken from a follower.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum IntakeError {
    #[error("the upload is cut off")]
    CutOff,
    #[error("the header of the upload is invalid: {0}")]
    Header(String),
    #[error(transparent)]
    Occurrences(#[from] OccurrencesError),
    #[error("the body of the upload cannot be read: {0}")]
    Body(String),
    #[error("the process that has scanned it has another version or other rules, or followed an earlier leader")]
    Another,
    #[error("its bytes are not in the raw store")]
    Missing,
    #[error("the raw store cannot be read: {0}")]
    Store(String),
    #[error("the server is stopping")]
    Stopping,
}

impl Leader {
    /// Takes an upload from a follower: its counts go to the dataflow, its occurrences to the lake. Its bytes are in the raw
    /// store already. If its claim is dropped, all of them are dropped.
    pub async fn take<E: std::fmt::Display>(
        &self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(StoredUpload, Claim, Option<UploadKey>), IntakeError> {
        let Leading { own, term, intake, .. } = &*self.leading;
        let mut buffer = BytesMut::new();
        let header = loop {
            if let Some(length) = buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) {
                if length > HEADER_BYTES_MAX {
                    return Err(IntakeError::Header(format!("it has {length} bytes")));
                }
                if buffer.len() >= 4 + length {
                    buffer.advance(4);
                    break buffer.split_to(length);
                }
            }
            buffer.extend_from_slice(&more(&mut body).await?.ok_or(IntakeError::CutOff)?);
        };
        let header: Header = serde_json::from_slice(&header).map_err(|error| IntakeError::Header(error.to_string()))?;
        let scanned_by =
            By { protocol: own.protocol, version: own.version.clone(), rules: own.rules.clone(), term: *term };
        if header.by != scanned_by {
            return Err(IntakeError::Another);
        }
        let taken = header.into_handed_over().ok_or_else(|| IntakeError::Header("the digest".to_owned()))?;
        let HandedOver { upload, key, counts } = taken;
        let claim = intake.claims.claim(upload.batch_id, upload.versions());
        // With a claim, they are no orphans any more.
        match intake.raw.exists(upload.batch_id, upload.version).await {
            Ok(true) => {}
            Ok(false) => return Err(IntakeError::Missing),
            Err(error) => return Err(IntakeError::Store(error.to_string())),
        }
        let open_line = upload.open_line.as_ref().map(|(version, _)| *version);
        let is_of_upload = |version: VersionId| version == upload.version || Some(version) == open_line;
        for (version, counts) in counts.into_iter().filter(|(version, _)| is_of_upload(*version)) {
            let StoredUpload { batch_id, uploaded_at, .. } = upload;
            let origin = Arc::new(Origin { batch_id, file: upload.name.clone(), version, uploaded_at });
            intake.dataflow.insert_counted(&origin, counts).await.map_err(|_| IntakeError::Stopping)?;
        }
        loop {
            while let Some((version, rows)) = take_frame(&mut buffer)? {
                if !is_of_upload(version) {
                    return Err(IntakeError::Header("occurrences of another version".to_owned()));
                }
                intake.occurrences.stage(version, rows).await.map_err(|_| IntakeError::Stopping)?;
            }
            match more(&mut body).await? {
                Some(bytes) => buffer.extend_from_slice(&bytes),
                None if buffer.is_empty() => return Ok((upload, claim, key)),
                None => return Err(IntakeError::CutOff),
            }
        }
    }
}

async fn more<E: std::fmt::Display>(
    body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
) -> Result<Option<Bytes>, IntakeError> {
    let next = timeout(BODY_WAIT, body.next()).await.map_err(|_| IntakeError::CutOff)?;
    next.transpose().map_err(|error| IntakeError::Body(error.to_string()))
}

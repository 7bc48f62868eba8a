//! Files: uploaded one by one, or several in a form.

use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::multipart::{MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, Multipart, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use futures::{Stream, StreamExt};
use tokio::sync::{Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::binary::{Binary, FilesForm};
use crate::http::extract::{Segments, drain, idempotency_key};
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{BrokenOff, Conflict, Invalid, Late, NotFound, TooLong, Unavailable, UnknownEncoding};
use crate::http::waiting::{WAIT_MS_DEFAULT, snapshot_at_least};
use crate::ingest::{BodyPart, Ingest};
use crate::metadata::{Accepted, Metadata, Refused, UploadKey};
use crate::model::{Encoding, Receipt, StoredUpload, Versions, check_name};
use crate::pipeline::{Pipeline, PipelineError, now};
use crate::service::{Service, Stopping};
use crate::status::BatchStatus;

/// Uploads that are taken in at once; more wait.
const UPLOADS_MAX: usize = 32;
/// How long an upload waits for its turn before it is told to come again.
pub const TURN_WAIT: Duration = Duration::from_secs(30);
/// How long a body may pause.
pub const BODY_PAUSE: Duration = Duration::from_secs(60);
/// Files in one form.
const FORM_FILES_MAX: usize = 1000;

#[derive(Clone)]
struct Parts {
    ingest: Ingest,
    pipeline: Pipeline,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    turns: Arc<Semaphore>,
    stopping: watch::Receiver<Stopping>,
}

/// Paths below `/batches/{id}/files`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        ingest: service.ingest.clone(),
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
        turns: Arc::new(Semaphore::new(UPLOADS_MAX)),
        stopping: service.stopping.clone(),
    };
    OpenApiRouter::new()
        .routes(routes!(upload_form))
        .route("/api/v1/batches/{id}/files/", put(no_name))
        .routes(routes!(upload, delete))
        // Bodies have a limit of their own, counted as they are read.
        .layer(DefaultBodyLimit::disable())
        .with_state(parts)
}

async fn no_name() -> Problem {
    Problem::invalid("a file's name must not be empty")
}

/// Uploads a file; answered when its bytes are durable.
#[utoipa::path(
    put,
    path = "/api/v1/batches/{id}/files/{name}",
    tag = "files",
    params(("id" = Uuid, Path, description = "the batch"), ("name" = String, Path, description = "the file's name"), ("Content-Encoding" = Option<String>, Header, description = "identity, gzip or zstd"), ("Idempotency-Key" = Option<String>, Header, description = "makes a retry return the first answer")),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "a new file", body = Receipt),
        (status = 200, description = "a new generation of one that was there, or the same again", body = Receipt),
        BrokenOff, NotFound, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable,
    ),
)]
async fn upload(
    State(parts): State<Parts>,
    Segments((id, name)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    // A task of its own: a client that goes away leaves nothing half accepted.
    let work = tokio::spawn(async move {
        let accepted = async {
            let encoding = content_encoding(&headers)?;
            let key = upload_key(&headers, &format!("PUT {id}/{name}"))?;
            if let Some(answer) = parts.answered(key.as_ref()).await? {
                return Ok((answer, true));
            }
            let batch = parts.pending_batch(&id).await?;
            let stored = parts.store(batch, name, encoding, &mut body).await?;
            Ok::<_, Problem>((parts.accept(stored, key).await?, false))
        };
        let accepted = accepted.await;
        if !matches!(accepted, Ok((_, false))) {
            drain(&mut body).await;
        }
        accepted
    });
    let (accepted, _) = work.await.map_err(|error| Problem::internal(&error))??;
    let status = match &accepted {
        Accepted::Created(_) => StatusCode::CREATED,
        Accepted::Replaced(_) | Accepted::Grown(_) | Accepted::Unchanged(_) => StatusCode::OK,
    };
    Ok((status, Json(accepted.receipt())).into_response())
}

fn upload_key(headers: &HeaderMap, request: &str) -> Result<Option<UploadKey>, Problem> {
    Ok(idempotency_key(headers)?.map(|key| UploadKey { key, request: request.to_owned() }))
}

/// Answers when no reader sees the file any more.
#[utoipa::path(
    delete,
    path = "/api/v1/batches/{id}/files/{name}",
    tag = "files",
    params(("id" = Uuid, Path, description = "the batch"), ("name" = String, Path, description = "the file's name")),
    responses(
        (status = 204, description = "it is gone from every view"),
        NotFound, Conflict, Invalid, Unavailable, Late,
    ),
)]
async fn delete(
    State(parts): State<Parts>,
    Segments((id, name)): Segments<(String, String)>,
) -> Result<StatusCode, Problem> {
    let epoch = parts.pipeline.delete_file(batch_id(&id)?, name).await?;
    snapshot_at_least(&parts.snapshots, Some(epoch), WAIT_MS_DEFAULT).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Uploads several files in a form.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/files",
    tag = "files",
    params(("id" = Uuid, Path, description = "the batch"), ("Content-Encoding" = Option<String>, Header, description = "identity, gzip or zstd")),
    request_body(content = FilesForm, content_type = "multipart/form-data", description = "one or more parts `file`"),
    responses(
        (status = 201, description = "the files", body = [Receipt]),
        BrokenOff, NotFound, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable,
    ),
)]
async fn upload_form(
    State(parts): State<Parts>,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    form: Result<Multipart, MultipartRejection>,
) -> Result<(StatusCode, Json<Vec<Receipt>>), Problem> {
    let form = form.map_err(|rejection| Problem::new(rejection.status(), "bad-form", rejection.body_text()))?;
    // A task of its own: a client that goes away leaves nothing half accepted.
    let work = tokio::spawn(async move {
        let batch = parts.pending_batch(&id).await?;
        let mut stored = Vec::new();
        if let Err(problem) = parts.store_form(batch, form, &mut stored).await {
            for upload in &stored {
                parts.discard(upload).await;
            }
            return Err(problem);
        }
        let mut receipts = Vec::with_capacity(stored.len());
        for upload in stored {
            // Each file of the form is remembered on its own: a retry goes on where the form broke off.
            let key = upload_key(&headers, &format!("POST {id}/{}", upload.name))?;
            let key =
                key.map(|UploadKey { key, request }| UploadKey { key: format!("{key}/{}", upload.name), request });
            receipts.push(parts.accept(upload, key).await?.receipt().clone());
        }
        Ok((StatusCode::CREATED, Json(receipts)))
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

/// How a body is encoded.
pub fn content_encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(Encoding::Identity) };
    match value.as_bytes().to_ascii_lowercase().as_slice() {
        b"" | b"identity" => Ok(Encoding::Identity),
        b"gzip" | b"x-gzip" => Ok(Encoding::Gzip),
        b"zstd" => Ok(Encoding::Zstd),
        _ => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unknown-content-encoding",
            "Content-Encoding must be identity, gzip or zstd",
        )),
    }
}

impl Parts {
    /// What was answered to this upload before.
    async fn answered(&self, key: Option<&UploadKey>) -> Result<Option<Accepted>, Problem> {
        let Some(UploadKey { key, request }) = key else { return Ok(None) };
        Ok(self.metadata.answered(key, request).await.map_err(PipelineError::Refused)?)
    }

    /// Says early what accepting would say late, before a long body is read.
    async fn pending_batch(&self, id: &str) -> Result<Uuid, Problem> {
        let id = batch_id(id)?;
        let batch = self.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        match batch.status {
            BatchStatus::Pending => Ok(id),
            status => Err(PipelineError::Refused(Refused::NotPending { batch: id, status }).into()),
        }
    }

    /// Stores the files of a form; none is accepted before all are whole.
    async fn store_form(
        &self,
        batch: Uuid,
        mut form: Multipart,
        stored: &mut Vec<StoredUpload>,
    ) -> Result<(), Problem> {
        let broken = |error: MultipartError| {
            Problem::new(StatusCode::BAD_REQUEST, "bad-form", format!("the form is not whole: {}", error.body_text()))
        };
        while let Some(field) = form.next_field().await.map_err(broken)? {
            if field.name() != Some("file") {
                continue;
            }
            if stored.len() == FORM_FILES_MAX {
                let detail = format!("a form may have at most {FORM_FILES_MAX} files; send the rest in another");
                return Err(Problem::invalid(detail));
            }
            let name = field.file_name().unwrap_or_default().to_owned();
            let mut body = field.map(|chunk| chunk.map_err(|error| error.body_text()));
            stored.push(self.store(batch, name, Encoding::Identity, &mut body).await?);
        }
        if stored.is_empty() {
            return Err(Problem::invalid("the form has no part that is named \"file\""));
        }
        Ok(())
    }

    /// Makes a body durable and has its blocks scanned. The upload must be accepted or discarded then.
    async fn store(
        &self,
        batch: Uuid,
        name: String,
        encoding: Encoding,
        body: &mut (impl Stream<Item = Result<Bytes, String>> + Unpin),
    ) -> Result<StoredUpload, Problem> {
        check_name(&name)?;
        let turn = tokio::time::timeout(TURN_WAIT, self.turns.acquire()).await;
        let _turn =
            turn.ok().and_then(Result::ok).ok_or_else(|| Problem::busy("too many uploads at once; try again"))?;
        let (sender, versions, outcome) = self.ingest.begin(batch, name, encoding, now());
        let mut stopping = self.stopping.clone();
        loop {
            let part = tokio::select! {
                chunk = body.next() => match chunk {
                    Some(Ok(bytes)) => BodyPart::Bytes(bytes),
                    Some(Err(reason)) => BodyPart::BrokeOff(reason),
                    None => BodyPart::End,
                },
                () = tokio::time::sleep(BODY_PAUSE) => {
                    BodyPart::BrokeOff(format!("nothing came for {} s", BODY_PAUSE.as_secs()))
                }
                _ = stopping.wait_for(|stopping| *stopping == Stopping::Now) => {
                    BodyPart::BrokeOff("the server is stopping".to_owned())
                }
            };
            let ends = !matches!(part, BodyPart::Bytes(_));
            // A closed channel means that the upload has failed already.
            if sender.send(part).await.is_err() || ends {
                break;
            }
        }
        match outcome.await {
            Ok(stored) => Ok(stored),
            Err(error) => {
                self.abandon(versions).await;
                Err(error.into())
            }
        }
    }

    /// Has the pipeline accept what was stored.
    async fn accept(&self, stored: StoredUpload, key: Option<UploadKey>) -> Result<Accepted, Problem> {
        let accepted = self.pipeline.accept_file(stored.clone(), key).await;
        match &accepted {
            Ok(Accepted::Created(_) | Accepted::Replaced(_) | Accepted::Grown(_)) => {}
            Ok(Accepted::Unchanged(_)) | Err(PipelineError::Refused(_)) => self.discard(&stored).await,
            // It may have been accepted all the same, and then a restart needs its bytes.
            Err(PipelineError::NotDurable(_) | PipelineError::Stopping) => self.abandon(stored.versions()).await,
        }
        match accepted {
            Err(PipelineError::Refused(Refused::AnsweredBefore(answer))) => Ok(answer),
            accepted => Ok(accepted?),
        }
    }

    /// Leaves nothing of an upload that was stored and is not accepted.
    async fn discard(&self, stored: &StoredUpload) {
        self.ingest.discard(stored).await;
        self.abandon(stored.versions()).await;
    }

    async fn abandon(&self, versions: Versions) {
        for version in [versions.whole_lines, versions.open_line] {
            // A pipeline that is stopping takes the dataflow with it.
            let _ = self.pipeline.abandon(version).await;
        }
    }
}

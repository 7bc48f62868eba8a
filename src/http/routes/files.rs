//! Files: upload one, upload several in a form, delete.

use std::sync::Arc;
use std::time::Duration;

use argus_sinks::Snapshot;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::multipart::{MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::put;
use futures::{Stream, StreamExt};
use metrics::counter;
use tokio::sync::{mpsc, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::Service;
use crate::domain::batch::{Accepted, Encoding, Receipt, StoredUpload, check_name};
use crate::domain::clock::now;
use crate::domain::status::BatchStatus;
use crate::http::binary::{Binary, FilesForm};
use crate::http::error_responses::{
    Conflict, DiskFull, GatewayTimeout, Invalid, NotFound, TimedOut, TooLong, Unavailable, UnknownEncoding,
    UploadInterrupted,
};
use crate::http::extract::{DRAIN_BYTES, DRAIN_WAIT, Segments, drain, idempotency_key};
use crate::http::forward::Handover;
use crate::http::problem::{Problem, batch_id};
use crate::http::routes::form::parameter;
use crate::http::waiting::{WAIT_MS_DEFAULT, visible};
use crate::ingest::slots::{FirstBytes, Interrupted, Slot, Slots};
use crate::ingest::{BodyPart, Claim, Ingest, IngestError};
use crate::metadata::{Metadata, Refused, UploadKey};
use crate::pipeline::backlog::weight_of_text;
use crate::pipeline::{Pipeline, PipelineError};
use crate::shutdown::Stopping;

/// The limit of uploads received at once; more wait.
const UPLOADS_MAX: usize = 32;
/// How long to wait for the next part of a form to start.
const PART_WAIT: Duration = Duration::from_secs(30);
/// The memory limit of a form: its files and their counts stay in memory until all files are complete (1 GiB).
const FORM_WEIGHT_MAX: u64 = 1 << 30;
/// The limit of files in one form.
const FORM_FILES_MAX: usize = 1000;

#[derive(Clone)]
struct FilesContext {
    ingest: Ingest,
    pipeline: Pipeline,
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    slots: Slots,
    stopping: watch::Receiver<Stopping>,
    /// Hands uploads to the process that leads, if this one follows.
    handover: Option<Handover>,
}

/// Paths below `/batches/{id}/files`. With a handover, another process accepts what is uploaded.
pub fn router(service: &Service, handover: Option<Handover>) -> OpenApiRouter {
    let context = FilesContext {
        ingest: service.ingest.clone(),
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
        slots: Slots::new("uploads", UPLOADS_MAX),
        stopping: service.stopping.clone(),
        handover,
    };
    OpenApiRouter::new()
        .routes(routes!(upload_several))
        .route("/api/v1/batches/{id}/files/", put(no_name))
        .routes(routes!(upload, delete))
        // The size of a body is limited while it is read.
        .layer(DefaultBodyLimit::disable())
        .with_state(context)
}

async fn no_name() -> Problem {
    Problem::invalid("a file's name must not be empty")
}

/// Uploads a file.
///
/// The response is sent when the bytes are durable.
#[utoipa::path(
    put,
    path = "/api/v1/batches/{id}/files/{name}",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("name" = String, Path, description = "the file's name"),
        ("Content-Encoding" = Option<String>, Header, description = "identity, gzip or zstd"),
        (
            "Idempotency-Key" = Option<String>,
            Header,
            description = "a retry with the same key gets the first response again"
        ),
    ),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "a new file", body = Receipt),
        (
            status = 200,
            description = "a new generation of an existing file, or the same content as before",
            body = Receipt
        ),
        UploadInterrupted, NotFound, TimedOut, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, DiskFull,
    ),
)]
async fn upload(
    State(context): State<FilesContext>,
    Segments((id, name)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    // A separate task: it completes even if the client disconnects.
    let work = tokio::spawn(async move {
        let accepted = async {
            let encoding = content_encoding(&headers)?;
            let key = upload_key(&headers, &format!("PUT {id}/{name}"))?;
            // A retry may get the first response again, whatever the batch's status is now.
            let batch = if key.is_some() { batch_id(&id)? } else { pending_batch(&context.metadata, &id).await? };
            if let Some(handover) = &context.handover {
                handover.check_leader()?;
            }
            // Keep the slot until the upload is accepted: an upload that waits for this uses memory.
            let (stored, claim, _slot) = context.store(batch, name, encoding, &mut body).await?;
            match &context.handover {
                Some(handover) => handover.hand_over(stored, claim, key).await,
                None => accept_and_answer(&context.pipeline, stored, claim, key).await,
            }
        };
        let accepted = accepted.await;
        if accepted.is_err() {
            drain(&mut body).await;
        }
        accepted
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

/// Accepts a file that is stored and scanned, and answers with its receipt.
pub async fn accept_and_answer(
    pipeline: &Pipeline,
    stored: StoredUpload,
    claim: Claim,
    key: Option<UploadKey>,
) -> Result<Response, Problem> {
    let accepted = accept(pipeline, stored, claim, key).await?;
    let status = match &accepted {
        Accepted::Created(_) => StatusCode::CREATED,
        Accepted::Replaced(_) | Accepted::Grown(_) | Accepted::Unchanged(_) => StatusCode::OK,
    };
    Ok((status, Json(accepted.receipt())).into_response())
}

fn upload_key(headers: &HeaderMap, request: &str) -> Result<Option<UploadKey>, Problem> {
    Ok(idempotency_key(headers)?.map(|key| UploadKey { key, request: request.to_owned() }))
}

/// Deletes a file.
///
/// The response is sent when no reader sees the file any more.
#[utoipa::path(
    delete,
    path = "/api/v1/batches/{id}/files/{name}",
    tag = "files",
    params(("id" = Uuid, Path, description = "the batch"), ("name" = String, Path, description = "the file's name")),
    responses(
        (status = 204, description = "deleted"),
        NotFound, Conflict, Invalid, Unavailable, GatewayTimeout,
    ),
)]
async fn delete(
    State(context): State<FilesContext>,
    Segments((id, name)): Segments<(String, String)>,
) -> Result<StatusCode, Problem> {
    let epoch = context.pipeline.delete_file(batch_id(&id)?, name).await?;
    visible(&context.snapshots, epoch, WAIT_MS_DEFAULT).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Uploads several files: a form, or an archive.
///
/// An archive is tar (plain, or compressed with gzip, zstd, xz, bzip2 or LZ4) or zip. Its files may be in folders, whose
/// separators become `_` in the names. If one of them is refused, none is counted.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/files",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("Idempotency-Key" = Option<String>, Header, description = "makes a retry safe, for each file of the form"),
    ),
    request_body(
        description = "a form with parts named `file`, or an archive",
        content(
            (FilesForm = "multipart/form-data"),
            (Binary = "application/x-tar"),
            (Binary = "application/gzip"),
            (Binary = "application/zstd"),
            (Binary = "application/zip"),
        )
    ),
    responses(
        (status = 201, description = "the files", body = [Receipt]),
        UploadInterrupted, NotFound, TimedOut, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, DiskFull,
    ),
)]
async fn upload_several(
    State(context): State<FilesContext>,
    Segments(id): Segments<String>,
    request: Request,
) -> Result<(StatusCode, Json<Vec<Receipt>>), Problem> {
    let headers = request.headers().clone();
    let several = match is_form(&headers) {
        true => {
            let form = Multipart::from_request(request, &()).await;
            let rejected =
                |rejection: MultipartRejection| Problem::new(rejection.status(), "bad-form", rejection.body_text());
            Several::Form(form.map_err(rejected)?)
        }
        false => Several::Archive(request.into_body()),
    };
    // A separate task: it completes even if the client disconnects.
    let work = tokio::spawn(async move {
        let (key, stored) = context.store_several(&id, &headers, several).await?;
        let mut receipts = Vec::with_capacity(stored.len());
        for (upload, claim) in stored {
            // Each file has its own key: a retry continues where the request was interrupted.
            let key = key.as_ref().map(|key| UploadKey {
                key: format!("{key}/{}", upload.name),
                request: format!("POST {id}/{}", upload.name),
            });
            receipts.push(accept(&context.pipeline, upload, claim, key).await?.receipt().clone());
        }
        Ok((StatusCode::CREATED, Json(receipts)))
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

fn is_form(headers: &HeaderMap) -> bool {
    let of_header = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    of_header.trim_start().to_ascii_lowercase().starts_with("multipart/")
}

/// Several files in one body.
enum Several {
    Form(Multipart),
    Archive(Body),
}

/// Reads the rest of a form, within limits, like [`drain`].
async fn drain_form(form: &mut Multipart) {
    let mut left = DRAIN_BYTES;
    let read = async {
        while let Ok(Some(mut field)) = form.next_field().await {
            while let Ok(Some(chunk)) = field.chunk().await {
                left = left.saturating_sub(chunk.len());
                if left == 0 {
                    return;
                }
            }
        }
    };
    // After the limits, a client that is still sending may lose the response.
    let _ = tokio::time::timeout(DRAIN_WAIT, read).await;
}

/// The encoding of a body.
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

/// Checks before a long body is read that the batch exists and is pending.
pub async fn pending_batch(metadata: &Metadata, id: &str) -> Result<Uuid, Problem> {
    let id = batch_id(id)?;
    let batch = metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    match batch.status {
        BatchStatus::Pending => Ok(id),
        status => Err(PipelineError::Refused(Refused::NotPending { batch: id, status }).into()),
    }
}

/// Has the pipeline accept a stored upload.
pub async fn accept(
    pipeline: &Pipeline,
    stored: StoredUpload,
    claim: Claim,
    key: Option<UploadKey>,
) -> Result<Accepted, Problem> {
    let accepted = match pipeline.accept_file(stored, claim, key).await {
        Err(PipelineError::Refused(Refused::AnsweredBefore(answer))) => Ok(*answer),
        accepted => accepted,
    };
    let outcome = if accepted.is_ok() { "accepted" } else { "failed" };
    counter!("argus_uploads_total", "outcome" => outcome).increment(1);
    Ok(accepted?)
}

impl FilesContext {
    /// Stores the files of a body. Returns them with the key of the request.
    async fn store_several(
        &self,
        id: &str,
        headers: &HeaderMap,
        several: Several,
    ) -> Result<(Option<String>, Vec<(StoredUpload, Claim)>), Problem> {
        // Reject an invalid request before anything is stored.
        let checked = async {
            let key = idempotency_key(headers)?;
            Ok::<_, Problem>((key, content_encoding(headers)?, pending_batch(&self.metadata, id).await?))
        };
        let checked = checked.await;
        match several {
            Several::Form(mut form) => {
                let stored = async {
                    let (key, _, batch) = checked?;
                    Ok((key, self.store_form(batch, &mut form).await?))
                };
                let stored = stored.await;
                if stored.is_err() {
                    drain_form(&mut form).await;
                }
                stored
            }
            Several::Archive(body) => {
                let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
                let stored = async {
                    let (key, encoding, batch) = checked?;
                    Ok((key, self.store_archive(batch, encoding, &mut body).await?))
                };
                let stored = stored.await;
                if stored.is_err() {
                    drain(&mut body).await;
                }
                stored
            }
        }
    }

    /// Stores the files of an archive. None is accepted before all are complete.
    async fn store_archive<S>(
        &self,
        batch: Uuid,
        encoding: Encoding,
        body: &mut S,
    ) -> Result<Vec<(StoredUpload, Claim)>, Problem>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        self.ingest.check_room()?;
        let first = self.slots.first_bytes(body).await.map_err(IngestError::Interrupted)?;
        let slot = self.slots.take().await.map_err(IngestError::Interrupted)?;
        let mut weight = 0;
        let fits = move |upload: &StoredUpload| {
            weight += weight_of_text(upload.bytes);
            weight <= FORM_WEIGHT_MAX
        };
        let (sender, outcome) = self.ingest.begin_archive(batch, encoding, now(), Box::new(fits));
        // A closed channel means that the upload has failed; the outcome has the reason.
        let _ = self.send_body(first, &slot, body, &sender).await;
        drop(sender);
        Ok(outcome.await?)
    }

    /// Stores the files of a form. None is accepted before all are complete.
    async fn store_form(&self, batch: Uuid, form: &mut Multipart) -> Result<Vec<(StoredUpload, Claim)>, Problem> {
        let mut stored = Vec::new();
        let bad_form = |error: MultipartError| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "bad-form",
                format!("the form is incomplete or invalid: {}", error.body_text()),
            )
        };
        let mut weight = 0;
        loop {
            let next = tokio::time::timeout(PART_WAIT, form.next_field()).await;
            let next = next.map_err(|_| IngestError::Interrupted(Interrupted::TooSlow))?;
            let Some(field) = next.map_err(bad_form)? else { break };
            let name = field.name().map(str::to_owned).or_else(|| parameter(field.headers(), "name"));
            if name.as_deref() != Some("file") {
                continue;
            }
            if stored.len() == FORM_FILES_MAX {
                let detail = format!("a form may have at most {FORM_FILES_MAX} files; send the others in another form");
                return Err(Problem::invalid(detail));
            }
            let name = field.file_name().map(str::to_owned).or_else(|| parameter(field.headers(), "filename"));
            let name = name.unwrap_or_default();
            let mut body = field.map(|chunk| chunk.map_err(|error| error.body_text()));
            let (upload, claim, _slot) = self.store(batch, name, Encoding::Identity, &mut body).await?;
            weight += weight_of_text(upload.bytes);
            stored.push((upload, claim));
            if weight > FORM_WEIGHT_MAX {
                let detail =
                    "the files of the form are too large together; upload them one by one, or in several forms";
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "form-too-large", detail));
            }
        }
        if stored.is_empty() {
            return Err(Problem::invalid("the form has no part named \"file\""));
        }
        Ok(stored)
    }

    /// Stores a body durably and inserts its blocks into the dataflow. Returns the upload with its claim.
    async fn store<S>(
        &self,
        batch: Uuid,
        name: String,
        encoding: Encoding,
        body: &mut S,
    ) -> Result<(StoredUpload, Claim, Slot), Problem>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        check_name(&name)?;
        self.ingest.check_room()?;
        let first = self.slots.first_bytes(body).await.map_err(IngestError::Interrupted)?;
        let slot = self.slots.take().await.map_err(IngestError::Interrupted)?;
        let (sender, outcome) = self.ingest.begin(batch, name, encoding, now());
        // A closed channel means that the upload has failed; the outcome has the reason.
        let _ = self.send_body(first, &slot, body, &sender).await;
        drop(sender);
        let (stored, claim) = outcome.await?;
        Ok((stored, claim, slot))
    }

    /// Sends a body to `to`, until its end or until it is interrupted.
    async fn send_body<S>(
        &self,
        first: FirstBytes,
        slot: &Slot,
        body: &mut S,
        to: &mpsc::Sender<BodyPart>,
    ) -> Result<(), mpsc::error::SendError<BodyPart>>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        for chunk in first.chunks {
            to.send(BodyPart::Bytes(chunk)).await?;
        }
        if first.is_all {
            return to.send(BodyPart::End).await;
        }
        let mut stopping = self.stopping.clone();
        loop {
            let next = tokio::select! {
                next = slot.next(body) => next,
                _ = stopping.wait_for(|stopping| *stopping == Stopping::Now) => Err(Interrupted::Stopping),
            };
            slot.client_waits();
            match next {
                Ok(Some(bytes)) => to.send(BodyPart::Bytes(bytes)).await?,
                Ok(None) => return to.send(BodyPart::End).await,
                Err(interrupted) => return to.send(BodyPart::Interrupted(interrupted)).await,
            }
        }
    }
}

//! Files: uploaded one by one, or several in a form.

use std::sync::Arc;
use std::time::Duration;

use argus_dataflow::VersionId;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Multipart, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use axum::{Json, Router};
use futures::{Stream, StreamExt, pin_mut};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::http::problem::{Problem, batch_id};
use crate::ingest::{BodyPart, Ingest, IngestError};
use crate::metadata::{Accepted, Metadata};
use crate::model::{Encoding, Receipt, StoredUpload, check_name};
use crate::pipeline::{Pipeline, PipelineError, now};
use crate::service::Service;
use crate::status::BatchStatus;

/// Uploads that are taken in at once; more wait.
const UPLOADS_MAX: usize = 32;
/// How long an upload waits for its turn before it is told to come again.
const TURN_WAIT: Duration = Duration::from_secs(30);
/// How long a body may pause.
const BODY_PAUSE: Duration = Duration::from_secs(60);
/// Files in one form.
const FORM_FILES_MAX: usize = 1000;

#[derive(Clone)]
struct Parts {
    ingest: Ingest,
    pipeline: Pipeline,
    metadata: Metadata,
    turns: Arc<Semaphore>,
}

/// Paths below `/batches/{id}/files`.
pub fn router(service: &Service) -> Router {
    let parts = Parts {
        ingest: service.ingest.clone(),
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        turns: Arc::new(Semaphore::new(UPLOADS_MAX)),
    };
    Router::new()
        .route("/batches/{id}/files", post(upload_form))
        .route("/batches/{id}/files/", put(no_name))
        .route("/batches/{id}/files/{name}", put(upload))
        // Bodies have a limit of their own, counted as they are read.
        .layer(DefaultBodyLimit::disable())
        .with_state(parts)
}

async fn no_name() -> Problem {
    Problem::invalid("a file's name must not be empty")
}

async fn upload(
    State(parts): State<Parts>,
    Path((id, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let batch = parts.pending_batch(&id).await?;
    let encoding = content_encoding(&headers)?;
    let body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    let accepted = parts.accept(batch, name, encoding, body).await?;
    let (status, receipt) = match accepted {
        Accepted::Created(receipt) => (StatusCode::CREATED, receipt),
        Accepted::Replaced(receipt) | Accepted::Unchanged(receipt) => (StatusCode::OK, receipt),
    };
    Ok((status, Json(receipt)).into_response())
}

async fn upload_form(
    State(parts): State<Parts>,
    Path(id): Path<String>,
    mut form: Multipart,
) -> Result<(StatusCode, Json<Vec<Receipt>>), Problem> {
    let batch = parts.pending_batch(&id).await?;
    let mut receipts: Vec<Receipt> = Vec::new();
    let broken = |error: axum::extract::multipart::MultipartError| {
        Problem::new(StatusCode::BAD_REQUEST, "bad-form", format!("the form is not whole: {}", error.body_text()))
    };
    while let Some(field) = form.next_field().await.map_err(broken)? {
        if field.name() != Some("file") {
            continue;
        }
        if receipts.len() == FORM_FILES_MAX {
            return Err(Problem::invalid(format!(
                "a form may have at most {FORM_FILES_MAX} files; send the rest in another"
            )));
        }
        let name = field.file_name().unwrap_or_default().to_owned();
        let body = field.map(|chunk| chunk.map_err(|error| error.body_text()));
        let (Accepted::Created(receipt) | Accepted::Replaced(receipt) | Accepted::Unchanged(receipt)) =
            parts.accept(batch, name, Encoding::Identity, body).await?;
        receipts.push(receipt);
    }
    if receipts.is_empty() {
        return Err(Problem::invalid("the form has no part that is named \"file\""));
    }
    Ok((StatusCode::CREATED, Json(receipts)))
}

fn content_encoding(headers: &HeaderMap) -> Result<Encoding, Problem> {
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
    /// Says early what accepting would say late, before a long body is read.
    async fn pending_batch(&self, id: &str) -> Result<Uuid, Problem> {
        let id = batch_id(id)?;
        let batch = self.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        match batch.status {
            BatchStatus::Pending => Ok(id),
            status => Err(Problem::new(
                StatusCode::CONFLICT,
                "batch-not-pending",
                format!("batch {id} is {status}, so no file can be added; make a new batch, or reopen this one"),
            )),
        }
    }

    async fn accept(
        &self,
        batch: Uuid,
        name: String,
        encoding: Encoding,
        body: impl Stream<Item = Result<Bytes, String>>,
    ) -> Result<Accepted, Problem> {
        check_name(&name)?;
        let turn = tokio::time::timeout(TURN_WAIT, self.turns.acquire()).await;
        let _turn =
            turn.ok().and_then(Result::ok).ok_or_else(|| Problem::busy("too many uploads at once; try again"))?;
        let (sender, version, outcome) = self.ingest.begin(batch, name, encoding, now());
        // A task of its own: a client that goes away leaves nothing half accepted.
        let accepted = tokio::spawn(accept_stored(self.ingest.clone(), self.pipeline.clone(), version, outcome));
        pin_mut!(body);
        loop {
            let part = match tokio::time::timeout(BODY_PAUSE, body.next()).await {
                Ok(Some(Ok(bytes))) => BodyPart::Bytes(bytes),
                Ok(Some(Err(reason))) => BodyPart::BrokeOff(reason),
                Ok(None) => BodyPart::End,
                Err(_) => BodyPart::BrokeOff(format!("nothing came for {} s", BODY_PAUSE.as_secs())),
            };
            let ends = !matches!(part, BodyPart::Bytes(_));
            // A closed channel means that the upload has failed already.
            if sender.send(part).await.is_err() || ends {
                break;
            }
        }
        accepted.await.map_err(|error| Problem::internal(&error))?
    }
}

/// Has the pipeline accept what was stored; what it does not accept goes again.
async fn accept_stored(
    ingest: Ingest,
    pipeline: Pipeline,
    version: VersionId,
    outcome: impl Future<Output = Result<StoredUpload, IngestError>>,
) -> Result<Accepted, Problem> {
    let accepted = match outcome.await {
        Ok(stored) => {
            let accepted = pipeline.accept_file(stored.clone()).await;
            if matches!(accepted, Ok(Accepted::Created(_) | Accepted::Replaced(_))) {
                return Ok(accepted?);
            }
            // A round that may have become durable after all needs its bytes.
            if !matches!(accepted, Err(PipelineError::NotDurable(_))) {
                ingest.discard(&stored).await;
            }
            accepted.map_err(Problem::from)
        }
        Err(error) => Err(error.into()),
    };
    // A pipeline that is stopping takes the dataflow with it.
    let _ = pipeline.abandon(version).await;
    accepted
}

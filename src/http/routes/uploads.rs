//! Resumable uploads: tus 1.0 with the extensions creation, creation-defer-length, termination, checksum and
//! expiration (<https://tus.io/protocols/resumable-upload>).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::app::Service;
use crate::domain::batch::{Encoding, check_name};
use crate::domain::clock::now;
use crate::http::binary::Binary;
use crate::http::checksum::Checksum;
use crate::http::error_responses::{Conflict, DiskFull, Invalid, NotFound, TimedOut, TooLong, Unavailable};
use crate::http::extract::{Segments, drain};
use crate::http::problem::{Problem, batch_id};
use crate::http::routes::files::{accept, pending_batch};
use crate::ingest::resumable::{Described, Resumable, ResumableError, ResumableUploads, ResumableWriter};
use crate::ingest::slots::{Interrupted, Slots};
use crate::ingest::{BodyPart, Ingest, IngestError};
use crate::metadata::{Metadata, UploadKey};
use crate::pipeline::Pipeline;
use crate::shutdown::Stopping;

/// The version of the protocol.
const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");
const EXTENSIONS: HeaderValue =
    HeaderValue::from_static("creation,creation-defer-length,termination,checksum,expiration");
const CHECKSUMS: HeaderValue = HeaderValue::from_static("sha1,sha256");

const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");

/// The limit of requests that send bytes at once; more wait.
const REQUESTS_MAX: usize = 64;

/// Whole uploads that are stored and counted at once; more wait.
const FINISHES_MAX: usize = 32;

/// How long a whole upload waits to be stored and counted; its client asks again then.
const FINISH_WAIT: Duration = Duration::from_secs(60);

/// Bytes that are read at once of a whole upload (1 MiB).
const READ_BYTES: usize = 1 << 20;

#[derive(Clone)]
struct UploadsContext {
    uploads: ResumableUploads,
    ingest: Ingest,
    pipeline: Pipeline,
    metadata: Metadata,
    slots: Slots,
    finishes: Arc<Semaphore>,
    stopping: watch::Receiver<Stopping>,
}

/// Paths below `/batches/{id}/uploads`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = UploadsContext {
        uploads: service.resumable.clone(),
        ingest: service.ingest.clone(),
        pipeline: service.pipeline.clone(),
        metadata: service.metadata.clone(),
        slots: Slots::new("resumable", REQUESTS_MAX),
        finishes: Arc::new(Semaphore::new(FINISHES_MAX)),
        stopping: service.stopping.clone(),
    };
    OpenApiRouter::new()
        .routes(routes!(create, options))
        .routes(routes!(find, append, delete))
        .layer(axum::middleware::from_fn(speak_tus))
        // The size of a body is limited while it is read.
        .layer(DefaultBodyLimit::disable())
        .with_state(context)
}

/// Checks the version of the protocol, and adds it to every response.
async fn speak_tus(request: Request, next: Next) -> Response {
    let is_known = request.headers().get(TUS_RESUMABLE).is_some_and(|version| *version == VERSION);
    let mut response = match is_known || request.method() == Method::OPTIONS {
        true => next.run(request).await,
        false => {
            let detail = "Tus-Resumable must be 1.0.0, the version of tus that the server speaks";
            let mut response =
                Problem::new(StatusCode::PRECONDITION_FAILED, "unknown-tus-version", detail).into_response();
            response.headers_mut().insert("tus-version", VERSION);
            response
        }
    };
    response.headers_mut().insert(TUS_RESUMABLE, VERSION);
    response
}

/// What the server supports of tus.
#[utoipa::path(
    options,
    path = "/api/v1/batches/{id}/uploads",
    tag = "files",
    params(("id" = String, Path, description = "the batch")),
    responses((status = 204, description = "in the headers `Tus-…`")),
)]
async fn options(State(context): State<UploadsContext>) -> impl IntoResponse {
    let headers = [
        (HeaderName::from_static("tus-version"), VERSION),
        (HeaderName::from_static("tus-extension"), EXTENSIONS),
        (HeaderName::from_static("tus-max-size"), context.ingest.file_bytes_max().into()),
        (HeaderName::from_static("tus-checksum-algorithm"), CHECKSUMS),
    ];
    (StatusCode::NO_CONTENT, headers)
}

/// Creates a resumable upload of one file (tus 1.0).
///
/// The file is accepted when its last byte has arrived.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/uploads",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("Tus-Resumable" = String, Header, description = "1.0.0"),
        ("Upload-Length" = Option<u64>, Header, description = "the bytes of the upload"),
        ("Upload-Defer-Length" = Option<u8>, Header, description = "1 if the length is not known yet"),
        (
            "Upload-Metadata" = String,
            Header,
            description = "`filename`, and optionally `encoding` (identity, gzip or zstd), in base64"
        ),
    ),
    responses(
        (status = 201, description = "created; its URL is in `Location`"),
        (status = 412, description = "another version of tus"),
        NotFound, Conflict, TooLong, Invalid, Unavailable, DiskFull,
    ),
)]
async fn create(
    State(context): State<UploadsContext>,
    Segments(id): Segments<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let batch_id = pending_batch(&context.metadata, &id).await?;
    context.ingest.check_room()?;
    let length = number(&headers, &UPLOAD_LENGTH)?;
    match (length, headers.get(UPLOAD_DEFER_LENGTH)) {
        (Some(_), None) => {}
        (None, Some(value)) if value == "1" => {}
        _ => return Err(Problem::invalid("give Upload-Length, or Upload-Defer-Length: 1, and not both")),
    }
    context.check_length(length)?;
    let metadata = headers.get(UPLOAD_METADATA).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (name, encoding) = described(metadata)?;
    let metadata = metadata.to_owned();
    let described = Described { batch_id, name, encoding, length, metadata, is_finished: false };
    // A separate task: it completes even if the client disconnects.
    let work = tokio::spawn(async move {
        let mut upload = context.uploads.create(described).await?;
        if upload.is_whole() {
            context.finish(&mut upload).await?;
        }
        let location = format!("/api/v1/batches/{batch_id}/uploads/{}", upload.id);
        Ok((StatusCode::CREATED, [(header::LOCATION, location)], state(&upload)).into_response())
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

/// How much of a resumable upload has arrived.
#[utoipa::path(
    head,
    path = "/api/v1/batches/{id}/uploads/{upload}",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("upload" = Uuid, Path, description = "the upload"),
        ("Tus-Resumable" = String, Header, description = "1.0.0"),
    ),
    responses(
        (status = 200, description = "`Upload-Offset`, and `Upload-Length` if it is known"),
        (status = 412, description = "another version of tus"),
        NotFound, Conflict, Invalid, Unavailable,
    ),
)]
async fn find(
    State(context): State<UploadsContext>,
    Segments(path): Segments<(String, String)>,
) -> Result<Response, Problem> {
    // A separate task: it completes even if the client disconnects.
    let work = tokio::spawn(async move {
        let mut upload = context.take(&path).await?;
        // The server may have ended before it could accept the file.
        if upload.is_whole() && !upload.described.is_finished {
            context.finish(&mut upload).await?;
        }
        let mut headers = state(&upload);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(metadata) = HeaderValue::try_from(&upload.described.metadata) {
            headers.insert(UPLOAD_METADATA, metadata);
        }
        Ok(headers.into_response())
    });
    work.await.map_err(|error| Problem::internal(&error))?
}

/// Continues a resumable upload.
///
/// Bytes that arrived before an interruption are kept, unless the request has a checksum.
#[utoipa::path(
    patch,
    path = "/api/v1/batches/{id}/uploads/{upload}",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("upload" = Uuid, Path, description = "the upload"),
        ("Tus-Resumable" = String, Header, description = "1.0.0"),
        ("Upload-Offset" = u64, Header, description = "the bytes that have arrived"),
        ("Upload-Length" = Option<u64>, Header, description = "the bytes of the upload, if they were not known"),
        ("Upload-Checksum" = Option<String>, Header, description = "sha1 or sha256, a space, the digest in base64"),
    ),
    request_body(content = Binary, content_type = "application/offset+octet-stream"),
    responses(
        (status = 204, description = "the new `Upload-Offset`"),
        (status = 412, description = "another version of tus"),
        (status = 415, description = "the content type is not application/offset+octet-stream"),
        (status = 423, description = "another request for the upload does not end"),
        (status = 460, description = "the checksum differs; the bytes of the request were dropped"),
        NotFound, Conflict, TimedOut, TooLong, Invalid, Unavailable, DiskFull,
    ),
)]
async fn append(
    State(context): State<UploadsContext>,
    Segments(path): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    // A separate task: it completes even if the client disconnects.
    let work = tokio::spawn(async move {
        let appended = context.append(&path, &headers, &mut body).await;
        if appended.is_err() {
            drain(&mut body).await;
        }
        appended
    });
    let upload = work.await.map_err(|error| Problem::internal(&error))??;
    Ok((StatusCode::NO_CONTENT, state(&upload)).into_response())
}

/// Ends a resumable upload, and deletes what has arrived.
///
/// A file that was accepted stays.
#[utoipa::path(
    delete,
    path = "/api/v1/batches/{id}/uploads/{upload}",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("upload" = Uuid, Path, description = "the upload"),
        ("Tus-Resumable" = String, Header, description = "1.0.0"),
    ),
    responses(
        (status = 204, description = "deleted"),
        (status = 412, description = "another version of tus"),
        NotFound, Invalid, Unavailable,
    ),
)]
async fn delete(
    State(context): State<UploadsContext>,
    Segments(path): Segments<(String, String)>,
) -> Result<StatusCode, Problem> {
    let upload = context.take(&path).await?;
    upload.delete().await.map_err(ResumableError::from)?;
    Ok(StatusCode::NO_CONTENT)
}

impl UploadsContext {
    async fn take(&self, (batch, id): &(String, String)) -> Result<Resumable, Problem> {
        let batch_id = batch_id(batch)?;
        let id = id.parse::<Uuid>().map_err(|_| ResumableError::NotFound)?;
        let upload = self.uploads.take(id).await?;
        match upload.described.batch_id == batch_id {
            true => Ok(upload),
            false => Err(ResumableError::NotFound.into()),
        }
    }

    fn check_length(&self, length: Option<u64>) -> Result<(), Problem> {
        let limit = self.ingest.file_bytes_max();
        match length {
            Some(length) if length > limit => {
                let detail = format!("Upload-Length is {length}, and the limit is {limit} bytes");
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail))
            }
            _ => Ok(()),
        }
    }

    async fn append<S>(&self, path: &(String, String), headers: &HeaderMap, body: &mut S) -> Result<Resumable, Problem>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/offset+octet-stream") {
            let detail = "Content-Type must be application/offset+octet-stream";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unknown-content-type", detail));
        }
        let offset = number(headers, &UPLOAD_OFFSET)?;
        let offset = offset.ok_or_else(|| Problem::invalid("Upload-Offset must be the bytes that have arrived"))?;
        let length = number(headers, &UPLOAD_LENGTH)?;
        let checksum = Checksum::wanted(headers)?;
        self.ingest.check_room()?;
        let mut upload = self.take(path).await?;
        if !upload.described.is_finished {
            // Before a long body is read in vain.
            pending_batch(&self.metadata, &path.0).await?;
        }
        if offset != upload.offset {
            return Err(Problem::offset_differs(upload.offset));
        }
        if let Some(length) = length {
            match upload.described.length {
                Some(known) if known != length => {
                    return Err(Problem::invalid(format!("Upload-Length must stay {known}")));
                }
                Some(_) => {}
                None if length < offset => {
                    return Err(Problem::invalid(format!(
                        "Upload-Length is less than the {offset} bytes that arrived"
                    )));
                }
                None => {
                    self.check_length(Some(length))?;
                    upload.set_length(length).await.map_err(ResumableError::from)?;
                }
            }
        }
        if upload.described.is_finished {
            return Ok(upload);
        }
        let mut writer = upload.writer().await.map_err(ResumableError::from)?;
        let received = self.receive(&upload, &mut writer, checksum, body).await;
        if writer.bytes() > 0 {
            writer.sync().await.map_err(ResumableError::from)?;
            upload.written(&writer);
        }
        received?;
        if upload.is_whole() {
            self.finish(&mut upload).await?;
        }
        Ok(upload)
    }

    /// Writes a body behind what has arrived. Bytes before an interruption stay, unless they have a checksum.
    async fn receive<S>(
        &self,
        upload: &Resumable,
        writer: &mut ResumableWriter,
        mut checksum: Option<Checksum>,
        body: &mut S,
    ) -> Result<(), Problem>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        let limit = upload.described.length.unwrap_or(self.ingest.file_bytes_max()) - upload.offset;
        let (mut stopping, mut interrupted) = (self.stopping.clone(), upload.interrupted.clone());
        let received = async {
            let begun = async {
                let first = self.slots.first_bytes(body).await?;
                Ok((first, self.slots.take().await?))
            };
            let begun = tokio::select! {
                begun = begun => begun,
                _ = interrupted.changed() => Err(another_request()),
            };
            let (first, slot) = begun.map_err(IngestError::Interrupted)?;
            let mut chunks = first.chunks.into_iter();
            loop {
                let next = match chunks.next() {
                    Some(chunk) => Ok(Some(chunk)),
                    None if first.is_all => Ok(None),
                    None => tokio::select! {
                        next = slot.next(body) => next,
                        _ = stopping.wait_for(|stopping| *stopping == Stopping::Now) => Err(Interrupted::Stopping),
                        _ = interrupted.changed() => Err(another_request()),
                    },
                };
                slot.client_waits();
                let Some(chunk) = next.map_err(IngestError::Interrupted)? else { return Ok(()) };
                if writer.bytes() + chunk.len() as u64 > limit {
                    let detail = format!("the upload has more than {} bytes", upload.offset + limit);
                    return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail));
                }
                self.ingest.check_room()?;
                if let Some(checksum) = &mut checksum {
                    checksum.update(&chunk);
                }
                writer.write(&chunk).await.map_err(ResumableError::from)?;
            }
        };
        let received: Result<(), Problem> = received.await;
        let has_checksum = checksum.is_some();
        let received = received.and_then(|()| checksum.map_or(Ok(()), Checksum::check));
        if received.is_err() && has_checksum {
            writer.undo(upload.offset).await.map_err(ResumableError::from)?;
        }
        received
    }

    /// Stores and counts a whole upload like a file that arrives at once. A crash before the end repeats it, with the
    /// same key, so that it is accepted once.
    async fn finish(&self, upload: &mut Resumable) -> Result<(), Problem> {
        // Each takes threads of the pool that also reads its bytes.
        let permit = tokio::time::timeout(FINISH_WAIT, Arc::clone(&self.finishes).acquire_owned()).await;
        let _permit = permit.map_err(|_| Problem::busy("many uploads are being counted; ask again later"))?;
        let Described { batch_id, name, encoding, .. } = upload.described.clone();
        let request = format!("TUS {batch_id}/{name}");
        let key = UploadKey { key: format!("tus/{}", upload.id), request };
        let mut bytes = upload.reader().await.map_err(ResumableError::from)?;
        let (sender, outcome) = self.ingest.begin(batch_id, name, encoding, now());
        loop {
            let mut chunk = Vec::with_capacity(READ_BYTES);
            let read = (&mut bytes).take(READ_BYTES as u64).read_to_end(&mut chunk).await;
            let part = match read.map_err(ResumableError::from)? {
                0 => BodyPart::End,
                _ => BodyPart::Bytes(chunk.into()),
            };
            let is_end = matches!(part, BodyPart::End);
            // A closed channel means that the upload has failed; the outcome has the reason.
            if sender.send(part).await.is_err() || is_end {
                break;
            }
        }
        drop(sender);
        let outcome = outcome.await;
        if outcome.as_ref().is_err_and(IngestError::is_of_the_bytes) {
            // It can never be accepted.
            upload.delete().await.map_err(ResumableError::from)?;
        }
        let (stored, claim) = outcome?;
        accept(&self.pipeline, stored, claim, Some(key)).await?;
        Ok(upload.finish().await.map_err(ResumableError::from)?)
    }
}

/// A request ends when its client begins another one for the same upload.
fn another_request() -> Interrupted {
    Interrupted::Connection("the client sent another request".to_owned())
}

/// The headers that say how much of an upload has arrived.
fn state(upload: &Resumable) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(UPLOAD_OFFSET, upload.offset.into());
    match upload.described.length {
        Some(length) => headers.insert(UPLOAD_LENGTH, length.into()),
        None => headers.insert(UPLOAD_DEFER_LENGTH, HeaderValue::from_static("1")),
    };
    if let Ok(expires) = HeaderValue::try_from(httpdate::fmt_http_date(upload.expires_at.max(SystemTime::UNIX_EPOCH))) {
        headers.insert(UPLOAD_EXPIRES, expires);
    }
    headers
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let number = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = number.and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Problem::invalid(format!("{name} must be a number of bytes")))
}

/// The file's name and encoding in `Upload-Metadata`: keys, each with a value in base64, separated by commas.
fn described(metadata: &str) -> Result<(String, Encoding), Problem> {
    let value = |key: &str| -> Result<Option<String>, Problem> {
        let mut pairs = metadata.split(',').map(|pair| pair.trim().split_once(' ').unwrap_or((pair.trim(), "")));
        let Some((_, value)) = pairs.find(|(found, _)| *found == key) else { return Ok(None) };
        let text = BASE64_STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        text.map(Some).ok_or_else(|| Problem::invalid(format!("{key} of Upload-Metadata must be UTF-8 in base64")))
    };
    let name = match value("filename")? {
        Some(name) => name,
        None => value("name")?.ok_or_else(|| Problem::invalid("Upload-Metadata must have a filename"))?,
    };
    check_name(&name)?;
    let encoding = match value("encoding")?.as_deref() {
        None | Some("" | "identity") => Encoding::Identity,
        Some("gzip") => Encoding::Gzip,
        Some("zstd") => Encoding::Zstd,
        Some(_) => return Err(Problem::invalid("encoding of Upload-Metadata must be identity, gzip or zstd")),
    };
    Ok((name, encoding))
}

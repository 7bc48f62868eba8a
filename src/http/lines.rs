//! Lines appended to a file, part by part: live streams.

use std::io::Read;
use std::sync::Arc;

use argus_sinks::Snapshot;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use futures::{Stream, StreamExt};
use tokio::sync::{Semaphore, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::binary::Binary;
use crate::http::extract::{Segments, drain, idempotency_key};
use crate::http::files::{BODY_PAUSE, TURN_WAIT, content_encoding};
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{BrokenOff, Conflict, Invalid, Late, NotFound, TooLong, Unavailable, UnknownEncoding};
use crate::http::waiting::snapshot_at_least;
use crate::ingest::compression;
use crate::metadata::{Refused, UploadKey};
use crate::model::{Encoding, Part, Receipt, check_name};
use crate::pipeline::{Pipeline, PipelineError, now};
use crate::service::Service;

/// A part may have this many bytes of text (4 MiB): it is held in memory until it is accepted.
const PART_BYTES_MAX: usize = 4 << 20;
/// Parts that are taken in at once; more wait.
const PARTS_MAX: usize = 32;
/// How long an answer waits until its lines are counted. They are durable then and will be counted.
const COUNTED_WAIT_MS: u64 = 30_000;

#[derive(Clone)]
struct Parts {
    pipeline: Pipeline,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    turns: Arc<Semaphore>,
}

/// `/batches/{id}/files/{name}/lines`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        pipeline: service.pipeline.clone(),
        snapshots: service.snapshots.clone(),
        turns: Arc::new(Semaphore::new(PARTS_MAX)),
    };
    OpenApiRouter::new().routes(routes!(append)).layer(DefaultBodyLimit::disable()).with_state(parts)
}

/// Answers when the lines are durable and every reader sees them.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/files/{name}/lines",
    tag = "files",
    params(("id" = Uuid, Path, description = "the batch"), ("name" = String, Path, description = "the file's name"), ("Content-Encoding" = Option<String>, Header, description = "identity, gzip or zstd"), ("Idempotency-Key" = Option<String>, Header, description = "makes a retry return the first answer"), ("Upload-Offset" = Option<u64>, Header, description = "the file's bytes so far, to make a retry safe")),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "appended, durable and counted", body = Receipt),
        BrokenOff, NotFound, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, Late,
    ),
)]
async fn append(
    State(parts): State<Parts>,
    Segments((id, name)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Receipt>, Problem> {
    let batch_id = batch_id(&id)?;
    check_name(&name)?;
    let encoding = content_encoding(&headers)?;
    let offset = upload_offset(&headers)?;
    let key = idempotency_key(&headers)?
        .map(|key| UploadKey { key, request: format!("POST {batch_id}/{name}/lines {}", offset.unwrap_or_default()) });
    let turn = tokio::time::timeout(TURN_WAIT, parts.turns.acquire()).await;
    let _turn = turn.ok().and_then(Result::ok).ok_or_else(|| Problem::busy("too many parts at once; try again"))?;
    let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    let read = read_part(&mut body, encoding).await;
    if read.is_err() {
        drain(&mut body).await;
    }
    let part = Part { batch_id, name, bytes: read?, uploaded_at: now() };
    let accepted = match parts.pipeline.append(part, offset, key).await {
        Err(PipelineError::Refused(Refused::AnsweredBefore(answer))) => answer,
        accepted => accepted?,
    };
    let receipt = accepted.receipt();
    snapshot_at_least(&parts.snapshots, Some(receipt.epoch), COUNTED_WAIT_MS).await?;
    Ok(Json(receipt.clone()))
}

fn upload_offset(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("upload-offset") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Problem::invalid("Upload-Offset must be the number of the file's bytes so far"))
}

/// The text of a body, whole.
async fn read_part(
    body: &mut (impl Stream<Item = Result<Bytes, String>> + Unpin),
    encoding: Encoding,
) -> Result<Bytes, Problem> {
    let broke_off = |reason: &str| {
        let detail = format!("the part broke off: {reason}; nothing of it was appended, so send it again");
        Problem::new(StatusCode::BAD_REQUEST, "upload-broke-off", detail)
    };
    let too_long = || {
        let detail = format!("a part may have at most {PART_BYTES_MAX} bytes; send several, or upload the file whole");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail)
    };
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(BODY_PAUSE, body.next()).await {
            Ok(Some(Ok(chunk))) => bytes.extend_from_slice(&chunk),
            Ok(Some(Err(reason))) => return Err(broke_off(&reason)),
            Ok(None) => break,
            Err(_) => return Err(broke_off(&format!("nothing came for {} s", BODY_PAUSE.as_secs()))),
        }
        if bytes.len() > PART_BYTES_MAX {
            return Err(too_long());
        }
    }
    if encoding == Encoding::Identity {
        return Ok(bytes.into());
    }
    let mut text = Vec::new();
    let decoded = compression(encoding)
        .reader(&bytes[..])
        .and_then(|reader| reader.take(PART_BYTES_MAX as u64 + 1).read_to_end(&mut text));
    match decoded {
        Ok(_) if text.len() > PART_BYTES_MAX => Err(too_long()),
        Ok(_) => Ok(text.into()),
        Err(error) => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "corrupt-file",
            format!("the compressed part is cut off or damaged ({error}); nothing of it was appended"),
        )),
    }
}

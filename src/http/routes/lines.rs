//! Appends lines to a file: live streams.

use std::io::Read;
use std::sync::Arc;

use argus_sinks::Snapshot;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use futures::{Stream, StreamExt};
use metrics::counter;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Service;
use crate::domain::batch::{Encoding, Part, Receipt, check_name};
use crate::domain::clock::now;
use crate::http::binary::Binary;
use crate::http::error_responses::{
    Conflict, DiskFull, GatewayTimeout, Invalid, NotFound, TimedOut, TooLong, Unavailable, UnknownEncoding,
    UploadInterrupted,
};
use crate::http::extract::{Segments, drain, idempotency_key};
use crate::http::problem::{Problem, batch_id};
use crate::http::routes::files::content_encoding;
use crate::http::waiting::visible;
use crate::ingest::slots::{Slot, Slots};
use crate::ingest::{Ingest, IngestError, compression};
use crate::metadata::{Refused, UploadKey, pack};
use crate::pipeline::{Pipeline, PipelineError};

/// The size limit of a part, as text (4 MiB): a part stays in memory until it is accepted.
pub const PART_BYTES_MAX: usize = 4 << 20;
/// The limit of parts received at once; more wait.
const PARTS_MAX: usize = 32;
/// How long a response waits until the lines are counted. After a timeout they are still durable and will be counted.
pub const COUNTED_WAIT_MS: u64 = 30_000;

#[derive(Clone)]
struct LinesContext {
    pipeline: Pipeline,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    ingest: Ingest,
    slots: Slots,
}

/// `/batches/{id}/files/{name}/lines`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = LinesContext {
        pipeline: service.pipeline.clone(),
        snapshots: service.snapshots.clone(),
        ingest: service.ingest.clone(),
        slots: Slots::new("parts", PARTS_MAX),
    };
    OpenApiRouter::new().routes(routes!(append)).layer(DefaultBodyLimit::disable()).with_state(context)
}

/// Appends lines to a file.
///
/// The response is sent when the lines are durable and every reader sees them.
#[utoipa::path(
    post,
    path = "/api/v1/batches/{id}/files/{name}/lines",
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
        (
            "Upload-Offset" = Option<u64>,
            Header,
            description = "the size of the file so far, in bytes; makes a retry safe"
        ),
    ),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "appended, durable and counted", body = Receipt),
        UploadInterrupted, NotFound, TimedOut, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, GatewayTimeout,
        DiskFull,
    ),
)]
async fn append(
    State(context): State<LinesContext>,
    Segments((id, name)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Receipt>, Problem> {
    let batch_id = batch_id(&id)?;
    check_name(&name)?;
    let encoding = content_encoding(&headers)?;
    let offset = upload_offset(&headers)?;
    let key = idempotency_key(&headers)?;
    context.ingest.check_room()?;
    let (bytes, _slot) = read_part(&context.slots, body, encoding).await?;
    let key = key.map(|key| {
        let digest = Sha256::digest(&bytes);
        UploadKey {
            key,
            request: format!("POST {batch_id}/{name}/lines {} {}", offset.unwrap_or_default(), hex::encode(digest)),
        }
    });
    let part = Part { batch_id, name, packed: pack(&bytes), bytes, uploaded_at: now() };
    let accepted = match context.pipeline.append(part, offset, key).await {
        Err(PipelineError::Refused(Refused::AnsweredBefore(answer))) => *answer,
        accepted => {
            let outcome = if accepted.is_ok() { "accepted" } else { "failed" };
            counter!("argus_uploads_total", "outcome" => outcome).increment(1);
            accepted?
        }
    };
    let receipt = accepted.receipt();
    visible(&context.snapshots, receipt.epoch, COUNTED_WAIT_MS).await?;
    Ok(Json(receipt.clone()))
}

fn upload_offset(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("upload-offset") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| Problem::invalid("Upload-Offset must be the size of the file so far, in bytes"))
}

/// Reads and decodes a whole body of a limited size. Returns it with its slot.
pub async fn read_part(slots: &Slots, body: Body, encoding: Encoding) -> Result<(Bytes, Slot), Problem> {
    let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    let read = read_and_decode(slots, &mut body, encoding).await;
    if read.is_err() {
        drain(&mut body).await;
    }
    read
}

async fn read_and_decode<S>(slots: &Slots, body: &mut S, encoding: Encoding) -> Result<(Bytes, Slot), Problem>
where
    S: Stream<Item = Result<Bytes, String>> + Unpin,
{
    let first = slots.first_bytes(body).await.map_err(IngestError::Interrupted)?;
    let slot = slots.take().await.map_err(IngestError::Interrupted)?;
    let mut bytes = first.chunks.concat();
    let mut is_all = first.is_all;
    while !is_all && bytes.len() <= PART_BYTES_MAX {
        match slot.next(body).await.map_err(IngestError::Interrupted)? {
            Some(chunk) => bytes.extend_from_slice(&chunk),
            None => is_all = true,
        }
        slot.client_waits();
    }
    Ok((decoded(bytes, encoding)?, slot))
}

/// Decodes `bytes` to the text of a part.
fn decoded(bytes: Vec<u8>, encoding: Encoding) -> Result<Bytes, Problem> {
    let too_long = || {
        let detail = format!("a part may have at most {PART_BYTES_MAX} bytes; split it, or upload the whole file");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", detail)
    };
    if bytes.len() > PART_BYTES_MAX {
        return Err(too_long());
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
            format!("the compressed part is truncated or corrupt ({error}); none of it was appended"),
        )),
    }
}

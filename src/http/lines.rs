//! Lines appended to a file, part by part: live streams.

use std::io::Read;
use std::sync::Arc;

use argus_sinks::Snapshot;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::binary::Binary;
use crate::http::extract::{Segments, drain, idempotency_key};
use crate::http::files::content_encoding;
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{
    BrokenOff, Conflict, DiskFull, Invalid, Late, NotFound, TimedOut, TooLong, Unavailable, UnknownEncoding,
};
use crate::http::waiting::snapshot_at_least;
use crate::ingest::slots::{Slot, Slots};
use crate::ingest::{Ingest, IngestError, compression};
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
    ingest: Ingest,
    slots: Slots,
}

/// `/batches/{id}/files/{name}/lines`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        pipeline: service.pipeline.clone(),
        snapshots: service.snapshots.clone(),
        ingest: service.ingest.clone(),
        slots: Slots::new(PARTS_MAX),
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
        BrokenOff, NotFound, TimedOut, Conflict, TooLong, UnknownEncoding, Invalid, Unavailable, Late, DiskFull,
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
    let key = idempotency_key(&headers)?;
    parts.ingest.check_room()?;
    let mut body = body.into_data_stream().map(|chunk| chunk.map_err(|error| error.to_string()));
    let read = parts.read_part(&mut body, encoding).await;
    if read.is_err() {
        drain(&mut body).await;
    }
    let (bytes, _slot) = read?;
    let key = key.map(|key| {
        let digest = Sha256::digest(&bytes);
        UploadKey { key, request: format!("POST {batch_id}/{name}/lines {} {digest:x}", offset.unwrap_or_default()) }
    });
    let part = Part { batch_id, name, bytes, uploaded_at: now() };
    let accepted = match parts.pipeline.append(part, offset, key).await {
        Err(PipelineError::Refused(Refused::AnsweredBefore(answer))) => *answer,
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

impl Parts {
    /// The text of a body, whole, with the slot that it takes.
    async fn read_part<S>(&self, body: &mut S, encoding: Encoding) -> Result<(Bytes, Slot), Problem>
    where
        S: Stream<Item = Result<Bytes, String>> + Unpin,
    {
        let first = self.slots.first_bytes(body).await.map_err(IngestError::Interrupted)?;
        let slot = self.slots.take().await.map_err(IngestError::Interrupted)?;
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
}

/// The text of a part, which is `bytes` encoded.
fn decoded(bytes: Vec<u8>, encoding: Encoding) -> Result<Bytes, Problem> {
    let too_long = || {
        let detail = format!("a part may have at most {PART_BYTES_MAX} bytes; send several, or upload the file whole");
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
            format!("the compressed part is cut off or damaged ({error}); nothing of it was appended"),
        )),
    }
}

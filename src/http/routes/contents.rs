//! The files of a batch, and their texts.

use std::ops::Range;
use std::sync::Arc;

use argus_query::results::json::rfc3339;
use argus_sinks::Snapshot;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response as HttpResponse, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::answers::texts::{Part, Texts};
use crate::app::Service;
use crate::http::binary::Binary;
use crate::http::cached::is_current;
use crate::http::error_responses::{Invalid, NotFound, RangeNotSatisfiable, TooManyRequests, Unavailable};
use crate::http::extract::{Parameters, Segments};
use crate::http::list::{List, limit_within};
use crate::http::problem::{Problem, batch_id};
use crate::metadata::{FileRecord, Metadata};

const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

#[derive(Clone)]
struct ContentsContext {
    metadata: Metadata,
    texts: Texts,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// `GET` of `/batches/{id}/files` and of the files.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = ContentsContext {
        metadata: service.metadata.clone(),
        texts: service.texts.clone(),
        snapshots: service.snapshots.clone(),
    };
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read)).with_state(context)
}

/// A file.
#[derive(Serialize, ToSchema)]
struct FileBody {
    file_id: Uuid,
    name: String,
    /// 1 for the first upload, one more for each replacement with other content.
    generation: u32,
    /// `stored` until readers see its counts, then `parsed`, or `failed`.
    status: &'static str,
    /// The size of its text.
    bytes: u64,
    lines: u64,
    /// Of the bytes as they were uploaded, without the content encoding.
    sha256: String,
    #[schema(value_type = chrono::DateTime<chrono::Utc>)]
    uploaded_at: Value,
    /// The epoch of its last change.
    epoch: u64,
}

impl FileBody {
    fn new(record: &FileRecord, seen: u64) -> FileBody {
        let receipt = record.receipt();
        FileBody {
            file_id: receipt.file_id,
            name: receipt.name,
            generation: receipt.generation,
            status: match record.is_failed {
                true => "failed",
                false if record.epoch <= seen => "parsed",
                false => "stored",
            },
            bytes: receipt.bytes,
            lines: receipt.lines,
            sha256: receipt.sha256,
            uploaded_at: rfc3339(record.uploaded_at),
            epoch: receipt.epoch,
        }
    }
}

/// The columns of the list as CSV.
const COLUMNS: [&str; 9] =
    ["name", "file_id", "generation", "status", "bytes", "lines", "sha256", "uploaded_at", "epoch"];

/// A page of files.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct FilesBody {
    files: Vec<FileBody>,
    next_cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParameters {
    /// The maximum number of files, 1 to 1000; default 100.
    limit: Option<u32>,
    /// The `next_cursor` of the previous page.
    cursor: Option<String>,
}

/// Lists the files of a batch, by name.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/files",
    tag = "files",
    params(("id" = Uuid, Path, description = "the batch"), ListParameters),
    responses(
        (status = 200, description = "the files, by name", content((FilesBody = "application/json"), (String = "text/csv"))),
        NotFound, Invalid, Unavailable,
    ),
)]
async fn list(
    State(context): State<ContentsContext>,
    Segments(id): Segments<String>,
    Parameters(parameters): Parameters<ListParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = batch_id(&id)?;
    context.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
    let limit = limit_within(parameters.limit, LIMIT_DEFAULT, LIMIT_MAX)?;
    let after = parameters.cursor.as_deref().map(read_cursor).transpose()?;
    let mut files = context.metadata.files_after(id, after.as_deref(), limit + 1).await?;
    let more = files.len() > limit as usize;
    files.truncate(limit as usize);
    let next_cursor = files.last().filter(|_| more).map(|last| hex::encode(&last.name));
    let seen = context.snapshots.borrow().epoch;
    let files = files.iter().map(|record| FileBody::new(record, seen));
    List::new("files", &COLUMNS, files, next_cursor)?.respond(&headers)
}

/// A cursor is the name of the last file, in hexadecimal so that it needs no escaping.
fn read_cursor(cursor: &str) -> Result<String, Problem> {
    let name = hex::decode(cursor).ok().and_then(|name| String::from_utf8(name).ok());
    name.ok_or_else(|| Problem::invalid("the cursor is invalid; omit it to start at the first page"))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ReadParameters {
    /// The number of the first line to read, from 1.
    from_line: Option<u64>,
    /// The number of lines to read; default all that follow.
    lines: Option<u64>,
    /// The bytes as they were uploaded, without the content encoding, in place of the text.
    #[param(default = false)]
    raw: Option<bool>,
}

/// Reads a file.
///
/// The text is decompressed, and UTF-16 is converted to UTF-8, so that bytes and lines are those of the report.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/files/{name}",
    tag = "files",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ("name" = String, Path, description = "the file's name"),
        ReadParameters,
        ("Range" = Option<String>, Header, description = "one range of bytes of the text, without `from_line` and `raw`"),
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "the text", content(
            (Binary = "text/plain"),
            (Binary = "application/octet-stream")
        )),
        (status = 206, description = "the range of the text", body = Binary, content_type = "text/plain"),
        (status = 304, description = "the client's copy is current"),
        NotFound, Invalid, RangeNotSatisfiable, TooManyRequests, Unavailable,
    ),
)]
async fn read(
    State(context): State<ContentsContext>,
    Segments((id, name)): Segments<(String, String)>,
    Parameters(parameters): Parameters<ReadParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = batch_id(&id)?;
    let Some(file) = context.metadata.stored_file(id, &name).await? else {
        context.metadata.batch(id).await?.ok_or_else(|| Problem::no_batch(id))?;
        return Err(Problem::new(StatusCode::NOT_FOUND, "file-not-found", format!("batch {id} has no file {name:?}")));
    };
    let total = file.record.bytes;
    let tag = format!("\"{}-{total}\"", file.record.version.0);
    if is_current(&tag, &headers) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let wanted = Wanted::of(&parameters, &headers, &tag, total)?;
    let mut response = HttpResponse::new(Body::empty());
    let fields = response.headers_mut();
    fields.insert(header::ETAG, HeaderValue::try_from(tag).map_err(|error| Problem::internal(&error))?);
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // A log may contain HTML: no browser may take it for a page.
    fields.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let content_type = if wanted.part == Part::Raw { "application/octet-stream" } else { "text/plain; charset=utf-8" };
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Part::Bytes(range) = &wanted.part {
        fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        fields.insert(header::CONTENT_LENGTH, (range.end - range.start).into());
        if wanted.is_partial {
            let sent = format!("bytes {}-{}/{total}", range.start, range.end - 1);
            fields.insert(header::CONTENT_RANGE, HeaderValue::try_from(sent).map_err(|e| Problem::internal(&e))?);
        }
    }
    let chunks = context.texts.read(file, wanted.part).await?;
    if wanted.is_partial {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let chunks = stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) });
    *response.body_mut() = Body::from_stream(chunks);
    Ok(response)
}

/// The part of a file that a request wants.
struct Wanted {
    part: Part,
    /// Whether it is the answer to a `Range` header.
    is_partial: bool,
}

impl Wanted {
    fn of(parameters: &ReadParameters, headers: &HeaderMap, tag: &str, total: u64) -> Result<Wanted, Problem> {
        let whole = |part| Ok(Wanted { part, is_partial: false });
        let ReadParameters { from_line, lines, raw } = *parameters;
        match (from_line, lines, raw.unwrap_or(false)) {
            (None, None, true) => whole(Part::Raw),
            (_, _, true) => Err(Problem::invalid("raw bytes have no lines; omit raw, or from_line and lines")),
            (Some(0), _, _) => Err(Problem::invalid("from_line must be at least 1")),
            (None, None, false) => {
                // A range of another version would not fit to what the client has.
                let fits = headers.get(header::IF_RANGE).is_none_or(|known| known.as_bytes() == tag.as_bytes());
                let range = headers.get(header::RANGE).filter(|_| fits).and_then(|range| range.to_str().ok());
                match range.map(|range| parse_range(range, total)) {
                    Some(Ok(Some(range))) => Ok(Wanted { part: Part::Bytes(range), is_partial: true }),
                    Some(Err(problem)) => Err(problem),
                    _ => whole(Part::Bytes(0..total)),
                }
            }
            (from, count, false) => whole(Part::Lines(from.unwrap_or(1), count)),
        }
    }
}

/// A `Range` header with one range of bytes (RFC 9110, 14.2). Others are ignored, as a server may.
fn parse_range(text: &str, total: u64) -> Result<Option<Range<u64>>, Problem> {
    let Some((first, last)) = text.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(total),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..total,
        (Err(_), Ok(length)) if first.trim().is_empty() => total.saturating_sub(length)..total,
        _ => return Ok(None),
    };
    match range.is_empty() {
        false => Ok(Some(range)),
        true => Err(Problem::range_not_satisfiable(total)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_within_the_text() {
        let parsed = |text: &str| parse_range(text, 10);
        for (text, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=2-4", 2..5),
            ("bytes=2-99", 2..10),
            ("bytes=9-", 9..10),
            ("bytes=-3", 7..10),
            ("bytes=-99", 0..10),
        ] {
            assert_eq!(parsed(text).expect("satisfiable"), Some(range), "{text}");
        }
        for ignored in ["bytes=4-2", "bytes=0-1,3-4", "lines=1-2", "bytes=x-", "bytes=-"] {
            assert_eq!(parsed(ignored).expect("ignored"), None, "{ignored}");
        }
        for beyond in ["bytes=10-", "bytes=10-12", "bytes=-0"] {
            assert!(parsed(beyond).is_err(), "{beyond}");
        }
    }
}

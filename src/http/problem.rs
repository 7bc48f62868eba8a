//! Error responses: RFC 9457 `application/problem+json`.

use argus_dataflow::text::Archive;
use argus_query::QueryError;
use argus_query::cache::ComputationAborted;
use argus_sinks::PastError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::answers::answer::AnswerError;
use crate::answers::texts::TextError;
use crate::domain::batch::Invalid;
use crate::ingest::IngestError;
use crate::ingest::archive::ArchiveError;
use crate::ingest::disk::is_disk_full;
use crate::ingest::resumable::ResumableError;
use crate::ingest::slots::Interrupted;
use crate::metadata::{MetadataError, Refused};
use crate::pipeline::PipelineError;

/// The `Retry-After` of a busy or stopping server, in seconds.
const RETRY_AFTER_S: u32 = 1;

/// An error response: what went wrong and what to do.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    /// The last part of the problem's type.
    kind: &'static str,
    detail: String,
    /// The offset at which the client should continue.
    upload_offset: Option<u64>,
    /// The length of a text of which the client wanted a range.
    length: Option<u64>,
}

/// An error (RFC 9457).
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct ProblemBody {
    /// The type of the error: a URN that starts with `urn:argus:problem:`.
    r#type: String,
    /// The name of the status.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What went wrong and what to do.
    detail: String,
    /// Only for appends: the offset in bytes at which to continue.
    upload_offset: Option<u64>,
}

impl Problem {
    /// A problem of a type, with a detail that tells the client what to do.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, kind, detail: detail.into(), upload_offset: None, length: None }
    }

    /// The request is invalid.
    pub fn invalid(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }

    /// A range begins after the end of a text with this many bytes.
    pub fn range_not_satisfiable(length: u64) -> Problem {
        let detail = format!("the text has {length} bytes; the range must begin before its end");
        let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", detail);
        Problem { length: Some(length), ..problem }
    }

    /// The client continues at another offset than `actual`.
    pub fn offset_differs(actual: u64) -> Problem {
        let detail = format!("{actual} bytes have arrived; continue at this offset");
        let problem = Problem::new(StatusCode::CONFLICT, "offset-differs", detail);
        Problem { upload_offset: Some(actual), ..problem }
    }

    /// There is no such batch.
    pub fn no_batch(id: impl std::fmt::Display) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "batch-not-found", format!("there is no batch {id}"))
    }

    /// The server failed. The error is logged; the client does not see it.
    pub fn internal(error: &(dyn std::error::Error + 'static)) -> Problem {
        tracing::error!(error, "a request failed");
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed; retry, or ask the operator of the server",
        )
    }

    /// The metadata could not be read.
    fn of_metadata(error: &MetadataError) -> Problem {
        if !error.is_temporary() {
            return Problem::internal(error);
        }
        tracing::warn!(error = error as &dyn std::error::Error, "the metadata database does not answer");
        Problem::busy("the metadata database does not answer; retry later")
    }

    /// The disk has no space for the upload.
    pub fn disk_full() -> Problem {
        Problem::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", IngestError::DiskFull.to_string())
    }

    /// The server is busy or stopping.
    pub fn busy(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    }
}

impl Problem {
    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong and what to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The same problem with another explanation.
    pub fn with_detail(self, detail: String) -> Problem {
        Problem { detail, ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("urn:argus:problem:{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(offset) = self.upload_offset {
            body["upload_offset"] = json!(offset);
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(offset) = self.upload_offset {
            headers.insert("upload-offset", offset.into());
        }
        if let Some(Ok(range)) = self.length.map(|length| HeaderValue::try_from(format!("bytes */{length}"))) {
            headers.insert(header::CONTENT_RANGE, range);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
        }
        response
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Problem {
        Problem::invalid(invalid.to_string())
    }
}

impl From<TextError> for Problem {
    fn from(error: TextError) -> Problem {
        match error {
            TextError::Metadata(error) => error.into(),
            TextError::Busy(error) => error.into(),
            TextError::Gone => Problem::busy(error.to_string()),
            TextError::Store(_) => Problem::internal(&error),
        }
    }
}

impl From<ResumableError> for Problem {
    fn from(error: ResumableError) -> Problem {
        match &error {
            ResumableError::NotFound => Problem::new(StatusCode::NOT_FOUND, "upload-not-found", error.to_string()),
            ResumableError::TooMany => Problem::busy(error.to_string()),
            ResumableError::Locked => Problem::new(StatusCode::LOCKED, "upload-locked", error.to_string()),
            ResumableError::Io(_) if is_disk_full(&error) => Problem::disk_full(),
            ResumableError::Io(_) => Problem::internal(&error),
        }
    }
}

impl From<MetadataError> for Problem {
    fn from(error: MetadataError) -> Problem {
        Problem::of_metadata(&error)
    }
}

impl From<PipelineError> for Problem {
    fn from(error: PipelineError) -> Problem {
        match error {
            PipelineError::Refused(Refused::BatchNotFound(id)) => Problem::no_batch(id),
            PipelineError::Refused(refused @ Refused::FileNotFound { .. }) => {
                Problem::new(StatusCode::NOT_FOUND, "file-not-found", refused.to_string())
            }
            PipelineError::Refused(refused @ Refused::NoCatalogEntry { .. }) => {
                Problem::new(StatusCode::NOT_FOUND, "no-catalog-entry", refused.to_string())
            }
            PipelineError::Refused(refused @ (Refused::CatalogFull { .. } | Refused::TooManyDocuments { .. })) => {
                Problem::new(StatusCode::CONFLICT, "catalog-full", refused.to_string())
            }
            PipelineError::Refused(Refused::Metadata(error)) => error.into(),
            PipelineError::Refused(Refused::KeyReused) => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "this Idempotency-Key was used with another request or another body; use a new one",
            ),
            PipelineError::Refused(ref refused @ Refused::OffsetDiffers { actual, .. }) => {
                let problem = Problem::new(StatusCode::CONFLICT, "offset-differs", refused.to_string());
                Problem { upload_offset: Some(actual), ..problem }
            }
            PipelineError::Refused(refused @ Refused::OpenLineTooLong { .. }) => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "line-too-long", refused.to_string())
            }
            PipelineError::Refused(refused @ (Refused::NotPending { .. } | Refused::Transition(_))) => {
                Problem::new(StatusCode::CONFLICT, "batch-not-pending", refused.to_string())
            }
            PipelineError::Refused(refused @ (Refused::AnsweredBefore(_) | Refused::RecordsDiffer { .. })) => {
                Problem::new(StatusCode::CONFLICT, "answered-before", refused.to_string())
            }
            PipelineError::NotDurable(error) | PipelineError::Indeterminate(error) if is_disk_full(&*error) => {
                Problem::disk_full()
            }
            PipelineError::Busy | PipelineError::NotLoaded(_) => Problem::busy(error.to_string()),
            PipelineError::NotDurable(ref cause) => {
                let status = match cause.is_temporary() {
                    true => StatusCode::SERVICE_UNAVAILABLE,
                    false => StatusCode::INTERNAL_SERVER_ERROR,
                };
                Problem::new(status, "not-durable", error.to_string())
            }
            PipelineError::Indeterminate(_) => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "maybe-durable", error.to_string())
            }
            PipelineError::Stopping => Problem::busy(error.to_string()),
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Problem {
        match error {
            IngestError::Interrupted(ref interrupted) => {
                let detail = error.to_string();
                match interrupted {
                    Interrupted::Connection(_) => Problem::new(StatusCode::BAD_REQUEST, "upload-interrupted", detail),
                    Interrupted::TooSlow | Interrupted::Stalled => {
                        Problem::new(StatusCode::REQUEST_TIMEOUT, "upload-too-slow", detail)
                    }
                    Interrupted::Stopping => Problem::busy("the server is stopping; retry later"),
                    Interrupted::Busy => Problem::busy("too many uploads at once; retry later"),
                }
            }
            IngestError::TooLong { .. } => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-long", error.to_string()),
            IngestError::ExpandsTooMuch => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "expands-too-much", error.to_string())
            }
            IngestError::DiskFull => Problem::disk_full(),
            IngestError::Corrupt(reason) if reason.get_ref().is_some_and(|inner| inner.is::<Archive>()) => {
                let detail = format!("{reason}, or the archive to POST /batches/{{id}}/files");
                Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "archive", detail)
            }
            IngestError::Corrupt(reason) => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "corrupt-file",
                format!("the compressed file is truncated or corrupt ({reason}); none of it was counted"),
            ),
            IngestError::Store(error) => Problem::internal(&error),
            IngestError::Stopping => Problem::busy("the server is stopping; retry later"),
        }
    }
}

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Problem {
        let (status, kind) = match error {
            ArchiveError::Body(error) => return error.into(),
            ArchiveError::File { ref name, error } => {
                let problem = Problem::from(error);
                let detail = format!("the file {name:?} of the archive: {}", problem.detail);
                return problem.with_detail(detail);
            }
            ArchiveError::NotAnArchive => (StatusCode::BAD_REQUEST, "not-an-archive"),
            ArchiveError::TooLarge | ArchiveError::TooManyFiles => (StatusCode::PAYLOAD_TOO_LARGE, "archive-too-large"),
            ArchiveError::Damaged(_) => (StatusCode::UNPROCESSABLE_ENTITY, "corrupt-archive"),
            ArchiveError::Outside(_)
            | ArchiveError::NotAFile(..)
            | ArchiveError::Encrypted(_)
            | ArchiveError::Name(..)
            | ArchiveError::Twice(_)
            | ArchiveError::Empty => (StatusCode::UNPROCESSABLE_ENTITY, "unsafe-archive"),
        };
        Problem::new(status, kind, format!("{error}; none of it was counted"))
    }
}

impl From<PastError> for Problem {
    fn from(error: PastError) -> Problem {
        let (status, kind) = match error {
            PastError::NotRetained { .. } => (StatusCode::GONE, "epoch-not-retained"),
            PastError::NotPublished { .. } => (StatusCode::GATEWAY_TIMEOUT, "epoch-not-visible"),
        };
        Problem::new(status, kind, error.to_string())
    }
}

impl From<AnswerError> for Problem {
    fn from(error: AnswerError) -> Problem {
        match &error {
            AnswerError::NoBatch(id) => Problem::no_batch(id),
            AnswerError::Starting => Problem::busy(error.to_string()),
            AnswerError::Query(error) => Problem::of_query(error),
            AnswerError::Metadata(error) => Problem::of_metadata(error),
            AnswerError::Write(_) | AnswerError::Aborted(_) => Problem::internal(&error),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Problem {
        Problem::of_query(&error)
    }
}

impl Problem {
    fn of_query(error: &QueryError) -> Problem {
        let (status, kind) = match error {
            QueryError::NotAQuery => (StatusCode::FORBIDDEN, "not-a-query"),
            QueryError::Unsupported(_) => (StatusCode::UNPROCESSABLE_ENTITY, "unsupported-sql"),
            QueryError::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid-query"),
            QueryError::TimedOut(_) => (StatusCode::GATEWAY_TIMEOUT, "query-timed-out"),
            QueryError::TooLarge => (StatusCode::UNPROCESSABLE_ENTITY, "query-too-large"),
            QueryError::TooLong | QueryError::TooManyCalls => (StatusCode::UNPROCESSABLE_ENTITY, "query-too-long"),
            QueryError::TooManyRows(_) => (StatusCode::UNPROCESSABLE_ENTITY, "too-many-rows"),
            QueryError::Busy => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            QueryError::Failed(_) | QueryError::Aborted => return Problem::internal(error),
        };
        Problem::new(status, kind, error.to_string())
    }
}

impl From<ComputationAborted> for Problem {
    fn from(lost: ComputationAborted) -> Problem {
        Problem::internal(&lost)
    }
}

/// Parses the id of a batch in a path. An invalid id is 404, like an unknown one.
pub fn batch_id(text: &str) -> Result<Uuid, Problem> {
    Uuid::parse_str(text).map_err(|_| Problem::no_batch(text.escape_default()))
}

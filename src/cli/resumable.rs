//! The client's side of a resumable upload (tus 1.0): a large file continues where an interruption left it, also in a
//! later run.
//!
//! The file is compressed while it is sent, so its length on the link is not known before its end: it is deferred. The
//! same file is compressed to the same bytes again, so a continuation skips those that have arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::anyhow;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde_json::json;
use url::Url;

use super::upload_client::{Attempt, STALL_TIME};
use super::upload_state::Remembered;

/// A file that is uploaded to a server.
pub struct ResumableUpload<'u> {
    /// The client.
    pub client: &'u Client,
    /// The URL of the uploads of the batch.
    pub uploads: Url,
    /// The file's name.
    pub name: &'u str,
    /// The encoding in which its bytes are sent.
    pub encoding: &'static str,
    /// The memory of its URL.
    pub remembered: Remembered,
}

impl ResumableUpload<'_> {
    /// Where the upload continues: its URL, and the bytes that have arrived. `None` if all have.
    pub async fn position(&self) -> Result<Option<(Url, u64)>, Attempt> {
        let known = self.remembered.get().and_then(|known| self.uploads.join(known["url"].as_str()?).ok());
        if let Some(url) = known {
            let answer = send(self.request(Method::HEAD, url.clone()).timeout(STALL_TIME)).await?;
            match answer.status() {
                StatusCode::OK => {
                    let offset = number(&answer, "upload-offset").ok_or_else(no_tus)?;
                    let is_whole = number(&answer, "upload-length") == Some(offset);
                    return Ok((!is_whole).then_some((url, offset)));
                }
                // It expired.
                StatusCode::NOT_FOUND | StatusCode::GONE => self.remembered.forget(),
                _ => return Err(failed(answer).await),
            }
        }
        let metadata = format!(
            "filename {},encoding {}",
            BASE64_STANDARD.encode(self.name),
            BASE64_STANDARD.encode(self.encoding)
        );
        let request = self.request(Method::POST, self.uploads.clone()).timeout(STALL_TIME);
        let answer = send(request.header("Upload-Defer-Length", "1").header("Upload-Metadata", metadata)).await?;
        if answer.status() != StatusCode::CREATED {
            return Err(failed(answer).await);
        }
        let location = answer.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let url = location.and_then(|location| self.uploads.join(location).ok()).ok_or_else(no_tus)?;
        self.remembered.set(&json!({"url": url.path()}));
        Ok(Some((url, 0)))
    }

    /// Sends the bytes from `offset` on, and then says that these were all.
    pub async fn send(
        &self,
        (url, offset): (Url, u64),
        chunks: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<(), Attempt> {
        let length = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&length);
        let rest = chunks.filter_map(move |chunk| {
            let rest = chunk.map(|mut chunk: Bytes| {
                let before = counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                let skipped = usize::try_from(offset.saturating_sub(before)).unwrap_or(usize::MAX).min(chunk.len());
                chunk.split_off(skipped)
            });
            std::future::ready(match rest {
                Ok(rest) if rest.is_empty() => None,
                rest => Some(rest),
            })
        });
        let body = reqwest::Body::wrap_stream(rest);
        self.patch(self.request(Method::PATCH, url.clone()).header("Upload-Offset", offset).body(body)).await?;
        let length = length.load(Ordering::Relaxed);
        let end = self.request(Method::PATCH, url).header("Upload-Offset", length).header("Upload-Length", length);
        // The server stores and counts the file before it answers.
        self.patch(end.timeout(STALL_TIME)).await
    }

    async fn patch(&self, request: RequestBuilder) -> Result<(), Attempt> {
        let answer = send(request.header(header::CONTENT_TYPE, "application/offset+octet-stream")).await?;
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(()),
            _ => Err(failed(answer).await),
        }
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url).header("Tus-Resumable", "1.0.0")
    }
}

async fn send(request: RequestBuilder) -> Result<Response, Attempt> {
    request.send().await.map_err(|error| Attempt::Interrupted(error.into()))
}

/// Why an answer is none: another attempt asks for the position again, unless the request itself is refused.
async fn failed(answer: Response) -> Attempt {
    let status = answer.status();
    let body: serde_json::Value = answer.json().await.unwrap_or_default();
    let error = anyhow!("{}", body["detail"].as_str().unwrap_or(status.as_str()));
    // A position that differs says so by its own type; a batch that is completed is refused with 409 too.
    let is_of_position =
        body["type"] == "urn:argus:problem:offset-differs" || body["type"] == "urn:argus:problem:upload-not-found";
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::LOCKED | StatusCode::BAD_REQUEST => {
            Attempt::Interrupted(error)
        }
        status if status.is_server_error() || is_of_position => Attempt::Interrupted(error),
        _ => Attempt::Local(error),
    }
}

fn number(answer: &Response, name: &str) -> Option<u64> {
    answer.headers().get(name)?.to_str().ok()?.parse().ok()
}

fn no_tus() -> Attempt {
    Attempt::Local(anyhow!("the server does not answer as tus 1.0 says; --server must be the URL of an Argus"))
}

//! An object store that counts its requests in `/metrics`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use metrics::{counter, describe_counter};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart, coalesce_ranges,
};

const REQUESTS: &str = "argus_object_store_requests_total";

/// Describes the metric, and exports it as 0 from the start.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests to S3, by operation and outcome. A repeated request counts once.");
    for operation in ["get", "put", "list", "delete"] {
        count(operation, "ok", 0);
    }
    for operation in ["get", "put"] {
        count(operation, "failed", 0);
    }
}

/// Counts the requests to a store.
#[derive(Debug, Clone)]
pub(super) struct CountedStore(pub(super) Arc<dyn ObjectStore>);

impl fmt::Display for CountedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn count(operation: &'static str, outcome: &'static str, requests: u64) {
    counter!(REQUESTS, "operation" => operation, "outcome" => outcome).increment(requests);
}

/// The outcome of a request. That an object is missing or exists already is an answer, not a failure.
fn outcome<T>(result: &Result<T>) -> &'static str {
    match result {
        Ok(_) | Err(Error::NotModified { .. }) => "ok",
        Err(Error::NotFound { .. }) => "not_found",
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => "conflict",
        Err(_) => "failed",
    }
}

/// Counts a request by its result.
fn counted<T>(operation: &'static str, result: Result<T>) -> Result<T> {
    count(operation, outcome(&result), 1);
    result
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for CountedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        counted("put", self.0.put_opts(location, payload, options).await)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = counted("create_multipart", self.0.put_multipart_opts(location, options).await)?;
        Ok(Box::new(CountedUpload(upload)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        counted("get", self.0.get_opts(location, options).await)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        // As `AmazonS3` does it, but each request is counted.
        coalesce_ranges(ranges, |range| self.get_range(location, range), OBJECT_STORE_COALESCE_DEFAULT).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(locations).inspect(|deleted| count("delete", outcome(deleted), 1)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        Listing::default().observe(self.0.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        Listing::default().observe(self.0.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        counted("list", self.0.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        counted("copy", self.0.copy_opts(from, to, options).await)
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        counted("copy", self.0.rename_opts(from, to, options).await)
    }
}

/// A listing in progress. It counts when it ends, or when its reader wants no more.
#[derive(Default)]
struct Listing {
    failure: Option<&'static str>,
}

impl Listing {
    /// Passes the objects on. The stream owns the listing.
    fn observe(mut self, objects: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
        objects.inspect(move |object| self.note(object)).boxed()
    }

    fn note(&mut self, object: &Result<ObjectMeta>) {
        if object.is_err() {
            self.failure = Some(outcome(object));
        }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        count("list", self.failure.unwrap_or("ok"), 1);
    }
}

#[derive(Debug)]
struct CountedUpload(Box<dyn MultipartUpload>);

#[async_trait]
impl MultipartUpload for CountedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let part = self.0.put_part(data);
        Box::pin(async move { counted("put_part", part.await) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        counted("complete_multipart", self.0.complete().await)
    }

    async fn abort(&mut self) -> Result<()> {
        counted("abort_multipart", self.0.abort().await)
    }
}

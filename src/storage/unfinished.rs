//! Multipart uploads that a crash left unfinished in a bucket. They are not listed as objects, and cost as much.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use object_store::MultipartId;
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpRequest, HttpRequestBody};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use reqwest::{Client, Method};
use serde::Deserialize;

use super::s3::REQUEST_TIME;

/// The multipart uploads below a folder of a bucket.
#[derive(Debug, Clone)]
pub struct UnfinishedUploads {
    pub(super) bucket: Arc<AmazonS3>,
    pub(super) region: String,
    pub(super) folder: Path,
}

/// A multipart upload.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UnfinishedUpload {
    key: String,
    upload_id: MultipartId,
    #[serde(default)]
    initiated: Option<DateTime<Utc>>,
}

impl UnfinishedUpload {
    /// Whether it is known to have begun before a time.
    pub fn began_before(&self, time: DateTime<Utc>) -> bool {
        self.initiated.is_some_and(|initiated| initiated < time)
    }
}

/// A page of the answer of S3.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default, rename = "Upload")]
    uploads: Vec<UnfinishedUpload>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

impl UnfinishedUploads {
    /// All of them. Before this process writes, they are those of processes that have ended or were replaced.
    pub async fn list(&self) -> Result<Vec<UnfinishedUpload>> {
        let client = Client::builder().timeout(REQUEST_TIME).build()?;
        let prefix = match self.folder.as_ref() {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let (mut uploads, mut markers) = (Vec::new(), None);
        loop {
            let page = self.page(&client, &prefix, markers.as_ref()).await?;
            uploads.extend(page.uploads);
            let next = (page.next_key_marker, page.next_upload_id_marker);
            // Without progress, the list would never end.
            if !page.is_truncated || markers.as_ref() == Some(&next) {
                return Ok(uploads);
            }
            markers = Some(next);
        }
    }

    /// Requests a page: `object_store` has no call for it.
    async fn page(&self, client: &Client, prefix: &str, markers: Option<&(String, String)>) -> Result<Page> {
        // The URL of the bucket, in the style that its settings ask for.
        let object = Path::from("x");
        let mut url = self.bucket.signed_url(Method::GET, &object, Duration::from_secs(1)).await?;
        url.set_query(None);
        url.path_segments_mut().ok().context("the bucket has no URL")?.pop().push("");
        url.query_pairs_mut().append_pair("uploads", "").append_pair("prefix", prefix);
        if let Some((key, upload)) = markers {
            url.query_pairs_mut().append_pair("key-marker", key).append_pair("upload-id-marker", upload);
        }
        let credential = self.bucket.credentials().get_credential().await?;
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse()?;
        AwsAuthorizer::new(&credential, "s3", &self.region).authorize(&mut request, None);
        let response = client.get(url).headers(request.headers().clone()).send().await?;
        let (status, text) = (response.status(), response.text().await?);
        if !status.is_success() {
            bail!("the bucket answered {status} to a list of multipart uploads: {text:.300}");
        }
        quick_xml::de::from_str(&text).context("the bucket's list of multipart uploads is not understood")
    }

    /// Aborts an upload, unless it has ended meanwhile.
    pub async fn abort(&self, upload: &UnfinishedUpload) -> Result<()> {
        let path = Path::parse(&upload.key)?;
        match self.bucket.abort_multipart(&path, &upload.upload_id).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            aborted => Ok(aborted?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_lists_keys_and_ids() {
        let page = r#"<?xml version="1.0"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Bucket>b</Bucket><KeyMarker/><UploadIdMarker/><NextKeyMarker>a/raw/2</NextKeyMarker>
            <NextUploadIdMarker>j</NextUploadIdMarker><MaxUploads>2</MaxUploads><IsTruncated>true</IsTruncated>
            <Upload><Key>a/raw/1</Key><UploadId>i</UploadId><Initiator><ID>x</ID></Initiator></Upload>
            <Upload><Key>a/raw/2</Key><UploadId>j</UploadId><Initiated>2026-03-01T10:15:30.000Z</Initiated></Upload></ListMultipartUploadsResult>"#;
        let page: Page = quick_xml::de::from_str(page).expect("a page");
        let keys: Vec<(&str, &str)> =
            page.uploads.iter().map(|upload| (&upload.key[..], &upload.upload_id[..])).collect();
        assert_eq!(keys, [("a/raw/1", "i"), ("a/raw/2", "j")]);
        let time = |text: &str| text.parse().expect("a time");
        let before: Vec<bool> =
            page.uploads.iter().map(|upload| upload.began_before(time("2026-03-01T10:15:31Z"))).collect();
        assert_eq!(before, [false, true], "without a time, it may have begun just now");
        assert!(!page.uploads[1].began_before(time("2026-03-01T10:15:30Z")));
        assert!(page.is_truncated);
        assert_eq!((page.next_key_marker.as_str(), page.next_upload_id_marker.as_str()), ("a/raw/2", "j"));
        let empty: Page = quick_xml::de::from_str("<ListMultipartUploadsResult/>").expect("a page");
        assert!(empty.uploads.is_empty() && !empty.is_truncated);
    }
}

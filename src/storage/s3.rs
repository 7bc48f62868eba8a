//! A bucket in S3, or in a server with its protocol (MinIO, SeaweedFS).
//!
//! Region, endpoint and keys come from the standard variables: `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, and so on; or the keys from the file `AWS_SHARED_CREDENTIALS_FILE`, as for the AWS command
//! line. Requests are repeated after errors of the network or the server, with growing
//! waits, up to a limit.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, RetryConfig,
};
use url::Url;
use uuid::Uuid;

/// Parts of a multipart upload, except the last, must have at least 5 MiB.
pub(super) const PART_BYTES: usize = 5 << 20;

/// The time limit of one request.
pub(super) const REQUEST_TIME: Duration = Duration::from_secs(30);

/// For how long a request is repeated.
pub(super) const RETRY_TIME: Duration = Duration::from_secs(60);

/// The same for the first requests: a wrong address is reported soon, and a server that is starting is waited for.
pub(super) const START_RETRY_TIME: Duration = Duration::from_secs(10);

/// How often a request is repeated, if the time allows it.
const RETRIES: usize = 100;

/// The region if none is configured.
const REGION_DEFAULT: &str = "us-east-1";

/// Opens the bucket of a URL, and returns its region too. Nothing is requested yet.
pub(super) fn open(url: &Url, retry_time: Duration) -> Result<(AmazonS3, String)> {
    let bucket = url.host_str().filter(|bucket| !bucket.is_empty());
    let bucket = bucket.with_context(|| format!("{url} names no bucket; write s3://BUCKET/PREFIX"))?;
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: retry_time };
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
    if let Some(path) = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE") {
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read AWS_SHARED_CREDENTIALS_FILE {}", path.display()))?;
        for (key, value) in credentials(&text) {
            builder = builder.with_config(key, value);
        }
    }
    // `from_env` reads the options of connections too, and these would replace them.
    let is_http = builder
        .get_config_value(&AmazonS3ConfigKey::Endpoint)
        .is_some_and(|endpoint| endpoint.to_ascii_lowercase().starts_with("http://"));
    builder = builder
        .with_client_options(ClientOptions::new().with_timeout(REQUEST_TIME).with_allow_http(is_http))
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| REGION_DEFAULT.to_owned());
    let bucket = builder.build();
    let bucket = bucket.with_context(|| format!("the settings for {url} are incomplete; set the AWS_… variables"))?;
    Ok((bucket, region))
}

/// The keys of the profile `default` in a credentials file of the AWS command line.
fn credentials(file: &str) -> impl Iterator<Item = (AmazonS3ConfigKey, &str)> {
    let lines = file.lines().map(str::trim).skip_while(|line| *line != "[default]").skip(1);
    let profile = lines.take_while(|line| !line.starts_with('['));
    profile.filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let key = match name.trim() {
            "aws_access_key_id" => AmazonS3ConfigKey::AccessKeyId,
            "aws_secret_access_key" => AmazonS3ConfigKey::SecretAccessKey,
            "aws_session_token" => AmazonS3ConfigKey::Token,
            _ => return None,
        };
        Some((key, value.trim()))
    })
}

/// Tries everything that Argus needs: to write, to read, to list and to delete, and that only one of two conditional
/// puts succeeds. Each failure names its cause.
pub(super) async fn try_out(store: &dyn ObjectStore, url: &Url, folder: &Path) -> Result<()> {
    let object = folder.clone().join("argus-check").join(Uuid::now_v7().to_string());
    let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let put = store.put_opts(&object, "first".into(), create()).await;
    put.map_err(|error| explained(error, url, "write"))?;
    let second = store.put_opts(&object, "second".into(), create()).await;
    let tried = async {
        match second {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
            Ok(_) | Err(Error::NotImplemented { .. }) => bail!(
                "the store of {url} ignores conditional puts (If-None-Match), which keep two writers apart; use a store \
                 that has them, such as S3, MinIO or SeaweedFS"
            ),
            Err(error) => return Err(explained(error, url, "write")),
        }
        let got = async { store.get(&object).await?.bytes().await };
        let bytes = got.await.map_err(|error| explained(error, url, "read"))?;
        if &bytes[..] != b"first" {
            bail!("the store of {url} answered a read with other bytes than were written");
        }
        store.list_with_delimiter(Some(folder)).await.map_err(|error| explained(error, url, "list"))?;
        Ok(())
    };
    let tried = tried.await;
    let deleted = store.delete(&object).await.map_err(|error| explained(error, url, "delete"));
    tried.and(deleted)
}

/// Says what an error of a bucket means, and what to do.
fn explained(error: Error, url: &Url, verb: &str) -> anyhow::Error {
    let text = causes(&error);
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let remedy = if has(&["NoSuchBucket"]) {
        "the bucket does not exist; create it"
    } else if has(&["InvalidAccessKeyId", "SignatureDoesNotMatch"]) {
        "the keys are wrong; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    } else if has(&["ExpiredToken", "token has expired"]) {
        "the credentials have expired; renew them"
    } else if has(&["AccessDenied"]) || matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
    {
        "the keys have no right to do this; check AWS_ACCESS_KEY_ID and the policy of the bucket"
    } else if has(&["InvalidMessage", "CorruptMessage", "wrong version number"]) {
        "the server does not speak TLS on this port; write http:// in AWS_ENDPOINT_URL"
    } else if has(&["onnection refused", "dns error", "timed out", "onnect"]) {
        "the server cannot be reached; check AWS_ENDPOINT_URL"
    } else {
        "check the URL and the AWS_… variables"
    };
    anyhow!("cannot {verb} in {url}: {remedy} ({text:.600})")
}

/// An error with its causes, on one line.
fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_the_default_profile() {
        let file = "[other]\naws_access_key_id = no\n\n[default]\naws_access_key_id = key\nregion = x\n\
                    aws_secret_access_key=a=b\n[third]\naws_session_token = no\n";
        let keys: Vec<_> = credentials(file).collect();
        assert_eq!(keys, [(AmazonS3ConfigKey::AccessKeyId, "key"), (AmazonS3ConfigKey::SecretAccessKey, "a=b")]);
        assert_eq!(credentials("").count(), 0);
    }
}

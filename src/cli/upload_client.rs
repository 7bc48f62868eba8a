//! A server as `argus upload` asks it: a request that a broken link or a restart interrupts is repeated, with growing waits;
//! a large file continues where it was ([`super::resumable`]).

use std::collections::HashMap;
use std::io::{Write, stderr};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use crate::cli::client;
use crate::cli::file_body::{encoding_of, hash_of, open};
use crate::cli::resumable::ResumableUpload;
use crate::cli::sources::Source;
use crate::cli::terminal;
use crate::cli::upload_state::Remembered;

/// How long a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long an answer may take, and how long an upload may make no progress.
pub const STALL_TIME: Duration = Duration::from_secs(120);

/// For how long a request is repeated.
const RETRY_TIME: Duration = Duration::from_secs(600);

/// The first wait between two attempts.
const WAIT_MIN: Duration = Duration::from_millis(250);

/// The waits between two attempts grow up to this.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// How long the server may take to count the batch.
const FINAL_WAIT: Duration = Duration::from_secs(3600);

/// How long one request for the report waits for its epoch, in milliseconds.
const REPORT_WAIT_MS: u32 = 30_000;

/// A file with this many bytes continues after an interruption (1 MiB); a smaller one is sent again.
const RESUMABLE_BYTES_MIN: u64 = 1 << 20;

/// A server that is asked until it answers.
pub struct Server {
    client: Client,
    base: Url,
}

impl Server {
    /// The server with this URL.
    pub fn new(base: &Url) -> Result<Server> {
        Ok(Server { client: client::builder()?.connect_timeout(CONNECT_TIME).build()?, base: base.clone() })
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.base.join(&format!("/api/v1/{path}")).context("the --server URL is invalid")
    }

    /// Creates a batch with this description.
    pub async fn create(&self, described: &Value) -> Result<Uuid> {
        // A repeated request gets the same batch.
        let key = Uuid::new_v4().to_string();
        let batch = self.call(Method::POST, "batches", Some(described), Some(&key)).await?;
        let id = batch["id"].as_str().and_then(|id| id.parse().ok()).context("the created batch has no id")?;
        writeln!(stderr(), "batch {id}")?;
        Ok(id)
    }

    /// The batch of a run that was interrupted, and whether it is open.
    pub async fn remembered(&self, run: &Remembered) -> Result<Option<(Uuid, bool)>> {
        let Some(batch) = run.get().and_then(|run| run["batch"].as_str()?.parse::<Uuid>().ok()) else {
            return Ok(None);
        };
        let url = self.url(&format!("batches/{batch}"))?;
        let found = self.repeat(|| async {
            match answer(self.client.get(url.clone()).timeout(STALL_TIME)).await {
                // It was deleted meanwhile.
                Err(Attempt::Local(_)) => Ok(Value::Null),
                answered => answered,
            }
        });
        match found.await?["status"].as_str() {
            None | Some("failed") => Ok(None),
            Some(status) => {
                writeln!(stderr(), "batch {batch}, continued")?;
                Ok(Some((batch, status == "pending")))
            }
        }
    }

    /// The hashes of the files that the server has, by name.
    pub async fn files(&self, path: &str) -> Result<HashMap<String, String>> {
        let (mut files, mut cursor) = (HashMap::new(), String::new());
        loop {
            let page = self.call(Method::GET, &format!("{path}/files?limit=1000{cursor}"), None, None).await?;
            for file in page["files"].as_array().into_iter().flatten() {
                let text = |name: &str| file[name].as_str().unwrap_or_default().to_owned();
                files.insert(text("name"), text("sha256"));
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(files),
            }
        }
    }

    /// Uploads a file, unless the server has it. The files of an archive are taken one by one.
    pub async fn send(
        &self,
        batch: &str,
        source: &Source,
        is_archive: bool,
        known: &HashMap<String, String>,
        bars: &MultiProgress,
    ) -> Result<()> {
        let unreadable = || format!("cannot read {}", source.path.display());
        let length = source.path.metadata().with_context(unreadable)?.len();
        let bar = bars
            .add(ProgressBar::new(length).with_style(style()).with_message(terminal::line(&source.name).into_owned()));
        if let Some(hash) = known.get(&source.name)
            && *hash == hash_of(&source.path).await.with_context(unreadable)?
        {
            bar.finish();
            return Ok(());
        }
        if length >= RESUMABLE_BYTES_MIN && !is_archive {
            let sent = self.send_resumable(batch, source, &bar).await;
            sent.with_context(|| format!("cannot upload {}", source.path.display()))?;
            bar.finish();
            return Ok(());
        }
        let (method, mut url) =
            (if is_archive { Method::POST } else { Method::PUT }, self.url(&format!("{batch}/files"))?);
        if !is_archive {
            url.path_segments_mut().map_err(|()| anyhow!("the --server URL is invalid"))?.push(&source.name);
        }
        self.repeat(|| {
            bar.set_position(0);
            let request = self.client.request(method.clone(), url.clone());
            let (bar, sent) = (bar.clone(), bar.clone());
            async move {
                let body = open(&source.path, bar, u64::MAX).map_err(Attempt::Local)?;
                let request = match body.encoding {
                    Some(encoding) => request.header("content-encoding", encoding),
                    None => request,
                };
                tokio::select! {
                    answer = answer(request.body(reqwest::Body::wrap_stream(body.chunks))) => answer,
                    () = stalled(&sent) => Err(Attempt::Interrupted(anyhow!("the server takes no more bytes"))),
                }
            }
        })
        .await
        .with_context(|| format!("cannot upload {}", source.path.display()))?;
        bar.finish();
        Ok(())
    }

    /// Uploads a large file: an attempt continues where the last one stopped.
    async fn send_resumable(&self, batch: &str, source: &Source, bar: &ProgressBar) -> Result<()> {
        let path = std::path::absolute(&source.path)?;
        let metadata = path.metadata()?;
        // Another content of the file begins another upload.
        let key = json!([self.base.as_str(), batch, path, metadata.len(), nanoseconds(metadata.modified()?)]);
        let upload = ResumableUpload {
            client: &self.client,
            uploads: self.url(&format!("{batch}/uploads"))?,
            name: &source.name,
            encoding: encoding_of(&source.path)?.unwrap_or("identity"),
            remembered: Remembered::of(&key),
        };
        // Only waits count: an attempt may take hours.
        let (mut waited, mut wait, mut arrived) = (Duration::ZERO, WAIT_MIN, 0);
        loop {
            let attempt = async {
                let Some((url, offset)) = upload.position().await? else { return Ok(()) };
                if offset > arrived {
                    // It makes progress: the waits begin again.
                    (waited, wait, arrived) = (Duration::ZERO, WAIT_MIN, offset);
                }
                bar.set_position(0);
                // A log that grows meanwhile is sent up to where it ended.
                let body = open(&source.path, bar.clone(), metadata.len()).map_err(Attempt::Local)?;
                tokio::select! {
                    sent = upload.send((url, offset), body.chunks) => sent,
                    () = stalled(bar) => Err(Attempt::Interrupted(anyhow!("the server takes no more bytes"))),
                }
            };
            match attempt.await {
                Ok(()) => {
                    upload.remembered.forget();
                    return Ok(());
                }
                Err(Attempt::Local(error)) => return Err(error),
                Err(Attempt::Interrupted(error)) if waited > RETRY_TIME => {
                    return Err(error.context(NoAnswer));
                }
                Err(Attempt::Interrupted(_)) => tokio::time::sleep(wait).await,
            }
            waited += wait;
            wait = (wait * 2).min(WAIT_MAX);
        }
    }

    /// The report of a completed batch, once it is final.
    pub async fn final_report(&self, path: &str, epoch: u64) -> Result<Value> {
        let until = Instant::now() + FINAL_WAIT;
        loop {
            let path = format!("{path}/report?min_epoch={epoch}&timeout_ms={REPORT_WAIT_MS}");
            let report = self.call(Method::GET, &path, None, None).await?;
            if report["final"] == true {
                return Ok(report);
            }
            if Instant::now() > until {
                bail!("the batch is not counted after {} minutes; see argus report", FINAL_WAIT.as_secs() / 60);
            }
            // The status follows the counts within a round.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The answer to a request, which is repeated until there is one.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>, key: Option<&str>) -> Result<Value> {
        let url = self.url(path)?;
        self.repeat(|| {
            let mut request = self.client.request(method.clone(), url.clone());
            if let Some(body) = body {
                request = request.json(body);
            }
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
            answer(request.timeout(STALL_TIME))
        })
        .await
    }

    /// Repeats a request until it is answered.
    async fn repeat<F>(&self, attempt: impl Fn() -> F) -> Result<Value>
    where
        F: Future<Output = Result<Value, Attempt>>,
    {
        let until = Instant::now() + RETRY_TIME;
        let mut wait = WAIT_MIN;
        let mut is_said = false;
        loop {
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Local(error)) => return Err(error),
                Err(Attempt::Interrupted(error)) if Instant::now() + wait > until => {
                    return Err(error.context(NoAnswer));
                }
                Err(Attempt::Interrupted(error)) => {
                    if !is_said {
                        is_said = true;
                        let minutes = RETRY_TIME.as_secs() / 60;
                        // If standard error is closed, nobody reads it.
                        let _ = writeln!(stderr(), "argus: {error:#}; retrying for {minutes} minutes (Ctrl-C to stop)");
                    }
                    tokio::time::sleep(wait).await;
                }
            }
            wait = (wait * 2).min(WAIT_MAX);
        }
    }
}

/// Returns when an upload has made no progress for a while.
async fn stalled(bar: &ProgressBar) {
    let mut last = None;
    while last != Some(bar.position()) {
        last = Some(bar.position());
        tokio::time::sleep(STALL_TIME).await;
    }
}

/// The server did not answer for so long that an upload was given up.
#[derive(Debug, thiserror::Error)]
#[error("the server did not answer for {} s", RETRY_TIME.as_secs())]
pub struct NoAnswer;

/// Why an attempt failed.
pub enum Attempt {
    /// Another attempt may succeed.
    Interrupted(anyhow::Error),
    /// Another attempt would fail too.
    Local(anyhow::Error),
}

/// Sends a request. A busy or failing server is asked again.
async fn answer(request: reqwest::RequestBuilder) -> Result<Value, Attempt> {
    let interrupted = |error: reqwest::Error| Attempt::Interrupted(error.into());
    let response = request.send().await.map_err(interrupted)?;
    let status = response.status();
    let body = response.bytes().await.map_err(interrupted)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        return Ok(body);
    }
    let detail = body["detail"].as_str().unwrap_or(status.as_str()).to_owned();
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(Attempt::Interrupted(anyhow!(detail))),
        status if status.is_server_error() => Err(Attempt::Interrupted(anyhow!(detail))),
        _ => Err(Attempt::Local(anyhow!(detail))),
    }
}

/// A time as a text that JSON keeps exactly.
pub fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos()).to_string()
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}");
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

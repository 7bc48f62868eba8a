//! `argus upload`: sends files to a server as one batch, and prints its report.
//!
//! Several files are sent at once, compressed with zstd on the way. A request that a broken link or a restart of the
//! server interrupts is repeated, with growing waits; a large file continues where it was ([`super::resumable`]). The same
//! command continues the batch of an interrupted run ([`super::upload_state`]), and skips the files that the server has.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Write, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use argus_dataflow::Severity;
use argus_dataflow::text::{Archive, Compression};
use bytes::Bytes;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use crate::cli::ReportFormat;
use crate::cli::ask::print_report;
use crate::cli::resumable::ResumableUpload;
use crate::cli::sources::{Failure, Source, sources};
use crate::cli::terminal;
use crate::cli::upload_state::Remembered;
use crate::cli::watch::{UploadFailure, Uploads, watch};
use crate::domain::digest::Digest;

/// Files that are sent at once.
const UPLOADS_MAX: usize = 4;

/// How long a connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long an answer may take, and how long an upload may make no progress.
pub(super) const STALL_TIME: Duration = Duration::from_secs(120);

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

/// First bytes of a text that tell an archive.
const ARCHIVE_SNIFF_BYTES: u64 = 512;

/// A file with this many bytes continues after an interruption (1 MiB); a smaller one is sent again.
const RESUMABLE_BYTES_MIN: u64 = 1 << 20;

/// The length of the chunks that are sent.
const CHUNK_BYTES: usize = 64 << 10;

/// The exit code when a code reaches the severity of `--fail-on`.
const SEVERE: u8 = 3;

/// Flags of `argus upload`.
#[derive(Debug, Args)]
pub struct UploadArgs {
    /// Files and folders.
    #[arg(required_unless_present = "watch", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Upload what drops into this folder, until the process is stopped. Files that have not changed for 3 s become a batch;
    /// hidden ones, and .part and .tmp, are left out.
    #[arg(long, env = "ARGUS_WATCH", value_name = "DIR", conflicts_with_all = ["paths", "batch", "fail_on"])]
    pub watch: Option<PathBuf>,
    /// The URL of the server.
    #[arg(long, env = "ARGUS_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub server: Url,
    /// Add the files to this open batch, in place of a new one. Files that it has already are skipped.
    #[arg(long, env = "ARGUS_BATCH", value_name = "ID")]
    pub batch: Option<Uuid>,
    /// The id of the vehicle.
    #[arg(long, env = "ARGUS_VEHICLE", value_name = "ID", required_unless_present = "batch")]
    pub vehicle: Option<String>,
    /// The vehicle identification number.
    #[arg(long, env = "ARGUS_VIN", required_unless_present = "batch")]
    pub vin: Option<String>,
    /// The hardware platform of the vehicle.
    #[arg(long, env = "ARGUS_PLATFORM")]
    pub platform: Option<String>,
    /// The firmware that was rolled out.
    #[arg(long, env = "ARGUS_FIRMWARE")]
    pub firmware: Option<String>,
    /// A label of the batch; may be repeated.
    #[arg(long = "label", env = "ARGUS_LABEL", value_name = "NAME=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// Exit with 3 if a code has this severity or a higher one.
    #[arg(long, env = "ARGUS_FAIL_ON", value_name = "SEVERITY", value_parser = severity)]
    pub fail_on: Option<Severity>,
    /// The format of the report; the default is table on a terminal, otherwise json.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<ReportFormat>,
}

/// Uploads, completes the batch, and prints its report.
pub fn run(args: &UploadArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(folder) = &args.watch {
        let key = json!([
            "watch",
            args.server.as_str(),
            std::path::absolute(folder)?,
            args.vehicle,
            args.vin,
            args.platform,
            args.firmware,
            args.labels
        ]);
        runtime.block_on(watch(folder, &key, &Dropped { args, folder }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let sources = named_sources(&args.paths)?;
    let report = runtime.block_on(async {
        let batch = upload(args, sources).await.map_err(UploadFailure::into_error)?;
        let report = batch.report().await?;
        batch.run.forget();
        anyhow::Ok(report)
    })?;
    print_report(args.format, &report)?;
    let codes = report["codes"].as_array().into_iter().flatten();
    let severest = codes.filter_map(|code| Severity::of(code["severity"].as_str()?)).max();
    let is_severe = args.fail_on.is_some() && severest >= args.fail_on;
    Ok(if is_severe { ExitCode::from(SEVERE) } else { ExitCode::SUCCESS })
}

/// What drops into a watched folder.
struct Dropped<'a> {
    args: &'a UploadArgs,
    folder: &'a Path,
}

impl Uploads for Dropped<'_> {
    type Completed = CompletedBatch;

    fn list(&self) -> Result<Vec<Source>> {
        // A folder that is away has no files.
        if self.folder.is_dir() { named_sources(&[self.folder.to_owned()]) } else { Ok(Vec::new()) }
    }

    fn is_alone(&self, source: &Source) -> bool {
        is_archive(&source.path).unwrap_or(false)
    }

    /// What the server refuses leaves no batch behind.
    async fn upload(&self, files: Vec<Source>) -> Result<CompletedBatch, UploadFailure> {
        let uploaded = upload(self.args, files.clone()).await;
        if let Err(UploadFailure::Refused(_)) = uploaded {
            discard(self.args, &files).await.map_err(UploadFailure::Later)?;
        }
        uploaded
    }

    async fn report(&self, batch: CompletedBatch) -> Result<()> {
        batch.run.forget();
        print_report(self.args.format, &batch.report().await?)
    }
}

/// Deletes the batch of a run that failed.
async fn discard(args: &UploadArgs, sources: &[Source]) -> Result<()> {
    let run = Remembered::of(&run_key(args, sources)?);
    let server = Server::new(args)?;
    if let Some((batch, true)) = server.remembered(&run).await? {
        server.call(Method::DELETE, &format!("batches/{batch}"), None, None).await?;
    }
    run.forget();
    Ok(())
}

/// The files of the paths. A file in a folder is named by its path below the folder, with `_` for `/`, which a name in a
/// batch cannot contain.
fn named_sources(paths: &[PathBuf]) -> Result<Vec<Source>> {
    let mut named = Vec::new();
    for path in paths {
        let (found, failures) = sources(std::slice::from_ref(path));
        if let Some(Failure { name, reason }) = failures.into_iter().next() {
            bail!("cannot read {name}: {reason}");
        }
        let root = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(path) };
        named.extend(found.into_iter().map(|Source { path, .. }| {
            let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('/', "_");
            Source { name: below, path }
        }));
    }
    let mut paths = HashMap::new();
    for Source { name, path } in &named {
        if let Some(other) = paths.insert(name, path) {
            bail!("{} and {} have the same name in a batch; upload one of them alone", other.display(), path.display());
        }
    }
    Ok(named)
}

/// A batch that is completed.
struct CompletedBatch {
    server: Server,
    path: String,
    epoch: u64,
    /// Remembers it until its report is there: it must not be sent again.
    run: Remembered,
}

impl CompletedBatch {
    /// The final report.
    async fn report(&self) -> Result<Value> {
        self.server.final_report(&self.path, self.epoch).await
    }
}

/// Uploads files and completes their batch.
async fn upload(args: &UploadArgs, sources: Vec<Source>) -> Result<CompletedBatch, UploadFailure> {
    let archives = sources.iter().filter(|source| is_archive(&source.path).unwrap_or(false)).count();
    if archives > 0 && sources.len() > 1 {
        let error = anyhow!("upload an archive alone: one of its files could replace another with the same name");
        return Err(UploadFailure::Refused(error));
    }
    let server = Server::new(args).map_err(UploadFailure::Fatal)?;
    let run = Remembered::of(&run_key(args, &sources).map_err(UploadFailure::Later)?);
    let (batch, is_new) = match args.batch {
        Some(batch) => (batch, false),
        None => match server.remembered(&run).await.map_err(UploadFailure::of_request)? {
            Some((batch, true)) => (batch, false),
            // The process ended when the batch was completed already.
            Some((batch, false)) => {
                return Ok(CompletedBatch { server, path: format!("batches/{batch}"), epoch: 0, run });
            }
            None => (server.create(args).await.map_err(UploadFailure::of_request)?, true),
        },
    };
    if args.batch.is_none() {
        run.set(&json!({"batch": batch}));
    }
    let path = format!("batches/{batch}");
    let known = if is_new { Ok(HashMap::new()) } else { server.files(&path).await };
    let known = known.map_err(UploadFailure::of_request)?;
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let uploads = stream::iter(sources).map(|source| {
        let (server, known, bars, path) = (&server, &known, &bars, &path);
        async move { server.send(path, &source, known, bars).await }
    });
    let sent: Result<Vec<()>> = uploads.buffer_unordered(UPLOADS_MAX).try_collect().await;
    let hint = || format!("continue with: argus upload --server {} --batch {batch} …", args.server);
    sent.with_context(hint).map_err(UploadFailure::of_files)?;
    let completed = server.call(Method::POST, &format!("{path}/complete"), None, None).await.with_context(hint);
    let epoch = completed.map_err(UploadFailure::of_request)?["epoch"].as_u64().unwrap_or(0);
    Ok(CompletedBatch { server, path, epoch, run })
}

impl UploadFailure {
    /// A request about the batch failed: the files are not the reason.
    fn of_request(error: anyhow::Error) -> UploadFailure {
        match error.downcast_ref::<NoAnswer>() {
            Some(NoAnswer) => UploadFailure::Later(error),
            None => UploadFailure::Fatal(error),
        }
    }

    /// A file could not be sent.
    fn of_files(error: anyhow::Error) -> UploadFailure {
        match error.downcast_ref::<NoAnswer>() {
            Some(NoAnswer) => UploadFailure::Later(error),
            None => UploadFailure::Refused(error),
        }
    }

    fn into_error(self) -> anyhow::Error {
        match self {
            UploadFailure::Refused(error) | UploadFailure::Later(error) | UploadFailure::Fatal(error) => error,
        }
    }
}

/// What identifies a run: the same command continues it, while the files are the same.
fn run_key(args: &UploadArgs, sources: &[Source]) -> Result<Value> {
    let mut files = Vec::with_capacity(sources.len());
    for Source { name, path } in sources {
        let found = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        files.push(json!([name, std::path::absolute(path)?, found.len(), nanoseconds(found.modified()?)]));
    }
    Ok(json!([args.server.as_str(), args.vehicle, args.vin, args.platform, args.firmware, args.labels, files]))
}

/// A time as a text that JSON keeps exactly.
fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos()).to_string()
}

/// The server, and how it is asked.
struct Server {
    client: Client,
    base: Url,
}

impl Server {
    fn new(args: &UploadArgs) -> Result<Server> {
        Ok(Server { client: Client::builder().connect_timeout(CONNECT_TIME).build()?, base: args.server.clone() })
    }

    fn url(&self, path: &str) -> Result<Url> {
        self.base.join(&format!("/api/v1/{path}")).context("the --server URL is invalid")
    }

    async fn create(&self, args: &UploadArgs) -> Result<Uuid> {
        let labels: HashMap<&str, &str> =
            args.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let described = json!({
            "vehicle_id": args.vehicle, "vin": args.vin, "platform": args.platform, "firmware": args.firmware,
            "labels": labels,
        });
        // A repeated request gets the same batch.
        let key = Uuid::new_v4().to_string();
        let batch = self.call(Method::POST, "batches", Some(&described), Some(&key)).await?;
        let id = batch["id"].as_str().and_then(|id| id.parse().ok()).context("the created batch has no id")?;
        writeln!(stderr(), "batch {id}")?;
        Ok(id)
    }

    /// The batch of a run that was interrupted, and whether it is open.
    async fn remembered(&self, run: &Remembered) -> Result<Option<(Uuid, bool)>> {
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
    async fn files(&self, path: &str) -> Result<HashMap<String, String>> {
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

    /// Uploads a file, unless the server has it.
    async fn send(
        &self,
        batch: &str,
        source: &Source,
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
        let is_archive = is_archive(&source.path).with_context(unreadable)?;
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

    async fn final_report(&self, path: &str, epoch: u64) -> Result<Value> {
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

    async fn call(&self, method: Method, path: &str, body: Option<&Value>, key: Option<&str>) -> Result<Value> {
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
        loop {
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(Attempt::Local(error)) => return Err(error),
                Err(Attempt::Interrupted(error)) if Instant::now() + wait > until => {
                    return Err(error.context(NoAnswer));
                }
                Err(Attempt::Interrupted(_)) => tokio::time::sleep(wait).await,
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
struct NoAnswer;

/// Why an attempt failed.
pub(super) enum Attempt {
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

/// A body that is read and compressed on a thread while it is sent.
struct FileBody {
    encoding: Option<&'static str>,
    chunks: stream::BoxStream<'static, io::Result<Bytes>>,
}

/// The encoding in which a file is sent: content that is not compressed is compressed with zstd.
fn encoding_of(path: &Path) -> Result<Option<&'static str>> {
    let mut first = Vec::with_capacity(Compression::SNIFF_BYTES);
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    file.take(Compression::SNIFF_BYTES as u64).read_to_end(&mut first)?;
    Ok((Compression::sniff(&first) == Compression::Identity).then_some("zstd"))
}

/// Opens the first `limit` bytes of a file, to be sent in its encoding.
fn open(path: &Path, bar: ProgressBar, limit: u64) -> Result<FileBody> {
    let encoding = encoding_of(path)?;
    let is_plain = encoding.is_some();
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let whole = BufReader::with_capacity(CHUNK_BYTES, bar.wrap_read(file.take(limit)));
    let (to, chunks) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let compressed: io::Result<Box<dyn Read>> = match is_plain {
            true => {
                zstd::stream::read::Encoder::with_buffer(whole, 0).and_then(|mut encoder| {
                    // The server checks it: a continuation of another content is refused.
                    encoder.include_checksum(true)?;
                    Ok(Box::new(encoder) as Box<dyn Read>)
                })
            }
            false => Ok(Box::new(whole)),
        };
        let sent = compressed.and_then(|mut body| {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let length = body.read(&mut chunk)?;
                chunk.truncate(length);
                // The request may have ended.
                if length == 0 || to.blocking_send(Ok(Bytes::from(chunk))).is_err() {
                    return Ok(());
                }
            }
        });
        if let Err(error) = sent {
            let _ = to.blocking_send(Err(error));
        }
    });
    let chunks = stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) });
    Ok(FileBody { encoding, chunks: chunks.boxed() })
}

/// The SHA-256 of a file.
async fn hash_of(path: &Path) -> Result<String> {
    let path = path.to_owned();
    let hash = tokio::task::spawn_blocking(move || {
        let mut file = File::open(path)?;
        let (mut digest, mut chunk) = (Digest::default(), vec![0; CHUNK_BYTES]);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok::<_, io::Error>(digest.hex()),
                length => digest.update(&chunk[..length]),
            }
        }
    });
    Ok(hash.await??)
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}");
    style.unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Whether a file is an archive, whose files the server takes one by one.
fn is_archive(path: &Path) -> io::Result<bool> {
    let mut first = Vec::new();
    File::open(path)?.take(Compression::SNIFF_BYTES as u64).read_to_end(&mut first)?;
    let mut text = Vec::new();
    let decoded = Compression::sniff(&first).reader(File::open(path)?);
    // A damaged file is refused by the server.
    let _ = decoded.and_then(|decoded| decoded.take(ARCHIVE_SNIFF_BYTES).read_to_end(&mut text));
    Ok(Archive::sniff(&text).is_some_and(|archive| matches!(archive.kind, "tar" | "zip")))
}

/// The name of a severity.
fn severity(text: &str) -> Result<Severity, String> {
    Severity::of(text).ok_or_else(|| "must be info, warning, error or critical".to_owned())
}

/// `NAME=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    parts.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "must be NAME=VALUE".to_owned())
}

//! `argus upload`: sends files to a server as one batch, and prints its report.
//!
//! Several files are sent at once ([`super::upload_client`]), compressed with zstd on the way ([`super::file_body`]). The same
//! command continues the batch of an interrupted run ([`super::upload_state`]), and skips the files that the server has.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use argus_dataflow::Severity;
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::{MultiProgress, ProgressDrawTarget};
use reqwest::Method;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::cli::ReportFormat;
use crate::cli::ask::print_report;
use crate::cli::file_body::is_archive;
use crate::cli::sources::{Failure, Source, sources};
use crate::cli::upload_client::{NoAnswer, Server, nanoseconds};
use crate::cli::upload_state::Remembered;

/// Files that are sent at once.
const UPLOADS_MAX: usize = 4;

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
    let sources = named_sources(&args.paths)?;
    if sources.is_empty() {
        bail!(
            "{} has no files to upload",
            args.paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
        );
    }
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

/// Deletes the batch of a run that failed.
pub async fn discard(args: &UploadArgs, sources: &[Source]) -> Result<()> {
    let run = Remembered::of(&run_key(args, sources)?);
    let server = Server::new(&args.server)?;
    if let Some((batch, true)) = server.remembered(&run).await? {
        server.call(Method::DELETE, &format!("batches/{batch}"), None, None).await?;
    }
    run.forget();
    Ok(())
}

/// The files of the paths. A file in a folder is named by its path below the folder, with `_` for `/`, which a name in a
/// batch cannot contain.
pub fn named_sources(paths: &[PathBuf]) -> Result<Vec<Source>> {
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
pub struct CompletedBatch {
    server: Server,
    path: String,
    epoch: u64,
    /// Remembers it until its report is there: it must not be sent again.
    pub run: Remembered,
}

impl CompletedBatch {
    /// The final report.
    pub async fn report(&self) -> Result<Value> {
        self.server.final_report(&self.path, self.epoch).await
    }
}

/// Why files were not uploaded.
pub enum UploadFailure {
    /// The server refused one of the files: the same files fail again.
    Refused(anyhow::Error),
    /// It may work later.
    Later(anyhow::Error),
    /// No file can be uploaded: the command is wrong.
    Fatal(anyhow::Error),
}

/// Uploads files and completes their batch.
pub async fn upload(args: &UploadArgs, sources: Vec<Source>) -> Result<CompletedBatch, UploadFailure> {
    // A file that cannot be read is reported when it is sent.
    let has_archive = sources.iter().any(|source| is_archive(&source.path).unwrap_or(false));
    if has_archive && sources.len() > 1 {
        let error = anyhow!("upload an archive alone: one of its files could replace another with the same name");
        return Err(UploadFailure::Refused(error));
    }
    let server = Server::new(&args.server).map_err(UploadFailure::Fatal)?;
    let run = Remembered::of(&run_key(args, &sources).map_err(UploadFailure::Later)?);
    let (batch, is_new) = match args.batch {
        Some(batch) => (batch, false),
        None => match server.remembered(&run).await.map_err(UploadFailure::of_request)? {
            Some((batch, true)) => (batch, false),
            // The process ended when the batch was completed already.
            Some((batch, false)) => {
                return Ok(CompletedBatch { server, path: format!("batches/{batch}"), epoch: 0, run });
            }
            None => (server.create(&described(args)).await.map_err(UploadFailure::of_request)?, true),
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
        async move { server.send(path, &source, has_archive, known, bars).await }
    });
    let sent: Result<Vec<()>> = uploads.buffer_unordered(UPLOADS_MAX).try_collect().await;
    let hint = || format!("continue with: argus upload --server {} --batch {batch} …", args.server);
    // What was refused would be refused again.
    let sent = sent.map_err(|error| match error.downcast_ref::<NoAnswer>().is_some() {
        true => error.context(hint()),
        false => error,
    });
    sent.map_err(UploadFailure::of_files)?;
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

/// The description of the batch.
fn described(args: &UploadArgs) -> Value {
    let labels: HashMap<&str, &str> = args.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    json!({
        "vehicle_id": args.vehicle, "vin": args.vin, "platform": args.platform, "firmware": args.firmware, "labels": labels,
    })
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

/// The name of a severity.
fn severity(text: &str) -> Result<Severity, String> {
    Severity::of(text).ok_or_else(|| "must be info, warning, error or critical".to_owned())
}

/// `NAME=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').filter(|(name, _)| !name.is_empty());
    parts.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "must be NAME=VALUE".to_owned())
}

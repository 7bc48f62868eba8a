//! `argus upload --watch DIR`: a gateway into whose folder files drop. Files that do not change any more become a batch.
//!
//! A file counts as uploaded from the moment when its batch is completed, whatever happens to the report after it: a batch
//! that is completed must not be sent again.

use std::collections::{BTreeMap, HashMap};
use std::io::{Write, stderr};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::cli::ask::print_report;
use crate::cli::file_body::is_archive;
use crate::cli::sources::Source;
use crate::cli::upload::{UploadArgs, UploadFailure, discard, named_sources, upload};
use crate::cli::upload_state::Remembered;

/// How often the folder is listed.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// A file is complete when it has not changed for so long.
const COMPLETE_AFTER: Duration = Duration::from_secs(3);

/// Complete files wait so long for others that still change, to become one batch with them.
const GROUP_WAIT: Duration = Duration::from_secs(30);

/// A file that is gone for so long is forgotten: the folder may be on a disk that is away for a while.
const FORGET_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The wait after a failed upload; it doubles up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_secs(2);
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Endings of files that are still being written.
const UNFINISHED: [&str; 4] = [".part", ".partial", ".tmp", ".crdownload"];

/// What tells a content of a file from another: its length and the time of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Content {
    length: u64,
    changed: SystemTime,
}

impl Content {
    fn of(path: &Path) -> Option<Content> {
        // A file that has gone meanwhile is not there.
        let found = path.metadata().ok()?;
        Some(Content { length: found.len(), changed: found.modified().ok()? })
    }

    fn key(self) -> Value {
        let changed = self.changed.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        json!([self.length, changed.to_string()])
    }
}

/// A file that is new or changed.
#[derive(Debug, Clone)]
struct Due {
    source: Source,
    content: Content,
}

/// The files of a folder, and what was done with them.
struct Watched {
    /// What was uploaded or refused, by name; survives a restart.
    done: BTreeMap<String, Value>,
    remembered: Remembered,
    /// Since when each file has had its content: by this process's clock, since the clock of a vehicle may be ahead.
    since: HashMap<String, (Content, Instant)>,
    /// Since when files that were done are gone.
    gone: HashMap<String, Instant>,
    /// Since when complete files wait for others.
    waiting: Option<Instant>,
}

impl Watched {
    /// `key` identifies the folder and what its files belong to.
    fn new(key: &Value) -> Watched {
        let remembered = Remembered::of(key);
        let done = remembered.get().and_then(|known| serde_json::from_value(known).ok()).unwrap_or_default();
        Watched { done, remembered, since: HashMap::new(), gone: HashMap::new(), waiting: None }
    }

    /// The files to upload now as one batch: the complete ones, once no other changes any more or they have waited for long. An
    /// archive is a batch of its own.
    fn due(&mut self, files: Vec<Source>) -> Vec<Due> {
        let is_hidden = |name: &str| name.starts_with('.') || UNFINISHED.iter().any(|ending| name.ends_with(ending));
        let files: Vec<Due> = files
            .into_iter()
            .filter(|source| !is_hidden(&source.name))
            .filter_map(|source| Some(Due { content: Content::of(&source.path)?, source }))
            .collect();
        self.forget(&files);
        let now = Instant::now();
        let mut due: Vec<Due> = files;
        due.retain(|file| self.done.get(&file.source.name) != Some(&file.content.key()));
        self.since.retain(|name, _| due.iter().any(|file| file.source.name == *name));
        let (mut complete, mut changing) = (Vec::new(), 0);
        for file in due {
            let since = self.since.entry(file.source.name.clone()).or_insert((file.content, now));
            if since.0 != file.content {
                *since = (file.content, now);
            }
            if since.1.elapsed() >= COMPLETE_AFTER { complete.push(file) } else { changing += 1 }
        }
        if complete.is_empty() {
            self.waiting = None;
        } else if changing > 0 && self.waiting.get_or_insert(now).elapsed() < GROUP_WAIT {
            complete.clear();
        } else if let Some(index) = complete
            .iter()
            .position(|file| is_archive(&file.source.path).unwrap_or(false))
            .filter(|_| complete.len() > 1)
        {
            complete = vec![complete.swap_remove(index)];
        }
        complete
    }

    /// Forgets files that are gone for long. An empty folder says nothing: its disk may be away.
    fn forget(&mut self, files: &[Due]) {
        if files.is_empty() {
            self.gone.clear();
            return;
        }
        let is_there = |name: &String| files.iter().any(|file| file.source.name == *name);
        self.gone.retain(|name, _| !is_there(name));
        for name in self.done.keys().filter(|name| !is_there(name)) {
            self.gone.entry(name.clone()).or_insert_with(Instant::now);
        }
        let before = self.done.len();
        let gone = &self.gone;
        self.done.retain(|name, _| gone.get(name).is_none_or(|since| since.elapsed() < FORGET_AFTER));
        if self.done.len() < before {
            self.remembered.set(&json!(self.done));
        }
    }

    fn set_done(&mut self, files: &[Due]) {
        self.done.extend(files.iter().map(|file| (file.source.name.clone(), file.content.key())));
        self.waiting = None;
        self.remembered.set(&json!(self.done));
    }
}

/// Runs `argus upload --watch DIR`.
pub fn run(args: &UploadArgs, folder: &Path) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(watch(args, folder))?;
    Ok(ExitCode::SUCCESS)
}

/// Uploads what drops into a folder until SIGTERM or SIGINT. An upload that is not completed then is continued by
/// the next run.
async fn watch(args: &UploadArgs, folder: &Path) -> Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // Another vehicle or firmware is another upload of the same files.
    let UploadArgs { server, vehicle, vin, platform, firmware, labels, .. } = args;
    let of = json!(["watch", server.as_str(), std::path::absolute(folder)?, vehicle, vin, platform, firmware, labels]);
    let mut watched = Watched::new(&of);
    writeln!(stderr(), "watching {}", folder.display())?;
    let work = async {
        let (mut wait, mut last_error) = (WAIT_MIN, String::new());
        loop {
            let due = match list(folder) {
                Ok(files) => {
                    last_error.clear();
                    watched.due(files)
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != last_error {
                        writeln!(stderr(), "argus: {error}")?;
                        last_error = error;
                    }
                    Vec::new()
                }
            };
            if due.is_empty() {
                tokio::time::sleep(LIST_EVERY).await;
                continue;
            }
            match send(&mut watched, args, &due).await {
                Ok(()) => wait = WAIT_MIN,
                // One of them is refused: the others must not wait for it.
                Err(UploadFailure::Refused(error)) if due.len() > 1 => {
                    writeln!(stderr(), "argus: {error:#}; uploading each file as a batch of its own")?;
                    for file in due {
                        match send(&mut watched, args, std::slice::from_ref(&file)).await {
                            Ok(()) => {}
                            Err(UploadFailure::Refused(error)) => skip(&mut watched, &file, &error)?,
                            // It is due again.
                            Err(UploadFailure::Later(error)) => writeln!(stderr(), "argus: {error:#}")?,
                            Err(UploadFailure::Fatal(error)) => return Err(error),
                        }
                    }
                }
                Err(UploadFailure::Refused(error)) => {
                    for file in &due {
                        skip(&mut watched, file, &error)?;
                    }
                }
                Err(UploadFailure::Later(error)) => {
                    writeln!(stderr(), "argus: {error:#}; again in {} s", wait.as_secs())?;
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(WAIT_MAX);
                }
                Err(UploadFailure::Fatal(error)) => return Err(error),
            }
        }
    };
    tokio::select! {
        ended = work => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// The files of the folder; one that is away has none.
fn list(folder: &Path) -> Result<Vec<Source>> {
    if folder.is_dir() { named_sources(&[folder.to_owned()]) } else { Ok(Vec::new()) }
}

/// Uploads files, and prints their report. They are done when their batch is completed; what the server refuses leaves no
/// batch behind.
async fn send(watched: &mut Watched, args: &UploadArgs, files: &[Due]) -> Result<(), UploadFailure> {
    let sources: Vec<Source> = files.iter().map(|file| file.source.clone()).collect();
    let uploaded = upload(args, sources.clone()).await;
    if let Err(UploadFailure::Refused(_)) = uploaded {
        discard(args, &sources).await.map_err(UploadFailure::Later)?;
    }
    let batch = uploaded?;
    watched.set_done(files);
    batch.run.forget();
    let reported = match batch.report().await {
        Ok(report) => print_report(args.format, &report),
        Err(error) => Err(error),
    };
    if let Err(error) = reported {
        // Standard error may be closed, too.
        let _ = writeln!(stderr(), "argus: the files are uploaded, but there is no report: {error:#}");
    }
    Ok(())
}

fn skip(watched: &mut Watched, file: &Due, error: &anyhow::Error) -> Result<()> {
    writeln!(stderr(), "argus: {}: {error:#}; skipped until it changes", file.source.path.display())?;
    watched.set_done(std::slice::from_ref(file));
    Ok(())
}

//! `argus upload --watch DIR`: a gateway into whose folder files drop. Files that have come to rest become a batch.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Write, stderr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use crate::cli::sources::Source;
use crate::cli::upload_state::Remembered;

/// How often the folder is listed.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// A file comes to rest when it has not changed for so long.
const REST: Duration = Duration::from_secs(3);

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

    fn is_at_rest(self) -> bool {
        self.changed.elapsed().is_ok_and(|elapsed| elapsed >= REST)
    }

    fn key(self) -> Value {
        let changed = self.changed.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        json!([self.length, changed.to_string()])
    }
}

/// The files of a folder, and what was done with them.
struct Watched {
    /// What was uploaded or refused, by name; survives a restart.
    done: BTreeMap<String, Value>,
    remembered: Remembered,
}

impl Watched {
    fn new(server: &Url, folder: &Path) -> Result<Watched> {
        let key = json!(["watch", server.as_str(), std::path::absolute(folder)?]);
        let remembered = Remembered::of(&key);
        let done = remembered.get().and_then(|known| serde_json::from_value(known).ok()).unwrap_or_default();
        Ok(Watched { done, remembered })
    }

    /// The files that are new or changed; none while one of them is still being written, so that files that drop together
    /// become one batch.
    fn due(&mut self, files: Vec<Source>) -> Vec<(Source, Content)> {
        let is_hidden = |name: &str| name.starts_with('.') || UNFINISHED.iter().any(|ending| name.ends_with(ending));
        let files: Vec<(Source, Content)> = files
            .into_iter()
            .filter(|source| !is_hidden(&source.name))
            .filter_map(|source| Some((Content::of(&source.path)?, source)))
            .map(|(content, source)| (source, content))
            .collect();
        let before = self.done.len();
        self.done.retain(|name, _| files.iter().any(|(source, _)| source.name == *name));
        if self.done.len() < before {
            self.remembered.set(&json!(self.done));
        }
        let mut due = files;
        due.retain(|(source, content)| self.done.get(&source.name) != Some(&content.key()));
        if due.iter().all(|(_, content)| content.is_at_rest()) { due } else { Vec::new() }
    }

    fn set_done(&mut self, files: &[(Source, Content)]) {
        self.done.extend(files.iter().map(|(source, content)| (source.name.clone(), content.key())));
        self.remembered.set(&json!(self.done));
    }
}

/// Why an upload failed, as far as it matters here.
pub enum UploadFailure {
    /// The server refused it: the same files fail again.
    Refused(anyhow::Error),
    /// It may work later.
    Later(anyhow::Error),
}

/// Uploads what drops into a folder until the process is told to stop. An upload that is running then is continued by the
/// next run.
pub async fn watch<F>(
    server: &Url,
    folder: &Path,
    list: impl Fn() -> Result<Vec<Source>>,
    upload: impl Fn(Vec<Source>) -> F,
) -> Result<()>
where
    F: Future<Output = Result<(), UploadFailure>>,
{
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut watched = Watched::new(server, folder)?;
    writeln!(stderr(), "watching {}", folder.display())?;
    let work = async {
        let mut wait = WAIT_MIN;
        loop {
            let due = watched.due(list()?);
            if due.is_empty() {
                tokio::time::sleep(LIST_EVERY).await;
                continue;
            }
            match upload(due.iter().map(|(source, _)| source.clone()).collect()).await {
                Ok(()) => {
                    watched.set_done(&due);
                    wait = WAIT_MIN;
                }
                // One of them is refused: the others must not wait for it.
                Err(UploadFailure::Refused(error)) if due.len() > 1 => {
                    writeln!(stderr(), "argus: {error:#}; uploading each file as a batch of its own")?;
                    for file in due {
                        match upload(vec![file.0.clone()]).await {
                            Ok(()) => watched.set_done(&[file]),
                            Err(UploadFailure::Refused(error)) => {
                                writeln!(stderr(), "argus: {error:#}; skipped until it changes")?;
                                watched.set_done(&[file]);
                            }
                            // It is due again.
                            Err(UploadFailure::Later(error)) => writeln!(stderr(), "argus: {error:#}")?,
                        }
                    }
                }
                Err(UploadFailure::Refused(error)) => {
                    writeln!(stderr(), "argus: {error:#}; skipped until it changes")?;
                    watched.set_done(&due);
                }
                Err(UploadFailure::Later(error)) => {
                    writeln!(stderr(), "argus: {error:#}; again in {} s", wait.as_secs())?;
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(WAIT_MAX);
                }
            }
        }
    };
    tokio::select! {
        ended = work => ended,
        _ = terminate.recv() => Ok::<_, anyhow::Error>(()),
        _ = interrupt.recv() => Ok(()),
    }
    .with_context(|| format!("cannot watch {}", folder.display()))
}

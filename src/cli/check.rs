//! `argus check`: tries every configured server, and prints what works.

use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use argus_query::cache;

use crate::cli::{CheckArgs, ServersArgs, StorageArgs, client, terminal};
use crate::data_dir::metadata_path;
use crate::metadata::{self, Location, without_password};
use crate::storage::Storage;

/// The time limit of each check.
const CHECK_TIME: Duration = Duration::from_secs(90);

/// The time limit of a question to a running server.
const ASK_TIME: Duration = Duration::from_secs(5);

/// Runs `argus check`.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let works = runtime.block_on(async {
        match &args.server {
            Some(server) => Ok::<_, anyhow::Error>(row("server", server.as_str(), ready(server.as_str()).await)),
            None => servers(args).await,
        }
    })?;
    Ok(if works { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries everything that `argus serve` would use with the same flags. Returns whether all of it works.
async fn servers(args: &CheckArgs) -> Result<bool> {
    let StorageArgs { data, store, .. } = &args.storage;
    let location = args.storage.location()?.unwrap_or_else(|| Location::File(metadata_path(data)));
    let mut works = true;
    let tried = async {
        std::fs::create_dir_all(data).context("cannot create the data directory")?;
        Ok(metadata::try_out(&location).await?)
    };
    works &= row("metadata", &location.to_string(), limited(tried).await);
    let store = store.clone().unwrap_or_else(|| data.display().to_string());
    let tried = async {
        let storage = Storage::open(&store).await?;
        // A bucket has been tried already.
        if storage.directory.is_some() { storage.try_out().await } else { Ok(()) }
    };
    let tried = limited(tried).await;
    works &= row("store", &store, tried.map(|()| "write, conditional write, read, list, delete".to_owned()));
    let ServersArgs { kafka: brokers, lines_topic, redis } = &args.servers;
    if let Some(brokers) = brokers {
        works &= row("kafka", brokers, limited(kafka(brokers, lines_topic.as_deref())).await);
    }
    if let Some(url) = redis {
        let tried = limited(async { Ok(cache::try_out(url).await?) }).await;
        works &= row("redis", &without_password(url), tried.map(|()| "write, read".to_owned()));
    }
    Ok(works)
}

#[cfg(feature = "kafka")]
async fn kafka(brokers: &str, lines_topic: Option<&str>) -> Result<String> {
    crate::kafka::try_out(brokers, lines_topic).await
}

#[cfg(not(feature = "kafka"))]
async fn kafka(_: &str, _: Option<&str>) -> Result<String> {
    bail!("this argus was built without --kafka; build it with the cargo feature kafka")
}

/// Whether a running server is ready.
async fn ready(server: &str) -> Result<String> {
    let url = format!("{}/readyz", server.trim_end_matches('/'));
    let client = client::builder()?.timeout(ASK_TIME).build()?;
    let answer = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    match answer.status() {
        status if status.is_success() => Ok("ready".to_owned()),
        status => bail!("{status}: {}", answer.text().await.unwrap_or_default()),
    }
}

async fn limited<T>(check: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(CHECK_TIME, check).await {
        Ok(checked) => checked,
        Err(_) => Err(anyhow!("no answer within {} s", CHECK_TIME.as_secs())),
    }
}

/// Prints a row. Returns whether the check succeeded.
fn row(what: &str, name: &str, checked: Result<String>) -> bool {
    let (mark, detail) = match &checked {
        Ok(detail) => ("ok", detail.clone()),
        Err(error) => ("FAILED", format!("{error:#}")),
    };
    // A reader that has closed the pipe does not change the exit code.
    let _ = writeln!(stdout(), "{mark:<8}{what:<10}{}  {}", terminal::line(name), terminal::line(&detail));
    checked.is_ok()
}

//! `argus catalog import`: what users know of codes, from a file to a server.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use serde::Deserialize;
use url::Url;

use crate::cli::ask::{ANSWER_TIME, answer};
use crate::cli::client;
use crate::domain::catalog::CatalogEntry;

/// Entries that are sent at once.
const ENTRIES_AT_ONCE: usize = 500;

/// Flags of `argus catalog`.
#[derive(Debug, Args)]
pub struct CatalogArgs {
    #[command(subcommand)]
    command: CatalogCommand,
}

/// The subcommands of `argus catalog`.
#[derive(Debug, Subcommand)]
enum CatalogCommand {
    /// Add the entries of a file to the catalogue of a server, or replace those of the same code, platform and firmware.
    ///
    /// A CSV file has a header with some of: code, platform, firmware, severity, meaning, cause, remedy, links (separated by
    /// blanks). A JSON file is an array of objects with these fields. A firmware is one, or a range such as ">=7.1 <7.3".
    #[command(
        after_help = "Examples:\n  argus catalog import codes.csv\n  argus catalog import codes.json --server http://127.0.0.1:8080"
    )]
    Import(ImportArgs),
}

/// Flags of `argus catalog import`.
#[derive(Debug, Args)]
struct ImportArgs {
    /// A CSV or JSON file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The URL of the server.
    #[arg(long, env = "ARGUS_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    server: Url,
}

/// Runs `argus catalog`.
pub fn run(args: &CatalogArgs) -> Result<ExitCode> {
    match &args.command {
        CatalogCommand::Import(args) => import(args),
    }
}

fn import(args: &ImportArgs) -> Result<ExitCode> {
    // The whole file first: a mistake at its end leaves nothing half done.
    let entries = read(&args.file).with_context(|| format!("cannot import {}", args.file.display()))?;
    let url = args.server.join("/api/v1/catalog").context("the --server URL is invalid")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (created, replaced) = runtime.block_on(async {
        let client = client::builder()?.timeout(ANSWER_TIME).build()?;
        let (mut created, mut replaced) = (0, 0);
        for some in entries.chunks(ENTRIES_AT_ONCE) {
            let answered = answer(&args.server, client.post(url.clone()).json(some)).await;
            let answered = answered.with_context(|| {
                format!("{} of {} entries were imported; repeat the command", created + replaced, entries.len())
            })?;
            created += answered["created"].as_u64().unwrap_or(0);
            replaced += answered["replaced"].as_u64().unwrap_or(0);
        }
        Ok::<_, anyhow::Error>((created, replaced))
    })?;
    writeln!(stdout(), "{created} entries added, {replaced} replaced")?;
    Ok(ExitCode::SUCCESS)
}

/// The entries of a file, each checked.
fn read(file: &Path) -> Result<Vec<CatalogEntry>> {
    let bytes = std::fs::read(file)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        anyhow!("line {} is not UTF-8; save the file as UTF-8", line + 1)
    })?;
    let is_json = file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("json"))
        || text.trim_start().starts_with(['[', '{']);
    let entries: Vec<CatalogEntry> = match is_json {
        true => serde_json::from_str(&text).context("the JSON is invalid: a list of entries is expected")?,
        false => of_csv(&text)?,
    };
    if entries.is_empty() {
        bail!("it has no entries");
    }
    CatalogEntry::check_all(&entries).map_err(anyhow::Error::msg)?;
    Ok(entries)
}

/// A row of a CSV file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CsvRow {
    code: String,
    platform: Option<String>,
    firmware: Option<String>,
    meaning: String,
    severity: Option<String>,
    cause: Option<String>,
    remedy: Option<String>,
    links: Option<String>,
}

fn of_csv(text: &str) -> Result<Vec<CatalogEntry>> {
    let mut reader = csv::Reader::from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let known = ["code", "platform", "firmware", "meaning", "severity", "cause", "remedy", "links"];
    if let Some(unknown) = reader.headers().context("the CSV is invalid")?.iter().find(|name| !known.contains(name)) {
        bail!("unknown column {unknown:?}; use {}", known.join(", "));
    }
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let rows = reader.deserialize().map(|row| {
        let CsvRow { code, platform, firmware, meaning, severity, cause, remedy, links } = row?;
        let links = links.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let (platform, firmware, severity) = (given(platform), given(firmware), given(severity));
        let (cause, remedy) = (given(cause), given(remedy));
        Ok(CatalogEntry { code, platform, firmware, meaning, severity, cause, remedy, links })
    });
    rows.collect::<Result<_, csv::Error>>().context("the CSV is invalid")
}

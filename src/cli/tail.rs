//! `argus tail`: prints the lines of a batch's files as they arrive, with the codes that the server finds in them.

use std::collections::{BTreeMap, HashMap};
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

use crate::cli::{ReportFormat, client, terminal};

/// How long the server may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Without an event for this long, the files are looked at all the same: the connection may have broken.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// The wait before the server is asked again after a failure.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// How often in a row the server may fail to answer: for five minutes.
const FAILURES_MAX: u32 = 300;

/// Lines that are read at once.
const LINES_MAX: u64 = 5000;

/// Flags of `argus tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The id of the batch.
    pub batch: Uuid,
    /// Only this file.
    #[arg(long, env = "ARGUS_FILE", value_name = "NAME")]
    pub file: Option<String>,
    /// Begin with this many lines of each file.
    #[arg(short = 'n', long, env = "ARGUS_LINES", default_value_t = 10, value_name = "N")]
    pub lines: u64,
    /// Only lines with codes.
    #[arg(long, env = "ARGUS_CODES_ONLY")]
    pub codes_only: bool,
    /// The URL of the server.
    #[arg(long, env = "ARGUS_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub server: Url,
    /// table (the default): lines of text; json: a JSON object for each line; csv.
    #[arg(long, env = "ARGUS_FORMAT", default_value = "table")]
    pub format: ReportFormat,
}

/// Prints lines until the batch is completed.
pub fn run(args: &TailArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(follow(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn follow(args: &TailArgs) -> Result<()> {
    let client = client::builder()?.connect_timeout(ANSWER_TIME).build()?;
    let mut tail = Tail { args, client, next: HashMap::new() };
    if args.format == ReportFormat::Csv {
        writeln!(stdout(), "file,line,codes,text")?;
    }
    let (mut events, mut failures) = (None, 0);
    loop {
        match tail.next(&mut events).await {
            Ok(true) => return Ok(()),
            Ok(false) => failures = 0,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Temporary(error)) => {
                failures += 1;
                if failures > FAILURES_MAX {
                    return Err(error);
                }
                events = None;
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }
}

/// The events of the batch, as they arrive.
type Events = BoxStream<'static, reqwest::Result<Bytes>>;

/// Why the server was not read.
enum Failure {
    /// It may answer later.
    Temporary(anyhow::Error),
    /// It will not.
    Final(anyhow::Error),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Failure {
        Failure::Temporary(error.into())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Final(error)
    }
}

/// An answer, if it arrives in time.
async fn in_time<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let answer = tokio::time::timeout(ANSWER_TIME, answer).await;
    answer.unwrap_or_else(|_| Err(Failure::Temporary(anyhow!("the server does not answer"))))
}

struct Tail<'t> {
    args: &'t TailArgs,
    client: Client,
    /// For each file: its generation, and the next line to print.
    next: HashMap<String, (u64, u64)>,
}

impl Tail<'_> {
    fn url(&self, segments: &[&str], parameters: &[(&str, String)]) -> Result<Url> {
        let mut url = self.args.server.join(&format!("/api/v1/batches/{}", self.args.batch))?;
        url.path_segments_mut().ok().context("the --server URL is invalid")?.extend(segments);
        if !parameters.is_empty() {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        Ok(url)
    }

    async fn get(&self, url: Url) -> Result<reqwest::Response, Failure> {
        let response = self.client.get(url).send().await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body: Value = response.json().await.unwrap_or_default();
        let error = anyhow!("{}", body["detail"].as_str().unwrap_or(status.as_str()));
        match status {
            StatusCode::TOO_MANY_REQUESTS => Err(Failure::Temporary(error)),
            status if status.is_server_error() => Err(Failure::Temporary(error)),
            _ => Err(Failure::Final(error)),
        }
    }

    async fn json(&self, url: Url) -> Result<Value, Failure> {
        in_time(async { Ok(self.get(url).await?.json().await?) }).await
    }

    /// Prints what is new, and waits for the next change. Returns whether no more can follow.
    async fn next(&mut self, events: &mut Option<Events>) -> Result<bool, Failure> {
        // Connected before the look, so that no change after it is missed. One connection is kept: each begins with the
        // state of the batch, so the next would end the wait at once.
        let following = match &mut *events {
            Some(following) => following,
            none => none.insert(self.get(self.url(&["events"], &[])?).await?.bytes_stream().boxed()),
        };
        if self.look().await? {
            return Ok(true);
        }
        let changed = async {
            while let Some(Ok(chunk)) = following.next().await {
                // Comments keep the connection open.
                if chunk.windows(5).any(|field| field == b"data:") {
                    return true;
                }
            }
            false
        };
        if tokio::time::timeout(LOOK_EVERY, changed).await == Ok(false) {
            *events = None;
        }
        Ok(false)
    }

    /// Prints the new lines of all files. Returns whether no more can follow.
    async fn look(&mut self) -> Result<bool, Failure> {
        // Read first: what is complete now has all its lines.
        let batch = self.json(self.url(&[], &[])?).await?;
        let is_at_rest = matches!(batch["status"].as_str(), Some("completed" | "failed"));
        let mut cursor = None;
        loop {
            let parameters: Vec<_> = cursor.iter().map(|cursor: &String| ("cursor", cursor.clone())).collect();
            let page = self.json(self.url(&["files"], &parameters)?).await?;
            for file in page["files"].as_array().into_iter().flatten() {
                let name = file["name"].as_str().unwrap_or_default();
                let is_wanted = self.args.file.as_deref().is_none_or(|wanted| wanted == name);
                if is_wanted && file["status"] == "parsed" {
                    let number = |field: &str| file[field].as_u64().unwrap_or(0);
                    self.print_new(name, number("generation"), number("lines")).await?;
                }
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return Ok(is_at_rest),
            }
        }
    }

    /// Prints the lines of a file up to `last` that are not printed yet.
    async fn print_new(&mut self, name: &str, generation: u64, last: u64) -> Result<(), Failure> {
        let mut from = match self.next.get(name) {
            Some(&(known, next)) if known == generation => next,
            // Another content replaced it.
            Some(_) => 1,
            None => (last + 1).saturating_sub(self.args.lines).max(1),
        };
        while from <= last {
            let count = (last - from + 1).min(LINES_MAX);
            let codes = self.codes(name, from, from + count).await?;
            let range = [("from_line", from.to_string()), ("lines", count.to_string())];
            let url = self.url(&["files", name], &range)?;
            let text = in_time(async { Ok(self.get(url).await?.bytes().await?) }).await?;
            for (line, text) in (from..).zip(text.split_inclusive(|byte| *byte == b'\n')) {
                let found = codes.get(&line).map_or(&[][..], Vec::as_slice);
                if !(found.is_empty() && self.args.codes_only) {
                    self.print(name, line, &String::from_utf8_lossy(text), found)?;
                }
            }
            from += count;
        }
        self.next.insert(name.to_owned(), (generation, from));
        Ok(())
    }

    /// The codes of the lines of a file between two line numbers.
    async fn codes(&self, name: &str, from: u64, before: u64) -> Result<BTreeMap<u64, Vec<String>>, Failure> {
        let mut codes: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut cursor = None;
        loop {
            let mut parameters = vec![("file", name.to_owned()), ("limit", LINES_MAX.to_string())];
            parameters.push(match cursor.take() {
                Some(cursor) => ("cursor", cursor),
                None => ("from_line", from.to_string()),
            });
            let page = self.json(self.url(&["errors"], &parameters)?).await?;
            for error in page["errors"].as_array().into_iter().flatten() {
                let line = error["line"].as_u64().unwrap_or(0);
                if line >= before {
                    return Ok(codes);
                }
                codes.entry(line).or_default().push(error["code"].as_str().unwrap_or_default().to_owned());
            }
            match page["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return Ok(codes),
            }
        }
    }

    fn print(&self, name: &str, line: u64, text: &str, codes: &[String]) -> Result<()> {
        let text = text.trim_end_matches(['\n', '\r']);
        let mut out = terminal::stdout(self.args.format == ReportFormat::Json);
        match self.args.format {
            ReportFormat::Json => {
                writeln!(out, "{}", json!({"file": name, "line": line, "codes": codes, "text": text}))?;
            }
            ReportFormat::Csv => {
                let mut row = csv::Writer::from_writer(&mut out);
                row.write_record([name, &line.to_string(), &codes.join(" "), text])?;
                row.flush()?;
            }
            ReportFormat::Table if codes.is_empty() => writeln!(out, "{name}:{line}: {text}")?,
            ReportFormat::Table => {
                let marked = console::style(format!("[{}]", codes.join(" "))).red().bold();
                // The writer escapes what a log may contain, so colours bypass it.
                out.flush()?;
                match terminal::has_colours(console::Term::stdout().is_term()) {
                    true => writeln!(
                        stdout(),
                        "{}:{line}: {} {}",
                        terminal::line(name),
                        marked.force_styling(true),
                        terminal::line(text)
                    )?,
                    false => writeln!(out, "{name}:{line}: [{}] {text}", codes.join(" "))?,
                }
            }
        }
        Ok(out.flush()?)
    }
}

//! Questions to a running server: `argus report`, `argus codes`, `argus compare`.

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::RequestBuilder;
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use crate::cli::upload::label;
use crate::cli::{ReportFormat, client, render, terminal};
use crate::http::list;

/// How long the server may take to answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(60);

/// The columns of a report, in CSV and as a table.
const REPORT_COLUMNS: [&str; 11] = [
    "code",
    "rule",
    "severity",
    "count",
    "inactive",
    "files",
    "first_seen",
    "last_seen",
    "new_for_vehicle",
    "fleet_ratio",
    "example.text",
];
const REPORT_TABLE: [&str; 5] = ["count", "severity", "code", "new_for_vehicle", "example.text"];
const CODES_TABLE: [&str; 7] = ["code", "group", "count", "vehicles", "batches", "first_seen", "last_seen"];
const COMPARE_TABLE: [&str; 9] =
    ["code", "change", "vehicles", "share", "against.vehicles", "against.share", "p_value", "q_value", "warnings"];

/// Flags of the commands that ask a server.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The URL of the server.
    #[arg(long, env = "ARGUS_SERVER", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub server: Url,
    /// The format of the answer; the default is table on a terminal, otherwise json.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<ReportFormat>,
}

/// Flags of `argus report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The id of the batch.
    pub batch: Uuid,
    /// The maximum number of codes; the default is all.
    #[arg(long, env = "ARGUS_TOP")]
    pub top: Option<u32>,
    /// The server, and the format.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Flags of `argus codes`.
#[derive(Debug, Args)]
pub struct CodesArgs {
    /// firmware, platform, vehicle or component; the default is firmware.
    #[arg(long, env = "ARGUS_GROUP_BY")]
    pub group_by: Option<String>,
    /// Only batches of this platform.
    #[arg(long, env = "ARGUS_PLATFORM")]
    pub platform: Option<String>,
    /// Only batches with this firmware.
    #[arg(long, env = "ARGUS_FIRMWARE")]
    pub firmware: Option<String>,
    /// Only codes of this severity: critical, error, warning or info.
    #[arg(long, env = "ARGUS_SEVERITY")]
    pub severity: Option<String>,
    /// Only lines with a plausible time at or after this, in RFC 3339.
    #[arg(long, env = "ARGUS_SINCE", value_name = "TIME")]
    pub since: Option<String>,
    /// Only lines with a plausible time before this, in RFC 3339.
    #[arg(long, env = "ARGUS_UNTIL", value_name = "TIME")]
    pub until: Option<String>,
    /// The maximum number of rows.
    #[arg(long, env = "ARGUS_LIMIT", default_value_t = 20)]
    pub limit: u32,
    /// The server, and the format.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Flags of `argus compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The firmware to examine.
    pub firmware: String,
    /// The firmware to compare it with.
    pub against: String,
    /// Only batches of this platform.
    #[arg(long, env = "ARGUS_PLATFORM")]
    pub platform: Option<String>,
    /// Only occurrences on lines of this component.
    #[arg(long, env = "ARGUS_COMPONENT")]
    pub component: Option<String>,
    /// Only codes of this severity: critical, error, warning or info.
    #[arg(long, env = "ARGUS_SEVERITY")]
    pub severity: Option<String>,
    /// Only batches with this label; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Only lines with a plausible time at or after this, in RFC 3339.
    #[arg(long, env = "ARGUS_SINCE", value_name = "TIME")]
    pub since: Option<String>,
    /// Only lines with a plausible time before this, in RFC 3339.
    #[arg(long, env = "ARGUS_UNTIL", value_name = "TIME")]
    pub until: Option<String>,
    /// The server, and the format.
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Runs `argus report`.
pub fn report(args: &ReportArgs) -> Result<ExitCode> {
    let mut path = format!("batches/{}/report", args.batch);
    if let Some(top) = args.top {
        path += &format!("?top={top}");
    }
    print_report(args.ask.format, &get(&args.ask, &path)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the report of a batch.
pub fn print_report(format: Option<ReportFormat>, report: &Value) -> Result<()> {
    print(format, report, &REPORT_TABLE, &REPORT_COLUMNS)?;
    if or_default(format) == ReportFormat::Table {
        let number = |name: &str| report[name].as_u64().unwrap_or(0);
        writeln!(
            stdout(),
            "\n{}, {}, in {} of {}; {}",
            render::counted(report["codes"].as_array().map_or(0, Vec::len) as u64, "code"),
            render::counted(number("total_errors"), "occurrence"),
            render::counted(number("total_lines"), "line"),
            render::counted(number("total_files"), "file"),
            report["status"].as_str().unwrap_or_default(),
        )?;
    }
    Ok(())
}

/// Runs `argus codes`.
pub fn codes(args: &CodesArgs) -> Result<ExitCode> {
    let parameters = [
        ("group_by", args.group_by.clone()),
        ("platform", args.platform.clone()),
        ("firmware", args.firmware.clone()),
        ("severity", args.severity.clone()),
        ("since", args.since.clone()),
        ("until", args.until.clone()),
        ("limit", Some(args.limit.to_string())),
    ];
    let codes = get(&args.ask, &with_parameters("fleet/codes", parameters))?;
    print(args.ask.format, &codes, &CODES_TABLE, &list::CODE_COLUMNS)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `argus compare`.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let mut parameters = vec![
        ("firmware".to_owned(), Some(args.firmware.clone())),
        ("against".to_owned(), Some(args.against.clone())),
        ("platform".to_owned(), args.platform.clone()),
        ("component".to_owned(), args.component.clone()),
        ("severity".to_owned(), args.severity.clone()),
        ("since".to_owned(), args.since.clone()),
        ("until".to_owned(), args.until.clone()),
    ];
    parameters.extend(args.label.iter().map(|(name, value)| (format!("label.{name}"), Some(value.clone()))));
    let compared = get(&args.ask, &with_parameters("fleet/compare", parameters))?;
    print(args.ask.format, &compared, &COMPARE_TABLE, &list::COMPARED_COLUMNS)?;
    Ok(ExitCode::SUCCESS)
}

/// A path with the parameters that are given.
pub fn with_parameters<N: AsRef<str>>(path: &str, parameters: impl IntoIterator<Item = (N, Option<String>)>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(format!("{path}?"));
    query.extend_pairs(parameters.into_iter().filter_map(|(name, value)| Some((name, value?))));
    query.finish()
}

/// The JSON at a path of the API.
fn get(args: &AskArgs, path: &str) -> Result<Value> {
    let url = args.server.join(&format!("/api/v1/{path}")).context("the --server URL is invalid")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client::builder()?.timeout(ANSWER_TIME).build()?;
        answer(&args.server, client.get(url)).await
    })
}

/// The JSON that the server answers, or why it does not.
pub async fn answer(server: &Url, request: RequestBuilder) -> Result<Value> {
    let response = request.send().await.with_context(|| format!("cannot reach {server}"))?;
    let status = response.status();
    let bytes = response.bytes().await.context("the response was interrupted; repeat the command")?;
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    match status.is_success() {
        true => Ok(body),
        false => bail!("{}", body["detail"].as_str().unwrap_or(status.as_str())),
    }
}

/// The format; a table on a terminal if none is given.
fn or_default(format: Option<ReportFormat>) -> ReportFormat {
    format.unwrap_or(if stdout().is_terminal() { ReportFormat::Table } else { ReportFormat::Json })
}

/// Prints an answer whose rows are in `codes`.
fn print(format: Option<ReportFormat>, answer: &Value, table: &[&str], columns: &[&str]) -> Result<()> {
    let format = or_default(format);
    let mut out = terminal::stdout(format == ReportFormat::Json);
    let rows = answer["codes"].as_array().map_or(&[][..], Vec::as_slice);
    match format {
        ReportFormat::Json => {
            serde_json::to_writer_pretty(&mut out, answer)?;
            writeln!(out)?;
        }
        ReportFormat::Csv => out.write_all(list::csv(columns, rows)?.as_bytes())?,
        ReportFormat::Table => render::values(&mut out, table, rows)?,
    }
    out.flush()?;
    Ok(())
}

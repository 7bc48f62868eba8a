//! `argus diagnose`: what is known of the codes in files, without a server.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use crate::answers::diagnosis::Diagnosis;
use crate::cli::analyze::count;
use crate::cli::sources::Failure;
use crate::cli::{CountingArgs, ReportFormat, render, terminal};
use crate::http::list;

const TABLE: [&str; 5] = ["id", "severity", "count", "code", "catalog.meaning"];
const COLUMNS: [&str; 9] =
    ["id", "code", "severity", "count", "catalog.meaning", "catalog.cause", "catalog.remedy", "line.file", "line.line"];

/// Flags of `argus diagnose`.
#[derive(Debug, Args)]
pub struct DiagnoseArgs {
    /// Files and folders; - is standard input.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// The format; the default is table on a terminal, otherwise json.
    #[arg(long, env = "ARGUS_FORMAT")]
    pub format: Option<ReportFormat>,
    /// How files are counted.
    #[command(flatten)]
    pub counting: CountingArgs,
}

/// Counts, and prints the findings and the failures.
pub fn run(args: &DiagnoseArgs) -> Result<ExitCode> {
    let (report, failures) = count(&args.paths, &args.counting, None)?;
    let diagnosis = json!(Diagnosis::of_files(&report));
    let format = args.format.unwrap_or(if stdout().is_terminal() { ReportFormat::Table } else { ReportFormat::Json });
    let mut out = terminal::stdout(format == ReportFormat::Json);
    let findings = diagnosis["findings"].as_array().map_or(&[][..], Vec::as_slice);
    match format {
        ReportFormat::Json => {
            serde_json::to_writer_pretty(&mut out, &diagnosis)?;
            writeln!(out)?;
        }
        ReportFormat::Csv => out.write_all(list::csv(&COLUMNS, findings)?.as_bytes())?,
        ReportFormat::Table => {
            writeln!(out, "{}\n", terminal::line(diagnosis["summary"].as_str().unwrap_or_default()))?;
            render::values(&mut out, &TABLE, findings)?;
            for finding in findings {
                explain(&mut out, finding)?;
            }
        }
    }
    out.flush()?;
    for Failure { name, reason } in &failures {
        writeln!(stderr(), "argus: {}: {}", terminal::line(name), terminal::line(reason))?;
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The cause and the remedy of a code, and its first line.
fn explain(out: &mut dyn Write, finding: &Value) -> Result<()> {
    let text = |path: &str| finding.pointer(path).and_then(Value::as_str).map(|text| terminal::line(text).into_owned());
    writeln!(out, "\n{} {}", text("/id").unwrap_or_default(), text("/code").unwrap_or_default())?;
    for (name, path) in [("meaning", "/catalog/meaning"), ("cause", "/catalog/cause"), ("to do", "/catalog/remedy")] {
        if let Some(text) = text(path) {
            writeln!(out, "  {name}: {text}")?;
        }
    }
    let (file, line) = (text("/line/file").unwrap_or_default(), &finding["line"]["line"]);
    writeln!(out, "  {file}:{line}: {}", text("/line/text").unwrap_or_default())?;
    Ok(())
}

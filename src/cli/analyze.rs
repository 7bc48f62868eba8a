//! `argus analyze`: counts files, folders or standard input with the same
//! dataflow as a server, and leaves nothing on the disk.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use argus_dataflow::{BlockReader, Change, CodeLimits, Config, Dataflow, FileRow, Origin, Output, VersionId, text};
use argus_query::{Engine, EngineConfig, Report};
use argus_sinks::{Lake, LakeConfig, RecentBatch, Snapshot};
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc::UnboundedReceiver;
use url::Url;
use uuid::Uuid;

use crate::cli::explain;
use crate::cli::render;
use crate::cli::sources::{Failure, Source, sources};
use crate::cli::terminal::{self, Terminal};
use crate::cli::{AnalyzeArgs, CountingArgs, ReportFormat};
use crate::data_dir::lake_url;
use crate::domain::clock::now;

/// Counts, and prints the report and the failures.
pub fn run(args: &AnalyzeArgs) -> Result<ExitCode> {
    if args.paths.is_empty() && !args.explain {
        // `--explain` was set to false, in an environment variable or the config file.
        writeln!(stderr(), "argus: name at least one PATH, or - for standard input")?;
        return Ok(ExitCode::from(2));
    }
    let rules = args.counting.rules()?;
    if args.explain {
        // Standard output is for the report, if there is one.
        if args.paths.is_empty() {
            let mut out = terminal::stdout(false);
            explain::write(&mut out, rules)?;
            out.flush()?;
            return Ok(ExitCode::SUCCESS);
        }
        explain::write(&mut Terminal::new(stderr().lock()), rules)?;
    }
    let (report, failures) = count(&args.paths, &args.counting, args.parquet.as_deref())?;
    let format = args.format.unwrap_or(if stdout().is_terminal() { ReportFormat::Table } else { ReportFormat::Json });
    render::report(&mut terminal::stdout(format == ReportFormat::Json), &report, format)?;
    for Failure { name, reason } in &failures {
        writeln!(stderr(), "argus: {}: {}", terminal::line(name), terminal::line(reason))?;
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Counts files and folders. Returns the report and the files that failed; with `parquet`, writes the tables there.
pub fn count(paths: &[PathBuf], counting: &CountingArgs, parquet: Option<&Path>) -> Result<(Report, Vec<Failure>)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (sources, mut failures) = sources(paths);
    let (dataflow, outputs) = Dataflow::start(Config {
        workers: counting.workers(),
        rules: counting.rules()?,
        first_epoch: 1,
        in_flight_bytes: Config::IN_FLIGHT_BYTES_DEFAULT,
        occurrences: parquet.is_some(),
        limits: CodeLimits::default(),
        scans_only: false,
    })
    .map_err(anyhow::Error::msg)?;
    // The tables for --parquet are spilled here; the folder is removed at the end.
    let spill = parquet.map(|_| tempfile::tempdir()).transpose().context("cannot create a temporary folder")?;
    let reader = {
        let (sources, block_bytes, handle) = (sources, counting.block_bytes as usize, runtime.handle().clone());
        std::thread::spawn(move || insert(&dataflow, sources, block_bytes, &handle))
    };
    let files = match (&spill, parquet) {
        (Some(spill), Some(folder)) => {
            let (files, snapshot) = runtime.block_on(gather_in_lake(spill.path(), outputs))?;
            let engine =
                Engine::new(Arc::new(LocalFileSystem::new()), &Url::parse("file:///")?, &EngineConfig::default())?;
            runtime.block_on(write_tables(&engine, &Arc::new(snapshot), folder))?;
            files
        }
        _ => gather(&runtime, outputs),
    };
    let Ok(more) = reader.join() else { bail!("the thread that reads the files has panicked") };
    failures.extend(more);

    let mut report = Report::of_files(&files);
    failures.extend(report.files.iter().filter_map(|file| {
        let reason = file.failure.clone()?;
        Some(Failure { name: file.name.clone(), reason })
    }));
    // The report lacks the files that failed.
    report.is_final = failures.is_empty();
    Ok((report, failures))
}

/// Inserts every source, each at its own epoch. Returns the failures.
fn insert(dataflow: &Dataflow, sources: Vec<Source>, block_bytes: usize, runtime: &Handle) -> Vec<Failure> {
    let bar = progress_bar(&sources);
    let mut failures = Vec::new();
    let mut epoch = 0;
    for Source { name, path } in sources {
        let version = VersionId::new();
        let row = open(&path)
            .and_then(|input| insert_file(dataflow, runtime, &name, version, &mut bar.wrap_read(input), block_bytes));
        let change = row.map(Change::Admit).unwrap_or_else(|error| {
            failures.push(Failure { name, reason: reason(&error) });
            Change::Abandon(version)
        });
        epoch += 1;
        let advanced = dataflow.advance(epoch, vec![change]);
        if let Err(error) = advanced {
            failures.push(Failure { name: "dataflow".to_owned(), reason: error.to_string() });
            break;
        }
    }
    bar.finish_and_clear();
    failures
}

fn open(path: &Path) -> io::Result<Box<dyn Read + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(stdin()));
    }
    Ok(Box::new(File::open(path)?))
}

/// An error as one line, without the OS error number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).replace('\n', " ")
}

fn insert_file(
    dataflow: &Dataflow,
    runtime: &Handle,
    name: &str,
    version: VersionId,
    input: &mut (dyn Read + Send),
    block_bytes: usize,
) -> io::Result<FileRow> {
    let origin = Arc::new(Origin { batch_id: Uuid::nil(), file: name.to_owned(), version, uploaded_at: now() });
    let text = text::text(input)?;
    let binary = text.is_binary;
    let mut blocks = BlockReader::new(text, block_bytes);
    while let Some(block) = blocks.next_block()? {
        runtime.block_on(dataflow.insert(&origin, block)).map_err(io::Error::other)?;
    }
    Ok(FileRow {
        batch_id: Uuid::nil(),
        file_id: version.0,
        version,
        name: name.to_owned(),
        generation: 1,
        live: 1,
        erased: 0,
        open_line: false,
        bytes: blocks.bytes(),
        lines: blocks.lines(),
        long_lines: blocks.long_lines(),
        last_line: blocks.lines(),
        error_lines: 0,
        occurrences: 0,
        uploaded_at: now(),
        failure: None,
        binary,
        sha256: None,
        first_ts: None,
        last_ts: None,
        rules: None,
    })
}

/// A progress bar over the bytes of all files; hidden if standard error is not a terminal.
fn progress_bar(sources: &[Source]) -> ProgressBar {
    let bytes = sources.iter().filter_map(|source| source.path.metadata().ok()).map(|metadata| metadata.len()).sum();
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Collects the counts in memory.
fn gather(runtime: &Runtime, mut outputs: UnboundedReceiver<Output>) -> RecentBatch {
    let mut files = RecentBatch::default();
    while let Some(output) = runtime.block_on(outputs.recv()) {
        if let Output::Closed(closed) = output {
            files.take(&closed);
        }
    }
    files
}

/// Collects the counts in memory, and writes the counts and the occurrences to a lake in `folder`.
async fn gather_in_lake(folder: &Path, outputs: UnboundedReceiver<Output>) -> Result<(RecentBatch, Snapshot)> {
    let lake = Lake::open(Arc::new(LocalFileSystem::new()), &lake_url(folder)?, LakeConfig::default(), None).await?;
    let snapshots = lake.snapshots();
    let mut files = RecentBatch::default();
    lake.run(outputs, |closed| files.take(closed)).await?;
    let last = snapshots.borrow();
    Ok((files, Snapshot::clone(&last)))
}

/// Writes each table as a Parquet file into `folder`.
async fn write_tables(engine: &Engine, snapshot: &Arc<Snapshot>, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    for (table, columns) in [
        ("files", "name, bytes, lines, long_lines, error_lines, errors, first_ts, last_ts, rules"),
        (
            "error_counts",
            "file, code, rule, severity, count, inactive, first_seen, last_seen, example_line, example_text",
        ),
        ("errors", "file, line, \"offset\", ts, ts_plausible, level, component, code, rule, severity, active, text"),
    ] {
        let path = folder.join(format!("{table}.parquet"));
        let write = async {
            let mut rows = engine.stream(snapshot, &format!("SELECT {columns} FROM {table}")).await?;
            let properties =
                WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
            let mut writer = ArrowWriter::try_new(File::create(&path)?, rows.schema(), Some(properties))?;
            while let Some(batch) = rows.try_next().await? {
                writer.write(&batch)?;
            }
            writer.close()?;
            anyhow::Ok(())
        };
        write.await.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

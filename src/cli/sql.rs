//! `argus sql`: queries on a running server, or on a data directory, which it only reads.
//!
//! With a query it prints the rows. Without one it prompts for queries on a
//! terminal, and otherwise reads them from standard input.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use argus_dataflow::RuleSet;
use argus_query::{CatalogRow, Engine, EngineConfig, RowFormat};
use argus_sinks::{Lake, Snapshot};
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use axum::http;
use futures::TryStreamExt;
use http_body_util::BodyExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use url::Url;

use crate::catalog;
use crate::cli::client;
use crate::cli::prompt;
use crate::cli::render;
use crate::cli::terminal;
use crate::cli::{RowsFormat, SqlArgs};
use crate::data_dir::lake_url;
use crate::storage::Storage;

/// The header or trailer that is `true` if there were more rows than the limit.
const TRUNCATED: &str = "argus-truncated";

/// The row limit of a query to a server.
const SERVER_ROWS_MAX: usize = 1_000_000;

/// Runs the query and prints the rows.
pub fn run(args: &SqlArgs) -> Result<ExitCode> {
    let terminal = stdout().is_terminal();
    let format = args.format.unwrap_or(if terminal { RowsFormat::Table } else { RowsFormat::Csv });
    if terminal && matches!(format, RowsFormat::Arrow | RowsFormat::Parquet) {
        bail!("Arrow and Parquet are binary formats; redirect the output to a file");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let target = runtime.block_on(Target::open(args))?;
    if let Some(query) = &args.query {
        target.print_all(&runtime, query, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    if stdin().is_terminal() {
        prompt::run(|statement| target.print_all(&runtime, statement, format))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut query = String::new();
    stdin().read_to_string(&mut query).context("cannot read the statement from standard input")?;
    target.print_all(&runtime, &query, format)?;
    Ok(ExitCode::SUCCESS)
}

/// What is queried.
enum Target {
    Server { client: reqwest::Client, query_url: Url, as_of: Option<u64> },
    Directory { engine: Box<Engine>, snapshot: Arc<Snapshot> },
}

impl Target {
    async fn open(args: &SqlArgs) -> Result<Target> {
        if let Some(server) = &args.server {
            let query_url = server.join("/api/v1/query").context("invalid --server URL")?;
            return Ok(Target::Server { client: client::builder()?.build()?, query_url, as_of: args.as_of });
        }
        let (store, root) = match &args.store {
            Some(store) => {
                let storage = Storage::open_read_only(store)?;
                (storage.store, storage.lake)
            }
            None if !args.data.join("lake").is_dir() => {
                bail!("{} is not a data directory: it has no folder `lake`", args.data.display());
            }
            None => (Arc::new(LocalFileSystem::new()) as Arc<dyn ObjectStore>, lake_url(&args.data)?),
        };
        let mut snapshot = Lake::read(Arc::clone(&store), &root).await.context("cannot read the lake")?;
        if let Some(epoch) = args.as_of {
            snapshot = snapshot.as_of(epoch)?;
        }
        let catalog = Arc::new(catalog::rows(&CatalogRow::of_rules(&RuleSet::built_in()?), Vec::new()));
        let engine = Engine::new(store, &root, &EngineConfig { catalog, ..EngineConfig::default() })?;
        Ok(Target::Directory { engine: Box::new(engine), snapshot: Arc::new(snapshot) })
    }

    /// Runs one statement after another and prints the rows of each. Stops without an error at a broken pipe.
    fn print_all(&self, runtime: &Runtime, text: &str, format: RowsFormat) -> Result<()> {
        for statement in argus_query::sql::statement::split(text) {
            match print(&self.rows(runtime, &statement)?, format) {
                Err(error) if is_broken_pipe(&error) => return Ok(()),
                printed => printed?,
            }
        }
        Ok(())
    }

    /// The rows of a query, as at least one record batch.
    fn rows(&self, runtime: &Runtime, sql: &str) -> Result<Vec<RecordBatch>> {
        let sql = as_query(sql);
        let sql = &*sql;
        runtime.block_on(async {
            match self {
                Target::Server { client, query_url, as_of } => query_server(client, query_url, *as_of, sql).await,
                Target::Directory { engine, snapshot } => {
                    let stream = engine.stream(snapshot, sql).await?;
                    let schema = stream.schema();
                    let mut rows: Vec<RecordBatch> = stream.try_collect().await.context("the query failed")?;
                    if rows.is_empty() {
                        rows.push(RecordBatch::new_empty(schema));
                    }
                    Ok(rows)
                }
            }
        })
    }
}

async fn query_server(client: &reqwest::Client, url: &Url, as_of: Option<u64>, sql: &str) -> Result<Vec<RecordBatch>> {
    let mut body = json!({"sql": sql, "limit": SERVER_ROWS_MAX});
    if let Some(epoch) = as_of {
        body["as_of"] = json!(epoch);
    }
    let request = client.post(url.clone()).header("accept", RowFormat::Arrow.media_type()).header("te", "trailers");
    let response = request.json(&body).send().await.with_context(|| format!("cannot reach {url}"))?;
    let status = response.status();
    let (head, body) = http::Response::<reqwest::Body>::from(response).into_parts();
    let body = body.collect().await.context("the response was interrupted: the query failed or timed out")?;
    // If it is not known before the rows, it is in the trailers.
    let values = [Some(&head.headers), body.trailers()].map(|headers| headers?.get(TRUNCATED).cloned());
    let truncated = values.into_iter().flatten().any(|value| value == "true");
    let bytes = body.to_bytes();
    if !status.is_success() {
        let problem: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        bail!("{}", problem["detail"].as_str().unwrap_or(status.as_str()));
    }
    let reader = StreamReader::try_new(&bytes[..], None).context("the response is not an Arrow stream")?;
    let schema = reader.schema();
    let mut rows = reader.collect::<Result<Vec<_>, _>>().context("the Arrow stream is incomplete")?;
    if truncated {
        writeln!(stderr(), "only the first {SERVER_ROWS_MAX} rows are printed; a server returns no more")?;
    }
    if rows.is_empty() {
        rows.push(RecordBatch::new_empty(schema));
    }
    Ok(rows)
}

/// Replaces commands of other tools (`SHOW TABLES`, `\d`, `DESCRIBE`) with a query.
fn as_query(statement: &str) -> Cow<'_, str> {
    let statement = statement.trim().trim_end_matches(';').trim_end();
    let words: Vec<String> = statement.split_whitespace().map(str::to_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let columns = |table: &str| {
        let table = table.trim_matches('"').trim_start_matches("public.").replace('\'', "''");
        format!(
            "SELECT column_name, data_type, comment FROM information_schema.columns \
             WHERE table_schema = 'public' AND table_name = '{table}' ORDER BY ordinal_position"
        )
    };
    match words[..] {
        ["show", "tables"] | ["\\d" | "\\dt"] => {
            "SELECT table_name, comment FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1".into()
        }
        ["describe" | "desc" | "\\d", table] | ["show", "columns", "from", table] => columns(table).into(),
        _ => statement.into(),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        let arrow = cause.downcast_ref::<ArrowError>();
        io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
            || arrow.is_some_and(|error| error.to_string().contains("Broken pipe"))
    })
}

fn print(rows: &[RecordBatch], format: RowsFormat) -> Result<()> {
    let mut out = terminal::stdout(format == RowsFormat::Json);
    match format {
        RowsFormat::Table => render::table(&mut out, rows)?,
        RowsFormat::Json => render::json(&mut out, rows)?,
        RowsFormat::Csv => render::csv(&mut out, rows)?,
        RowsFormat::Arrow => {
            let mut writer = StreamWriter::try_new(&mut out, rows[0].schema_ref())?;
            rows.iter().try_for_each(|batch| writer.write(batch))?;
            writer.finish()?;
        }
        RowsFormat::Parquet => {
            let mut writer = ArrowWriter::try_new(&mut out, rows[0].schema(), None)?;
            rows.iter().try_for_each(|batch| writer.write(batch))?;
            writer.close()?;
        }
    }
    out.flush()?;
    Ok(())
}

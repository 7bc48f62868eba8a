//! `argus sql`: a question about a data directory, which is only read.

use std::io::{BufWriter, IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use argus_query::{Engine, EngineConfig};
use argus_sinks::Lake;
use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::ArrowWriter;

use crate::cli::{RowsFormat, SqlArgs};
use crate::render;
use crate::service::lake_url;

/// Asks and prints the rows.
pub fn run(args: &SqlArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let rows = runtime.block_on(ask(args))?;
    let terminal = stdout().is_terminal();
    let format = args.format.unwrap_or(if terminal { RowsFormat::Table } else { RowsFormat::Csv });
    if terminal && matches!(format, RowsFormat::Arrow | RowsFormat::Parquet) {
        bail!("bytes of Arrow or Parquet are not for a terminal; send them to a file");
    }
    print(&rows, format)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(args: &SqlArgs) -> Result<Vec<RecordBatch>> {
    if !args.data.join("lake").is_dir() {
        bail!("{} is no data directory", args.data.display());
    }
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
    let root = lake_url(&args.data)?;
    let mut snapshot = Lake::read(Arc::clone(&store), &root).await.context("cannot read the lake")?;
    if let Some(epoch) = args.as_of {
        snapshot = snapshot.as_of(epoch)?;
    }
    let engine = Engine::new(store, &root, &EngineConfig::default())?;
    let stream = engine.stream(&Arc::new(snapshot), &args.query).await?;
    let schema = stream.schema();
    let mut rows: Vec<RecordBatch> = stream.try_collect().await.context("the query failed")?;
    if rows.is_empty() {
        rows.push(RecordBatch::new_empty(schema));
    }
    Ok(rows)
}

fn print(rows: &[RecordBatch], format: RowsFormat) -> Result<()> {
    let mut out = BufWriter::new(stdout());
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

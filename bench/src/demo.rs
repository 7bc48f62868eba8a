//! Demo: uploads the logs of a small fleet and prints the reports.

use std::io::{Write, stdout};

use anyhow::{Context, Result, bail};
use argus::app::ServiceConfig;
use argus::cli::ReportFormat;
use argus::cli::render;
use argus::server::{Listeners, Server};
use argus_dataflow::RuleSet;
use argus_query::Report;
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::generate::{Random, write_log};

/// Vehicles; every second one has the new firmware.
const VEHICLES: usize = 12;
const FILES: [&str; 3] = ["bms.log", "gateway.log", "update.log"];
const FILE_BYTES: u64 = 256 << 10;

/// Flags of `argus-bench demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// Exit after printing the reports.
    #[arg(long)]
    once: bool,
}

/// A server with the logs of a small fleet.
pub struct Fleet {
    /// The server; its data is deleted with the fleet.
    pub server: Server,
    /// Its URL.
    pub base: String,
    /// The last batch.
    pub last: String,
    _folder: TempDir,
}

impl Fleet {
    /// Starts Argus (on a free port if the address is in use) and uploads the fleet. Says where it listens first.
    pub async fn start(listen: &str) -> Result<Fleet> {
        let folder = tempfile::tempdir()?;
        let rules = RuleSet::built_in()?;
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let config = ServiceConfig::new(folder.path().to_owned(), rules, workers);
        let metrics = PrometheusBuilder::new().install_recorder()?;
        let listen = match tokio::net::TcpListener::bind(listen).await {
            Ok(_) => listen,
            Err(_) => "127.0.0.1:0",
        };
        let server =
            Server::start(config, &Listeners { http: listen.to_owned(), ..Listeners::default() }, metrics).await?;
        let base = format!("http://{}", server.address());
        writeln!(stdout(), "argus listening on {base}\n\nOpen {base}/ in a browser.\n")?;
        let client = Client::new();
        let mut last = String::new();
        for vehicle in 0..VEHICLES {
            last = upload(&client, &format!("{base}/api/v1"), vehicle).await?;
        }
        Ok(Fleet { server, base, last, _folder: folder })
    }
}

/// Starts a fleet, and prints the report of one vehicle and the codes of both firmware versions.
pub async fn run(args: &Args) -> Result<()> {
    let fleet = Fleet::start(&args.listen).await?;
    let (client, Fleet { base, last, .. }) = (Client::new(), &fleet);
    let mut out = stdout();
    let report: Value = get(&client, &format!("{base}/api/v1/batches/{last}/report")).await?;
    writeln!(out, "The report of vehicle {} with firmware 7.2.1 (batch {last}):\n", VEHICLES - 1)?;
    render::report(&mut out, &serde_json::from_value::<Report>(report)?, ReportFormat::Table)?;
    let sql = "SELECT b.firmware, c.code, count(DISTINCT b.vin) AS vehicles, sum(c.count) AS count \
               FROM error_counts c JOIN batches b USING (batch_id) GROUP BY 1, 2 ORDER BY 1, 4 DESC, 2";
    let response: Value = post(&client, &format!("{base}/api/v1/query"), &json!({"sql": sql})).await?;
    writeln!(out, "\nThe whole fleet, by firmware:\n")?;
    for row in response["rows"].as_array().into_iter().flatten() {
        let text = |index: usize| row[index].as_str().unwrap_or_default().to_owned();
        writeln!(out, "  {:<6}  {:<20}  {:>3} vehicles  {:>6} times", text(0), text(1), row[2], row[3])?;
    }
    writeln!(
        out,
        "\nTo see more:\n  curl {base}/api/v1/batches/{last}/report\n  curl '{base}/api/v1/batches/{last}/errors?limit=3'"
    )?;
    if !args.once {
        writeln!(out, "\nPress Ctrl-C to stop Argus and delete the data.")?;
        tokio::signal::ctrl_c().await?;
    }
    fleet.server.stop().await
}

/// Creates the batch of a vehicle, uploads its files and completes it; returns the batch id.
async fn upload(client: &Client, api: &str, vehicle: usize) -> Result<String> {
    let new_firmware = vehicle % 2 == 1;
    let batch = json!({
        "vehicle_id": format!("demo-{vehicle}"),
        "vin": format!("WVWZZZ1JZXW{vehicle:06}"),
        "platform": "demo",
        "firmware": if new_firmware { "7.2.1" } else { "7.2.0" },
        "expected_files": FILES.len(),
    });
    let batch = post(client, &format!("{api}/batches"), &batch).await?;
    let id = batch["id"].as_str().context("the created batch has no id")?.to_owned();
    for (number, name) in FILES.iter().enumerate() {
        let mut random = Random::new((vehicle * FILES.len() + number) as u64);
        // The new firmware fails more often, and with codes that the old one does not have.
        let (per_mille, kinds): (u64, &[usize]) = if new_firmware { (12, &[0, 3, 4, 5, 10]) } else { (4, &[0, 5, 6]) };
        let mut log = Vec::new();
        write_log(&mut log, FILE_BYTES, &mut random, per_mille, kinds)?;
        let response = client.put(format!("{api}/batches/{id}/files/{name}")).body(log).send().await?;
        if !response.status().is_success() {
            bail!("the upload of {name} failed: {}", response.text().await?);
        }
    }
    let done = post(client, &format!("{api}/batches/{id}/complete"), &Value::Null).await?;
    let epoch = &done["epoch"];
    get(client, &format!("{api}/batches/{id}/report?min_epoch={epoch}&top=1")).await?;
    Ok(id)
}

async fn post(client: &Client, url: &str, body: &Value) -> Result<Value> {
    Ok(client.post(url).json(body).send().await?.error_for_status()?.json().await?)
}

async fn get(client: &Client, url: &str) -> Result<Value> {
    Ok(client.get(url).send().await?.error_for_status()?.json().await?)
}

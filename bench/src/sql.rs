//! Questions in SQL over a fleet, as people ask them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::client::Connection;
use crate::latency::Latencies;
use crate::results::{Measurement, Run};
use crate::server::Server;
use crate::vehicles::{FleetArgs, Vehicles};

/// Flags of `argus-bench sql`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    fleet: FleetArgs,
    /// Seconds for which each question is asked again and again.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

/// What is asked, by name. `BATCH` stands for a batch.
const QUESTIONS: [(&str, &str); 6] = [
    ("all sightings", "SELECT sum(count) FROM error_counts"),
    (
        "codes of a batch",
        "SELECT code, sum(count) FROM error_counts WHERE batch_id = 'BATCH' GROUP BY code ORDER BY 2 DESC",
    ),
    (
        "codes by firmware",
        "SELECT b.firmware, c.code, count(DISTINCT b.vin) AS vehicles, sum(c.count) AS times \
         FROM error_counts c JOIN batches b USING (batch_id) GROUP BY 1, 2 ORDER BY 4 DESC LIMIT 20",
    ),
    (
        "lines with a code",
        "SELECT batch_id, file, line, text FROM errors WHERE code = 'SIGSEGV' ORDER BY batch_id, file, line LIMIT 100",
    ),
    (
        "codes by hour",
        "SELECT date_trunc('hour', ts) AS hour, code, count(*) FROM errors GROUP BY 1, 2 ORDER BY 1, 3 DESC",
    ),
    ("fleet codes", "SELECT firmware, code, sum(count) FROM fleet_codes GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 20"),
];

/// Asks each question for some time, once the first has been answered with the truth.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), args.fleet.workers)?;
    let vehicles = Vehicles::upload(server.address(), &args.fleet)?;
    let (batch, _) = vehicles.batches.first().context("a fleet has batches")?;
    let mut connection = Connection::open(server.address())?;
    let truth: u64 = vehicles.truth().codes.values().sum();
    let rows = ask(&mut connection, QUESTIONS[0].1)?;
    ensure!(rows == json!([[truth]]), "SQL counts {rows}, and the truth is {truth}");
    for (name, question) in QUESTIONS {
        let question = question.replace("BATCH", batch);
        let begun = Instant::now();
        let mut times = Vec::new();
        while times.is_empty() || begun.elapsed() < Duration::from_secs(u64::from(args.seconds)) {
            let asked = Instant::now();
            // Another text, so that it is computed and not found.
            ask(&mut connection, &format!("{question} -- {}", times.len()))?;
            times.push(asked.elapsed());
        }
        Latencies::new(times).report(run, "sql", name, [None, None]);
    }
    run.add(Measurement::lower("sql", "server", (server.stop() >> 20) as f64, "MiB"));
    run.remark(format!("sql: {} batches with {truth} sightings", vehicles.batches.len()));
    Ok(())
}

/// The rows of the answer.
fn ask(connection: &mut Connection, question: &str) -> Result<Value> {
    let mut answer = connection.post("/api/v1/query", &json!({ "sql": question }))?;
    let rows = answer["rows"].take();
    ensure!(rows.get(0).is_some(), "no row answers {question}");
    Ok(rows)
}

//! Typical SQL queries over a fleet.

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
    /// Duration for each query, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: u16,
}

/// The queries by name. `BATCH` is replaced by the id of a batch.
const QUERIES: [(&str, &str); 6] = [
    ("all occurrences", "SELECT sum(count) FROM error_counts"),
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

/// Checks the result of the first query, then repeats each query for some time.
pub fn measure(run: &mut Run, args: &Args) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let server = Server::start(&folder.path().join("data"), args.fleet.workers)?;
    let vehicles = Vehicles::upload(server.address(), &args.fleet)?;
    let (batch, _) = vehicles.batches.first().context("the fleet has no batches")?;
    let mut connection = Connection::open(server.address())?;
    let truth: u64 = vehicles.truth().codes.values().sum();
    let rows = query(&mut connection, QUERIES[0].1)?;
    ensure!(rows == json!([[truth]]), "the SQL result is {rows}, expected {truth}");
    for (name, sql) in QUERIES {
        let sql = sql.replace("BATCH", batch);
        let begun = Instant::now();
        let mut times = Vec::new();
        while times.is_empty() || begun.elapsed() < Duration::from_secs(u64::from(args.seconds)) {
            let sent = Instant::now();
            // A different text each time, so that the result is not cached.
            query(&mut connection, &format!("{sql} -- {}", times.len()))?;
            times.push(sent.elapsed());
        }
        Latencies::new(times).report(run, "sql", name, [None, None]);
    }
    run.add(Measurement::lower("sql", "server", (server.stop() >> 20) as f64, "MiB"));
    run.remark(format!("sql: {} batches with {truth} occurrences", vehicles.batches.len()));
    Ok(())
}

/// The rows of the result.
fn query(connection: &mut Connection, sql: &str) -> Result<Value> {
    let mut response = connection.post("/api/v1/query", &json!({ "sql": sql }))?;
    let rows = response["rows"].take();
    ensure!(rows.get(0).is_some(), "the result of {sql} has no rows");
    Ok(rows)
}

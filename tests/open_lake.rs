//! External readers (DuckDB, Polars) get the same sums from the lake.

mod common;

use std::path::Path;
use std::process::Command;

use common::python::python;
use common::{Server, argus};
use reqwest::Method;
use serde_json::{Value, json};

/// Sums over the views that are stored next to the tables, by DuckDB (over the files that the package `deltalake`
/// lists) and by Polars.
const SCRIPT: &str = r#"
import json, sys, duckdb
from deltalake import DeltaTable
lake = sys.argv[1]
db = duckdb.connect()
for table in ("files", "error_counts", "errors", "batches", "fleet"):
    delta = DeltaTable(f"{lake}/{table}")
    assert "README.md" in delta.metadata().description, table
    uris = [uri.removeprefix("file://") for uri in delta.file_uris()]
    db.sql(f"CREATE VIEW lake_{table} AS SELECT * FROM read_parquet({uris!r})")
db.execute(open(f"{lake}/views.sql").read())
rows = lambda sql: db.sql(sql).fetchall()
sums = {
    "counts": rows("SELECT code, CAST(sum(count) AS BIGINT) FROM error_counts GROUP BY code ORDER BY code"),
    "errors": rows("SELECT code, count(*) FROM errors GROUP BY code ORDER BY code"),
    "lines": rows("SELECT CAST(sum(lines) AS BIGINT) FROM files"),
    "batches": rows("SELECT count(*) FROM batches WHERE status = 'completed'"),
    "fleet": rows("SELECT code, CAST(sum(count) AS BIGINT) FROM fleet_codes GROUP BY code ORDER BY code"),
    "vehicles": rows("SELECT vin, batches FROM vehicles ORDER BY vin"),
}
sys.path.insert(0, lake)
import polars as pl, polars_views
tables = polars_views.tables(lake)
by_code = lambda name, sum: tables[name].group_by("code").agg(sum.cast(pl.Int64)).sort("code").collect().rows()
polars = {
    "counts": by_code("error_counts", pl.col("count").sum()),
    "errors": by_code("errors", pl.len()),
    "lines": tables["files"].select(pl.col("lines").sum()).collect().rows(),
    "batches": tables["batches"].filter(pl.col("status") == "completed").select(pl.len()).collect().rows(),
    "fleet": by_code("fleet_codes", pl.col("count").sum()),
    "vehicles": tables["vehicles"].select("vin", pl.col("batches").cast(pl.Int64)).sort("vin").collect().rows(),
}
assert json.dumps(polars) == json.dumps(sums), (polars, sums)
print(json.dumps(sums))
"#;

/// The sums that the script reads in the lake of a data directory.
fn read(data: &Path) -> Value {
    let output = Command::new(python()).args(["-c", SCRIPT]).arg(data.join("lake")).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The same sums from the server.
async fn server_sums(server: &Server) -> Value {
    let counts = server.sql("SELECT code, sum(count) FROM error_counts GROUP BY code ORDER BY code").await;
    let errors = server.sql("SELECT code, count(*) FROM errors GROUP BY code ORDER BY code").await;
    let fleet = server.sql("SELECT code, sum(count) FROM fleet_codes GROUP BY code ORDER BY code").await;
    let lines = server.sql("SELECT sum(lines) FROM files").await;
    let batches = server.sql("SELECT count(*) FROM batches WHERE status = 'completed'").await;
    let vehicles = server.sql("SELECT vin, batches FROM vehicles ORDER BY vin").await;
    json!({"counts": counts, "errors": errors, "fleet": fleet, "lines": lines, "batches": batches, "vehicles": vehicles})
}

#[tokio::test]
async fn duckdb_and_polars_read_the_same_sums() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut ids = Vec::new();
    for number in 0..3 {
        let id = server.new_batch().await;
        server.put(&id, "a.log", "E_FAIL\n".repeat(10)).await;
        server.put(&id, "a.log", "E_FAIL and SIGSEGV\n".repeat(number + 1)).await;
        // Large enough that its occurrences are written before it is accepted.
        server.put(&id, "b.log", "2026-03-01 10:15:30 ERROR ota: E_ABORT\n".repeat(60_000)).await;
        server.complete(&id).await;
        ids.push(id);
    }
    let ours = server_sums(&server).await;
    server.stop();
    let expected = json!([["E_ABORT", 180_000], ["E_FAIL", 6], ["SIGSEGV", 6]]);
    assert_eq!(ours["counts"], expected);
    assert_eq!(read(data.path()), ours);

    // The same after appends, a reopened batch and deletions.
    let server = Server::start(data.path());
    for part in ["E_TIMEOUT\n", "E_TIM", "EOUT\nE_"] {
        let stream = server.new_batch().await;
        server.send(Method::POST, &format!("/batches/{stream}/files/s.log/lines"), part).await;
        server.send(Method::POST, &format!("/batches/{stream}/files/s.log/lines"), "FAIL\nE_FAIL").await;
        server.complete(&stream).await;
    }
    server.send(Method::DELETE, &format!("/batches/{}", ids[0]), "").await;
    server.send(Method::POST, &format!("/batches/{}/reopen", ids[1]), "").await;
    server.send(Method::DELETE, &format!("/batches/{}/files/b.log", ids[1]), "").await;
    let ours = server_sums(&server).await;
    assert_eq!((&ours["counts"], &ours["batches"]), (&ours["fleet"], &json!([[4]])));
    server.stop();
    assert_eq!(read(data.path()), ours);
    let path = data.path().to_str().expect("text");
    for retention in ["7d", "0s"] {
        assert!(argus(&["maintain", "--data", path, "--retention", retention], b"").status.success());
        assert_eq!(read(data.path()), ours, "compacted with {retention}");
    }
}

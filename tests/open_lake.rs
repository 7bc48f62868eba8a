//! The lake is open: readers that are not ours see the same sums.

mod common;

use std::path::Path;
use std::process::Command;

use common::python::python;
use common::{Server, argus};
use reqwest::Method;
use serde_json::{Value, json};

/// Sums by code of live generations, read by the Python package `deltalake`
/// (which knows the tables' files) and DuckDB (which knows SQL).
const SCRIPT: &str = r#"
import json, sys, duckdb
from deltalake import DeltaTable
files = {t: DeltaTable(f"{sys.argv[1]}/{t}").file_uris() for t in ("files", "error_counts", "errors", "batches", "fleet")}
db = duckdb.connect()
for table, uris in files.items():
    db.sql(f"CREATE VIEW {table} AS SELECT * FROM read_parquet({[u.removeprefix('file://') for u in uris]!r})")
live = "(SELECT version FROM files GROUP BY version HAVING sum(live) > 0)"
rows = lambda sql: db.sql(sql).fetchall()
print(json.dumps({
    "counts": rows(f"SELECT code, CAST(sum(count) AS BIGINT) FROM error_counts WHERE version IN {live} GROUP BY code ORDER BY code"),
    "errors": rows(f"SELECT code, count(*) FROM errors WHERE version IN {live} GROUP BY code ORDER BY code"),
    "lines": rows(f"SELECT CAST(sum(lines) AS BIGINT) FROM files WHERE version IN {live}"),
    "batches": rows("SELECT count(*) FROM (SELECT batch_id FROM batches GROUP BY batch_id HAVING sum(completed) > 0)"),
    "fleet": rows("""SELECT code, CAST(sum(live * count) AS BIGINT) FROM fleet WHERE subject = 'component'
                     GROUP BY code HAVING sum(live * count) > 0 ORDER BY code"""),
}))
"#;

/// What they read in the lake of a data directory.
fn read(data: &Path) -> Value {
    let output = Command::new(python()).args(["-c", SCRIPT]).arg(data.join("lake")).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What we say of the same.
async fn say(server: &Server) -> Value {
    let counts = server.sql("SELECT code, sum(count) FROM error_counts GROUP BY code ORDER BY code").await;
    let errors = server.sql("SELECT code, count(*) FROM errors GROUP BY code ORDER BY code").await;
    let fleet = server.sql("SELECT code, sum(count) FROM fleet_codes GROUP BY code ORDER BY code").await;
    let lines = server.sql("SELECT sum(lines) FROM files").await;
    let batches = server.sql("SELECT count(*) FROM batches WHERE status = 'completed'").await;
    json!({"counts": counts, "errors": errors, "fleet": fleet, "lines": lines, "batches": batches})
}

#[tokio::test]
async fn duckdb_and_deltalake_read_the_same_sums() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let mut ids = Vec::new();
    for number in 0..3 {
        let id = server.new_batch().await;
        server.put(&id, "a.log", "E_FAIL\n".repeat(10)).await;
        server.put(&id, "a.log", "E_FAIL and SIGSEGV\n".repeat(number + 1)).await;
        // Large enough that its sightings are written before it is accepted.
        server.put(&id, "b.log", "2026-03-01 10:15:30 ERROR ota: E_ABORT\n".repeat(60_000)).await;
        server.complete(&id).await;
        ids.push(id);
    }
    let ours = say(&server).await;
    server.stop();
    let expected = json!([["E_ABORT", 180_000], ["E_FAIL", 6], ["SIGSEGV", 6]]);
    assert_eq!(ours["counts"], expected);
    assert_eq!(read(data.path()), ours);

    // The same after everything is taken back that can be.
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
    let ours = say(&server).await;
    assert_eq!((&ours["counts"], &ours["batches"]), (&ours["fleet"], &json!([[4]])));
    server.stop();
    assert_eq!(read(data.path()), ours);
    let path = data.path().to_str().expect("text");
    for retention in ["7d", "0s"] {
        assert!(argus(&["maintain", "--data", path, "--retention", retention], b"").status.success());
        assert_eq!(read(data.path()), ours, "compacted with {retention}");
    }
}

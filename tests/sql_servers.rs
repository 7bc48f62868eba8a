//! SQL through every server: HTTP in four formats, PostgreSQL, Flight SQL, and the command line.

mod common;

use std::process::Command;

use common::python::python;
use common::{Server, VIN, argus};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const FLAGS: [&str; 4] = ["--pg", "127.0.0.1:0", "--flight", "127.0.0.1:0"];

/// A server with one code three times and another once.
async fn server(data: &std::path::Path) -> Server {
    let server = Server::start_with(data, &FLAGS);
    let id = server.new_batch_of(json!({"vehicle_id": "v", "vin": VIN, "firmware": "7.2.1"})).await;
    server.put(&id, "a.log", "2026-03-01 10:15:30 E_FAIL\nE_FAIL\nE_FAIL and SIGSEGV\n").await;
    server.complete(&id).await;
    server
}

const SUMS: &str = "SELECT code, sum(count) AS n FROM error_counts GROUP BY code ORDER BY code";

#[tokio::test]
async fn rows_are_returned_in_the_requested_format() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = server(data.path()).await;
    let ask = async |accept: &str, body: Value| {
        server.send_with(Method::POST, "/query", &[("accept", accept)], body.to_string().into_bytes()).await
    };
    let csv = ask("text/csv", json!({"sql": SUMS})).await;
    assert_eq!(csv.headers()["content-type"], "text/csv");
    assert_eq!(csv.headers()["argus-truncated"], "false");
    assert_eq!(csv.headers()["argus-limit"], "10000");
    assert_eq!(csv.text().await.expect("text"), "code,n\nE_FAIL,3\nSIGSEGV,1\n");
    // Other formats report truncation in headers, cached or not.
    for _ in 0..2 {
        let cut = ask("text/csv", json!({"sql": SUMS, "limit": 1})).await;
        assert_eq!(cut.headers()["argus-truncated"], "true");
        assert!(cut.headers().contains_key("argus-epoch"));
        let tag = cut.headers()["etag"].to_str().expect("text").to_owned();
        assert_eq!(cut.text().await.expect("text"), "code,n\nE_FAIL,3\n");
        let headers = [("accept", "text/csv"), ("if-none-match", &*tag)];
        let asked = json!({"sql": SUMS, "limit": 1}).to_string().into_bytes();
        let known = server.send_with(Method::POST, "/query", &headers, asked).await;
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    }
    let json = ask("application/json;q=0.5, */*;q=0.1", json!({"sql": SUMS, "limit": 1})).await;
    let json: Value = json.json().await.expect("JSON");
    assert_eq!((&json["rows"], &json["truncated"]), (&json!([["E_FAIL", 3]]), &json!(true)));
    assert_eq!(json["columns"][0], json!({"name": "code", "type": "Utf8"}));
    let arrow = ask("application/vnd.apache.arrow.stream", json!({"sql": SUMS})).await;
    let arrow = arrow.bytes().await.expect("bytes");
    let arrow = arrow::ipc::reader::StreamReader::try_new(&arrow[..], None).expect("it is Arrow");
    assert_eq!(arrow.map(|rows| rows.expect("rows").num_rows()).sum::<usize>(), 2);
    let parquet = ask("application/vnd.apache.parquet", json!({"sql": SUMS})).await.bytes().await.expect("bytes");
    let parquet = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(parquet);
    assert_eq!(parquet.expect("it is Parquet").metadata().file_metadata().num_rows(), 2);
    assert_eq!(ask("image/png", json!({"sql": SUMS})).await.status(), StatusCode::NOT_ACCEPTABLE);
    // A result that is too large for the cache is streamed, and complete.
    let long = ask("text/csv", json!({"sql": "SELECT value FROM generate_series(1, 200000)", "limit": 150000})).await;
    assert_eq!(long.text().await.expect("text").lines().count(), 150_001);
}

#[tokio::test]
async fn every_table_and_column_has_a_comment() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = server(data.path()).await;
    let tables = "SELECT table_name, comment FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1";
    let tables = server.sql(tables).await;
    let names: Vec<&Value> = tables.as_array().expect("rows").iter().map(|row| &row[0]).collect();
    assert_eq!(
        json!(names),
        json!(["batches", "catalog", "error_counts", "errors", "files", "fleet_codes", "vehicles"])
    );
    assert!(tables.as_array().expect("rows").iter().all(|row| row[1].is_string()), "{tables}");
    let uncommented = "SELECT table_name, column_name FROM information_schema.columns \
                  WHERE table_schema = 'public' AND coalesce(comment, '') = ''";
    assert_eq!(server.sql(uncommented).await, json!([]));
    let first =
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'files' AND ordinal_position = 1";
    assert_eq!(server.sql(first).await, json!([["batch_id"]]));
    let known =
        "SELECT c.meaning, c.severity FROM error_counts e JOIN catalog c ON c.rule = e.rule WHERE e.code = 'SIGSEGV'";
    assert_eq!(server.sql(known).await, json!([["a signal that killed a process", "error"]]));
    let binned = "SELECT date_bin(INTERVAL '1 day', ts) AS day, count(*) FROM errors WHERE ts IS NOT NULL GROUP BY day";
    assert_eq!(server.sql(binned).await, json!([["2026-03-01T00:00:00Z", 1]]));
}

const CLIENTS: &str = r#"
import asyncio, json, sys, warnings
import adbc_driver_flightsql.dbapi, asyncpg, psycopg, pyarrow.flight
warnings.simplefilter("ignore")
pg, flight, sums = sys.argv[1:4]
results = {}
host, port = pg.split(":")
with psycopg.connect(f"host={host} port={port} user=anybody dbname=argus", autocommit=True) as c:
    results["psycopg"] = c.execute(sums).fetchall()
    results["parameter"] = c.execute("SELECT sum(count) FROM error_counts WHERE code = %s", ("E_FAIL",)).fetchall()
    def refused(sql):
        try:
            c.execute(sql)
        except psycopg.Error as e:
            return e.sqlstate
    results["refused"] = [refused(sql) for sql in (
        "DROP TABLE files", "INSERT INTO files VALUES (1)", "CREATE TABLE t AS SELECT 1", "SELECT 1 INTO t",
        "COPY files TO '/tmp/argus-test.csv'", "SET datafusion.runtime.memory_limit = '100G'", "SELECT nothing FROM files")]
async def ask():
    c = await asyncpg.connect(f"postgresql://anybody@{pg}/argus")
    rows = [tuple(row) for row in await c.fetch(sums)]
    count = await c.fetchval("SELECT count(*) FROM errors WHERE code = $1 AND line >= $2", "E_FAIL", 2)
    await c.close()
    return rows, count
results["asyncpg"], results["asyncpg_parameters"] = asyncio.run(ask())
with adbc_driver_flightsql.dbapi.connect(f"grpc://{flight}") as c:
    cursor = c.cursor()
    cursor.execute(sums)
    results["adbc"] = [tuple(row.values()) for row in cursor.fetch_arrow_table().to_pylist()]
    cursor.execute("SELECT sum(count) FROM error_counts WHERE code = ? AND count >= ?", ("E_FAIL", 2))
    results["adbc_parameters"] = cursor.fetchall()
    cursor.execute("SELECT code FROM error_counts WHERE code <> $1", ("E_FAIL",))
    results["adbc_numbered"] = cursor.fetchall()
    cursor.execute("SELECT " + ", ".join(f"CAST(${i} AS BIGINT)" for i in range(1, 12)), tuple(range(1, 12)))
    results["adbc_many"] = cursor.fetchall()
    cursor.execute("SELECT [1, 2] AS l, {'a': 1} AS s, grouping(code) AS g FROM error_counts GROUP BY ROLLUP(code) ORDER BY g LIMIT 1")
    results["adbc_constants"] = cursor.fetchall()
    cursor.execute("SELECT count(*) FROM error_counts WHERE code = ? OR CAST(? AS VARCHAR) IS NULL", ("none", None))
    results["adbc_null"] = cursor.fetchall()
    try:
        cursor.execute("SELECT count(*) FROM error_counts WHERE code = ? AND count = ?", ("E_FAIL",))
        results["adbc_one_of_two"] = cursor.fetchall()
    except Exception as e:
        results["adbc_one_of_two"] = str(e)
    results["vendor"] = c.adbc_get_info()["vendor_name"]
    objects = c.adbc_get_objects(depth="tables").read_all().to_pylist()
    results["tables"] = [t["table_name"] for o in objects for s in o["catalog_db_schemas"] for t in s["db_schema_tables"]]
    try:
        cursor.execute("DROP TABLE files")
        results["adbc_refused"] = False
    except Exception:
        results["adbc_refused"] = True
# A forged handle that claims a length of 2 GiB.
url, handle = b"type.googleapis.com/arrow.flight.protocol.sql.TicketStatementQuery", bytes.fromhex("00000000ffffffffffffff7f")
part = lambda field, value: bytes([field << 3 | 2, len(value)]) + value
try:
    pyarrow.flight.connect(f"grpc://{flight}").do_get(pyarrow.flight.Ticket(part(1, url) + part(2, part(1, handle)))).read_all()
    results["forged"] = ""
except Exception as e:
    results["forged"] = str(e)
print(json.dumps(results))
"#;

#[tokio::test]
async fn clients_of_other_protocols_read_the_same_rows_and_write_none() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = server(data.path()).await;
    let (pg, flight) = (server.sql_address("postgres").await, server.sql_address("flight").await);
    let output = Command::new(python()).args(["-c", CLIENTS, &pg, &flight, SUMS]).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sums = json!([["E_FAIL", 3], ["SIGSEGV", 1]]);
    assert_eq!((&results["psycopg"], &results["asyncpg"], &results["adbc"]), (&sums, &sums, &sums));
    assert_eq!((&results["parameter"], &results["asyncpg_parameters"]), (&json!([[3]]), &json!(2)));
    let refused = json!(["25006", "25006", "25006", "25006", "25006", "25006", "42703"]);
    assert_eq!((&results["refused"], &results["adbc_refused"]), (&refused, &json!(true)));
    assert_eq!((&results["adbc_parameters"], &results["adbc_numbered"]), (&json!([[3]]), &json!([["SIGSEGV"]])));
    assert_eq!(
        (&results["adbc_many"], &results["adbc_null"]),
        (&json!([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]), &json!([[2]]))
    );
    assert_eq!(results["adbc_constants"], json!([[[1, 2], {"a": 1}, 0]]));
    let one_of_two = results["adbc_one_of_two"].as_str().unwrap_or_default();
    assert!(one_of_two.contains("No value found for placeholder with id $2"), "{one_of_two}");
    assert!(results["forged"].as_str().is_some_and(|error| error.contains("the handle is invalid")), "{results}");
    assert_eq!(results["vendor"], "Argus");
    assert_eq!(
        results["tables"],
        json!(["batches", "catalog", "error_counts", "errors", "files", "fleet_codes", "vehicles"])
    );
    let (host, port) = pg.split_once(':').expect("an address");
    let psql = Command::new("psql")
        .args(["-h", host, "-p", port, "-U", "anybody", "-At", "-c", "\\d", "-c", "\\d batches", "argus"])
        .output()
        .expect("psql runs");
    let listed = String::from_utf8_lossy(&psql.stdout).into_owned();
    assert!(psql.status.success() && psql.stderr.is_empty(), "{}", String::from_utf8_lossy(&psql.stderr));
    assert!(listed.contains("public|error_counts|table") && listed.contains("vin|text"), "{listed}");
    server.stop();
}

#[tokio::test]
async fn the_command_line_queries_a_server_as_it_queries_a_directory() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = server(data.path()).await;
    let base = server.root_url("");
    let rows = "code,n\nE_FAIL,3\nSIGSEGV,1\n";
    let asked = argus(&["sql", "--server", &base, SUMS], b"");
    assert_eq!(String::from_utf8_lossy(&asked.stdout), rows, "{}", String::from_utf8_lossy(&asked.stderr));
    let piped = argus(&["sql", "--server", &base], format!("{SUMS};\n").as_bytes());
    assert_eq!(String::from_utf8_lossy(&piped.stdout), rows);
    let refused = argus(&["sql", "--server", &base, "DROP TABLE files"], b"");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("only a single query"));
    server.stop();
    let stopped = argus(&["sql", "--server", &base, SUMS], b"");
    assert!(stopped.status.code() == Some(1) && String::from_utf8_lossy(&stopped.stderr).contains("cannot reach"));
    let path = data.path().to_str().expect("text");
    assert_eq!(String::from_utf8_lossy(&argus(&["sql", "--data", path, SUMS], b"").stdout), rows);
}

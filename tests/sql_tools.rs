//! Tools that use SQL over the PostgreSQL protocol, as their users run them: SQLAlchemy, pandas, psycopg, asyncpg,
//! ADBC, JDBC and psql.

mod common;

use std::process::Command;

use common::Server;
use common::python::python;
use serde_json::{Value, json};

const LINES: &str = "2026-03-01T10:15:30Z ERROR upd: DTC P0A1F-87 stored\n\
                     2026-03-01T10:15:31Z ERROR upd: DTC P0A80-00 cleared\n\
                     9999-12-31T23:59:59Z WARN x: E_FAIL\n";

/// A server with three occurrences, one of them with a clock in the year 9999, and its PostgreSQL address.
async fn server(data: &std::path::Path) -> (Server, String) {
    let server = Server::start_with(data, &["--pg", "127.0.0.1:0"]);
    let batch = json!({
        "vehicle_id": "veh-1", "vin": "WVWZZZ1JZXW000001", "firmware": "7.2.1", "labels": {"site": "north"}
    });
    let id = server.new_batch_of(batch).await;
    server.put(&id, "a.log", LINES).await;
    let pg = server.sql_address("postgres").await;
    (server, pg)
}

/// Runs a Python script with the address; returns its `results`.
fn run_script(script: &str, pg: &str) -> Value {
    let before = "import json, sys\npg = sys.argv[1]\nresults = {}\n";
    let script = format!("{before}{script}\nprint(json.dumps(results))\n");
    let output = Command::new(python()).args(["-c", &script, pg]).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlalchemy_and_pandas_connect_reflect_and_read() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let script = r#"
import asyncio, pandas
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
engine = sa.create_engine(f"postgresql+psycopg://anybody@{pg}/argus")
seen = sa.inspect(engine)
results["tables"] = sorted(seen.get_table_names())
results["views"] = seen.get_view_names()
results["schemas"] = seen.get_schema_names()
results["columns"] = [[c["name"], str(c["type"])] for c in seen.get_columns("errors")][3:6]
results["keys"] = [seen.get_pk_constraint("errors")["constrained_columns"], seen.get_foreign_keys("errors"), seen.get_indexes("errors")]
results["reflected"] = len(sa.Table("errors", sa.MetaData(), autoload_with=engine).columns)
with engine.begin() as c:
    results["counts"] = [list(row) for row in c.execute(sa.text("SELECT code, count(*), count(*) FROM errors GROUP BY code ORDER BY code"))]
    try:
        with c.begin_nested():
            c.execute(sa.text("SELECT nosuch FROM errors"))
    except sa.exc.SQLAlchemyError:
        results["after a savepoint"] = c.execute(sa.text("SELECT 1")).scalar()
results["read"] = pandas.read_sql("SELECT code, line FROM errors ORDER BY line", engine).values.tolist()
results["table"] = list(pandas.read_sql_table("errors", engine).shape)
with engine.connect().execution_options(stream_results=True) as c:
    results["chunks"] = [len(part) for part in pandas.read_sql("SELECT * FROM errors", c, chunksize=2)]
async def with_asyncpg():
    async with create_async_engine(f"postgresql+asyncpg://anybody@{pg}/argus").connect() as c:
        rows = await c.execute(sa.text("SELECT code FROM errors WHERE line >= :line ORDER BY line"), {"line": 2})
        return [row[0] for row in rows]
results["asyncpg"] = asyncio.run(with_asyncpg())
"#;
    let results = run_script(script, &pg);
    let tables = ["batches", "catalog", "error_counts", "errors", "files", "fleet_codes", "vehicles"];
    assert_eq!(
        (&results["tables"], &results["views"], &results["schemas"]),
        (&json!(tables), &json!([]), &json!(["public"]))
    );
    assert_eq!(results["columns"], json!([["offset", "BIGINT"], ["ts", "TIMESTAMP"], ["ts_plausible", "BOOLEAN"]]));
    assert_eq!((&results["keys"], &results["reflected"]), (&json!([[], [], []]), &json!(13)));
    assert_eq!(results["counts"], json!([["E_FAIL", 1, 1], ["P0A1F-87", 1, 1], ["P0A80-00", 1, 1]]));
    assert_eq!(results["after a savepoint"], 1);
    assert_eq!(results["read"], json!([["P0A1F-87", 1], ["P0A80-00", 2], ["E_FAIL", 3]]));
    assert_eq!((&results["table"], &results["chunks"]), (&json!([3, 13]), &json!([2, 1])));
    assert_eq!(results["asyncpg"], json!(["P0A80-00", "E_FAIL"]));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_copied_and_cursors_read_to_their_end() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let script = r#"
import asyncio, asyncpg, io, psycopg
import adbc_driver_postgresql.dbapi as adbc
url = f"postgresql://anybody@{pg}/argus"
copy = lambda c, sql: b"".join(bytes(part) for part in c.cursor().copy(sql).__enter__()).decode()
with psycopg.connect(url) as c:
    with c.cursor(name="some") as cursor:
        cursor.execute("SELECT code FROM errors ORDER BY line")
        results["cursor"] = [[row[0] for row in cursor.fetchmany(2)] for _ in range(3)]
    with c.cursor().copy("COPY (SELECT code, line FROM errors ORDER BY line) TO STDOUT") as rows:
        results["text"] = b"".join(rows).decode()
    with c.cursor().copy("COPY (SELECT line, code FROM errors ORDER BY line) TO STDOUT (FORMAT csv, HEADER)") as rows:
        results["csv"] = b"".join(rows).decode()
    with c.cursor().copy("/* a tool */ COPY (SELECT 'a''''b' AS one, 'a' AS two) TO STDOUT") as rows:
        results["quotes"] = b"".join(rows).decode()
    results["nothing"] = c.execute("SELECT code, code FROM errors WHERE text = 'a\\'' OR 1=1 --'").fetchall()
    for number in range(50):
        c.execute(f"DECLARE unread{number} CURSOR FOR SELECT * FROM errors")
    with psycopg.connect(url) as other:
        results["with open cursors"] = other.execute("SELECT count(*) FROM errors").fetchone()[0]
    try:
        c.execute("COPY errors FROM STDIN")
    except psycopg.Error as error:
        results["copy from"] = error.sqlstate
async def with_asyncpg():
    c = await asyncpg.connect(url)
    rows = io.BytesIO()
    await c.copy_from_query("SELECT code FROM errors WHERE line = $1", 3, output=rows, format="csv")
    async with c.transaction():
        return rows.getvalue().decode(), [row["code"] async for row in c.cursor("SELECT code FROM errors ORDER BY line")]
results["asyncpg"] = asyncio.run(with_asyncpg())
with adbc.connect(url) as c, c.cursor() as cursor:
    cursor.execute("SELECT code, line, ts, active FROM errors ORDER BY line")
    rows = cursor.fetch_arrow_table().to_pylist()
    results["adbc"] = [[row["code"], row["line"], row["ts"].isoformat(), row["active"]] for row in rows]
"#;
    let results = run_script(script, &pg);
    assert_eq!(results["cursor"], json!([["P0A1F-87", "P0A80-00"], ["E_FAIL"], []]));
    assert_eq!(results["text"], "P0A1F-87\t1\nP0A80-00\t2\nE_FAIL\t3\n");
    assert_eq!(results["csv"], "line,code\n1,P0A1F-87\n2,P0A80-00\n3,E_FAIL\n");
    assert_eq!(results["quotes"], "a''b\ta\n");
    assert_eq!((&results["nothing"], &results["with open cursors"]), (&json!([]), &json!(3)));
    assert_eq!(results["copy from"], "25006");
    assert_eq!(results["asyncpg"], json!(["E_FAIL\n", ["P0A1F-87", "P0A80-00", "E_FAIL"]]));
    let expected = json!([
        ["P0A1F-87", 1, "2026-03-01T10:15:30+00:00", true],
        ["P0A80-00", 2, "2026-03-01T10:15:31+00:00", false],
        ["E_FAIL", 3, "9999-12-31T23:59:59+00:00", true]
    ]);
    assert_eq!(results["adbc"], expected);
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn jdbc_reads_the_catalog_and_rows() {
    const DRIVER: &str = "/usr/share/java/postgresql.jar";
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/Jdbc.java");
    let output = Command::new("java").args(["-cp", DRIVER, program, &pg]).output().expect("java runs");
    let [stdout, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let expected = "tables 7\ncolumns 13\nschemas true\ncatalogs 1\ntypes true\nkeys 0\nimported 0\nindexes 0\n\
                    functions 0\nP0A80-00 2 false\nE_FAIL 3 true\nfetched 3\n";
    assert_eq!(stdout, expected, "{errors}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_meta_commands_report_no_error() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let (host, port) = pg.split_once(':').expect("host and port");
    let commands = [
        "\\d",
        "\\d errors",
        "\\d+",
        "\\d+ errors",
        "\\dt",
        "\\dt+",
        "\\dv",
        "\\di",
        "\\du",
        "\\df",
        "\\dn",
        "\\dn+",
        "\\dT",
        "\\db",
        "\\l",
        "\\z errors",
        "\\conninfo",
        "\\encoding",
    ];
    for command in commands {
        let arguments = ["-X", "-w", "-A", "-h", host, "-p", port, "-U", "anybody", "-c", command, "argus"];
        let output = Command::new("psql").args(arguments).output().expect("psql runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success() && !text.contains("ERROR"), "{command}: {text}");
    }
    server.stop();
}

/// Syntax that DataFusion reads differently works as in PostgreSQL, or is refused by name.
#[tokio::test(flavor = "multi_thread")]
async fn statements_mean_the_same_as_in_postgresql() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let (host, port) = pg.split_once(':').expect("host and port");
    let table = [
        ("SELECT version()", "PostgreSQL 16."),
        ("SELECT count(*) FROM errors WHERE code SIMILAR TO 'P0A(1F|80)-_%'", "2"),
        ("SELECT to_char(ts, 'YYYY-MM-DD HH24:MI') FROM errors ORDER BY line LIMIT 1", "2026-03-01 10:15"),
        ("SELECT ts AT TIME ZONE 'Europe/Berlin' FROM errors ORDER BY line LIMIT 1", "2026-03-01 11:15:30"),
        ("SELECT TIMESTAMP '2026-03-01 11:15:30' AT TIME ZONE 'Europe/Berlin'", "2026-03-01 10:15:30.000000+00"),
        ("SELECT extract(epoch FROM interval '1.5 seconds')", "1.5"),
        ("SELECT date_trunc('year', ts) FROM errors ORDER BY line DESC LIMIT 1", "9999-01-01 00:00:00"),
        (
            "SELECT date_bin('1 hour', ts, TIMESTAMP '2000-01-01') FROM errors ORDER BY line DESC LIMIT 1",
            "9999-12-31 23:00:00",
        ),
        ("SELECT count(*) FROM errors WHERE now() - ts < interval '0'", "1"),
        ("SELECT labels ->> 'site' FROM batches", "north"),
        ("SELECT * FROM generate_series(DATE '2026-03-01', DATE '2026-03-03', INTERVAL '1 day')", "2026-03-03"),
        ("EXPLAIN SELECT code FROM errors", "SubqueryAlias: errors"),
        ("SELECT * FROM errors TABLESAMPLE SYSTEM (10)", "ERROR:  TABLESAMPLE is not supported"),
        ("SELECT to_char(ts, 'Q') FROM errors", "ERROR:  to_char does not know the pattern"),
        ("SET TIME ZONE 'Europe/Berlin'", "ERROR:  times are always in UTC"),
        ("SELECT * FROM error", "ERROR:  there is no table error; there are batches, files"),
    ];
    for (sql, expected) in table {
        let arguments = ["-X", "-w", "-A", "-t", "-h", host, "-p", port, "-U", "anybody", "-c", sql, "argus"];
        let output = Command::new("psql").args(arguments).output().expect("psql runs");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains(expected), "{sql}: {text}");
        assert!(!text.contains(".parquet"), "{sql}: {text}");
    }
    server.stop();
}

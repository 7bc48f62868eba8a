//! Clients of the PostgreSQL protocol: settings, prepared statements, cursors, cancel, limits, and malicious clients.

mod common;

use std::time::Duration;

use common::python::python;
use common::{Deadline, Server, argus, data_files};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A server with the codes of one file, and its PostgreSQL address.
async fn server(data: &std::path::Path) -> (Server, String) {
    let server = Server::start_with(data, &["--pg", "127.0.0.1:0"]);
    let id = server.new_batch().await;
    server.put(&id, "a.log", "E_FAIL\nSIGSEGV\n").await;
    server.complete(&id).await;
    let pg = server.sql_address("postgres").await;
    (server, pg)
}

/// Runs a Python script with a function `refused` (the SQLSTATE of a call that fails), the address and `more`; returns
/// its `results`.
async fn run_script(script: &str, pg: &str, more: &str) -> Value {
    let script = format!("{PRELUDE}{script}\nprint(json.dumps(results))\n");
    let mut command = tokio::process::Command::new(python());
    let output = command.args(["-c", &script, pg, more]).kill_on_drop(true).output();
    let output = timeout(LONG, output).await.expect("it ends").expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const PRELUDE: &str = r#"
import asyncio, json, sys, threading, urllib.request
import asyncpg, psycopg
pg, more = sys.argv[1:]
url = f"postgresql://anybody@{pg}/argus"
results = {}
def refused(run, *what, **how):
    try:
        run(*what, **how)
        return ""
    except psycopg.Error as e:
        return e.sqlstate
"#;

#[tokio::test]
async fn settings_of_one_user_of_a_pooled_connection_are_reset_for_the_next() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let script = r#"
async def borrow():
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        for name in "first", "second":
            async with pool.acquire() as c:
                seen = await c.fetchval("SHOW application_name"), await c.fetchval("SELECT 1")
                await c.execute(f"SET application_name = '{name}'")
    return seen
results["pool"] = asyncio.run(borrow())
with psycopg.connect(url + "?application_name=mine", autocommit=True) as c:
    shown = lambda: [c.execute("SHOW application_name").fetchone()[0], c.info.parameter_status("application_name")]
    results["set"], results["reset"] = [], []
    for sql in "RESET statement_timeout", 'RESET "application_name"', "RESET ALL", "DISCARD ALL":
        for prepare in False, True:
            c.execute("SET application_name = 'other'")
            results["set"].append(shown())
            c.execute(sql, prepare=prepare)
            results["reset"].append(shown())
    results["others"] = [refused(c.execute, sql) for sql in ("DISCARD TEMP", "UNLISTEN *", "CLOSE ALL", "LISTEN x")]
"#;
    let results = run_script(script, &pg, "").await;
    assert_eq!(results["pool"], json!(["", 1]));
    let (other, mine) = (["other"; 2], ["mine"; 2]);
    assert_eq!(results["set"], json!(vec![other; 8]));
    assert_eq!(results["reset"], json!([other, other, mine, mine, mine, mine, mine, mine]));
    assert_eq!(results["others"], json!(["", "", "", "25006"]));
    server.stop();
}

#[tokio::test]
async fn statements_stay_prepared_until_they_are_closed_up_to_a_thousand() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let script = r#"
with psycopg.connect(url, autocommit=True) as c:
    c.execute("SELECT 1", prepare=True)
    results["closed"] = [refused(c.execute, sql) for sql in (
        "DEALLOCATE nothing", "CLOSE nothing", "DEALLOCATE _pg3_0", "SELECT 1")]
with psycopg.connect(url, autocommit=True) as c:
    c.prepared_max = None
    # A statement that fails is not prepared.
    results["failed"] = list({refused(c.execute, f"SELECT nothing_{i}", prepare=True) for i in range(1100)})
    results["prepared"] = list({refused(c.execute, f"SELECT {i}", prepare=True) for i in range(1000)})
    results["full"] = [refused(c.execute, f"SELECT {i}", prepare=True) for i in (1000, 0)]
    c.execute("DEALLOCATE ALL")
    results["emptied"] = refused(c.execute, "SELECT 1000", prepare=True)
"#;
    let results = run_script(script, &pg, "").await;
    assert_eq!(results["closed"], json!(["26000", "34000", "", "26000"]));
    assert_eq!((&results["failed"], &results["prepared"]), (&json!(["42703"]), &json!([""])));
    assert_eq!((&results["full"], &results["emptied"]), (&json!(["53400", ""]), &json!("")));
    server.stop();
}

#[tokio::test]
async fn cursors_are_read_in_parts_and_end_with_their_transaction() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    // More open cursors than queries may run at the same time: an idle cursor releases its permit.
    let script = r#"
async def read_in_parts():
    c = await asyncpg.connect(url)
    endless = "SELECT value FROM generate_series(1, 1000000000000) WHERE value > $1"
    async with c.transaction():
        cursors = [await c.cursor(endless, 0) for _ in range(6)]
        parts = [await cursor.fetch(2) for _ in range(2) for cursor in cursors]
        results["parts"] = [len({row[0] for part in parts[index::6] for row in part}) for index in range(6)]
    await c.close()
asyncio.run(read_in_parts())
"#;
    let results = run_script(script, &pg, "").await;
    assert_eq!(results["parts"], json!([4, 4, 4, 4, 4, 4]));
    // More portals, one after another, than a connection keeps.
    let mut client = BufReader::new(TcpStream::connect(&pg).await.expect("it connects"));
    let statement = b"s\0SELECT 1\0\0\0";
    let mut messages = [startup(), message(b'P', statement.len(), statement)].concat();
    for number in 0..1100 {
        let bind = format!("p{number}\0s\0\0\0\0\0\0\0");
        messages.extend([message(b'B', bind.len(), bind.as_bytes()), message(b'S', 0, b"")].concat());
    }
    client.write_all(&messages).await.expect("it is taken");
    count(&mut client, b'R').await;
    for _ in 0..1100 {
        assert_eq!(count(&mut client, b'2').await, 1, "it is bound");
    }
    // Describing a portal after its transaction is an error (E).
    let bind = b"p\0s\0\0\0\0\0\0\0";
    let [begin, commit] = [&b"BEGIN\0"[..], b"COMMIT\0"].map(|sql| message(b'Q', sql.len(), sql));
    let describe = [message(b'D', 3, b"Pp\0"), message(b'S', 0, b"")].concat();
    let messages = [begin, message(b'B', bind.len(), bind), describe.clone(), commit, describe].concat();
    client.write_all(&messages).await.expect("it is taken");
    let mut errors = Vec::new();
    for _ in 0..4 {
        errors.push(count(&mut client, b'E').await);
    }
    assert_eq!(errors, [0, 0, 0, 1]);
    server.stop();
}

#[tokio::test]
async fn running_queries_keep_their_permits_and_one_more_waits() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let script = r#"
computed = lambda: urllib.request.urlopen(more).read().decode().split('argus_computed_total{kind="sql"} ')[1].split()[0]
clients = [psycopg.connect(url, autocommit=True) for _ in range(5)]
clients[4].execute("SET statement_timeout = 6000")
endless = "SELECT count(*) FROM generate_series(1, 1000000000000)"
runs = [threading.Thread(target=refused, args=(c.execute, endless), daemon=True) for c in clients[:4]]
for one in runs: one.start()
while computed() != "4": pass
results["one more"] = refused(clients[4].execute, "SELECT 1")
for c in clients[:4]: c.cancel_safe()
for one in runs: one.join()
results["then"] = refused(clients[4].execute, "SELECT 1")
"#;
    let results = run_script(script, &pg, &server.root_url("/metrics")).await;
    assert_eq!(results, json!({"one more": "57014", "then": ""}));
    server.stop();
}

#[tokio::test]
async fn queries_end_by_cancel_or_timeout_and_row_errors_have_sqlstates() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let script = r#"
endless = "SELECT count(*) FROM generate_series(1, 1000000000000)"
computed = lambda: [line for line in urllib.request.urlopen(more).read().decode().splitlines() if 'kind="sql"' in line]
with psycopg.connect(url, autocommit=True) as c:
    results["cancelled"] = []
    join = "SELECT count(*) FROM generate_series(0, 1000000) a, generate_series(0, 10000000) b WHERE a.value * b.value % 7 = -1"
    for sql, how in (endless, {}), (endless, {"prepare": True}), (join, {}), (join, {"prepare": True}):
        before = computed()
        def cancel():
            while computed() == before: pass
            c.cancel_safe()
        canceller = threading.Thread(target=cancel, daemon=True)
        canceller.start()
        results["cancelled"].append(refused(c.execute, sql, **how))
        canceller.join()
        # A cancel that arrives too late ends nothing.
        c.cancel_safe()
        results["cancelled"].append(refused(c.execute, "SELECT 1"))
    # DataFusion restarts such a join when memory is short, and crashes.
    results["large"] = [refused(c.execute, sql) for sql in (
        "SELECT count(*) FROM generate_series(0, 2000) a, generate_series(0, 2000) b, generate_series(0, 2000) c "
        "WHERE a.value + b.value + c.value = -1", "SELECT 1", "SELECT * FROM lake.errors", "SELECT nothing(1)", "SELEC")]
    c.execute("BEGIN")
    results["aborted"] = [refused(c.execute, sql) for sql in ("SELECT nope", "SELECT 1", "ROLLBACK", "SELECT 1")]
    results["late"] = [refused(c.execute, sql) for sql in (
        "SELECT 1 / (value - 5000) FROM generate_series(1, 10000)", "SET statement_timeout = 100", endless, "SELECT 1")]
"#;
    let results = run_script(script, &pg, &server.root_url("/metrics")).await;
    assert_eq!(results["cancelled"], json!(["57014", "", "57014", "", "57014", "", "57014", ""]));
    assert_eq!(results["large"], json!(["53200", "", "42P01", "42883", "42601"]));
    assert_eq!(results["aborted"], json!(["42703", "25P02", "", ""]));
    assert_eq!(results["late"], json!(["22012", "", "57014", ""]));
    server.stop();
}

/// The first message of a client of the PostgreSQL protocol.
fn startup() -> Vec<u8> {
    let startup = [&196_608_u32.to_be_bytes()[..], b"user\0anybody\0database\0argus\0\0"].concat();
    let length = u32::try_from(startup.len() + 4).expect("it is short");
    [&length.to_be_bytes()[..], &startup].concat()
}

/// Whether one more client is accepted; it disconnects again.
async fn is_accepted(address: &str) -> bool {
    let mut client = TcpStream::connect(address).await.expect("it connects");
    client.write_all(&startup()).await.expect("it is taken");
    client.read_u8().await.is_ok_and(|kind| kind == b'R')
}

/// Sends a cancel request for an unknown query, and waits until the server closes the connection.
async fn cancel(address: &str) {
    let mut canceller = TcpStream::connect(address).await.expect("it connects");
    let cancel = [16_u32, 80_877_102, 1, 1].map(u32::to_be_bytes).concat();
    canceller.write_all(&cancel).await.expect("it is taken");
    let mut bytes = Vec::new();
    let ended = timeout(LONG, canceller.read_to_end(&mut bytes));
    assert!(ended.await.is_ok_and(|read| read.is_ok()), "a cancel ends");
}

/// A message of a client: its kind, the length that it declares (without the length field), and its body.
fn message(kind: u8, length: usize, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length + 4).expect("it is an i32");
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

/// Messages that run a statement and fetch at most `max_rows` rows.
fn execute(sql: &str, max_rows: i32) -> Vec<u8> {
    let parse = [b"\0", sql.as_bytes(), b"\0\0\0"].concat();
    let execute = [&b"\0"[..], &max_rows.to_be_bytes()].concat();
    let messages = [(b'P', &parse[..]), (b'B', b"\0\0\0\0\0\0\0\0"), (b'E', &execute), (b'S', b"")];
    messages.map(|(kind, body)| message(kind, body.len(), body)).concat()
}

/// Reads up to the next `ReadyForQuery`; returns the number of messages of a kind before it.
async fn count(client: &mut BufReader<TcpStream>, kind: u8) -> usize {
    let mut count = 0;
    loop {
        let heard = client.read_u8().await.expect("the server goes on");
        let length = client.read_u32().await.expect("a length");
        tokio::io::copy(&mut (&mut *client).take(u64::from(length) - 4), &mut tokio::io::sink()).await.expect("a body");
        match heard {
            b'Z' => return count,
            heard => count += usize::from(heard == kind),
        }
    }
}

/// The most memory that a process ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    peak.expect("a number")
}

#[tokio::test]
async fn rows_are_streamed_for_any_maximum_that_a_client_sends() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let mut client = BufReader::new(TcpStream::connect(&pg).await.expect("it connects"));
    client.write_all(&startup()).await.expect("it is taken");
    count(&mut client, b'R').await;
    for (most, rows) in [(0, 3), (i32::MAX, 3), (-1, 3), (2, 2)] {
        client.write_all(&execute("SELECT value FROM generate_series(1, 3)", most)).await.expect("it is taken");
        assert_eq!(count(&mut client, b'D').await, rows, "of at most {most}");
    }
    let before = peak_kib(server.pid());
    // 200 MB of text.
    let long = format!("SELECT '{}' FROM generate_series(1, 200000)", "x".repeat(1000));
    client.write_all(&execute(&long, 0)).await.expect("it is taken");
    assert_eq!(timeout(LONG, count(&mut client, b'D')).await.expect("it ends"), 200_000);
    let more = peak_kib(server.pid()) - before;
    assert!(more < 128 << 10, "{more} KiB");
    server.stop();
}

/// The number of rows in the files of a table of the lake, with deleted rows that are not compacted yet.
fn rows_in_lake(data: &std::path::Path, table: &str) -> String {
    let sql = format!("SELECT count(*) AS rows FROM lake.{table}");
    let output = argus(&["sql", "--data", data.to_str().expect("text"), "--format", "csv", &sql], b"");
    // Files may be deleted while they are read; then there is no output.
    String::from_utf8_lossy(&output.stdout).replace("rows\n", "").trim().to_owned()
}

#[tokio::test]
async fn a_slow_client_gets_every_row_while_compaction_deletes_the_files_it_reads() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start_maintained(data.path(), "20", &["--pg", "127.0.0.1:0", "--retention", "0s"]);
    let id = server.new_batch().await;
    // Each commit creates a data file. Together they have far more rows than are computed ahead of a client.
    let names: Vec<String> = (0..7).map(|number| format!("{number}.log")).collect();
    for name in &names {
        server.put(&id, name, "E_FAIL\n".repeat(3000)).await;
        server.committed().await;
    }
    let pg = server.sql_address("postgres").await;
    let mut client = BufReader::new(TcpStream::connect(&pg).await.expect("it connects"));
    client.write_all(&startup()).await.expect("it is taken");
    count(&mut client, b'R').await;
    let execute = |max_rows: i32| {
        let execute = [&b"p\0"[..], &max_rows.to_be_bytes()].concat();
        [message(b'E', execute.len(), &execute), message(b'S', 0, b"")].concat()
    };
    let parse = b"\0SELECT line, text FROM errors\0\0\0";
    let messages = [(b'Q', &b"BEGIN\0"[..]), (b'P', parse), (b'B', b"p\0\0\0\0\0\0\0\0")];
    let messages = messages.map(|(kind, body)| message(kind, body.len(), body)).concat();
    client.write_all(&[messages, execute(1)].concat()).await.expect("it is taken");
    count(&mut client, b'C').await;
    assert_eq!(count(&mut client, b'D').await, 1);
    // When the last file is replaced, the round of maintenance that replaced the others is over.
    for (deleted, left) in [(&names[..6], "3000"), (&names[6..], "0")] {
        for name in deleted {
            let answer = server.send(Method::DELETE, &format!("/batches/{id}/files/{name}"), "").await;
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        }
        let deadline = Deadline::new(format!("{left} rows in the lake"));
        while rows_in_lake(data.path(), "errors") != left {
            deadline.check();
        }
    }
    client.write_all(&execute(0)).await.expect("it is taken");
    assert_eq!(count(&mut client, b'D').await, 7 * 3000 - 1);
    // The files have no reader any more.
    drop(client);
    let deadline = Deadline::new("the deletion of all data files");
    while !data_files(data.path(), "errors").is_empty() {
        deadline.check();
        assert_eq!(server.sql("SELECT count(*) FROM errors").await, json!([[0]]));
    }
    server.stop();
}

#[tokio::test]
async fn one_client_too_many_is_refused_and_a_cancel_is_still_accepted() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = TcpStream::connect(&pg).await.expect("it connects");
        client.write_all(&startup()).await.expect("it is taken");
        // R: it is accepted.
        assert_eq!(client.read_u8().await.expect("an answer"), b'R');
        clients.push(client);
    }
    assert_eq!(fatal_error(&pg, &[]).await, "53300");
    cancel(&pg).await;
    drop(clients.pop());
    // Its slot is free once the server has seen the disconnect.
    let slot = async { while !is_accepted(&pg).await {} };
    timeout(LONG, slot).await.expect("it ends");
    server.stop();
}

#[tokio::test]
async fn silent_connections_do_not_block_new_clients() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(&pg).await.expect("it connects"));
    }
    assert!(is_accepted(&pg).await);
    cancel(&pg).await;
    // The connections that were silent for longest are closed.
    let ended = silent[0].read_u8().await.expect_err("no data");
    assert_eq!(ended.kind(), std::io::ErrorKind::UnexpectedEof);
    server.stop();
}

/// Sends messages; returns the SQLSTATE of the server's fatal error.
async fn fatal_error(address: &str, messages: &[Vec<u8>]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it connects");
    stream.write_all(&startup()).await.expect("it is taken");
    for message in messages {
        // The server need not read from a client that it has refused.
        if stream.write_all(message).await.is_err() {
            break;
        }
    }
    let mut bytes = Vec::new();
    let read = timeout(LONG, stream.read_to_end(&mut bytes));
    // The connection may be reset because of data that was not read.
    let _ = read.await.expect("the connection ends");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let state =
        text.rfind("SFATAL").and_then(|fatal| text[fatal..].split('\0').find_map(|field| field.strip_prefix('C')));
    state.unwrap_or(&text).to_owned()
}

#[tokio::test]
async fn oversized_and_malformed_messages_are_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let (server, pg) = server(data.path()).await;
    let long = message(b'Q', 1 << 30, &[b'x'; 1 << 20]);
    assert_eq!(fatal_error(&pg, &[long]).await, "54000");
    assert_eq!(fatal_error(&pg, &[b"Q\0\0\0\x01".to_vec()]).await, "08P01");
    cancel(&pg).await;
    assert_eq!(server.sql("SELECT 1").await, json!([[1]]));
    server.stop();
}

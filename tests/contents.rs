//! What the API shows of files, lines, vehicles and the fleet over time, and the events of all batches.

mod common;

use common::{Deadline, Server, VIN, argus, gzip};
use futures::StreamExt;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

const LOG: &str = "2026-03-01 10:00:00 INFO [main] ota.Download - one\n\
                   2026-03-01 10:00:01 ERROR [main] bms.Monitor - DTC P0A1F-87 stored\r\n\
                   2026-03-01 10:30:00 INFO [main] ota.Download - three\n\
                   2026-03-01 11:00:00 WARN [main] ota.Flash - install failed with E_FAIL\n\
                   last";

async fn start() -> (TempDir, Server, String) {
    let data = TempDir::new().expect("a folder");
    let server = Server::start(data.path());
    let described =
        json!({"vehicle_id": "veh-1", "vin": VIN, "firmware": "7.2.1", "platform": "mk4", "labels": {"site": "a&b"}});
    let batch = server.new_batch_of(described).await;
    (data, server, batch)
}

async fn request(server: &Server, path: &str, headers: &[(&str, &str)]) -> Response {
    server.send_with(Method::GET, path, headers, Vec::new()).await
}

async fn text(server: &Server, path: &str) -> String {
    let answer = request(server, path, &[]).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.text().await.expect("text")
}

#[tokio::test]
async fn a_file_is_read_by_bytes_and_by_lines() {
    let (_data, server, batch) = start().await;
    let path = |name: &str| format!("/batches/{batch}/files/{name}");
    server.put(&batch, "a.log", LOG).await;
    let (to, body) = (path("b.log"), gzip(LOG.as_bytes()));
    let receipt = server.send_with(Method::PUT, &to, &[("Content-Encoding", "gzip")], body).await;
    assert!(receipt.status().is_success());
    // A file that is compressed itself: its text is not what was sent.
    let sent = gzip(LOG.as_bytes());
    server.put(&batch, "c.log.gz", sent.clone()).await;
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(LOG.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    server.put(&batch, "d.log", utf16.clone()).await;
    for part in ["one\ntwo", "\nthree\n"] {
        let appended = server.send(Method::POST, &format!("{}/lines", path("e.log")), part).await;
        assert_eq!(appended.status(), StatusCode::OK);
    }
    for name in ["a.log", "b.log", "c.log.gz", "d.log"] {
        assert_eq!(text(&server, &path(name)).await, LOG, "{name}");
    }
    assert_eq!(text(&server, &path("e.log")).await, "one\ntwo\nthree\n");
    let raw = async |name: &str| request(&server, &format!("{}?raw=true", path(name)), &[]).await.bytes().await;
    assert_eq!(raw("c.log.gz").await.expect("bytes"), sent);
    assert_eq!(raw("d.log").await.expect("bytes"), utf16);

    assert_eq!(
        text(&server, &format!("{}?from_line=2&lines=2", path("a.log"))).await,
        LOG.split_inclusive('\n').skip(1).take(2).collect::<String>()
    );
    assert_eq!(text(&server, &format!("{}?from_line=5", path("a.log"))).await, "last");
    assert_eq!(text(&server, &format!("{}?from_line=6", path("a.log"))).await, "");

    let ranged = request(&server, &path("c.log.gz"), &[("Range", "bytes=5-9")]).await;
    assert_eq!(ranged.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(ranged.headers()["content-range"], format!("bytes 5-9/{}", LOG.len()));
    assert_eq!(ranged.text().await.expect("text"), LOG[5..10]);
    let beyond = request(&server, &path("a.log"), &[("Range", "bytes=9999-")]).await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.headers()["content-range"], format!("bytes */{}", LOG.len()));

    let whole = request(&server, &path("a.log"), &[]).await;
    assert_eq!(whole.headers()["x-content-type-options"], "nosniff");
    assert_eq!(whole.headers()["content-type"], "text/plain; charset=utf-8");
    let tag = whole.headers()["etag"].to_str().expect("text").to_owned();
    assert_eq!(request(&server, &path("a.log"), &[("If-None-Match", &tag)]).await.status(), StatusCode::NOT_MODIFIED);
    server.put(&batch, "a.log", "other\n").await;
    let known = [("If-None-Match", tag.as_str()), ("If-Range", tag.as_str()), ("Range", "bytes=0-0")];
    let other = request(&server, &path("a.log"), &known).await;
    assert_eq!((other.status(), other.text().await.expect("text").as_str()), (StatusCode::OK, "other\n"));

    for (query, status) in [
        ("nothing.log", StatusCode::NOT_FOUND),
        ("a.log?from_line=0", StatusCode::UNPROCESSABLE_ENTITY),
        ("a.log?raw=true&lines=1", StatusCode::UNPROCESSABLE_ENTITY),
        ("a.log?lines=x", StatusCode::UNPROCESSABLE_ENTITY),
        ("a.log?unknown=1", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let answer = request(&server, &path(query), &[]).await;
        assert_eq!(answer.status(), status, "{query}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{query}");
    }
    server.stop();
}

#[tokio::test]
async fn appended_lines_are_read_wherever_they_are_stored() {
    let (data, server, batch) = start().await;
    let path = format!("/batches/{batch}/files/a.log");
    server.put(&batch, "a.log", "zero\n").await;
    let parts: Vec<String> = (1..50).map(|part| format!("line {part}\n")).collect();
    for part in &parts {
        let appended = server.send(Method::POST, &format!("{path}/lines"), part.clone()).await;
        assert_eq!(appended.status(), StatusCode::OK);
    }
    let whole = format!("zero\n{}", parts.concat());
    assert_eq!(text(&server, &path).await, whole);
    assert_eq!(text(&server, &format!("{path}?from_line=41&lines=2")).await, "line 40\nline 41\n");
    let ranged = request(&server, &path, &[("Range", "bytes=-8")]).await;
    assert_eq!(ranged.text().await.expect("text"), "line 49\n");
    // Maintenance moves the parts of a completed batch to the raw store.
    server.complete(&batch).await;
    server.stop();
    assert!(argus(&["maintain", "--data", data.path().to_str().expect("text")], b"").status.success());
    let server = Server::start(data.path());
    assert_eq!(text(&server, &path).await, whole);
    // One part stays in the metadata, after those in the raw store.
    assert!(server.send(Method::POST, &format!("/batches/{batch}/reopen"), "").await.status().is_success());
    let appended = server.send(Method::POST, &format!("{path}/lines"), "last\n").await;
    assert_eq!(appended.status(), StatusCode::OK);
    assert_eq!(text(&server, &format!("{path}?from_line=50")).await, "line 49\nlast\n");
    server.stop();
}

#[tokio::test]
async fn files_are_listed_page_by_page() {
    let (_data, server, batch) = start().await;
    for name in ["b.log", "a.log", "ü, \"c\".log"] {
        server.put(&batch, &name.replace(' ', "%20").replace('"', "%22"), LOG).await;
    }
    let path = format!("/batches/{batch}/files");
    let first = server.get(&format!("{path}?limit=2")).await;
    let names = |page: &Value| -> Vec<String> {
        let files = page["files"].as_array().expect("files").iter();
        files.map(|file| file["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&first), ["a.log", "b.log"]);
    let file = &first["files"][0];
    assert_eq!((&file["lines"], &file["bytes"], &file["generation"]), (&json!(5), &json!(LOG.len()), &json!(1)));
    let cursor = first["next_cursor"].as_str().expect("there is more");
    let second = server.get(&format!("{path}?limit=2&cursor={cursor}")).await;
    assert_eq!(names(&second), ["ü, \"c\".log"]);
    assert!(second["next_cursor"].is_null());
    let csv = request(&server, &format!("{path}?limit=1&cursor={cursor}"), &[("Accept", "text/csv")]).await;
    assert_eq!(csv.headers()["content-type"], "text/csv; charset=utf-8");
    let csv = csv.text().await.expect("text");
    assert!(csv.starts_with("name,file_id,") && csv.contains("\r\n\"ü, \"\"c\"\".log\","), "{csv}");
    for query in ["limit=0", "cursor=zz"] {
        let answer = request(&server, &format!("{path}?{query}"), &[]).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{query}");
    }
    server.stop();
}

#[tokio::test]
async fn lines_with_codes_are_filtered_and_shown_with_their_neighbours() {
    let (_data, server, batch) = start().await;
    server.put(&batch, "a.log", LOG).await;
    let last = server.put(&batch, "b.log", gzip(LOG.as_bytes())).await;
    let path = format!("/batches/{batch}/errors");
    let page = server.get(&format!("{path}?context=2&min_epoch={}", last["epoch"])).await;
    let errors = page["errors"].as_array().expect("errors");
    assert_eq!(errors.len(), 4);
    for first in [&errors[0], &errors[2]] {
        assert_eq!((&first["code"], &first["line"]), (&json!("P0A1F-87"), &json!(2)));
        let line = |number: usize| json!(LOG.lines().nth(number - 1).expect("a line"));
        assert_eq!(first["before"], json!([line(1)]));
        assert_eq!(first["after"], json!([line(3), line(4)]));
    }
    assert_eq!(errors[1]["after"], json!(["last"]));
    let count = async |query: &str| {
        let page = server.get(&format!("{path}?{query}")).await;
        page["errors"].as_array().map_or(0, Vec::len)
    };
    for (query, lines) in [
        ("", 4),
        ("level=warn", 2),
        ("level=Error", 2),
        ("component=bms.Monitor", 2),
        ("component=bms.Monitor&level=warn", 0),
        (
            "severity=critical",
            server.sql("SELECT count(*) FROM errors WHERE severity = 'critical'").await[0][0].as_u64().unwrap_or(9),
        ),
        ("since=2026-03-01T10:30:00Z", 2),
        ("until=2026-03-01T10:30:00Z", 2),
        ("since=2026-03-01T10:00:01Z&until=2026-03-01T11:00:00Z&file=a.log", 1),
    ] {
        assert_eq!(count(query).await as u64, lines, "{query}");
    }
    let page = server.get(&format!("{path}?limit=1")).await;
    assert!(page["errors"][0].get("before").is_none());
    for query in ["context=51", "context=50&limit=100", "severity=bad", "level=loud", "since=yesterday", "limit=0"] {
        let answer = request(&server, &format!("{path}?{query}"), &[]).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{query}");
    }
    let csv =
        request(&server, &format!("{path}?file=a.log"), &[("Accept", "text/csv")]).await.text().await.expect("text");
    assert_eq!(csv.lines().count(), 3, "{csv}");
    server.stop();
}

/// All pages of the lines of a batch: place, code, severity, level and text of each.
async fn all_lines(server: &Server, path: &str) -> Vec<Value> {
    let (mut lines, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("{path}{cursor}")).await;
        let shown = ["file", "line", "code", "severity", "level", "component", "text"];
        let errors = page["errors"].as_array().expect("errors");
        lines.extend(errors.iter().map(|line| shown.iter().map(|name| line[name].clone()).collect::<Value>()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return lines,
        }
    }
}

/// The lines and the timelines of a batch equal what SQL answers.
async fn assert_as_sql(server: &Server, batch: &str, limit: usize) {
    for (query, wanted) in [
        ("", ""),
        ("&code=E_FAIL", " AND code = 'E_FAIL'"),
        ("&level=warn", " AND level = 'warning'"),
        ("&component=bms.Monitor&severity=error", " AND component = 'bms.Monitor' AND severity = 'error'"),
        (
            "&since=2026-03-01T10:00:01Z&until=2026-03-01T11:00:00Z&file=a.log",
            " AND file = 'a.log' AND ts_plausible AND ts >= '2026-03-01T10:00:01Z' AND ts < '2026-03-01T11:00:00Z'",
        ),
    ] {
        let lines = all_lines(server, &format!("/batches/{batch}/errors?limit={limit}{query}")).await;
        let from = format!("FROM errors WHERE batch_id = '{batch}'{wanted}");
        let columns = "file, line, code, severity, level, component, text";
        // An answer of SQL has at most 10,000 rows.
        let rows = server.sql(&format!("SELECT {columns} {from} ORDER BY file, line, code LIMIT 1000")).await;
        let rows = rows.as_array().expect("rows");
        assert!(lines.starts_with(rows) && !rows.is_empty(), "{query}: {:?}", lines.first());
        assert_eq!(server.sql(&format!("SELECT count(*) {from}")).await, json!([[lines.len()]]), "{query}");
    }
    for group in ["severity", "component", "code"] {
        let timeline = format!("/fleet/timeline?batch_id={batch}&bucket=30m&group_by={group}&limit=10000");
        let buckets = server.get(&timeline).await["buckets"].take();
        let buckets = buckets.as_array().expect("buckets").iter();
        let buckets: Value = buckets.map(|row| json!([row["at"], row["group"], row["count"], 1, 1])).collect();
        let rows = server
            .sql(&format!(
                "SELECT date_bin(INTERVAL '30 minutes', ts, TIMESTAMP '1970-01-01T00:00:00Z') AS at, {group}, count(*), 1, 1 \
                 FROM errors WHERE batch_id = '{batch}' AND ts_plausible GROUP BY 1, 2 ORDER BY 1, 2"
            ))
            .await;
        assert_eq!(buckets, rows, "{group}");
    }
}

#[tokio::test]
async fn lines_of_a_batch_are_those_of_sql_in_small_and_large_batches() {
    let (data, server, batch) = start().await;
    server.put(&batch, "a.log", LOG).await;
    server.put(&batch, "b.log", LOG.replace("E_FAIL", "E_OTHER")).await;
    server.put(&batch, "b.log", "E_FAIL without time, P0301 too\n").await;
    server.put(&batch, "gone.log", LOG).await;
    for part in ["2026-03-01 12:00:00 ERROR E_FAIL", " and P0302-11\n2026-03-01 12:00:01 E_", "LATE\nE_OPEN"] {
        let path = format!("/batches/{batch}/files/c.log/lines");
        assert_eq!(server.send(Method::POST, &path, part).await.status(), StatusCode::OK);
    }
    let gone = format!("/batches/{batch}/files/gone.log");
    assert!(server.send(Method::DELETE, &gone, "").await.status().is_success());
    let last = server.put(&batch, "d.log", "P0303\n").await;
    server.get(&format!("/batches/{batch}/report?min_epoch={}", last["epoch"])).await;
    assert_as_sql(&server, &batch, 2).await;
    server.committed().await;
    server.stop();
    let server = Server::start(data.path());
    assert_as_sql(&server, &batch, 3).await;
    // More occurrences than a look-up reads.
    let many: String =
        (0..10_001).map(|n| format!("2026-03-01 10:{:02}:00 WARN [x] y - E_FAIL {n}\n", n % 60)).collect();
    let receipt = server.put(&batch, "many.log", many).await;
    server.get(&format!("/batches/{batch}/report?min_epoch={}", receipt["epoch"])).await;
    assert_as_sql(&server, &batch, 1000).await;
    server.stop();
}

#[tokio::test]
async fn the_fleet_is_filtered_and_counted_over_time() {
    let (_data, server, batch) = start().await;
    server.put(&batch, "a.log", LOG).await;
    let other = json!({"vehicle_id": "veh-2", "vin": "WVWZZZ1JZXW000002", "firmware": "7.2.0", "platform": "mk3"});
    let other = server.new_batch_of(other).await;
    let last = server
        .put(
            &other,
            "a.log",
            "2026-03-02 09:59:59 ERROR x: E_FAIL\n2026-03-02 10:00:00 ERROR x: E_FAIL\nE_FAIL without time\n",
        )
        .await;
    let epoch = last["epoch"].as_u64().expect("an epoch");
    let fleet =
        async |query: &str| server.get(&format!("/fleet/codes?min_epoch={epoch}&{query}")).await["codes"].take();
    let count = |codes: &Value, code: &str| -> u64 {
        let codes = codes.as_array().expect("codes").iter().filter(|entry| entry["code"] == code);
        codes.filter_map(|entry| entry["count"].as_u64()).sum()
    };
    for (query, fails, dtcs) in [
        ("", 4, 1),
        ("firmware=7.2.0", 3, 0),
        ("platform=mk4", 1, 1),
        ("label.site=a%26b", 1, 1),
        ("label.site=other", 0, 0),
        ("component=bms.Monitor", 0, 1),
        ("since=2026-03-02T10:00:00Z", 1, 0),
        ("firmware=7.2.1&until=2026-03-01T11:00:00Z", 0, 1),
    ] {
        let codes = fleet(query).await;
        assert_eq!((count(&codes, "E_FAIL"), count(&codes, "P0A1F-87")), (fails, dtcs), "{query}: {codes}");
    }
    let timeline =
        async |query: &str| server.get(&format!("/fleet/timeline?min_epoch={epoch}&{query}")).await["buckets"].take();
    let rows = |buckets: &Value| -> Value {
        buckets
            .as_array()
            .expect("buckets")
            .iter()
            .map(|row| json!([row["at"], row["group"], row["count"], row["vehicles"]]))
            .collect()
    };
    assert_eq!(
        rows(&timeline("").await),
        json!([
            ["2026-03-01T10:00:00Z", null, 1, 1],
            ["2026-03-01T11:00:00Z", null, 1, 1],
            ["2026-03-02T09:00:00Z", null, 1, 1],
            ["2026-03-02T10:00:00Z", null, 1, 1]
        ])
    );
    assert_eq!(
        rows(&timeline("bucket=1d&code=E_FAIL&group_by=firmware").await),
        json!([["2026-03-01T00:00:00Z", "7.2.1", 1, 1], ["2026-03-02T00:00:00Z", "7.2.0", 2, 1]])
    );
    assert_eq!(
        rows(&timeline("bucket=1d&of=batches&group_by=platform").await),
        json!([["2026-03-01T00:00:00Z", "mk4", 1, 1], ["2026-03-02T00:00:00Z", "mk3", 1, 1]])
    );
    assert_eq!(
        rows(&timeline(&format!("bucket=1d&batch_id={batch}&label.site=a%26b")).await),
        json!([["2026-03-01T00:00:00Z", null, 2, 1]])
    );
    for query in ["bucket=0s", "bucket=x", "group_by=moon", "of=batches&code=E_FAIL", "of=all", "batch_id=x"] {
        let answer = request(&server, &format!("/fleet/timeline?{query}"), &[]).await;
        assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY, "{query}");
    }
    let csv = request(&server, "/fleet/timeline?bucket=1d&code=P0A1F-87", &[("Accept", "text/csv")]).await;
    assert_eq!(csv.text().await.expect("text"), "at,group,count,batches,vehicles\r\n2026-03-01T00:00:00Z,,1,1,1\r\n");
    let csv =
        request(&server, "/fleet/codes?firmware=7.2.1", &[("Accept", "text/csv")]).await.text().await.expect("text");
    assert!(csv.starts_with("code,group,vin,count,") && csv.lines().count() == 3, "{csv}");
    let compared = request(&server, "/fleet/compare?firmware=7.2.0&against=7.2.1", &[("Accept", "text/csv")]).await;
    assert!(compared.text().await.expect("text").lines().any(|line| line.starts_with("E_FAIL,")));

    let vehicles = server.get("/vehicles").await;
    assert_eq!(vehicles["vehicles"].as_array().map(Vec::len), Some(2));
    assert_eq!(server.get("/vehicles?firmware=7.2.0").await["vehicles"][0]["vehicle_id"], "veh-2");
    let page = server.get("/vehicles?limit=1").await;
    let next =
        server.get(&format!("/vehicles?limit=1&cursor={}", page["next_cursor"].as_str().expect("there is more"))).await;
    assert_eq!((&page["vehicles"][0]["vin"], &next["vehicles"][0]["vin"]), (&json!(VIN), &json!("WVWZZZ1JZXW000002")));
    let vehicle = server.get(&format!("/vehicles/{VIN}")).await;
    assert_eq!((&vehicle["firmware"], &vehicle["batches"]), (&json!("7.2.1"), &json!(1)));
    assert_eq!(vehicle["codes"].as_array().map(Vec::len), Some(2));
    assert_eq!(request(&server, "/vehicles/WVWZZZ1JZXW000009", &[]).await.status(), StatusCode::NOT_FOUND);
    server.stop();
}

/// The events of a stream until one has a name and a batch; each as id, name and data.
async fn events_until(answer: Response, name: &str, batch: &str) -> Vec<(String, String, Value)> {
    let deadline = Deadline::new(format!("the event {name} of {batch}"));
    let (mut text, mut events) = (String::new(), Vec::new());
    let mut chunks = answer.bytes_stream();
    loop {
        deadline.check();
        let chunk = chunks.next().await.expect("the stream goes on").expect("bytes");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let prefix = format!("{name}: ");
                event.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_default().to_owned()
            };
            let data: Value = serde_json::from_str(&field("data")).unwrap_or_default();
            events.push((field("id"), field("event"), data));
            text = rest.to_owned();
            if events.last().is_some_and(|(_, event, data)| event == name && data["batch_id"] == batch) {
                return events;
            }
        }
    }
}

#[tokio::test]
async fn the_events_of_all_batches_are_followed_and_resumed() {
    let (_data, server, before) = start().await;
    server.put(&before, "a.log", LOG).await;
    let client = Client::new();
    let follow = async |last: Option<&str>| {
        let request = client.get(server.url("/events"));
        let request = match last {
            Some(last) => request.header("Last-Event-ID", last),
            None => request,
        };
        request.send().await.expect("the server answers")
    };
    let (stream, second) = (follow(None).await, follow(None).await);
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let batch = server.new_batch().await;
    server.put(&batch, "a.log", LOG).await;
    server.complete(&batch).await;
    let events = events_until(stream, "report", &batch).await;
    assert!(events.iter().all(|(_, _, data)| data["batch_id"] == json!(batch)), "only what follows: {events:?}");
    let kinds: Vec<&str> = events.iter().filter_map(|(_, _, data)| data["event_type"].as_str()).collect();
    assert_eq!(kinds[..3], ["BatchCreated", "FileUploaded", "FileParsed"], "{kinds:?}");
    let report = &events.last().expect("an event").2;
    assert_eq!((&report["total_lines"], &report["error_codes"]), (&json!(5), &json!(2)));
    assert_eq!(events_until(second, "report", &batch).await, events, "all followers get the same");

    // From an id on, without a gap; and from the first event on.
    let resumed = events_until(follow(Some(&events[2].0)).await, "report", &batch).await;
    assert_eq!(resumed, events[3..]);
    let all = events_until(follow(Some("0")).await, "report", &batch).await;
    assert!(all.len() > events.len() && all.ends_with(&events));
    assert_eq!(follow(Some("x")).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    server.stop();
}

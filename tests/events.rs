//! Server-sent events of a batch, read while it changes.

mod common;

use common::Server;
use futures::StreamExt;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

/// One server-sent event.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

/// Reads the events after `last`, until one satisfies `enough`.
async fn follow(server: &Server, batch: &str, last: Option<&str>, enough: impl Fn(&Event) -> bool) -> Vec<Event> {
    let request = Client::new().get(server.url(&format!("/batches/{batch}/events")));
    let request = last.into_iter().fold(request, |request, last| request.header("Last-Event-ID", last));
    let answer = request.send().await.expect("the server answers");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut stream = answer.bytes_stream();
    let mut text = String::new();
    let mut all = Vec::new();
    loop {
        while let Some((block, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
            };
            let event = Event { id: field("id:"), name: field("event:"), data: parse(&field("data:")) };
            text = rest.to_owned();
            let done = enough(&event);
            all.push(event);
            if done {
                return all;
            }
        }
        let chunk = stream.next().await.expect("there is more").expect("the stream is whole");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
}

fn parse(data: &str) -> Value {
    serde_json::from_str(data).unwrap_or(Value::Null)
}

#[tokio::test]
async fn every_status_is_sent_in_order_and_a_reconnected_client_misses_none() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let completed = |event: &Event| event.name == "status" && event.data["status"] == "completed";
    let (all, ()) = tokio::join!(follow(&server, &id, None, completed), async {
        server.put(&id, "a.log", "E_FAIL\nE_ABORT\nok\n").await;
        server.complete(&id).await;
    });
    let statuses = |all: &[Event]| -> Vec<String> {
        let events = all.iter().filter(|event| event.name == "status");
        events.map(|event| event.data["status"].as_str().expect("text").to_owned()).collect()
    };
    let in_order = ["uploaded", "scattering", "scattered", "gathering", "gathered", "diagnosing", "completed"];
    assert_eq!(statuses(&all), in_order);
    let report = all.iter().find(|event| event.name == "report" && event.data["final"] == true);
    let report = report.expect("a final report event");
    assert_eq!((&report.data["total_lines"], &report.data["error_codes"]), (&json!(3), &json!(2)));
    assert_eq!(report.data["event_type"], "AllFilesGathered");
    let progress = all.iter().rfind(|event| event.name == "progress").expect("a progress event");
    assert_eq!((&progress.data["parsed_files"], &progress.data["lines"]), (&json!(1), &json!(3)));

    let third = all.iter().filter(|event| event.name == "status").nth(2).expect("there are more");
    let rest = follow(&server, &id, Some(&third.id), completed).await;
    assert_eq!(statuses(&rest), in_order[3..]);
    server.stop();
    let server = Server::start(data.path());
    assert_eq!(statuses(&follow(&server, &id, None, completed).await), in_order);
}

#[tokio::test]
async fn a_report_event_has_the_codes_that_changed() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let (told, mut lines) = watch::channel(0);
    let completed = |event: &Event| {
        if event.name == "report" {
            told.send_replace(event.data["total_lines"].as_u64().expect("a number"));
        }
        event.name == "status" && event.data["status"] == "completed"
    };
    let (all, ()) = tokio::join!(follow(&server, &id, None, completed), async {
        server.put(&id, "a.log", "E_FAIL\nE_FAIL\nE_ABORT\n").await;
        lines.wait_for(|lines| *lines == 3).await.expect("the follower is told");
        server.put(&id, "a.log", "E_FAIL\nE_FAIL\nE_FAIL\nok\n").await;
        lines.wait_for(|lines| *lines == 4).await.expect("the follower is told");
        server.put(&id, "b.log", "E_ABORT\n").await;
        server.complete(&id).await;
    });
    let reports: Vec<&Value> = all.iter().filter(|event| event.name == "report").map(|event| &event.data).collect();
    let changes = |report: &Value| -> Vec<(String, i64, i64)> {
        let changed = report["changed"].as_array().expect("a list").iter();
        changed
            .map(|one| {
                let number = |field: &str| one[field].as_i64().expect("a number");
                (one["code"].as_str().expect("text").to_owned(), number("count"), number("change"))
            })
            .collect()
    };
    let of = |code: &str, count, change| (code.to_owned(), count, change);
    assert_eq!(changes(reports[0]), [of("E_FAIL", 2, 2), of("E_ABORT", 1, 1)]);
    assert_eq!(changes(reports[1]), [of("E_ABORT", 0, -1), of("E_FAIL", 3, 1)]);
    assert_eq!(reports[0]["final"], false);
    let last = reports.last().expect("there are some");
    assert_eq!((&last["final"], &last["total_errors"], &last["error_codes"]), (&json!(true), &json!(4), &json!(2)));
    // The last file may have been told before the batch was gathered.
    let told: i64 = reports[2..].iter().flat_map(|report| changes(report)).map(|(_, _, change)| change).sum();
    assert_eq!(told, 1);

    let again = follow(&server, &id, None, |event| event.name == "report").await;
    let report = &again.last().expect("the report").data;
    assert_eq!(report["final"], true, "the first report of a gathered batch is the final one");
    assert_eq!(changes(report), [of("E_FAIL", 3, 3), of("E_ABORT", 1, 1)]);
}

#[tokio::test]
async fn a_server_stops_although_a_client_follows_events() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let answer = Client::new().get(server.url(&format!("/batches/{id}/events"))).send().await.expect("answers");
    let mut stream = answer.bytes_stream();
    stream.next().await.expect("the first event").expect("is whole");
    let begun = std::time::Instant::now();
    tokio::task::spawn_blocking(|| server.stop()).await.expect("it stops");
    // Far below the grace period of open requests.
    assert!(begun.elapsed().as_secs() < 20);
    while let Some(chunk) = stream.next().await {
        chunk.expect("the stream ends well");
    }
}

#[tokio::test]
async fn an_invalid_event_id_is_refused() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let server = Server::start(data.path());
    let id = server.new_batch().await;
    let events = format!("/batches/{id}/events");
    for (last, status) in [("x", 422), ("1", 422), ("1-x", 422)] {
        let answer = server.send_with(reqwest::Method::GET, &events, &[("Last-Event-ID", last)], Vec::new()).await;
        assert_eq!(answer.status().as_u16(), status, "{last}");
    }
    let nobody = server.send(reqwest::Method::GET, "/batches/nobody/events", "").await;
    assert_eq!(nobody.status(), StatusCode::NOT_FOUND);
}

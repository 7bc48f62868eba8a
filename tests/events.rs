//! Server-sent events of a batch, read while it changes.

mod common;

use common::Server;
use futures::StreamExt;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

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
    let report = all.iter().find(|event| event.name == "report").expect("a report event");
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

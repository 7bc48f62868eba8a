//! Clients that read while others change data: every response must be consistent with itself.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::generate::Random;
use crate::soak::requests::Requests;
use crate::soak::state::State;

/// The longest pause of a reader between two requests.
const PAUSE_MS_MAX: u64 = 400;

/// Queries that read large parts of the tables.
const HEAVY: [&str; 6] = [
    "SELECT code, count(*), count(DISTINCT batch_id), min(ts), max(ts) FROM errors GROUP BY code ORDER BY 2 DESC",
    "SELECT b.firmware, c.code, sum(c.count) FROM error_counts c JOIN batches b ON b.batch_id = c.batch_id \
     GROUP BY b.firmware, c.code ORDER BY 3 DESC LIMIT 100",
    "SELECT file, length(text), text FROM errors ORDER BY length(text) DESC, file LIMIT 50",
    "SELECT component, count(*) FROM errors WHERE text LIKE '%failed%' GROUP BY component",
    "SELECT batch_id, sum(bytes), sum(lines), sum(errors) FROM files GROUP BY batch_id ORDER BY 2 DESC",
    "SELECT code, sum(count), count(DISTINCT vin) FROM fleet_codes GROUP BY code ORDER BY 2 DESC",
];

/// Reads until the load ends.
pub async fn read(state: Arc<State>, number: u64) {
    let mut random = Random::new(state.seed.wrapping_mul(7_000_003).wrapping_add(number));
    let requests = Requests::new(&state);
    while !state.stops() {
        {
            let _open = state.gate.read().await;
            read_something(&requests, &mut random).await;
        }
        tokio::time::sleep(Duration::from_millis(random.below(PAUSE_MS_MAX))).await;
    }
}

async fn read_something(requests: &Requests<'_>, random: &mut Random) {
    let index = random.below(1 << 30);
    let Some((batch, vin)) = requests.state.model().some(index) else { return };
    // A batch may have been deleted since it was chosen.
    let not_found = &[404][..];
    match random.below(100) {
        0..25 => {
            let report = requests.get("report", &format!("/batches/{batch}/report"), not_found).await;
            check_report(requests, &batch, report);
        }
        25..40 => {
            let epoch = requests.epoch();
            let path = format!("/batches/{batch}/report?min_epoch={epoch}&timeout_ms=60000");
            let report = requests.get("report at an epoch", &path, not_found).await;
            check_report(requests, &batch, report);
        }
        40..50 => {
            let by = random.pick(&["firmware", "platform", "vehicle", "component"]);
            drop(requests.get("fleet codes", &format!("/fleet/codes?group_by={by}"), &[]).await);
        }
        50..55 => {
            let since = "/fleet/codes?since=2026-03-01T00:00:00Z&until=2026-03-01T12:00:00Z";
            drop(requests.get("fleet codes since", since, &[]).await);
        }
        55..67 => {
            let path = format!("/batches/{batch}/errors?limit={}", 1 + random.below(2000));
            let page = requests.get("errors", &path, not_found).await;
            if let Some(cursor) = page.as_ref().and_then(|page| page["next_cursor"].as_str()) {
                drop(requests.get("errors", &format!("{path}&cursor={cursor}"), not_found).await);
            }
        }
        67..75 => {
            let page = requests.get("batches", "/batches?limit=100", &[]).await;
            if let Some(cursor) = page.as_ref().and_then(|page| page["next_cursor"].as_str()) {
                drop(requests.get("batches", &format!("/batches?limit=100&cursor={cursor}"), &[]).await);
            }
        }
        75..82 => drop(requests.get("vehicle history", &format!("/vehicles/{vin}/history"), not_found).await),
        82..87 => drop(requests.get("progress", &format!("/batches/{batch}/progress"), not_found).await),
        87..90 => {
            let path = format!("/batches/{batch}/chart.svg");
            if let Some(response) = requests.send("chart", Method::GET, &path, &[], Vec::new()).await {
                requests.expect("chart", &path, &response, &[200, 404]);
            }
        }
        _ => {
            let sql = random.pick(&HEAVY);
            let body = json!({"sql": sql, "limit": 100_000}).to_string().into_bytes();
            if let Some(response) = requests.send("heavy query", Method::POST, "/query", &[], body).await {
                // 422: it may exceed the memory limit of a query.
                requests.expect("heavy query", sql, &response, &[200, 422]);
            }
        }
    }
}

/// The parts of a report must sum up to its totals: no reader sees a partial change.
fn check_report(requests: &Requests<'_>, batch: &str, report: Option<Value>) {
    let Some(report) = report else { return };
    let sum = |list: &str, field: &str| -> u64 {
        report[list].as_array().map_or(0, |rows| rows.iter().filter_map(|row| row[field].as_u64()).sum())
    };
    let total = |field: &str| report[field].as_u64().unwrap_or_default();
    let parts = [sum("codes", "count"), sum("files", "errors"), sum("files", "lines"), sum("files", "bytes")];
    let whole = [total("total_errors"), total("total_errors"), total("total_lines"), total("total_bytes")];
    if parts != whole {
        requests.state.fail(format!(
            "the report of batch {batch} is inconsistent: its parts sum up to {parts:?}, its totals are {whole:?}"
        ));
    }
}

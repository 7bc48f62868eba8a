//! Compares all live data with the model while nothing changes.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::soak::load::settle;
use crate::soak::model::{Counts, first_difference};
use crate::soak::requests::Requests;
use crate::soak::state::State;
use crate::soak::watch::metric;

/// Time limit for the commit of all accepted changes after the load has paused.
const COMMITTED_WITHIN: Duration = Duration::from_secs(60);
/// The `limit` of `/fleet/codes`.
const FLEET_LIMIT: u64 = 10_000;

/// Compares; every difference is a failure of the run. Meanwhile only [`settle`] may change data.
pub async fn compare(state: &State, when: &str) {
    let requests = Requests::new(state);
    settle_all(&requests).await;
    let epoch = requests.epoch();
    wait_committed(&requests, epoch, when).await;
    let batches: Vec<_> = state.model().batches().cloned().collect();
    for batch in &batches {
        let path = format!("/batches/{}/report?min_epoch={epoch}&timeout_ms=60000", batch.id);
        match requests.get("compare", &path, &[]).await {
            Some(report) => {
                batch.differences(&report).into_iter().for_each(|one| state.fail(format!("{when}: {one}")));
            }
            None => state.fail(format!("{when}: batch {} has no report", batch.id)),
        }
    }
    let counted = state.model().counted();
    let path = format!("/fleet/codes?group_by=platform&limit={FLEET_LIMIT}&min_epoch={epoch}&timeout_ms=60000");
    if let Some(fleet) = requests.get("compare", &path, &[]).await {
        let codes = fleet["codes"].as_array().map_or(&[][..], Vec::as_slice);
        let codes = codes.iter().filter_map(|code| Some((code["code"].as_str()?, code["count"].as_u64()?)));
        same_counts(state, &format!("{when}: /fleet/codes"), sums(codes), &counted.codes);
        if fleet["truncated"] == true {
            state.fail(format!("{when}: /fleet/codes has more than {FLEET_LIMIT} codes, more than were sent"));
        }
    }
    for table in ["error_counts", "fleet_codes"] {
        let sql = format!("SELECT code, sum(count) FROM {table} GROUP BY code");
        let Some(rows) = query(&requests, &sql, epoch).await else { continue };
        let codes = rows.iter().filter_map(|row| Some((row[0].as_str()?, row[1].as_u64()?)));
        same_counts(state, &format!("{when}: table {table}"), sums(codes), &counted.codes);
    }
    let by_batch = |count: fn(&Counts) -> u64| -> BTreeMap<String, u64> {
        let counts = batches.iter().map(|batch| (batch.id.clone(), count(&batch.counted())));
        counts.filter(|(_, count)| *count > 0).collect()
    };
    let (errors, lines) = (by_batch(Counts::errors), by_batch(|counts| counts.lines));
    for (sql, should) in [
        ("SELECT batch_id, count(*) FROM errors GROUP BY batch_id", &errors),
        ("SELECT batch_id, sum(errors) FROM files GROUP BY batch_id HAVING sum(errors) > 0", &errors),
        ("SELECT batch_id, sum(lines) FROM files GROUP BY batch_id HAVING sum(lines) > 0", &lines),
    ] {
        let Some(rows) = query(&requests, sql, epoch).await else { continue };
        let rows = rows.iter().filter_map(|row| Some((row[0].as_str()?, row[1].as_u64()?)));
        same_counts(state, &format!("{when}: {sql}"), sums(rows), should);
    }
    let files: usize = batches.iter().map(|batch| batch.files().count()).sum();
    let totals = "SELECT (SELECT count(*) FROM batches) AS batches, (SELECT count(*) FROM files) AS files, \
                  (SELECT coalesce(sum(bytes), 0) FROM files) AS bytes";
    let should = json!([batches.len(), files, counted.bytes]);
    if let Some(rows) = query(&requests, totals, epoch).await
        && rows.first() != Some(&should)
    {
        state.fail(format!("{when}: batches, files and bytes are {rows:?}, expected {should}"));
    }
}

/// Determines the outcome of all requests without a response, even if the server was not killed since.
async fn settle_all(requests: &Requests<'_>) {
    let state = requests.state;
    let in_doubt: Vec<_> = {
        let mut model = state.model();
        std::iter::from_fn(|| model.take_in_doubt()).collect()
    };
    for batch in in_doubt {
        if let Some(batch) = settle(requests, batch).await {
            state.model().put(batch);
        }
    }
}

async fn wait_committed(requests: &Requests<'_>, epoch: u64, when: &str) {
    let begun = Instant::now();
    let address = requests.state.address().await;
    loop {
        let committed = metric(&address, "argus_committed_epoch").await.unwrap_or(0.0);
        if committed >= epoch as f64 {
            return;
        }
        if begun.elapsed() > COMMITTED_WITHIN {
            let seconds = COMMITTED_WITHIN.as_secs();
            requests
                .state
                .fail(format!("{when}: the committed epoch is {committed} after {seconds} s, expected {epoch}"));
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn query(requests: &Requests<'_>, sql: &str, epoch: u64) -> Option<Vec<Value>> {
    let body = json!({"sql": sql, "limit": 1_000_000, "timeout_ms": 120_000, "min_epoch": epoch});
    let mut response = requests.send("compare", Method::POST, "/query", &[], body.to_string().into_bytes()).await?;
    requests.expect("compare", sql, &response, &[200]);
    if response.status != 200 {
        requests.state.fail(format!("cannot compare {sql}: status {}", response.status));
        return None;
    }
    response.json["rows"].as_array_mut().map(std::mem::take)
}

fn sums<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    counts.for_each(|(name, count)| *sums.entry(name.to_owned()).or_default() += count);
    sums
}

fn same_counts(state: &State, what: &str, is: BTreeMap<String, u64>, should: &BTreeMap<String, u64>) {
    first_difference(&is, should, |name, is_count, should_count| {
        let differ = is.keys().chain(should.keys().filter(|key| !is.contains_key(*key)));
        let differ = differ.filter(|key| is.get(*key) != should.get(*key)).count();
        state.fail(format!("{what}: {name} is {is_count}, expected {should_count}; {differ} entries differ"));
    });
}

//! Sends requests, and counts and checks their responses.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::Value;

use crate::soak::state::State;

/// Time limit for every response; requests that wait for an epoch or a query set shorter timeouts.
const RESPONSE_MAX: Duration = Duration::from_secs(150);
/// The number of characters shown of a response body.
const DETAIL_CHARS: usize = 300;

/// An HTTP client.
pub struct Requests<'s> {
    /// The shared state.
    pub state: &'s State,
    client: Client,
}

/// A response.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body, if it is JSON.
    pub json: Value,
    text: String,
}

/// Whether a change happened.
#[derive(Debug)]
pub enum Outcome {
    /// It happened; contains the response.
    Happened(Response),
    /// It did not happen.
    Refused,
    /// It may or may not have happened.
    Unknown,
}

impl<'s> Requests<'s> {
    /// A client without connections.
    pub fn new(state: &'s State) -> Requests<'s> {
        Requests { state, client: Client::new() }
    }

    /// Sends a request to a path below `/api/v1`; `None` if there was no response.
    pub async fn send(
        &self,
        kind: &'static str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Option<Response> {
        let killed = self.state.killed();
        let address = self.state.address().await;
        let request = self.client.request(method, format!("http://{address}/api/v1{path}")).timeout(RESPONSE_MAX);
        let request = headers.iter().fold(request.body(body), |request, (name, value)| request.header(*name, *value));
        let begun = Instant::now();
        let response = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            Ok::<_, reqwest::Error>((status, response.bytes().await?))
        };
        match response.await {
            Ok((status, body)) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let response = Response { status, json: serde_json::from_slice(&body).unwrap_or_default(), text };
                self.record(kind, path, &response, begun.elapsed());
                Some(response)
            }
            Err(_) if self.state.killed() > killed => {
                self.state.count(kind, "lost to a kill");
                None
            }
            // The server interrupts a response body only when its query reaches a limit.
            Err(error) if (error.is_body() || error.is_decode()) && path == "/query" => {
                self.state.count(kind, "interrupted");
                None
            }
            Err(error) => {
                self.state.count(kind, "no response");
                self.state.fail(format!("{kind} {path} had no response, and the server was not killed: {error:?}"));
                None
            }
        }
    }

    /// Gets JSON; `None` if there was no response or an allowed error status (`may_be`).
    pub async fn get(&self, kind: &'static str, path: &str, may_be: &[u16]) -> Option<Value> {
        let response = self.send(kind, Method::GET, path, &[], Vec::new()).await?;
        self.expect(kind, path, &response, &[&[200], may_be].concat());
        (response.status == 200).then_some(response.json)
    }

    /// Sends a change. The response must have one of the statuses, unless the server is busy.
    pub async fn change(
        &self,
        kind: &'static str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
        statuses: &[u16],
    ) -> Outcome {
        let Some(response) = self.send(kind, method, path, headers, body).await else { return Outcome::Unknown };
        self.expect(kind, path, &response, statuses);
        match response.status {
            200..300 => {
                // The response to a form is a list.
                let receipts = response.json.as_array().map_or(std::slice::from_ref(&response.json), Vec::as_slice);
                receipts.iter().filter_map(|one| one["epoch"].as_u64()).for_each(|epoch| self.state.saw_epoch(epoch));
                Outcome::Happened(response)
            }
            // A busy or full server rejects the request before it changes anything.
            400..500 | 503 | 507 => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }

    /// Fails the run unless the status is one of `statuses`, or reports that the server is busy.
    pub fn expect(&self, kind: &'static str, path: &str, response: &Response, statuses: &[u16]) {
        // `record` checks 5xx for all requests.
        if !statuses.contains(&response.status) && response.status < 500 && response.status != 429 {
            self.state.fail(format!("{kind} {path} had status {}: {}", response.status, response.detail()));
        }
    }

    fn record(&self, kind: &'static str, path: &str, response: &Response, time: Duration) {
        self.state.count(kind, response.status.to_string());
        let problem =
            response.json["type"].as_str().and_then(|name| name.rsplit(':').next()).unwrap_or("none").to_owned();
        // A query may reach its time limit, which is a regular response.
        let is_allowed = response.status < 500 || [503, 507].contains(&response.status) || problem == "query-timed-out";
        {
            let mut observed = self.state.observations();
            let longest = observed.longest.entry(kind).or_default();
            *longest = time.max(*longest);
            if response.status >= 500 {
                *observed.server_errors.entry((kind, response.status, problem)).or_default() += 1;
            }
        }
        if !is_allowed {
            self.state.fail(format!("{kind} {path} had status {}: {}", response.status, response.detail()));
        }
    }

    /// The last epoch of any response, for reads at that epoch or later.
    pub fn epoch(&self) -> u64 {
        self.state.epoch.load(Ordering::Relaxed)
    }
}

impl Response {
    /// The beginning of the body.
    pub fn detail(&self) -> String {
        self.text.chars().take(DETAIL_CHARS).collect()
    }
}

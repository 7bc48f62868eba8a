//! Requests whose answers are counted and judged.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::Value;

use crate::soak::state::State;

/// No answer may take longer; those that wait for an epoch or a query say less themselves.
const ANSWER_MAX: Duration = Duration::from_secs(150);
/// What is shown of a problem.
const DETAIL_CHARS: usize = 300;

/// One client with its connections.
pub struct Requests<'s> {
    /// What all share.
    pub state: &'s State,
    client: Client,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, where it is JSON.
    pub json: Value,
    text: String,
}

/// Whether a change happened.
#[derive(Debug)]
pub enum Outcome {
    /// It did, and this is the answer.
    Happened(Answer),
    /// It did not.
    Refused,
    /// One or the other.
    Unknown,
}

impl<'s> Requests<'s> {
    /// A client without a connection yet.
    pub fn new(state: &'s State) -> Requests<'s> {
        Requests { state, client: Client::new() }
    }

    /// Sends a request below `/api/v1`; `None` when there was no answer.
    pub async fn send(
        &self,
        kind: &'static str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Option<Answer> {
        let killed = self.state.killed();
        let address = self.state.address().await;
        let request = self.client.request(method, format!("http://{address}/api/v1{path}")).timeout(ANSWER_MAX);
        let request = headers.iter().fold(request.body(body), |request, (name, value)| request.header(*name, *value));
        let begun = Instant::now();
        let answer = async {
            let answer = request.send().await?;
            let status = answer.status().as_u16();
            Ok::<_, reqwest::Error>((status, answer.bytes().await?))
        };
        match answer.await {
            Ok((status, body)) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let answer = Answer { status, json: serde_json::from_slice(&body).unwrap_or_default(), text };
                self.take(kind, path, &answer, begun.elapsed());
                Some(answer)
            }
            Err(_) if self.state.killed() > killed => {
                self.state.count(kind, "lost to a kill");
                None
            }
            // An answer that has begun can only break off when its query may go on no longer.
            Err(error) if (error.is_body() || error.is_decode()) && path == "/query" => {
                self.state.count(kind, "broke off");
                None
            }
            Err(error) => {
                self.state.count(kind, "no answer");
                self.state.fail(format!("{kind} {path} had no answer, and the server was not killed: {error:?}"));
                None
            }
        }
    }

    /// Gets JSON; `None` when there was no answer, or a refusal that may be.
    pub async fn get(&self, kind: &'static str, path: &str, may_be: &[u16]) -> Option<Value> {
        let answer = self.send(kind, Method::GET, path, &[], Vec::new()).await?;
        self.expect(kind, path, &answer, &[&[200], may_be].concat());
        (answer.status == 200).then_some(answer.json)
    }

    /// Sends a change, which must be answered with one of the statuses, unless the server is busy.
    pub async fn change(
        &self,
        kind: &'static str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
        statuses: &[u16],
    ) -> Outcome {
        let Some(answer) = self.send(kind, method, path, headers, body).await else { return Outcome::Unknown };
        self.expect(kind, path, &answer, statuses);
        match answer.status {
            200..300 => {
                // A form is answered with a list.
                let receipts = answer.json.as_array().map_or(std::slice::from_ref(&answer.json), Vec::as_slice);
                receipts.iter().filter_map(|one| one["epoch"].as_u64()).for_each(|epoch| self.state.saw_epoch(epoch));
                Outcome::Happened(answer)
            }
            // A server that is busy or full says so before it changes anything.
            400..500 | 503 | 507 => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }

    /// Fails the run unless the status is one of those, or says that the server is busy.
    pub fn expect(&self, kind: &'static str, path: &str, answer: &Answer, statuses: &[u16]) {
        // 5xx are judged for all requests alike.
        if !statuses.contains(&answer.status) && answer.status < 500 && answer.status != 429 {
            self.state.fail(format!("{kind} {path} was answered {}: {}", answer.status, answer.detail()));
        }
    }

    fn take(&self, kind: &'static str, path: &str, answer: &Answer, time: Duration) {
        self.state.count(kind, answer.status.to_string());
        let problem =
            answer.json["type"].as_str().and_then(|name| name.rsplit(':').next()).unwrap_or("none").to_owned();
        // A query may take the time that it was given and no more, which is an answer like any other.
        let is_right = answer.status < 500 || [503, 507].contains(&answer.status) || problem == "query-timed-out";
        {
            let mut seen = self.state.seen();
            let longest = seen.longest.entry(kind).or_default();
            *longest = time.max(*longest);
            if answer.status >= 500 {
                *seen.server_errors.entry((kind, answer.status, problem)).or_default() += 1;
            }
        }
        if !is_right {
            self.state.fail(format!("{kind} {path} was answered {}: {}", answer.status, answer.detail()));
        }
    }

    /// The last epoch of any answer, for whoever wants to read at least that.
    pub fn epoch(&self) -> u64 {
        self.state.epoch.load(Ordering::Relaxed)
    }
}

impl Answer {
    /// What it says went wrong.
    pub fn detail(&self) -> String {
        self.text.chars().take(DETAIL_CHARS).collect()
    }
}

//! A server that speaks the protocol of language models, and answers by a script: it reads its evidence, states what is
//! true, and between that what is not. It remembers which is which.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Clones share what was stated.
#[derive(Clone, Default)]
pub struct ScriptedModel {
    /// Each statement, and whether its evidence has it.
    stated: Arc<Mutex<HashMap<String, bool>>>,
}

impl ScriptedModel {
    /// Starts a server on a free port; returns its URL.
    pub fn start(&self, runtime: &Runtime) -> Result<String> {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/v1/chat/completions", post(complete)).with_state(self.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(format!("http://{address}/v1"))
    }

    /// Whether a statement is in its evidence; `None` if it was never stated.
    pub fn is_true(&self, text: &str) -> Option<bool> {
        self.stated().get(text).copied()
    }

    /// How many different statements were made that their evidence has, and how many that it does not have.
    pub fn made(&self) -> [usize; 2] {
        let stated = self.stated();
        let right = stated.values().filter(|is_true| **is_true).count();
        [right, stated.len() - right]
    }

    fn stated(&self) -> std::sync::MutexGuard<'_, HashMap<String, bool>> {
        self.stated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, text: String, evidence: &[&str], is_true: bool) -> Value {
        self.stated().insert(text.clone(), is_true);
        json!({"text": text, "evidence": evidence})
    }

    fn answer(&self, evidence: &[Value]) -> Value {
        let item = |id: &str| evidence.iter().find(|item| item["id"] == id).map(|item| &item["says"]);
        let finding = item("F1").unwrap_or(&Value::Null);
        let code = finding["code"].as_str().unwrap_or_default();
        let line = item("L1").and_then(|lines| lines["text"][0].as_str()).unwrap_or("the log has no line for this");
        let known = item("K1").filter(|known| known["cause"].is_string());
        // Without evidence the cause is invented, with an id that is not there.
        let cause = match known {
            Some(known) => {
                self.state(format!("{code}: {}", known["cause"].as_str().unwrap_or_default()), &["K1"], true)
            }
            None => self.state(format!("A worn pump causes {code}."), &["K1"], false),
        };
        let wrong: [(String, &[&str]); 7] = [
            (format!("{code} occurs 9173 times."), &["F1"]),
            (format!("P0999-11 is the reason of {code}."), &["F1"]),
            (format!("Another finding explains {code}."), &["F9"]),
            (format!("The unit with {code} is worn."), &[]),
            (format!("The log explains {code}."), &["L1"]),
            (format!("Read https://example.org/{code} first."), &["F1"]),
            (format!("The log of {code} says: {line}"), &["F1", "L1"]),
        ];
        let chosen = |step: usize| {
            let (text, cited) = &wrong[(code.bytes().map(usize::from).sum::<usize>() + step) % wrong.len()];
            self.state(text.clone(), cited, false)
        };
        let count = finding["occurrences_in_this_batch"].as_u64().unwrap_or(0);
        json!({
            "summary": self.state(format!("{code} stands out in this batch."), &["F1"], true),
            "likely_cause": cause,
            "known": [self.state(format!("{code} occurs {count} times here."), &["F1"], true), chosen(0)],
            "guessed": [chosen(2)],
            "steps": [self.state(format!("Look at the component that reports {code}."), &["F1"], true), chosen(4)],
        })
    }
}

async fn complete(State(model): State<ScriptedModel>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let evidence =
        body["messages"][1]["content"].as_str().and_then(|text| serde_json::from_str::<Vec<Value>>(text).ok());
    let Some(evidence) = evidence else {
        return (StatusCode::BAD_REQUEST, "the second message is not a list of evidence").into_response();
    };
    let text = model.answer(&evidence).to_string();
    // Four bytes are about a token.
    let (read, written) = (body.to_string().len() / 4, text.len() / 4);
    let delta = json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    let finished = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": written}});
    let events = format!("data: {delta}\n\ndata: {finished}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
    ([(header::CONTENT_TYPE, "text/event-stream")], events).into_response()
}

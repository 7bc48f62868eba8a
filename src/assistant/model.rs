//! A language model behind the chat completions of OpenAI's API, which most servers of models speak.
//!
//! The request is small and its answer must be bounded at every step, so it is written here with `reqwest`; the stream is
//! read by `eventsource-stream`.

use std::fmt;
use std::time::Duration;

use eventsource_stream::Eventsource;
use futures::StreamExt;
use reqwest::{Client, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use url::Url;

/// The longest answer (64 KiB).
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// How often a request is repeated while the server is busy.
const RETRIES: u32 = 4;

/// The first wait before a request is repeated; it doubles. A server that says how long to wait is heard.
const RETRY_WAIT: Duration = Duration::from_millis(500);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(20);

/// Of the reason that a server gives, so much is shown.
const REASON_CHARS_MAX: usize = 300;

/// How to reach a model.
#[derive(Clone)]
pub struct ModelConfig {
    /// The API's address, for example `http://127.0.0.1:11434/v1`.
    pub url: Url,
    /// The name of the model.
    pub model: String,
    /// The key, if the server needs one.
    pub key: Option<String>,
    /// How long the server may send nothing.
    pub silence_max: Duration,
}

impl fmt::Debug for ModelConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        f.debug_struct("ModelConfig")
            .field("url", &self.url.as_str())
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// A model.
#[derive(Clone)]
pub struct Model {
    client: Client,
    config: ModelConfig,
    address: Url,
}

/// What a call has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens that the model read.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens that it wrote.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// A request.
pub struct Prompt<'p> {
    /// What the model has to do.
    pub system: &'p str,
    /// What it is asked.
    pub user: &'p str,
    /// The schema of the answer.
    pub schema: Value,
    /// The most tokens that it may write.
    pub completion_tokens: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum ModelError {
    #[error("the model's server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the model's server refused the request with {status}: {reason}")]
    Refused { status: StatusCode, reason: String },
    #[error("the model's server is busy: it answered {status} {attempts} times")]
    Busy { status: StatusCode, attempts: u32 },
    #[error("the model's server sent nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the model's answer has more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the model's answer was cut")]
    Cut,
    #[error("the model's server did not answer as the API describes it: {0}")]
    Protocol(String),
}

/// A piece of a stream, or a whole answer.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default, alias = "message")]
    delta: Delta,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
}

impl Model {
    /// A model; nothing is requested yet.
    pub fn new(config: ModelConfig) -> Result<Model, reqwest::Error> {
        let mut address = config.url.clone();
        address.set_path(&format!("{}/chat/completions", config.url.path().trim_end_matches('/')));
        // A redirect could lead the evidence elsewhere.
        let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Model { client, config, address })
    }

    /// The model's name.
    pub fn name(&self) -> &str {
        &self.config.model
    }

    /// Asks the model. `written` gets the answer as far as it is written.
    pub async fn ask(
        &self,
        prompt: &Prompt<'_>,
        mut written: impl FnMut(&str),
    ) -> Result<(String, Option<Usage>), ModelError> {
        let response = self.request(prompt).await?;
        let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_stream = content_type.is_some_and(|value| value.starts_with("text/event-stream"));
        let (text, usage, is_complete) = match is_stream {
            true => self.read_stream(response, &mut written).await?,
            false => self.read_whole(response).await?,
        };
        if is_complete { Ok((text, usage)) } else { Err(ModelError::Cut) }
    }

    async fn request(&self, prompt: &Prompt<'_>) -> Result<Response, ModelError> {
        let body = json!({
            "model": self.config.model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            "temperature": 0,
            "max_tokens": prompt.completion_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "diagnosis", "strict": true, "schema": prompt.schema}
            }
        });
        let mut attempts = 0;
        loop {
            let request = self.client.post(self.address.clone()).json(&body);
            let request = self.config.key.iter().fold(request, |request, key| request.bearer_auth(key));
            let response = timeout(self.config.silence_max, request.send()).await;
            let response = response.map_err(|_| ModelError::Silent(self.config.silence_max))?;
            let response = response.map_err(|error| ModelError::Unreachable(causes(&error)))?;
            let status = response.status();
            attempts += 1;
            if status.is_success() {
                return Ok(response);
            }
            if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                let reason = timeout(self.config.silence_max, start_of(response)).await.unwrap_or_default();
                return Err(ModelError::Refused { status, reason: reason_of(&String::from_utf8_lossy(&reason)) });
            }
            if attempts > RETRIES {
                return Err(ModelError::Busy { status, attempts });
            }
            let asked_for = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let asked_for = asked_for.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            sleep(asked_for.unwrap_or(RETRY_WAIT * 2_u32.pow(attempts - 1)).min(RETRY_WAIT_MAX)).await;
        }
    }

    /// The text, what it used, and whether the model has finished.
    async fn read_stream(
        &self,
        response: Response,
        written: &mut impl FnMut(&str),
    ) -> Result<(String, Option<Usage>, bool), ModelError> {
        // An event without an end must not fill the memory either.
        let mut received = 0;
        let bytes = response.bytes_stream().map(move |bytes| {
            let bytes = bytes.map_err(|_| ModelError::Cut)?;
            received += bytes.len();
            // An event of a few bytes of text has a frame of some hundred.
            if received > 64 * ANSWER_BYTES_MAX { Err(ModelError::TooLong) } else { Ok(bytes) }
        });
        let mut events = std::pin::pin!(bytes.eventsource());
        let (mut text, mut usage, mut is_complete) = (String::new(), None, false);
        loop {
            let event = timeout(self.config.silence_max, events.next()).await;
            let event = match event.map_err(|_| ModelError::Silent(self.config.silence_max))? {
                None => break,
                Some(Ok(event)) => event,
                Some(Err(eventsource_stream::EventStreamError::Transport(error))) => return Err(error),
                Some(Err(error)) => return Err(ModelError::Protocol(error.to_string())),
            };
            if event.data == "[DONE]" {
                break;
            }
            let chunk: Chunk =
                serde_json::from_str(&event.data).map_err(|error| ModelError::Protocol(error.to_string()))?;
            if let Some(error) = chunk.error {
                return Err(ModelError::Protocol(reason_of(&error.to_string())));
            }
            usage = chunk.usage.or(usage);
            for choice in chunk.choices {
                text.push_str(choice.delta.content.as_deref().unwrap_or_default());
                is_complete |= choice.finish_reason.is_some_and(|reason| reason != "length");
            }
            if text.len() > ANSWER_BYTES_MAX {
                return Err(ModelError::TooLong);
            }
            written(&text);
        }
        Ok((text, usage, is_complete))
    }

    async fn read_whole(&self, mut response: Response) -> Result<(String, Option<Usage>, bool), ModelError> {
        let mut body = Vec::new();
        loop {
            let chunk = timeout(self.config.silence_max, response.chunk()).await;
            let chunk = chunk.map_err(|_| ModelError::Silent(self.config.silence_max))?;
            let Some(chunk) = chunk.map_err(|_| ModelError::Cut)? else { break };
            body.extend_from_slice(&chunk);
            // JSON escapes may be six times as long as what they stand for.
            if body.len() > 6 * ANSWER_BYTES_MAX {
                return Err(ModelError::TooLong);
            }
        }
        let chunk: Chunk = serde_json::from_slice(&body).map_err(|error| ModelError::Protocol(error.to_string()))?;
        let choice = chunk.choices.into_iter().next();
        let choice = choice.ok_or_else(|| ModelError::Protocol("it has no choices".to_owned()))?;
        let text = choice.delta.content.unwrap_or_default();
        if text.len() > ANSWER_BYTES_MAX {
            return Err(ModelError::TooLong);
        }
        Ok((text, chunk.usage, choice.finish_reason.as_deref() != Some("length")))
    }
}

/// The first bytes of an answer.
async fn start_of(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body
}

/// The reason in an answer, which may be an error of the API, on one line.
fn reason_of(body: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let message = parsed.as_ref().and_then(|value| {
        value.pointer("/error/message").or_else(|| value.get("message")).or_else(|| value.get("error"))?.as_str()
    });
    let one_line = message.unwrap_or(body).split_whitespace().collect::<Vec<_>>().join(" ");
    one_line.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// An error with its causes; never with the address, which may have a key.
fn causes(error: &reqwest::Error) -> String {
    let mut text = Vec::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push(cause.to_string());
        source = cause.source();
    }
    match text.is_empty() {
        true => "the connection ended".to_owned(),
        false => text.join(": "),
    }
}

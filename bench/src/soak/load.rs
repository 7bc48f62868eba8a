//! Clients that change batches, one request at a time each, and update the expected counts in the model.
//!
//! A client takes a batch out of the model for a request, so that no two clients change the same batch concurrently.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::generate::Random;
use crate::soak::faults;
use crate::soak::model::{BatchModel, FileModel};
use crate::soak::requests::{Outcome, Requests};
use crate::soak::state::State;
use crate::soak::texts::{Encoding, REST_OF_OPEN_LINE, Text};

/// The platform of all vehicles, so that one group of `/fleet/codes` has all codes.
pub const PLATFORM: &str = "soak";
const FIRMWARES: [&str; 3] = ["7.2.0", "7.2.1", "7.3.0"];
/// Number of vehicles: the state of the fleet grows with vehicles and codes.
const VEHICLES: u64 = 40;
/// Number of file names in a batch.
const NAMES: u64 = 8;
/// The longest pause of a client between two requests.
const PAUSE_MS_MAX: u64 = 100;
/// The most appended text (24 MiB): the metadata database stores it until there is enough for an object.
const APPENDED_MAX: u64 = 24 << 20;

/// Limits for live data.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Batches.
    pub batches: u64,
    /// Bytes of text.
    pub bytes: u64,
}

/// A client.
pub struct Writer<'s> {
    requests: Requests<'s>,
    random: Random,
    limits: Limits,
    /// Makes its keys unique among clients.
    number: u64,
    key_count: u64,
}

/// Changes batches until the load ends.
pub async fn write(state: Arc<State>, number: u64, limits: Limits) {
    let random = Random::new(state.seed.wrapping_mul(1_000_003).wrapping_add(number));
    let mut writer = Writer { requests: Requests::new(&state), random, limits, number, key_count: 0 };
    while !state.stops() {
        {
            let _open = state.gate.read().await;
            writer.step().await;
        }
        tokio::time::sleep(Duration::from_millis(writer.random.below(PAUSE_MS_MAX))).await;
    }
}

/// Determines the outcome of a batch's requests without a response; `None` if the batch was deleted.
pub async fn settle(requests: &Requests<'_>, mut batch: BatchModel) -> Option<BatchModel> {
    let path = format!("/batches/{}", batch.id);
    let Some(response) = requests.send("settle", Method::GET, &path, &[], Vec::new()).await else { return Some(batch) };
    if response.status == 404 {
        if !batch.may_be_deleted() {
            requests.state.fail(format!("batch {} does not exist, and no client deleted it", batch.id));
        }
        return None;
    }
    let (status, epoch) = (response.json["status"].as_str().unwrap_or_default(), &response.json["epoch"]);
    let path = format!("{path}/report?min_epoch={}&timeout_ms=60000", epoch.as_u64().unwrap_or(0));
    let Some(report) = requests.get("settle", &path, &[]).await else { return Some(batch) };
    match batch.settle(status, &report) {
        Ok(()) => Some(batch),
        Err(difference) => {
            requests.state.fail(difference);
            // The failure is recorded; delete the batch, so that it is not compared again.
            let path = format!("/batches/{}", batch.id);
            let deleted = requests.send("delete batch", Method::DELETE, &path, &[], Vec::new());
            deleted.await.is_none().then_some(batch)
        }
    }
}

impl Writer<'_> {
    async fn step(&mut self) {
        let state = self.requests.state;
        let alive = state.model().alive();
        let full =
            alive.batches >= self.limits.batches || alive.text >= self.limits.bytes || alive.appended >= APPENDED_MAX;
        let what = self.random.below(100);
        if !full && (what < 8 || alive.batches < 4) {
            return self.create().await;
        }
        // At the limit, delete the oldest batch.
        let index = if full { 0 } else { self.random.below(1 << 30) };
        let Some(batch) = state.model().take(index, state.killed()) else { return };
        let batch = match batch.in_doubt_since {
            None => Some(batch),
            Some(_) => settle(&self.requests, batch).await,
        };
        let Some(batch) = batch else { return };
        let batch = match what {
            _ if batch.in_doubt_since.is_some() => Some(batch),
            _ if full => self.delete_batch(batch).await,
            92..94 => self.delete_batch(batch).await,
            94.. => Some(self.verify(batch).await),
            _ if batch.completed => Some(self.change_completed(batch, what).await),
            _ => Some(self.change_open(batch, what).await),
        };
        if let Some(batch) = batch {
            state.model().put(batch);
        }
    }

    async fn change_completed(&mut self, batch: BatchModel, what: u64) -> BatchModel {
        match what {
            0..20 => self.reopen(batch).await,
            20..30 => self.put_refused(batch).await,
            _ => self.verify(batch).await,
        }
    }

    async fn change_open(&mut self, batch: BatchModel, what: u64) -> BatchModel {
        match what {
            0..35 => self.put(batch).await,
            35..37 => self.put_many_codes(batch).await,
            37..57 => self.append(batch).await,
            57..66 => self.form(batch).await,
            66..74 => faults::bad_form(&self.requests, &mut self.random, batch).await,
            74..80 => faults::bad_put(&self.requests, &mut self.random, batch).await,
            80..86 => self.delete_file(batch).await,
            _ => self.complete(batch).await,
        }
    }

    fn unique(&mut self) -> String {
        self.key_count += 1;
        format!("soak-{}-{}-{}", self.requests.state.seed, self.number, self.key_count)
    }

    /// Creates a batch. With its idempotency key, the request is repeated until there is a response.
    async fn create(&mut self) {
        let key = self.unique();
        let vehicle = self.random.below(VEHICLES);
        let vin = format!("WVWZZZ1JZXW{vehicle:06}");
        let described = json!({
            "vehicle_id": format!("soak-{vehicle}"), "vin": vin, "platform": PLATFORM,
            "firmware": self.random.pick(&FIRMWARES),
        });
        loop {
            let body = described.to_string().into_bytes();
            let headers = [("Idempotency-Key", &*key), ("Content-Type", "application/json")];
            match self.requests.change("create batch", Method::POST, "/batches", &headers, body, &[201]).await {
                Outcome::Happened(response) => {
                    let id = response.json["id"].as_str().unwrap_or_default().to_owned();
                    self.requests.state.model().put(BatchModel::new(id, vin));
                    return;
                }
                Outcome::Refused => return,
                Outcome::Unknown => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    fn some_text(&mut self) -> Arc<Text> {
        let texts = &self.requests.state.texts;
        let from = if self.random.below(12) == 0 { &texts.large } else { &texts.small };
        Arc::clone(self.random.pick(from))
    }

    fn name(&mut self) -> String {
        format!("{}.log", self.random.below(NAMES))
    }

    async fn put(&mut self, batch: BatchModel) -> BatchModel {
        let text = self.some_text();
        self.put_text(batch, &text).await
    }

    async fn put_many_codes(&mut self, batch: BatchModel) -> BatchModel {
        let text = Arc::clone(self.random.pick(&self.requests.state.texts.many_codes));
        self.put_text(batch, &text).await
    }

    async fn put_text(&mut self, mut batch: BatchModel, text: &Text) -> BatchModel {
        let name = self.name();
        let encoding = *self.random.pick(&Encoding::ALL);
        let key = self.unique();
        let mut headers = vec![("Content-Encoding", encoding.name())];
        let with_key = self.random.below(4) == 0;
        if with_key {
            headers.push(("Idempotency-Key", &key));
        }
        let path = format!("/batches/{}/files/{name}", batch.id);
        let killed = self.requests.state.killed();
        let expected = [if batch.file(&name).is_some() { 200 } else { 201 }];
        let body = text.body(encoding).to_vec();
        let put = self.requests.change("put", Method::PUT, &path, &headers, body.clone(), &expected).await;
        let file = FileModel::uploaded(&text.whole, text.open.as_ref(), text.stored(encoding));
        let receipt = match put {
            Outcome::Happened(response) => response.json,
            Outcome::Refused => return batch,
            Outcome::Unknown if with_key => Value::Null,
            Outcome::Unknown => {
                batch.maybe_set(&name, Some(file), killed);
                return batch;
            }
        };
        if with_key {
            // A retry has the same response, also after a kill, and changes nothing if the first request happened.
            let killed = self.requests.state.killed();
            match self.requests.change("put again", Method::PUT, &path, &headers, body, &[200, 201]).await {
                Outcome::Happened(response) if receipt.is_null() || receipt == response.json => {}
                Outcome::Happened(response) => {
                    let is = &response.json;
                    self.requests
                        .state
                        .fail(format!("{path}: the response to a retry is {is}, the first one was {receipt}"));
                }
                Outcome::Refused if !receipt.is_null() => {}
                Outcome::Refused | Outcome::Unknown => {
                    if receipt.is_null() {
                        batch.maybe_set(&name, Some(file), killed);
                        return batch;
                    }
                }
            }
        }
        batch.set(&name, Some(file));
        batch
    }

    async fn append(&mut self, mut batch: BatchModel) -> BatchModel {
        let large = self.random.below(40) == 0;
        let texts = &self.requests.state.texts;
        let text = Arc::clone(if large { &texts.large[0] } else { self.random.pick(&texts.small) });
        let name = if self.random.below(2) == 0 { self.name() } else { format!("stream-{}.log", self.random.below(2)) };
        let before = batch.file(&name).cloned().unwrap_or_default();
        let rest = if before.has_open_line() { REST_OF_OPEN_LINE } else { "" };
        let plain = [rest.as_bytes(), &text.plain].concat();
        let zipped = self.random.below(4) == 0;
        let path = format!("/batches/{}/files/{name}/lines", batch.id);
        if self.random.below(10) == 0 {
            let wrong = (before.bytes() + 1).to_string();
            let headers = [("Upload-Offset", &*wrong)];
            let refused =
                self.requests.change("append at a wrong offset", Method::POST, &path, &headers, plain, &[409]);
            refused.await;
            return batch;
        }
        let (body, encoding) = match zipped {
            // Compression in memory does not fail.
            true => (zstd::encode_all(&plain[..], 1).unwrap_or_default(), "zstd"),
            false => (plain, "identity"),
        };
        let offset = before.bytes().to_string();
        let headers = [("Upload-Offset", &*offset), ("Content-Encoding", encoding)];
        let killed = self.requests.state.killed();
        let after = before.appended(rest.len() as u64, &text.whole, text.open.as_ref());
        match self.requests.change("append", Method::POST, &path, &headers, body, &[200]).await {
            Outcome::Happened(response) => {
                if response.json["bytes"].as_u64() != Some(after.bytes()) {
                    self.requests.state.fail(format!(
                        "{path}: the response is {}, expected {} bytes",
                        response.json,
                        after.bytes()
                    ));
                }
                batch.set(&name, Some(after));
            }
            Outcome::Refused => {}
            Outcome::Unknown => batch.maybe_set(&name, Some(after), killed),
        }
        batch
    }

    /// Uploads several files in a form. Without a response, each of them may exist.
    async fn form(&mut self, mut batch: BatchModel) -> BatchModel {
        let first = self.random.below(NAMES);
        let count = 2 + self.random.below(4);
        let parts: Vec<(String, Arc<Text>)> =
            (first..first + count).map(|number| (format!("{}.log", number % NAMES), self.some_text())).collect();
        let bodies: Vec<(&str, &[u8])> = parts.iter().map(|(name, text)| (&**name, &text.plain[..])).collect();
        let path = format!("/batches/{}/files", batch.id);
        let killed = self.requests.state.killed();
        let headers = [("Content-Type", faults::FORM_TYPE)];
        let sent = self.requests.change("form", Method::POST, &path, &headers, faults::form(&bodies), &[201]).await;
        for (name, text) in &parts {
            let file = Some(FileModel::uploaded(&text.whole, text.open.as_ref(), text.stored(Encoding::Identity)));
            match sent {
                Outcome::Happened(_) => batch.set(name, file),
                Outcome::Refused => {}
                Outcome::Unknown => batch.maybe_set(name, file, killed),
            }
        }
        batch
    }

    async fn delete_file(&mut self, mut batch: BatchModel) -> BatchModel {
        let names: Vec<String> = batch.files().map(|(name, _)| name.to_owned()).collect();
        if names.is_empty() {
            return batch;
        }
        let name = self.random.pick(&names);
        let path = format!("/batches/{}/files/{name}", batch.id);
        let killed = self.requests.state.killed();
        match self.requests.change("delete file", Method::DELETE, &path, &[], Vec::new(), &[204]).await {
            Outcome::Happened(_) => batch.set(name, None),
            Outcome::Refused => {}
            Outcome::Unknown => batch.maybe_set(name, None, killed),
        }
        batch
    }

    async fn delete_batch(&mut self, mut batch: BatchModel) -> Option<BatchModel> {
        let path = format!("/batches/{}", batch.id);
        let killed = self.requests.state.killed();
        match self.requests.change("delete batch", Method::DELETE, &path, &[], Vec::new(), &[204]).await {
            Outcome::Happened(_) => None,
            Outcome::Refused => Some(batch),
            Outcome::Unknown => {
                batch.maybe_delete(killed);
                Some(batch)
            }
        }
    }

    async fn complete(&mut self, mut batch: BatchModel) -> BatchModel {
        let path = format!("/batches/{}/complete", batch.id);
        let killed = self.requests.state.killed();
        match self.requests.change("complete", Method::POST, &path, &[], Vec::new(), &[202]).await {
            Outcome::Happened(_) => batch.complete(),
            Outcome::Refused => {}
            Outcome::Unknown => batch.maybe_change_status(killed),
        }
        batch
    }

    async fn reopen(&mut self, mut batch: BatchModel) -> BatchModel {
        let path = format!("/batches/{}/reopen", batch.id);
        let killed = self.requests.state.killed();
        // 409: a batch that is still being processed cannot be reopened.
        match self.requests.change("reopen", Method::POST, &path, &[], Vec::new(), &[200, 409]).await {
            Outcome::Happened(_) => batch.completed = false,
            Outcome::Refused => {}
            Outcome::Unknown => batch.maybe_change_status(killed),
        }
        batch
    }

    /// A completed batch rejects uploads.
    async fn put_refused(&mut self, batch: BatchModel) -> BatchModel {
        let path = format!("/batches/{}/files/{}", batch.id, self.name());
        let text = self.some_text();
        let put = self.requests.change("put when completed", Method::PUT, &path, &[], text.plain.clone(), &[409]);
        put.await;
        batch
    }

    /// The report of a batch must equal the model at any time.
    async fn verify(&mut self, batch: BatchModel) -> BatchModel {
        let path = format!("/batches/{}/report?min_epoch={}&timeout_ms=60000", batch.id, self.requests.epoch());
        if let Some(report) = self.requests.get("report of a known batch", &path, &[]).await {
            batch.differences(&report).into_iter().for_each(|difference| self.requests.state.fail(difference));
        }
        batch
    }
}

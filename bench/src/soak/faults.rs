//! Requests that must be rejected without effect, and clients that are slow, silent, or do not read responses.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::generate::Random;
use crate::soak::model::{BatchModel, FileModel};
use crate::soak::requests::{Outcome, Requests};
use crate::soak::state::State;
use crate::soak::texts::{Encoding, Text};

/// Clients that send one body byte every few seconds: more than the server's limit of concurrent uploads.
pub const SLOW_UPLOADS: u64 = 40;
/// Connections that send nothing, or half a request.
pub const SILENT: u64 = 10;
/// Clients that request large responses and read nothing.
pub const NEVER_READING: u64 = 8;
/// Followers of a batch's events.
pub const FOLLOWERS: u64 = 10;
/// The longest time without data for a follower: the server sends a keep-alive comment every 15 s.
const EVENTS_PAUSE_MAX: Duration = Duration::from_secs(25);
/// How long a slow client continues.
const SLOW_SECONDS: std::ops::Range<u64> = 30..240;
/// The `Content-Length` of a slow client, which never sends the whole body.
const SLOW_BODY_BYTES: u64 = 1 << 20;
/// Requests of a client that does not read the responses.
const UNREAD_REQUESTS: usize = 50;

const BOUNDARY: &str = "a-boundary-that-no-log-has";
/// The `Content-Type` of [`form`].
pub const FORM_TYPE: &str = "multipart/form-data; boundary=a-boundary-that-no-log-has";

/// A multipart form with a part `file` for each name and body.
pub fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, body) in parts {
        let head =
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(body);
        form.extend_from_slice(b"\r\n");
    }
    form.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    form
}

/// Sends a form that must be rejected as a whole.
pub async fn bad_form(requests: &Requests<'_>, random: &mut Random, mut batch: BatchModel) -> BatchModel {
    let texts = &requests.state.texts;
    let some = if random.below(6) == 0 { &texts.large } else { &texts.small };
    let text = Arc::clone(random.pick(some));
    let other = Arc::clone(random.pick(&texts.small));
    let path = format!("/batches/{}/files", batch.id);
    let killed = requests.state.killed();
    let names = ["0.log", "form.log"];
    let whole = form(&[(names[0], &text.plain), (names[1], &other.plain)]);
    let mut headers = vec![("Content-Type", FORM_TYPE)];
    let mut statuses = vec![422];
    let (kind, body) = match random.below(6) {
        0 => {
            headers.push(("Idempotency-Key", ""));
            ("form with an empty key", whole)
        }
        1 => {
            let corrupt = corrupt(&other);
            ("form with a corrupt file", form(&[(names[0], &text.plain), (names[1], &corrupt)]))
        }
        2 => ("form with a bad name", form(&[(names[0], &text.plain), ("../x.log", &other.plain)])),
        3 => {
            statuses = vec![400, 422];
            ("form without an end", whole[..whole.len() - BOUNDARY.len()].to_vec())
        }
        4 => {
            // The parts are not compressed, so a server that ignores this header accepts the form.
            headers.push(("Content-Encoding", "br"));
            statuses = vec![201, 415];
            ("form with an unknown encoding", whole)
        }
        _ => {
            requests.state.count("interrupted form", "sent");
            interrupt(
                requests.state,
                &format!("POST /api/v1{path}"),
                &format!("Content-Type: {FORM_TYPE}\r\n"),
                &whole,
            )
            .await;
            return batch;
        }
    };
    let sent = requests.change(kind, Method::POST, &path, &headers, body, &statuses).await;
    for (name, text) in names.into_iter().zip([&text, &other]) {
        let file = Some(FileModel::uploaded(&text.whole, text.open.as_ref(), text.stored(Encoding::Identity)));
        match sent {
            // A form that was wrongly accepted counts; the failure is reported.
            Outcome::Happened(_) => batch.set(name, file),
            Outcome::Refused => {}
            Outcome::Unknown if statuses.contains(&201) => batch.maybe_set(name, file, killed),
            Outcome::Unknown => {}
        }
    }
    batch
}

/// Sends an upload that must be rejected.
pub async fn bad_put(requests: &Requests<'_>, random: &mut Random, batch: BatchModel) -> BatchModel {
    let texts = &requests.state.texts;
    let some = if random.below(6) == 0 { &texts.large } else { &texts.small };
    let text = Arc::clone(random.pick(some));
    let path = format!("/batches/{}/files/{}.log", batch.id, random.below(3));
    let lines = format!("{path}/lines");
    let gzip = [("Content-Encoding", "gzip")];
    let unknown = [("Content-Encoding", "br")];
    let put = || Method::PUT;
    let (kind, method, path, headers, body, status) = match random.below(6) {
        0 => ("put of a corrupt file", put(), &path, &gzip[..], corrupt(&text), 422),
        1 => {
            let cut = text.body(Encoding::Zstd);
            (
                "put of half a file",
                put(),
                &path,
                &[("Content-Encoding", "zstd")][..],
                cut[..cut.len() / 2].to_vec(),
                422,
            )
        }
        2 => ("put with an unknown encoding", put(), &path, &unknown[..], text.plain.clone(), 415),
        3 => ("put with an empty key", put(), &path, &[("Idempotency-Key", "")][..], text.plain.clone(), 422),
        4 => ("append of a corrupt part", Method::POST, &lines, &gzip[..], corrupt(&texts.small[0]), 422),
        _ => {
            requests.state.count("interrupted put", "sent");
            interrupt(requests.state, &format!("PUT /api/v1{path}"), "", &text.plain).await;
            return batch;
        }
    };
    // Even without a response, it was not accepted.
    requests.change(kind, method, path, headers, body, &[status]).await;
    batch
}

/// The text in gzip with a wrong checksum.
fn corrupt(text: &Text) -> Vec<u8> {
    let mut gzip = text.body(Encoding::Gzip).to_vec();
    let index = gzip.len().saturating_sub(6);
    gzip.iter_mut().skip(index).take(1).for_each(|byte| *byte ^= 0xff);
    gzip
}

/// Sends half of a body, then closes the connection.
async fn interrupt(state: &State, request: &str, headers: &str, body: &[u8]) {
    let address = state.address().await;
    let head = format!("{request} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: {}\r\n\r\n", body.len() + 1);
    let sent = async {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body[..body.len() / 2]).await
    };
    // Errors are expected: the server may be killed, or may close the connection first.
    let _ = timeout(Duration::from_secs(60), sent).await;
}

/// Runs one kind of client repeatedly until the load ends.
pub async fn repeat<F: Future<Output = ()>>(state: Arc<State>, number: u64, client: impl Fn(Arc<State>, u64) -> F) {
    let mut random = Random::new(state.seed ^ (number << 32));
    while !state.stops() {
        client(Arc::clone(&state), random.below(1 << 40)).await;
        sleep(Duration::from_millis(500 + random.below(3000))).await;
    }
}

/// A connection, its address, and a batch.
async fn connect(state: &State, index: u64) -> Option<(TcpStream, String, String)> {
    let address = state.address().await;
    let batch = state.model().some(index)?.0;
    // The server may have been killed meanwhile.
    Some((TcpStream::connect(&address).await.ok()?, address, batch))
}

/// Sends one body byte every few seconds, as a file, an append, or a form, and never completes the body.
pub async fn slow_upload(state: Arc<State>, seed: u64) {
    let mut random = Random::new(seed);
    let Some((mut stream, address, batch)) = connect(&state, seed).await else { return };
    let (kind, request, headers) = match random.below(4) {
        0 => ("slow append", format!("POST /api/v1/batches/{batch}/files/slow.log/lines"), String::new()),
        1 => ("slow form", format!("POST /api/v1/batches/{batch}/files"), format!("Content-Type: {FORM_TYPE}\r\n")),
        _ => ("slow put", format!("PUT /api/v1/batches/{batch}/files/slow.log"), String::new()),
    };
    let head = format!("{request} HTTP/1.1\r\nHost: {address}\r\n{headers}Content-Length: {SLOW_BODY_BYTES}\r\n\r\n");
    let first = if kind == "slow form" { form(&[("slow.log", b"")]) } else { Vec::new() };
    // Without the end of the form, so that its part continues.
    let first = &first[..first.len().saturating_sub(BOUNDARY.len() + 8)];
    if stream.write_all(&[head.as_bytes(), first].concat()).await.is_err() {
        return;
    }
    let end =
        Instant::now() + Duration::from_secs(SLOW_SECONDS.start + random.below(SLOW_SECONDS.end - SLOW_SECONDS.start));
    let line = b"E_SLOW\n";
    let mut response = [0; 64];
    for byte in line.iter().cycle() {
        let pause = Duration::from_millis(2_000 + random.below(3_000));
        match timeout(pause, stream.read(&mut response)).await {
            Ok(Ok(count)) if count > 0 => {
                state.count(kind, status_of(&response[..count]));
                return;
            }
            Ok(_) => break,
            Err(_) if Instant::now() > end || state.stops() => {
                state.count(kind, "gave up");
                return;
            }
            Err(_) => {}
        }
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    state.count(kind, "connection closed");
}

fn status_of(response: &[u8]) -> String {
    let head = String::from_utf8_lossy(response);
    head.split(' ').nth(1).unwrap_or("no status").to_owned()
}

/// A connection that sends nothing, or half a request head.
pub async fn silent(state: Arc<State>, seed: u64) {
    let Some((mut stream, ..)) = connect(&state, seed).await else { return };
    if seed.is_multiple_of(2) && stream.write_all(b"GET /api/v1/batches HTTP/1.1\r\nHost: x\r\nX-Half").await.is_err() {
        return;
    }
    let mut response = [0; 64];
    let received = timeout(Duration::from_secs(180), stream.read(&mut response)).await;
    state.count("silent connection", if received.is_ok() { "closed" } else { "open after 180 s" });
}

/// Sends many requests with large responses and reads none of them.
pub async fn never_reading(state: Arc<State>, seed: u64) {
    let Some((mut stream, address, batch)) = connect(&state, seed).await else { return };
    let request = if seed.is_multiple_of(2) {
        format!("GET /api/v1/batches/{batch}/errors?limit=10000 HTTP/1.1\r\nHost: {address}\r\n\r\n")
    } else {
        let body = r#"{"sql":"SELECT * FROM errors","limit":1000000}"#;
        let head = "POST /api/v1/query HTTP/1.1";
        format!("{head}\r\nHost: {address}\r\nAccept: text/csv\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    for _ in 0..UNREAD_REQUESTS {
        // The server soon stops reading from a client that does not read.
        if !matches!(timeout(Duration::from_secs(5), stream.write_all(request.as_bytes())).await, Ok(Ok(()))) {
            break;
        }
    }
    let mut waited = 0;
    while waited < 150 && !state.stops() {
        sleep(Duration::from_secs(1)).await;
        waited += 1;
    }
    state.count("unread responses", "left");
}

/// Follows the events of a batch, which may not change: at least keep-alive comments must arrive.
pub async fn follow(state: Arc<State>, seed: u64) {
    let killed = state.killed();
    let Some((mut stream, address, batch)) = connect(&state, seed).await else { return };
    // The stream ends when the batch is deleted; the connection must end with it.
    let head = format!("Host: {address}\r\nConnection: close\r\n");
    let request = format!("GET /api/v1/batches/{batch}/events HTTP/1.1\r\n{head}\r\n");
    if stream.write_all(request.as_bytes()).await.is_err() {
        return;
    }
    let end = Instant::now() + Duration::from_secs(30 + seed % 150);
    let mut received = vec![0; 16 << 10];
    while Instant::now() < end && !state.stops() {
        match timeout(EVENTS_PAUSE_MAX, stream.read(&mut received)).await {
            Ok(Ok(0) | Err(_)) => {
                state.count("follow events", "ended");
                return;
            }
            Ok(Ok(count)) if received[..count].starts_with(b"HTTP/1.1 404") => {
                state.count("follow events", "404");
                return;
            }
            Ok(Ok(_)) => {}
            Err(_) if state.killed() > killed => return,
            Err(_) => {
                state
                    .fail(format!("a follower of batch {batch} received no data for {} s", EVENTS_PAUSE_MAX.as_secs()));
                return;
            }
        }
    }
    state.count("follow events", "left");
}

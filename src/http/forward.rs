//! A process that follows answers reads itself, and passes other requests on to the leader.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reqwest::Client;
use tokio::sync::watch;
use url::Url;

use crate::cluster::follower::{CONNECT_WAIT, KEY_HEADER, State as Followed, UPLOADS_PATH};
use crate::cluster::frame::{Hello, Position};
use crate::cluster::handover::By;
use crate::cluster::leader::SILENCE_MAX;
use crate::cluster::scans::{ScanError, Scans};
use crate::cluster::{ClusterKey, ClusterKeys, handover};
use crate::domain::batch::{StoredUpload, Versions};
use crate::http::audit::Peer;
use crate::http::problem::Problem;
use crate::ingest::Claim;
use crate::ingest::disk::is_disk_full;
use crate::metadata::UploadKey;

/// The header with the address of the client of a forwarded request.
pub const PEER_HEADER: HeaderName = HeaderName::from_static("argus-peer");

/// The header with the position of the leader when it answered.
pub const POSITION_HEADER: HeaderName = HeaderName::from_static("argus-position");

/// How long a response waits until this process has followed the change.
const REACH_WAIT: Duration = Duration::from_secs(5);

/// Headers of a connection, not of a request or response (RFC 9110, section 7.6.1); `host` is that of the leader.
const OF_CONNECTION: [HeaderName; 11] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::HOST,
];

/// Passes requests on to the leader. Clones share its connections.
#[derive(Clone)]
pub struct Forwarder {
    client: Client,
    keys: ClusterKeys,
    state: watch::Receiver<Followed>,
}

impl Forwarder {
    /// Passes requests on to whichever process leads.
    pub fn new(keys: ClusterKeys, state: watch::Receiver<Followed>) -> reqwest::Result<Forwarder> {
        let client = Client::builder().no_proxy().connect_timeout(CONNECT_WAIT);
        // The client of the client follows redirects.
        let client = client.redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Forwarder { client, keys, state })
    }

    async fn forward(&self, request: Request) -> Result<Response, Problem> {
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = of_message(head.headers);
        // It was checked by this process, whose address it has.
        headers.remove(header::ORIGIN);
        // Clients say nothing about the cluster.
        for name in [PEER_HEADER, POSITION_HEADER, HeaderName::from_static(KEY_HEADER)] {
            headers.remove(name);
        }
        if let Some(Peer(peer)) = head.extensions.get::<Peer>()
            && let Ok(peer) = peer.to_string().parse()
        {
            headers.insert(PEER_HEADER, peer);
        }
        let body = reqwest::Body::wrap_stream(body.into_data_stream());
        self.send(head.method, path, headers, &self.keys.forwarded, body).await
    }

    /// Sends a request to the leader. Its response comes back when this process has followed what it tells of.
    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        key: &ClusterKey,
        body: reqwest::Body,
    ) -> Result<Response, Problem> {
        let Some(leader) = self.state.borrow().leader.clone() else { return Err(no_leader(NOT_SENT)) };
        // It would be another path there than the one that was checked here.
        if has_dot_segments(path) {
            return Err(no_such_path());
        }
        let url: Url = format!("http://{leader}{path}").parse().map_err(|_| no_such_path())?;
        let request = self.client.request(method, url).headers(headers);
        let sent = request.header(KEY_HEADER, key.as_str()).body(body).send();
        let mut state = self.state.clone();
        let response = tokio::select! {
            sent = sent => sent.map_err(|error| {
                tracing::warn!(leader, error = &error as &dyn std::error::Error, "a request could not be passed on");
                no_leader(if error.is_connect() { NOT_SENT } else { UNKNOWN })
            })?,
            // A leader that is paused would keep the client waiting.
            () = lost(&mut state, &leader) => return Err(no_leader(UNKNOWN)),
        };
        let (status, mut headers) = (response.status(), of_message(response.headers().clone()));
        if let Some(position) = headers.remove(POSITION_HEADER) {
            self.reach(position.as_bytes()).await;
        }
        Ok((status, headers, Body::from_stream(response.bytes_stream())).into_response())
    }

    /// Waits until readers of this process see what the leader had when it answered: a client that reads here next sees its
    /// change.
    async fn reach(&self, position: &[u8]) {
        let Ok(position) = serde_json::from_slice::<Position>(position) else { return };
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| state.position.has_reached(&position));
        if tokio::time::timeout(REACH_WAIT, reached).await.is_err() {
            tracing::warn!(?position, "this process has not followed a change for {REACH_WAIT:?}");
        }
    }
}

/// Returns when a process does not lead any more. That this one has to begin anew with the same leader is no reason to give
/// up a request.
async fn lost(state: &mut watch::Receiver<Followed>, leader: &str) {
    loop {
        if state.wait_for(|state| state.leader.as_deref() != Some(leader)).await.is_err() {
            return;
        }
        let found = tokio::time::timeout(SILENCE_MAX, state.wait_for(|state| state.leader.is_some())).await;
        if !matches!(found, Ok(Ok(state)) if state.leader.as_deref() == Some(leader)) {
            return;
        }
    }
}

/// Hands uploads that this process has stored and scanned to the leader.
#[derive(Clone)]
pub struct Handover {
    forwarder: Forwarder,
    scans: Scans,
    /// What this process says of itself.
    own: Hello,
}

impl Handover {
    /// Hands over what `scans` found.
    pub fn new(forwarder: Forwarder, scans: Scans, own: Hello) -> Handover {
        Handover { forwarder, scans, own }
    }

    /// Fails if there is no leader at the moment: then nothing is stored in vain.
    pub fn check_leader(&self) -> Result<(), Problem> {
        match self.forwarder.state.borrow().leader.is_some() {
            true => Ok(()),
            false => Err(no_leader(NOT_SENT)),
        }
    }

    /// Hands an upload over. The leader accepts it, or discards it.
    pub async fn hand_over(
        &self,
        upload: StoredUpload,
        claim: Claim,
        key: Option<UploadKey>,
    ) -> Result<Response, Problem> {
        let Versions { whole_lines, open_line } = upload.versions();
        let scans = self.scans.finish([whole_lines, open_line]).await;
        let [first, second] = scans.map_err(|error| match &error {
            ScanError::Stopping(_) => Problem::busy("the server is stopping; send it again"),
            error if is_disk_full(error) => Problem::disk_full(),
            error => Problem::internal(error),
        })?;
        self.check_leader()?;
        let Hello { protocol, version, rules, .. } = self.own.clone();
        let by = By { protocol, version, rules, term: self.forwarder.state.borrow().term };
        let body = handover::body(by, &upload, key, [(whole_lines, first), (open_line, second)]);
        let body = body.map_err(|error| Problem::internal(&error))?;
        // From here on, the bytes may belong to an accepted file, also if the answer is lost. If they do not, the maintenance
        // deletes them.
        claim.accepted();
        let (key, body) = (&self.forwarder.keys.processes, reqwest::Body::wrap_stream(body));
        self.forwarder.send(Method::POST, UPLOADS_PATH, HeaderMap::new(), key, body).await
    }
}

/// What became of a request without an answer.
const NOT_SENT: &str = "nothing was changed; send it again";
const UNKNOWN: &str = "the change may or may not have been made; look first, or send it again with the same \
                       Idempotency-Key or Upload-Offset";

fn no_leader(what: &str) -> Problem {
    let detail = format!("the process that leads cannot be reached at the moment, and {what}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", detail)
}

fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-path", "there is no resource at a path with dot segments; see /docs")
}

fn of_message(mut headers: HeaderMap) -> HeaderMap {
    // Those that the header `Connection` names are of the connection too.
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|names| names.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    named.into_iter().for_each(|name| drop(headers.remove(name)));
    OF_CONNECTION.iter().for_each(|name| drop(headers.remove(name)));
    headers
}

/// Whether a URL with this path has another one: `/./` and `/../` are resolved, also percent-encoded, and `\\` is `/`.
fn has_dot_segments(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    path.split(['/', '\\']).any(|part| matches!(&part.to_ascii_lowercase().replace("%2e", ".")[..], "." | ".."))
}

/// Whether a path is that of a file of a batch.
fn is_file(path: &str) -> bool {
    let mut parts = path.strip_prefix("/api/v1/batches/").into_iter().flat_map(|rest| rest.split('/'));
    matches!((parts.next(), parts.next(), parts.next(), parts.next()), (Some(_), Some("files"), Some(_), None))
}

/// Whether only the leader can answer: what changes something, and uploads whose bytes the leader has.
fn needs_leader(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => path.starts_with("/api/v1/batches/") && path.contains("/uploads/"),
        Method::OPTIONS => false,
        // The bytes are stored, and the lines are scanned, where they arrive.
        Method::PUT if is_file(path) => false,
        _ => !matches!(path, "/api/v1/query" | "/login" | "/logout"),
    }
}

/// Answers a request here, or passes it on.
pub async fn forward(State(forwarder): State<Forwarder>, request: Request, next: Next) -> Response {
    match needs_leader(request.method(), request.uri().path()) {
        false => next.run(request).await,
        true => forwarder.forward(request).await.unwrap_or_else(IntoResponse::into_response),
    }
}

/// The client of a forwarded request.
pub fn peer_of(headers: &HeaderMap) -> Option<IpAddr> {
    headers.get(PEER_HEADER)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_would_be_another_one_is_known() {
        for path in ["/a/../b", "/a/%2e%2E/b", "/a/.%2e", "/./a", "/a\\..\\b", "/a/..?x"] {
            assert!(has_dot_segments(path), "{path}");
        }
        for path in ["/a/b.log", "/a/...", "/a/..b", "/a?x=../..", "/a/%2e%2e.log"] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }

    #[test]
    fn reads_are_answered_here_and_changes_by_the_leader() {
        let id = uuid::Uuid::nil();
        let here = [
            (Method::GET, format!("/api/v1/batches/{id}/report")),
            (Method::HEAD, format!("/api/v1/batches/{id}/files/uploads")),
            (Method::GET, "/api/v1/events".to_owned()),
            (Method::POST, "/api/v1/query".to_owned()),
            (Method::POST, "/login".to_owned()),
            (Method::PUT, format!("/api/v1/batches/{id}/files/a.log")),
        ];
        let leader = [
            (Method::POST, "/api/v1/batches".to_owned()),
            (Method::DELETE, format!("/api/v1/batches/{id}/files/a.log")),
            (Method::POST, format!("/api/v1/batches/{id}/files/a.log/lines")),
            (Method::DELETE, "/api/v1/vehicles/WVWZZZ1JZXW000001".to_owned()),
            (Method::PATCH, format!("/api/v1/batches/{id}/uploads/1")),
            (Method::HEAD, format!("/api/v1/batches/{id}/uploads/1")),
            (Method::POST, "/v1/logs".to_owned()),
        ];
        for (method, path) in here {
            assert!(!needs_leader(&method, &path), "{method} {path}");
        }
        for (method, path) in leader {
            assert!(needs_leader(&method, &path), "{method} {path}");
        }
    }
}

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

use crate::cluster::ClusterKey;
use crate::cluster::follower::{CONNECT_WAIT, KEY_HEADER, State as Followed};
use crate::cluster::frame::Position;
use crate::http::audit::Peer;
use crate::http::problem::Problem;

/// The header with the address of the client of a forwarded request.
pub const PEER_HEADER: HeaderName = HeaderName::from_static("argus-peer");

/// The header with the position of the leader when it answered.
pub const POSITION_HEADER: HeaderName = HeaderName::from_static("argus-position");

/// How long a response waits until this process has followed the change.
const REACH_WAIT: Duration = Duration::from_secs(5);

/// Headers of a connection, not of a request or response (RFC 9110, section 7.6.1); `host` is that of the leader.
const OF_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
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
    key: ClusterKey,
    state: watch::Receiver<Followed>,
}

impl Forwarder {
    /// Passes requests on to whichever process leads.
    pub fn new(key: ClusterKey, state: watch::Receiver<Followed>) -> reqwest::Result<Forwarder> {
        let client = Client::builder().no_proxy().connect_timeout(CONNECT_WAIT);
        // The client of the client follows redirects.
        let client = client.redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Forwarder { client, key, state })
    }

    async fn forward(&self, request: Request) -> Result<Response, Problem> {
        let Some(leader) = self.state.borrow().leader.clone() else { return Err(no_leader("nothing was changed")) };
        let (head, body) = request.into_parts();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = of_message(head.headers);
        // It was checked by this process, whose address it has.
        headers.remove(header::ORIGIN);
        if let Some(Peer(peer)) = head.extensions.get::<Peer>()
            && let Ok(peer) = peer.to_string().parse()
        {
            headers.insert(PEER_HEADER, peer);
        }
        let sent = self
            .client
            .request(head.method, format!("http://{leader}{path}"))
            .headers(headers)
            .header(KEY_HEADER, self.key.as_str())
            .body(reqwest::Body::wrap_stream(body.into_data_stream()))
            .send();
        let response = sent.await.map_err(|error| {
            tracing::warn!(leader, error = &error as &dyn std::error::Error, "a request could not be passed on");
            no_leader("the change may or may not have been made")
        })?;
        let (status, mut headers) = (response.status(), of_message(response.headers().clone()));
        if let Some(position) = headers.remove(POSITION_HEADER) {
            self.reach(position.as_bytes()).await;
        }
        Ok((status, headers, Body::from_stream(response.bytes_stream())).into_response())
    }
}

impl Forwarder {
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

fn no_leader(what: &str) -> Problem {
    let detail = format!("the process that leads cannot be reached at the moment, and {what}; send it again");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", detail)
}

fn of_message(mut headers: HeaderMap) -> HeaderMap {
    OF_CONNECTION.iter().for_each(|name| drop(headers.remove(name)));
    headers
}

/// Whether only the leader can answer: what changes something, and uploads whose bytes the leader has.
fn needs_leader(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET | Method::HEAD => path.starts_with("/api/v1/batches/") && path.contains("/uploads/"),
        Method::OPTIONS => false,
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
    fn reads_are_answered_here_and_changes_by_the_leader() {
        let id = uuid::Uuid::nil();
        let here = [
            (Method::GET, format!("/api/v1/batches/{id}/report")),
            (Method::HEAD, format!("/api/v1/batches/{id}/files/uploads")),
            (Method::GET, "/api/v1/events".to_owned()),
            (Method::POST, "/api/v1/query".to_owned()),
            (Method::POST, "/login".to_owned()),
        ];
        let leader = [
            (Method::POST, "/api/v1/batches".to_owned()),
            (Method::PUT, format!("/api/v1/batches/{id}/files/a.log")),
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

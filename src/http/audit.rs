//! Which requests the audit log records: those that change something, run a statement, take data out, or are refused.

use std::net::IpAddr;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use url::form_urlencoded;

use crate::access::Caller;
use crate::audit::AuditLog;
use crate::audit::record::Record;

/// The route of the text of a file.
const FILE: &str = "/api/v1/batches/{id}/files/{name}";

/// The content types of data that is taken out.
const EXPORTS: [&str; 3] = ["text/csv", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"];

/// The address of the client, an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// More about a request, an extension of its response.
#[derive(Debug, Clone)]
pub struct Detail(String);

impl Detail {
    /// A statement: its SHA-256, because its text may name vehicles.
    pub fn statement(sql: &str) -> Detail {
        Detail(format!("statement {}", hex::encode(Sha256::digest(sql.as_bytes()))))
    }

    /// Its text.
    pub fn into_text(self) -> String {
        self.0
    }
}

/// Runs a request, and records it. A request whose client leaves before it is answered may have had its effect.
pub async fn audit(State(log): State<AuditLog>, request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let token = request.extensions().get::<Caller>().map(|caller| caller.token);
    let from = request.extensions().get::<Peer>().map(|peer| peer.0);
    let is_read = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS);
    let record =
        |route: &str| Record { token, from, ..Record::new(format!("{} {route}", name_of(&method))).on(uri.path()) };
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let mut unanswered = Unanswered { log: &log, record: (!is_read).then(|| record(route)) };
    let mut response = next.run(request).await;
    let detail = response.extensions_mut().remove::<Detail>().or_else(|| statement_of_page(&uri));
    let is_refused = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let is_export = (route == FILE && response.status().is_success()) || is_export(response.headers());
    if !is_read || detail.is_some() || is_refused || is_export {
        let status = Some(response.status().as_u16());
        // Who logs in has a token only then.
        let token = token.or_else(|| response.extensions().get::<Caller>().map(|caller| caller.token));
        let record = Record { token, status, detail: detail.map(Detail::into_text), ..record(route) };
        match token.is_none() && response.status().is_client_error() {
            // Anybody can send these.
            true => log.record_refused(|| record),
            false => log.record(record).await,
        }
    }
    unanswered.record = None;
    response
}

/// Records a request when it is dropped before it is answered.
struct Unanswered<'l> {
    log: &'l AuditLog,
    record: Option<Record>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            let detail = Some("the client left before the answer".to_owned());
            self.log.record_now(Record { detail, ..record });
        }
    }
}

/// The record of a request that was refused before it was routed.
pub fn refused<B>(request: &axum::http::Request<B>, from: Option<IpAddr>, status: StatusCode) -> Record {
    let record =
        Record { from, status: Some(status.as_u16()), ..Record::new(format!("{} refused", name_of(request.method()))) };
    record.on(request.uri().path())
}

/// A client may invent methods of any length.
fn name_of(method: &Method) -> &str {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::PATCH | Method::DELETE | Method::OPTIONS => {
            method.as_str()
        }
        _ => "other",
    }
}

fn is_export(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    EXPORTS.iter().any(|export| kind.starts_with(export))
}

/// The statement that a page of this address runs.
fn statement_of_page(uri: &Uri) -> Option<Detail> {
    if uri.path() != "/sql" && !uri.path().starts_with("/sql/") {
        return None;
    }
    let mut parameters = form_urlencoded::parse(uri.query()?.as_bytes());
    let (_, sql) = parameters.find(|(name, sql)| name == "sql" && !sql.is_empty())?;
    Some(Detail::statement(&sql))
}

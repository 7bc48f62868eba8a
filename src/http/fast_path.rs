//! The entrance of the server: requests of foreign pages ([`super::origin`]) and those without a token that may do this
//! ([`crate::access`]) are refused, and cached reports bypass the router.
//!
//! When a roll-out goes wrong, hundreds of clients open the same report. Routing
//! the request and extracting its parts costs more than the cached answer, so
//! this request is recognised by its path alone.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::IpAddr;
use std::time::Instant;

use argus_query::cache::Found;
use axum::Router;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::Either;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use metrics::Counter;
use uuid::Uuid;

use crate::access::rate::Rates;
use crate::access::{Access, Caller};
use crate::answers::reports::Reports;
use crate::audit::AuditLog;
use crate::http::audit::{self, Peer};
use crate::http::authorize::authorize;
use crate::http::cached::respond;
use crate::http::connections::Entrance;
use crate::http::observe::{self, REQUEST_ID};
use crate::http::origin::OriginPolicy;
use crate::http::problem::Problem;

type Routed = TowerToHyperService<Router>;

/// Serves cached reports directly, and passes other requests to the router. Clones share both.
#[derive(Clone)]
pub struct FastPath {
    /// `None` for requests that another process has checked and passed on.
    policy: Option<OriginPolicy>,
    access: Access,
    rates: Rates,
    audit: AuditLog,
    /// The address of the client of this connection.
    peer: Option<IpAddr>,
    reports: Reports,
    router: Routed,
    served: Counter,
}

impl FastPath {
    /// Puts the `policy`, the tokens and the cached `reports` in front of `router`.
    pub fn new(
        policy: OriginPolicy,
        access: Access,
        rates: Rates,
        audit: AuditLog,
        reports: Reports,
        router: Router,
    ) -> FastPath {
        FastPath {
            policy: Some(policy),
            access,
            rates,
            audit,
            peer: None,
            reports,
            router: TowerToHyperService::new(router),
            served: observe::cached_reports(),
        }
    }

    /// The same for a request of a client that another process has passed on.
    pub fn of_forwarded(&self, peer: Option<IpAddr>) -> FastPath {
        FastPath { policy: None, peer, ..self.clone() }
    }

    /// Who makes a request, or why it is refused.
    fn admit(&self, request: &Request<Incoming>) -> Result<Option<Caller>, Box<Response>> {
        if let Some(refusal) = self.policy.as_ref().and_then(|policy| policy.refusal(request)) {
            return Err(Box::new(refusal.into_response()));
        }
        let caller = authorize(&self.access, request).map_err(|refused| Box::new(refused.response(request)))?;
        if let Some(caller) = &caller
            && let Err(wait) = self.rates.take(caller.token, Instant::now())
        {
            let detail = format!(
                "this token has made too many requests (--requests-per-token); the next one is possible in {} ms",
                wait.as_millis() + 1
            );
            let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail);
            return Err(Box::new(problem.into_response()));
        }
        Ok(caller)
    }

    /// Notes a request that is refused. Those of a flood are not all noted.
    fn note_refused(&self, request: &Request<Incoming>, refused: &Response) {
        if matches!(refused.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            self.audit.record_refused(|| audit::refused(request, self.peer, refused.status()));
        }
    }

    /// The response that the router would give, if it is cached.
    fn cached(&self, request: &Request<Incoming>) -> Option<Response> {
        // The router answers with the id.
        if request.headers().contains_key(&REQUEST_ID) {
            return None;
        }
        let answer = self.reports.cached(report_of(request.method(), request.uri().path_and_query()?.as_str())?)?;
        self.served.increment(1);
        Some(respond(&answer, Found::Hit, request.headers()))
    }
}

/// The batch, if the request is a `GET` of its report without parameters.
fn report_of(method: &Method, path: &str) -> Option<Uuid> {
    let id = path.strip_prefix("/api/v1/batches/")?.strip_suffix("/report")?;
    (method == Method::GET).then(|| Uuid::try_parse(id).ok()).flatten()
}

impl Entrance for FastPath {
    fn of_peer(&self, peer: IpAddr) -> FastPath {
        FastPath { peer: Some(peer), ..self.clone() }
    }
}

impl Service<Request<Incoming>> for FastPath {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, <Routed as Service<Request<Incoming>>>::Future>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let answer = match self.admit(&request) {
            Err(refused) => {
                self.note_refused(&request, &refused);
                Some(*refused)
            }
            // The router compares the vehicle.
            Ok(Some(caller)) if caller.vin.is_some() => {
                request.extensions_mut().insert(caller);
                None
            }
            Ok(caller) => {
                let cached = self.cached(&request);
                caller.map(|caller| request.extensions_mut().insert(caller));
                cached
            }
        };
        match answer {
            Some(mut answer) => {
                observe::secure(answer.headers_mut());
                ready(Ok(answer)).left_future()
            }
            None => {
                self.peer.map(|peer| request.extensions_mut().insert(Peer(peer)));
                self.router.call(request).right_future()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_report_without_parameters_bypasses_the_router() {
        let id = Uuid::from_u128(7);
        let path = format!("/api/v1/batches/{id}/report");
        assert_eq!(report_of(&Method::GET, &path), Some(id));
        for other in [
            format!("{path}?top=1"),
            format!("{path}/"),
            format!("/api/v1/batches/{id}/errors"),
            path.replace('7', "/"),
        ] {
            assert_eq!(report_of(&Method::GET, &other), None, "{other}");
        }
        assert_eq!(report_of(&Method::HEAD, &path), None);
    }
}

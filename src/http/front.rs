//! What stands before the router: kept reports go out without it.
//!
//! When a roll-out goes wrong one report is opened by the hundred. To find the
//! path among forty and to take the request apart costs more than the answer
//! does, so the one request that is asked that often is known by its path.

use std::convert::Infallible;
use std::future::{Ready, ready};

use argus_query::cache::Found;
use axum::Router;
use axum::http::{Method, Request};
use axum::response::Response;
use futures::FutureExt;
use futures::future::Either;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use uuid::Uuid;

use crate::reports::Reports;

type Routed = TowerToHyperService<Router>;

/// Answers requests, each from where it takes least. Clones share what is behind it.
#[derive(Clone)]
pub struct Front {
    reports: Reports,
    router: Routed,
}

impl Front {
    /// What `router` answers, but reports that are kept.
    pub fn new(reports: Reports, router: Router) -> Front {
        Front { reports, router: TowerToHyperService::new(router) }
    }

    /// The answer of the router to the same, where it is kept.
    fn kept(&self, request: &Request<Incoming>) -> Option<Response> {
        let answer = self.reports.kept(report_of(request.method(), request.uri().path_and_query()?.as_str())?)?;
        Some(answer.respond(Found::Hit, request.headers()))
    }
}

/// The batch whose whole report is asked for as it stands, and nothing else.
fn report_of(method: &Method, path: &str) -> Option<Uuid> {
    let id = path.strip_prefix("/api/v1/batches/")?.strip_suffix("/report")?;
    (method == Method::GET).then(|| Uuid::try_parse(id).ok()).flatten()
}

impl Service<Request<Incoming>> for Front {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, <Routed as Service<Request<Incoming>>>::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match self.kept(&request) {
            Some(answer) => ready(Ok(answer)).left_future(),
            None => self.router.call(request).right_future(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_report_as_it_stands_goes_past_the_router() {
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

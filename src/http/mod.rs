//! The HTTP layer: a module for each resource, each with its own router.
//! Handlers translate; what happens is decided behind them.

pub mod answer;
pub mod batches;
pub mod events;
pub mod extract;
pub mod files;
pub mod fleet;
pub mod health;
pub mod lines;
pub mod problem;
pub mod query;
pub mod report;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::http::problem::Problem;
use crate::service::Service;

/// All paths of the service.
pub fn router(service: &Service, metrics: PrometheusHandle, doors: BTreeMap<&'static str, SocketAddr>) -> Router {
    let api = Router::new()
        .merge(batches::router(service))
        .merge(events::router(service))
        .merge(files::router(service))
        .merge(fleet::router(service))
        .merge(lines::router(service))
        .merge(report::router(service))
        .merge(query::router(service));
    Router::new()
        .nest("/api/v1", api)
        .merge(health::router(service, metrics, doors))
        .fallback(nothing_here)
        .method_not_allowed_fallback(no_such_method)
}

async fn nothing_here(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "no-such-path", format!("there is nothing at {}", uri.path().escape_default()))
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not for {}", uri.path().escape_default());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", detail)
}

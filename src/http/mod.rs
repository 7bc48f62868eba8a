//! The HTTP layer: a module for each resource, each with its own router.
//! Handlers translate; what happens is decided behind them.

pub mod answer;
pub mod batches;
pub mod binary;
pub mod chart;
pub mod connections;
pub mod events;
pub mod extract;
pub mod files;
pub mod fleet;
mod form;
pub mod front;
pub mod health;
pub mod history;
pub mod lines;
pub mod problem;
pub mod query;
pub mod refusals;
pub mod report;
pub mod waiting;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::response::Redirect;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::SwaggerUi;

use crate::http::problem::{Problem, ProblemBody};
use crate::service::Service;

/// What the document says of all of it.
#[derive(OpenApi)]
#[openapi(
    info(title = "Argus", description = "Fleet update logs become answers."),
    // What only refusals name is not found by itself.
    components(schemas(ProblemBody)),
    tags(
        (name = "batches", description = "what a vehicle uploads together"),
        (name = "files", description = "the logs of a batch"),
        (name = "reports", description = "what the logs of a batch say"),
        (name = "fleet", description = "what all logs say"),
        (name = "query", description = "anything else, in SQL"),
        (name = "server", description = "how the server is")
    )
)]
struct Described;

/// All paths of the service.
pub fn router(service: &Service, metrics: PrometheusHandle, doors: BTreeMap<&'static str, SocketAddr>) -> Router {
    // Each path stands whole with its handler: nesting would cost every request a copy of its address.
    let (router, described) = OpenApiRouter::with_openapi(Described::openapi())
        .merge(batches::router(service))
        .merge(events::router(service))
        .merge(files::router(service))
        .merge(fleet::router(service))
        .merge(lines::router(service))
        .merge(report::router(service))
        .merge(chart::router(service))
        .merge(query::router(service))
        .merge(history::router(service))
        .merge(health::router(service, metrics, doors))
        .split_for_parts();
    router
        .route("/", get(|| async { Redirect::to("/docs/") }))
        .merge(SwaggerUi::new("/docs").url("/openapi.json", described))
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

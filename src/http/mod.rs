//! The HTTP layer: a module for each resource, each with its own router.
//! Handlers only translate between HTTP and the parts of the service.

pub mod audit;
pub mod authorize;
pub mod binary;
pub mod cached;
pub mod checksum;
pub mod connections;
mod description;
pub mod error_responses;
pub mod extract;
pub mod fast_path;
pub mod forward;
pub mod internal;
pub mod list;
pub mod observe;
pub mod origin;
pub mod problem;
pub mod routes;
pub mod shipped;
pub mod waiting;

#[cfg(not(feature = "docs"))]
use axum::Json;
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{from_fn, from_fn_with_state};
#[cfg(not(feature = "docs"))]
use axum::response::Redirect;
#[cfg(not(feature = "docs"))]
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::app::{Role, Service};
use crate::audit::AuditLog;
use crate::http::cached::CachedAnswers;
use crate::http::forward::{Forwarder, Handover};
use crate::http::problem::{Problem, ProblemBody};
use crate::http::routes::health::OtherAddresses;
use crate::http::routes::{
    batches, catalog, chart, contents, diagnosis, events, files, fleet, fleet_events, health, lines, query, report,
    shippers, tokens, uploads, vehicles,
};
use crate::pages::Login;

/// The general part of the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Argus",
        description = "Counts the error codes in a fleet's update logs and answers queries about them. Every answer \
                       shows the data at one epoch: `min_epoch` waits for the epoch of a receipt, `as_of` selects a \
                       past one."
    ),
    // Only the error responses refer to it, so utoipa does not collect it.
    components(schemas(ProblemBody)),
    tags(
        (name = "batches", description = "Uploads: all files that a vehicle sends together"),
        (name = "files", description = "The log files of a batch"),
        (name = "reports", description = "The results of a batch"),
        (name = "fleet", description = "Results over all batches and vehicles"),
        (name = "query", description = "SQL queries"),
        (name = "server", description = "Health and metrics of the server")
    )
)]
struct ApiDescription;

/// All paths of the service, which is reached over TLS if `is_encrypted`. With a forwarder, changes are passed on.
pub fn router(
    service: &Service,
    audit_log: AuditLog,
    metrics: PrometheusHandle,
    others: OtherAddresses,
    is_encrypted: bool,
    forwarder: Option<Forwarder>,
) -> Router {
    let handover = match (&service.role, &forwarder) {
        (Role::Follower { scans, own, .. }, Some(forwarder)) => {
            Some(Handover::new(forwarder.clone(), scans.clone(), own.clone()))
        }
        _ => None,
    };
    // Handlers have full paths: nested routers would copy the URI of every request.
    let router = OpenApiRouter::with_openapi(ApiDescription::openapi())
        .merge(batches::router(service))
        .merge(catalog::router(service))
        .merge(contents::router(service))
        .merge(diagnosis::router(service))
        .merge(events::router(service))
        .merge(files::router(service, handover))
        .merge(fleet_events::router(service))
        .merge(fleet::router(service, CachedAnswers::new(service.redis.clone())))
        .merge(lines::router(service))
        .merge(report::router(service))
        .merge(chart::router(service))
        .merge(query::router(service))
        .merge(shippers::router(service))
        .merge(tokens::router(service))
        .merge(uploads::router(service))
        .merge(vehicles::router(service))
        .merge(health::router(service, metrics, others));
    #[cfg(feature = "otlp")]
    let router = router.merge(routes::otlp::router(service));
    let (router, mut description) = router.split_for_parts();
    description::describe_access(&mut description);
    observe::describe();
    let pages = crate::pages::router(router.clone(), Login { access: service.access.clone(), is_encrypted });
    let router = router
        .merge(pages)
        .merge(documentation(description))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(service.metadata.clone(), authorize::only_own_batches))
        .layer(from_fn_with_state(audit_log, audit::audit));
    // The leader notes what it is passed.
    let router = match forwarder {
        None => router,
        Some(forwarder) => router.layer(from_fn_with_state(forwarder, forward::forward)),
    };
    router.layer(from_fn(observe::observe))
}

/// The OpenAPI document, and the pages for trying the API.
#[cfg(feature = "docs")]
fn documentation(description: OpenApi) -> Router {
    let pages = utoipa_swagger_ui::SwaggerUi::new("/docs").url("/openapi.json", description);
    Router::new().merge(pages)
}

/// The OpenAPI document.
#[cfg(not(feature = "docs"))]
fn documentation(description: OpenApi) -> Router {
    let document = Json(description);
    Router::new()
        .route("/docs", get(|| async { Redirect::to("/openapi.json") }))
        .route("/docs/", get(|| async { Redirect::to("/openapi.json") }))
        .route("/openapi.json", get(|| async move { document }))
}

async fn no_such_path(uri: Uri) -> Problem {
    let detail = format!("there is no resource at {}; see /docs", uri.path().escape_default());
    Problem::new(StatusCode::NOT_FOUND, "no-such-path", detail)
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{method} is not allowed for {}; see /docs", uri.path().escape_default());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", detail)
}

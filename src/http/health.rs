//! Whether the service is alive and ready, and its figures.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use utoipa::ToSchema;

use argus_dataflow::Dataflow;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::problem::Problem;
use crate::http::refusals::Unavailable;
use crate::metadata::Metadata;
use crate::service::Service;

#[derive(Clone)]
struct Parts {
    metadata: Metadata,
    dataflow: Dataflow,
    metrics: PrometheusHandle,
    /// Where SQL is answered over other protocols.
    doors: Arc<BTreeMap<&'static str, SocketAddr>>,
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn router(
    service: &Service,
    metrics: PrometheusHandle,
    doors: BTreeMap<&'static str, SocketAddr>,
) -> OpenApiRouter {
    let parts = Parts {
        metadata: service.metadata.clone(),
        dataflow: service.dataflow.clone(),
        metrics,
        doors: Arc::new(doors),
    };
    OpenApiRouter::new().routes(routes!(alive)).routes(routes!(ready)).routes(routes!(figures)).with_state(parts)
}

/// Whether the server is alive.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "server",
    responses(
        (status = 200, description = "alive", body = AliveBody)
    ),
)]
async fn alive() -> Json<AliveBody> {
    Json(AliveBody { status: "alive" })
}

/// The server is alive.
#[derive(Serialize, ToSchema)]
struct AliveBody {
    status: &'static str,
}

/// The server takes requests.
#[derive(Serialize, ToSchema)]
struct ReadyBody {
    status: &'static str,
    /// The last epoch that was accepted.
    epoch: u64,
    /// Where SQL is answered too, by protocol.
    #[schema(value_type = BTreeMap<String, String>)]
    sql: BTreeMap<&'static str, SocketAddr>,
}

/// Requests are taken only after recovery, so what can be missing is the metadata.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "server",
    responses(
        (status = 200, description = "ready", body = ReadyBody),
        Unavailable,
    ),
)]
async fn ready(State(parts): State<Parts>) -> Result<Json<ReadyBody>, Problem> {
    match parts.metadata.last_epoch().await {
        Ok(epoch) => Ok(Json(ReadyBody { status: "ready", epoch, sql: (*parts.doors).clone() })),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "not ready");
            Err(Problem::busy("the metadata cannot be read"))
        }
    }
}

/// Figures of the server.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses(
        (status = 200, description = "figures for Prometheus", body = String, content_type = "text/plain")
    ),
)]
async fn figures(State(parts): State<Parts>) -> Response {
    gauge!("argus_in_flight_bytes").set(parts.dataflow.in_flight_bytes() as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], parts.metrics.render()).into_response()
}

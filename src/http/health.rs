//! Whether the service is alive and ready, and its figures.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use utoipa::ToSchema;

use argus_dataflow::Dataflow;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::disk::{DiskSpace, Space};
use crate::failures::{FailedFile, Failures};
use crate::http::problem::Problem;
use crate::http::refusals::Unavailable;
use crate::metadata::Metadata;
use crate::service::Service;

#[derive(Clone)]
struct Parts {
    metadata: Metadata,
    dataflow: Dataflow,
    disk: DiskSpace,
    failures: Failures,
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
        disk: service.disk.clone(),
        failures: service.failures.clone(),
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
    /// Files that could not be counted since the start, the last hundred. Their reports say so too.
    failed_files: Vec<FailedFile>,
}

/// Requests are taken only after recovery, so what can be missing is the metadata, and room on the disk.
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
    if let Some(space) = parts.disk.space().filter(|space| space.is_full()) {
        let Space { free, reserve } = space;
        let detail = format!(
            "the disk of the data directory has {free} bytes free and {reserve} must stay free: uploads are refused \
             with 507 and reads go on; free some space, or delete batches"
        );
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "disk-full", detail));
    }
    match parts.metadata.last_epoch().await {
        Ok(epoch) => {
            let (sql, failed_files) = ((*parts.doors).clone(), parts.failures.last());
            Ok(Json(ReadyBody { status: "ready", epoch, sql, failed_files }))
        }
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

//! Whether the service is alive and ready, and its figures.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};

use argus_dataflow::Dataflow;

use crate::http::problem::Problem;
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
pub fn router(service: &Service, metrics: PrometheusHandle, doors: BTreeMap<&'static str, SocketAddr>) -> Router {
    let parts = Parts {
        metadata: service.metadata.clone(),
        dataflow: service.dataflow.clone(),
        metrics,
        doors: Arc::new(doors),
    };
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(figures))
        .with_state(parts)
}

async fn alive() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

/// Requests are taken only after recovery, so what can be missing is the metadata.
async fn ready(State(parts): State<Parts>) -> Result<Json<Value>, Problem> {
    match parts.metadata.last_epoch().await {
        Ok(epoch) => Ok(Json(json!({"status": "ready", "epoch": epoch, "sql": *parts.doors}))),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "not ready");
            Err(Problem::busy("the metadata cannot be read"))
        }
    }
}

async fn figures(State(parts): State<Parts>) -> Response {
    gauge!("argus_in_flight_bytes").set(parts.dataflow.in_flight_bytes() as f64);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], parts.metrics.render()).into_response()
}

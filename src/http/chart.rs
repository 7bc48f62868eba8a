//! Reports as pictures.

use std::sync::Arc;

use argus_sinks::Snapshot;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::charts::{ChartFormat, Charts};
use crate::http::binary::Binary;
use crate::http::extract::{Parameters, Segments};
use crate::http::problem::{Problem, batch_id};
use crate::http::refusals::{Invalid, Late, NotFound, TooMany, Unavailable};
use crate::http::waiting::{WAIT_MS_DEFAULT, batch_at_least};
use crate::metadata::Metadata;
use crate::reports::Reports;
use crate::service::Service;

/// Codes on a chart when nobody says how many.
const TOP_DEFAULT: usize = 20;
const TOP_MAX: usize = 100;

struct Parts {
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    reports: Reports,
    charts: Charts,
}

/// `/batches/{id}/chart.svg` and `.png`.
pub fn router(service: &Service) -> OpenApiRouter {
    let parts = Parts {
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
        reports: service.reports.clone(),
        charts: Charts::new(service.redis.clone()),
    };
    OpenApiRouter::new().routes(routes!(svg)).routes(routes!(png)).with_state(Arc::new(parts))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ChartParameters {
    /// How many codes at most.
    top: Option<usize>,
    /// Waits until the answer covers this epoch, as of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch`, in milliseconds; 5000 when nobody says, then 504.
    timeout_ms: Option<u64>,
}

impl Parts {
    async fn chart(
        &self,
        id: &str,
        wanted: &ChartParameters,
        format: ChartFormat,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        let id = batch_id(id)?;
        let top = wanted.top.unwrap_or(TOP_DEFAULT);
        if !(1..=TOP_MAX).contains(&top) {
            return Err(Problem::invalid(format!("top must be from 1 to {TOP_MAX}")));
        }
        let timeout_ms = wanted.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
        batch_at_least(&self.metadata, &self.snapshots, id, wanted.min_epoch, timeout_ms).await?;
        let (report, _) = self.reports.present(id, None).await?;
        let (chart, found) = self.charts.of_report(report, top, format).await?;
        Ok(chart.respond(found, headers))
    }
}

/// The report as a picture that scales.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/chart.svg",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch"), ChartParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    responses(
        (status = 200, description = "a bar for each code", body = String, content_type = "image/svg+xml"),
        (status = 304, description = "the answer that is known still holds"),
        NotFound, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn svg(
    State(parts): State<Arc<Parts>>,
    Segments(id): Segments<String>,
    Parameters(wanted): Parameters<ChartParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    parts.chart(&id, &wanted, ChartFormat::Svg, &headers).await
}

/// The report as a picture in pixels.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/chart.png",
    tag = "reports",
    params(("id" = Uuid, Path, description = "the batch"), ChartParameters, ("If-None-Match" = Option<String>, Header, description = "the ETag of the answer that is known")),
    responses(
        (status = 200, description = "a bar for each code", body = Binary, content_type = "image/png"),
        (status = 304, description = "the answer that is known still holds"),
        NotFound, Invalid, TooMany, Unavailable, Late,
    ),
)]
async fn png(
    State(parts): State<Arc<Parts>>,
    Segments(id): Segments<String>,
    Parameters(wanted): Parameters<ChartParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    parts.chart(&id, &wanted, ChartFormat::Png, &headers).await
}

//! Reports as charts.

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

use crate::answers::charts::{ChartFormat, Charts};
use crate::answers::reports::Reports;
use crate::app::Service;
#[cfg(feature = "png")]
use crate::http::binary::Binary;
use crate::http::cached::respond;
use crate::http::error_responses::{GatewayTimeout, Invalid, NotFound, TooManyRequests, Unavailable};
use crate::http::extract::{Parameters, Segments};
use crate::http::problem::{Problem, batch_id};
use crate::http::waiting::{WAIT_MS_DEFAULT, batch_at_least};
use crate::metadata::Metadata;

/// The default number of codes on a chart.
const TOP_DEFAULT: usize = 20;
const TOP_MAX: usize = 100;

struct ChartContext {
    metadata: Metadata,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    reports: Reports,
    charts: Charts,
}

/// `/batches/{id}/chart.svg` and `.png`.
pub fn router(service: &Service) -> OpenApiRouter {
    let context = ChartContext {
        metadata: service.metadata.clone(),
        snapshots: service.snapshots.clone(),
        reports: service.reports.clone(),
        charts: Charts::new(service.redis.clone()),
    };
    let router = OpenApiRouter::new().routes(routes!(svg));
    #[cfg(feature = "png")]
    let router = router.routes(routes!(png));
    router.with_state(Arc::new(context))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ChartParameters {
    /// The maximum number of codes, 1 to 100; default 20.
    top: Option<usize>,
    /// Wait until the answer covers this epoch, for example the epoch of a receipt.
    min_epoch: Option<u64>,
    /// How long to wait for `min_epoch` before 504, in milliseconds; default 5000, at most 60000.
    timeout_ms: Option<u64>,
}

impl ChartContext {
    async fn chart(
        &self,
        id: &str,
        parameters: &ChartParameters,
        format: ChartFormat,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        let id = batch_id(id)?;
        let top = parameters.top.unwrap_or(TOP_DEFAULT);
        if !(1..=TOP_MAX).contains(&top) {
            return Err(Problem::invalid(format!("top must be from 1 to {TOP_MAX}")));
        }
        let timeout_ms = parameters.timeout_ms.unwrap_or(WAIT_MS_DEFAULT);
        batch_at_least(&self.metadata, &self.snapshots, id, parameters.min_epoch, timeout_ms).await?;
        let (report, _) = self.reports.present(id, None).await?;
        let (chart, found) = self.charts.of_report(report, top, format).await?;
        Ok(respond(&chart, found, headers))
    }
}

/// The report as a chart in SVG.
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/chart.svg",
    tag = "reports",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ChartParameters,
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "a bar for each code", body = String, content_type = "image/svg+xml"),
        (status = 304, description = "the client's copy is current"),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn svg(
    State(context): State<Arc<ChartContext>>,
    Segments(id): Segments<String>,
    Parameters(parameters): Parameters<ChartParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.chart(&id, &parameters, ChartFormat::Svg, &headers).await
}

/// The report as a chart in PNG.
#[cfg(feature = "png")]
#[utoipa::path(
    get,
    path = "/api/v1/batches/{id}/chart.png",
    tag = "reports",
    params(
        ("id" = Uuid, Path, description = "the batch"),
        ChartParameters,
        ("If-None-Match" = Option<String>, Header, description = "the ETag of the client's copy"),
    ),
    responses(
        (status = 200, description = "a bar for each code", body = Binary, content_type = "image/png"),
        (status = 304, description = "the client's copy is current"),
        NotFound, Invalid, TooManyRequests, Unavailable, GatewayTimeout,
    ),
)]
async fn png(
    State(context): State<Arc<ChartContext>>,
    Segments(id): Segments<String>,
    Parameters(parameters): Parameters<ChartParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.chart(&id, &parameters, ChartFormat::Png, &headers).await
}

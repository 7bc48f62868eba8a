//! Liveness, readiness and metrics of the server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use utoipa::ToSchema;

use argus_dataflow::Dataflow;
use argus_query::Engine;
use argus_sinks::Snapshot;
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::token::Scope;
use crate::access::{Access, Caller};
use crate::app::{Role, Service, process};
use crate::cluster::follower::State as Followed;
use crate::cluster::leader::Leader;
use crate::http::error_responses::Unavailable;
use crate::http::problem::Problem;
use crate::ingest::disk::{DiskSpace, Space};
use crate::metadata::Metadata;
use crate::pipeline::Pipeline;
use crate::pipeline::failures::{FailedFile, Failures};
use crate::pipeline::frontier_lag::FrontierLag;

#[derive(Clone)]
struct HealthContext {
    metadata: Metadata,
    dataflow: Dataflow,
    disk: DiskSpace,
    failures: Failures,
    pipeline: Pipeline,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    frontier_lag: FrontierLag,
    metrics: PrometheusHandle,
    others: Arc<OtherAddresses>,
    access: Access,
    cluster: Option<ClusterMember>,
}

/// What this process is in its cluster.
#[derive(Clone)]
enum ClusterMember {
    Leader(Leader),
    Follower(watch::Receiver<Followed>),
}

impl ClusterMember {
    fn of(role: &Role) -> Option<ClusterMember> {
        match role {
            Role::Alone => None,
            Role::Leader { leader, .. } => Some(ClusterMember::Leader(leader.clone())),
            Role::Follower { state, .. } => Some(ClusterMember::Follower(state.clone())),
        }
    }

    fn body(&self) -> ClusterBody {
        match self {
            ClusterMember::Leader(leader) => {
                ClusterBody { role: "leader", followers: Some(leader.followers()), has_leader: true }
            }
            ClusterMember::Follower(state) => {
                ClusterBody { role: "follower", followers: None, has_leader: state.borrow().leader.is_some() }
            }
        }
    }
}

/// The processes that share the data.
#[derive(Serialize, ToSchema)]
struct ClusterBody {
    /// `leader`: it writes; `follower`: it passes changes on.
    role: &'static str,
    /// How many processes follow the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    followers: Option<usize>,
    /// Whether there is a leader; without one, changes are answered with 503, and reads go on.
    has_leader: bool,
}

/// The addresses of the servers beside HTTP, by protocol.
#[derive(Debug, Clone, Default)]
pub struct OtherAddresses {
    /// The SQL servers: `postgres`, `flight`.
    pub sql: BTreeMap<&'static str, SocketAddr>,
    /// Syslog: `tcp`, `tls`.
    pub syslog: BTreeMap<&'static str, SocketAddr>,
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn router(service: &Service, metrics: PrometheusHandle, others: OtherAddresses) -> OpenApiRouter {
    let context = HealthContext {
        metadata: service.metadata.clone(),
        dataflow: service.dataflow.clone(),
        disk: service.disk.clone(),
        failures: service.failures.clone(),
        pipeline: service.pipeline.clone(),
        engine: service.engine.clone(),
        snapshots: service.snapshots.clone(),
        frontier_lag: service.frontier_lag.clone(),
        metrics,
        others: Arc::new(others),
        access: service.access.clone(),
        cluster: ClusterMember::of(&service.role),
    };
    OpenApiRouter::new()
        .routes(routes!(alive))
        .routes(routes!(ready))
        .routes(routes!(prometheus_metrics))
        .with_state(context)
}

/// Liveness.
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

/// The server is ready.
#[derive(Serialize, ToSchema)]
struct ReadyBody {
    status: &'static str,
    /// The last epoch that was accepted.
    epoch: u64,
    /// The addresses of the SQL servers, by protocol.
    #[schema(value_type = BTreeMap<String, String>)]
    sql: BTreeMap<&'static str, SocketAddr>,
    /// The addresses for syslog: `tcp` and `tls`.
    #[schema(value_type = BTreeMap<String, String>)]
    syslog: BTreeMap<&'static str, SocketAddr>,
    /// The part of this process in its cluster, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterBody>,
    /// The last 100 files since the start that could not be counted. They are also marked in their reports.
    failed_files: Vec<FailedFile>,
}

/// Readiness.
///
/// The server listens only after recovery, so it is unready only if the metadata cannot be read, or if the disk is
/// almost full. Where tokens are needed, the addresses and the files are shown to those who may read.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "server",
    responses(
        (status = 200, description = "ready", body = ReadyBody),
        Unavailable,
    ),
)]
async fn ready(
    State(context): State<HealthContext>,
    caller: Option<Extension<Caller>>,
) -> Result<Json<ReadyBody>, Problem> {
    if let Some(space) = context.disk.space().filter(|space| space.is_full()) {
        let Space { free, reserve } = space;
        let detail = format!(
            "the disk of the data directory has {free} bytes free, and the reserve is {reserve}: uploads are rejected \
             with 507, reads continue; free disk space or delete batches"
        );
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "disk-full", detail));
    }
    match context.metadata.last_epoch().await {
        Ok(epoch) => {
            // A client without a token gets the readiness, and nothing of the fleet.
            let may_read = match caller {
                Some(Extension(caller)) => caller.has(Scope::Read),
                None => context.access.is_open(),
            };
            let (OtherAddresses { sql, syslog }, failed_files) = match may_read {
                true => ((*context.others).clone(), context.failures.last()),
                false => Default::default(),
            };
            let cluster = context.cluster.as_ref().map(ClusterMember::body);
            Ok(Json(ReadyBody { status: "ready", epoch, sql, syslog, cluster, failed_files }))
        }
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "not ready");
            Err(Problem::busy("the metadata cannot be read; see the server's log"))
        }
    }
}

/// Metrics of the server.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "server",
    responses(
        (
            status = 200,
            description = "metrics in the Prometheus text format",
            body = String,
            content_type = "text/plain"
        )
    ),
)]
async fn prometheus_metrics(State(context): State<HealthContext>) -> Response {
    process::measure();
    gauge!("argus_in_flight_bytes").set(context.dataflow.in_flight_bytes() as f64);
    let closed = context.snapshots.borrow().epoch;
    gauge!("argus_frontier_lag_seconds").set(context.frontier_lag.since(closed).as_secs_f64());
    for (queue, length) in [("rounds", context.pipeline.queue_length()), ("queries", context.engine.queue_length())] {
        gauge!("argus_queue_length", "queue" => queue).set(length as f64);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], context.metrics.render()).into_response()
}

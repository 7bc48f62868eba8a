//! A server: the service over HTTP, and over the enabled SQL protocols.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use argus_query::Limits;
use argus_query::servers::{flight_sql, postgres};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::app::work::Work;
use crate::app::{Service, ServiceConfig};
use crate::http;
use crate::http::connections;
use crate::http::fast_path::FastPath;
use crate::shutdown::Stopping;

/// The limits of a query over PostgreSQL or Flight SQL.
const SQL_LIMITS: Limits = Limits { rows: 10_000_000, time: Duration::from_secs(600) };

/// The addresses of the SQL servers; `None` disables one.
#[derive(Debug, Clone, Default)]
pub struct SqlAddresses {
    /// The PostgreSQL protocol.
    pub pg: Option<String>,
    /// Arrow Flight SQL.
    pub flight: Option<String>,
}

/// How long open requests may continue after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(30);

async fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn bind_optional(address: Option<&str>) -> Result<Option<TcpListener>> {
    match address {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

/// The service with its listeners.
pub struct Server {
    address: SocketAddr,
    http: JoinHandle<()>,
    work: Work,
}

impl Server {
    /// Opens the service and listens. When this returns, requests are accepted.
    pub async fn start(
        config: ServiceConfig,
        listen: &str,
        sql_servers: &SqlAddresses,
        metrics: PrometheusHandle,
    ) -> Result<Server> {
        // Bind first: if an address is in use, the data directory is not touched.
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let pg = bind_optional(sql_servers.pg.as_deref()).await?;
        let flight = bind_optional(sql_servers.flight.as_deref()).await?;
        let service = Service::open(config).await?;
        let listeners = [("postgres", &pg), ("flight", &flight)];
        let addresses: BTreeMap<&'static str, SocketAddr> = listeners
            .into_iter()
            .filter_map(|(name, listener)| Some((name, listener.as_ref()?.local_addr().ok()?)))
            .collect();
        for (protocol, address) in &addresses {
            tracing::info!(protocol, %address, "SQL server listening");
            if !address.ip().is_loopback() {
                tracing::warn!(
                    protocol,
                    %address,
                    "no authentication: any client of this address can read all tables; bind to a trusted network only"
                );
            }
        }
        let fast_path = FastPath::new(service.reports.clone(), http::router(&service, metrics, addresses));
        let mut work = service.work;
        let stopped = || {
            let mut stopping = service.stopping.clone();
            async move { drop(stopping.wait_for(|stopping| *stopping != Stopping::No).await) }
        };
        if let Some(pg) = pg {
            let (engine, snapshots) = (service.engine.clone(), service.snapshots.clone());
            work.spawn(postgres::serve(pg, engine, snapshots, SQL_LIMITS, stopped())?);
        }
        if let Some(flight) = flight {
            let (engine, snapshots) = (service.engine.clone(), service.snapshots.clone());
            work.spawn(flight_sql::serve(flight, engine, snapshots, SQL_LIMITS, stopped()));
        }
        let http = tokio::spawn(connections::serve(listener, fast_path, service.stopping.clone()));
        work.spawn(service.maintainer.schedule(service.stopping));
        Ok(Server { address, http, work })
    }

    /// The HTTP address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns only when the service fails.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.work.failed().await
    }

    /// Stops accepting requests, finishes the accepted ones, and closes the service.
    pub async fn stop(self) -> Result<()> {
        tracing::info!("stopping");
        self.work.announce(Stopping::Soon);
        let mut http = self.http;
        if tokio::time::timeout(STOP_WAIT, &mut http).await.is_err() {
            tracing::warn!("aborting requests that are still open after {STOP_WAIT:?}");
            self.work.announce(Stopping::Now);
            // A client that does not read its response must not delay the stop.
            http.abort();
        }
        self.work.finish().await
    }
}

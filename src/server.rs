//! A server: the service over HTTP, and over the enabled SQL protocols.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::work::Work;
use crate::app::{Service, ServiceConfig};
use crate::http;
use crate::http::connections::{self, bind};
use crate::http::fast_path::FastPath;
use crate::http::origin::OriginPolicy;
use crate::shutdown::Stopping;
use crate::sql_servers::{SqlAddresses, SqlServers};

/// How long open requests may continue after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// How often the samples of histograms are drained.
const DRAIN_EVERY: Duration = Duration::from_secs(5);

/// The service with its listeners.
pub struct Server {
    address: SocketAddr,
    http: JoinHandle<()>,
    work: Work,
}

impl Server {
    /// Opens the service and listens. When this returns, requests are accepted. Browsers may know the server by the
    /// `allowed_hosts`, beside its address.
    pub async fn start(
        config: ServiceConfig,
        listen: &str,
        allowed_hosts: &[String],
        sql_servers: &SqlAddresses,
        metrics: PrometheusHandle,
    ) -> Result<Server> {
        // Bind first: if an address is in use, the data directory is not touched.
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let sql_servers = SqlServers::bind(sql_servers).await?;
        let mut service = Service::open(config).await?;
        service.work.spawn(drain_histograms(metrics.clone(), service.stopping.clone()));
        let router = http::router(&service, metrics, sql_servers.addresses());
        let fast_path = FastPath::new(OriginPolicy::new(address, allowed_hosts), service.reports.clone(), router);
        sql_servers.spawn(&mut service)?;
        let mut work = service.work;
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

/// The recorder keeps the samples of histograms until they are drained, by a scrape or here.
async fn drain_histograms(metrics: PrometheusHandle, mut stopping: watch::Receiver<Stopping>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(DRAIN_EVERY) => metrics.run_upkeep(),
            _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => return,
        }
    }
}

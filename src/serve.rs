//! `argus serve`: the service over HTTP, until it is told to stop.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use argus_query::{Limits, postgres};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;

use crate::cli::ServeArgs;
use crate::every;
use crate::http;
use crate::http::connections;
use crate::http::front::Front;
use crate::service::{Service, ServiceConfig, Stopping, Work};
use crate::terminal;

/// What one question through another door than HTTP may take.
const DOOR_LIMITS: Limits = Limits { rows: 10_000_000, time: Duration::from_secs(600) };

/// Where SQL is answered over other protocols, if anywhere.
#[derive(Debug, Clone, Default)]
pub struct Doors {
    /// PostgreSQL's.
    pub pg: Option<String>,
    /// Arrow Flight SQL.
    pub flight: Option<String>,
}

/// How long open requests may go on after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// Runs the service until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_env("ARGUS_LOG").unwrap_or_else(|_| EnvFilter::new("warn,argus=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(terminal::has_colours(stderr().is_terminal()))
        .with_writer(stderr)
        .init();
    let rules = args.counting.rules()?;
    let mut config = ServiceConfig::new(args.data.clone(), rules, args.counting.workers());
    config.block_bytes = args.counting.block_bytes as usize;
    config.retention = args.retention.retention.into();
    config.maintain_every = every::in_force(args.maintain_every);
    config.redis.clone_from(&args.redis);
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "connections are limited by the open files that this process may have");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let doors = Doors { pg: args.pg.clone(), flight: args.flight.clone() };
    let done = runtime.block_on(serve(config, &args.listen, &doors));
    // What is still waiting on a client or a disk has nothing left to lose.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: ServiceConfig, listen: &str, doors: &Doors) -> Result<()> {
    let data = config.data.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metrics = PrometheusBuilder::new().install_recorder().context("cannot keep figures")?;
    let mut server = tokio::select! {
        server = Server::start(config, listen, doors, metrics) => server?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    {
        let mut out = stdout().lock();
        writeln!(out, "argus listening on http://{}", server.address())?;
        out.flush()?;
    }
    let address = server.address();
    tracing::info!(data = %data.display(), "the API's documents are at http://{address}/docs");
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "whoever reaches this address can read, upload and delete: there is no authentication; listen on 127.0.0.1, or let \
             a proxy in front ask who it is"
        );
    }
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = server.failed() => Some(error),
    };
    match failed {
        Some(error) => Err(error),
        None => tokio::select! {
            stopped = server.stop() => stopped,
            _ = terminate.recv() => Err(anyhow!(STOPPED_AT_ONCE)),
            _ = interrupt.recv() => Err(anyhow!(STOPPED_AT_ONCE)),
        },
    }
}

/// What a second signal comes to. Nothing that was answered is lost: it is counted at the next start.
const STOPPED_AT_ONCE: &str = "stopped at once by a second signal; what was accepted is counted at the next start";

async fn bind(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn bind_door(address: Option<&str>) -> Result<Option<TcpListener>> {
    match address {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

/// The service, listening.
pub struct Server {
    address: SocketAddr,
    http: JoinHandle<()>,
    work: Work,
}

impl Server {
    /// Opens the service and listens; requests are taken when this returns.
    pub async fn start(
        config: ServiceConfig,
        listen: &str,
        doors: &Doors,
        metrics: PrometheusHandle,
    ) -> Result<Server> {
        // First the addresses: when one is taken, nothing was touched.
        let listener = bind(listen).await?;
        let address = listener.local_addr()?;
        let pg = bind_door(doors.pg.as_deref()).await?;
        let flight = bind_door(doors.flight.as_deref()).await?;
        let service = Service::open(config).await?;
        let answering = [("postgres", &pg), ("flight", &flight)];
        let addresses: BTreeMap<&'static str, SocketAddr> =
            answering.into_iter().filter_map(|(name, door)| Some((name, door.as_ref()?.local_addr().ok()?))).collect();
        for (protocol, address) in &addresses {
            tracing::info!(protocol, %address, "SQL is answered here too");
            if !address.ip().is_loopback() {
                tracing::warn!(protocol, %address, "whoever reaches this address can read all tables: there is no authentication");
            }
        }
        let front = Front::new(service.reports.clone(), http::router(&service, metrics, addresses));
        let mut work = service.work;
        let stopped = || {
            let mut stopping = service.stopping.clone();
            async move { drop(stopping.wait_for(|stopping| *stopping != Stopping::No).await) }
        };
        if let Some(pg) = pg {
            let (engine, snapshots) = (service.engine.clone(), service.snapshots.clone());
            work.accompany(postgres::serve(pg, engine, snapshots, DOOR_LIMITS, stopped())?);
        }
        if let Some(flight) = flight {
            let (engine, snapshots) = (service.engine.clone(), service.snapshots.clone());
            work.accompany(argus_query::flight::serve(flight, engine, snapshots, DOOR_LIMITS, stopped()));
        }
        let http = tokio::spawn(connections::serve(listener, front, service.stopping.clone()));
        work.accompany(service.maintainer.schedule(service.stopping));
        Ok(Server { address, http, work })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends when the service fails, and not before.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.work.failed().await
    }

    /// Takes no more requests, finishes what was accepted, and closes the service.
    pub async fn stop(self) -> Result<()> {
        tracing::info!("stopping");
        self.work.tell(Stopping::Soon);
        let mut http = self.http;
        if tokio::time::timeout(STOP_WAIT, &mut http).await.is_err() {
            tracing::warn!("requests that are still open are cut off");
            self.work.tell(Stopping::Now);
            // Not reading an answer keeps no server alive.
            http.abort();
        }
        self.work.finish().await
    }
}

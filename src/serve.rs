//! `argus serve`: the service over HTTP, until it is told to stop.

use std::future::IntoFuture;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing_subscriber::EnvFilter;

use crate::cli::ServeArgs;
use crate::http;
use crate::service::{Service, ServiceConfig, Stopping, Work};

/// How long open requests may go on after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// Runs the service until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_env("ARGUS_LOG").unwrap_or_else(|_| EnvFilter::new("warn,argus=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(stderr().is_terminal()).with_writer(stderr).init();
    let rules = args.counting.rules()?;
    let mut config = ServiceConfig::new(args.data.clone(), rules, args.counting.workers());
    config.block_bytes = args.counting.block_bytes as usize;
    config.retention = args.retention.retention.into();
    config.maintain_every = args.maintain_every.into();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(serve(config, &args.listen));
    // What is still waiting on a client or a disk has nothing left to lose.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: ServiceConfig, listen: &str) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metrics = PrometheusBuilder::new().install_recorder().context("cannot keep figures")?;
    let mut server = tokio::select! {
        server = Server::start(config, listen, metrics) => server?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    {
        let mut out = stdout().lock();
        writeln!(out, "argus listening on http://{}", server.address())?;
        out.flush()?;
    }
    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = server.failed() => Some(error),
    };
    match failed {
        Some(error) => Err(error),
        None => server.stop().await,
    }
}

/// The service, listening.
pub struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    http: JoinHandle<std::io::Result<()>>,
    work: Work,
}

impl Server {
    /// Opens the service and listens; requests are taken when this returns.
    pub async fn start(config: ServiceConfig, listen: &str, metrics: PrometheusHandle) -> Result<Server> {
        // First the address: when it is taken, nothing was touched.
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let service = Service::open(config).await?;
        let router = http::router(&service, metrics);
        let mut work = service.work;
        work.accompany(service.maintainer.schedule(service.stopping));
        let (stop, stopped) = oneshot::channel::<()>();
        // Whoever would tell it to stop and is gone has told it.
        let told = async move { drop(stopped.await) };
        let http = tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(told).into_future());
        Ok(Server { address, stop, http, work })
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
        drop(self.stop);
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

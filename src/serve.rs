//! `argus serve`: the service over HTTP, until it is told to stop.

use std::future::IntoFuture;
use std::io::{Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::cli::ServeArgs;
use crate::http;
use crate::service::{Service, ServiceConfig};

/// How long open requests may go on after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// Runs the service until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_env("ARGUS_LOG").unwrap_or_else(|_| EnvFilter::new("warn,argus=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let rules = args.counting.rules()?;
    let mut config = ServiceConfig::new(args.data.clone(), rules, args.counting.workers());
    config.block_bytes = args.counting.block_bytes as usize;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config, &args.listen))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: ServiceConfig, listen: &str) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metrics = PrometheusBuilder::new().install_recorder().context("cannot keep figures")?;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let service = Service::open(config).await?;
    let router = http::router(&service, metrics);
    let mut work = service.work;

    let (stop, stopped) = oneshot::channel::<()>();
    // The server ends when it is told to, or when whoever would tell is gone.
    let told = async move { drop(stopped.await) };
    let address = listener.local_addr()?;
    let server = tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(told).into_future());
    {
        let mut out = stdout().lock();
        writeln!(out, "argus listening on http://{address}")?;
        out.flush()?;
    }

    let failed = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = work.failed() => Some(error),
    };
    tracing::info!("stopping");
    drop(stop);
    let abort = server.abort_handle();
    if tokio::time::timeout(STOP_WAIT, server).await.is_err() {
        tracing::warn!("requests that were still open are cut off");
        abort.abort();
    }
    match failed {
        Some(error) => Err(error),
        None => work.finish().await,
    }
}

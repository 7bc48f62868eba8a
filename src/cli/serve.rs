//! `argus serve`: runs a server until SIGTERM or SIGINT.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{KafkaConfig, ServiceConfig};
use crate::cli::{ServeArgs, interval, terminal};
use crate::cluster::follower::MayLead;
use crate::metadata::Candidacy;
use crate::server::{Listeners, Server};
use crate::sql_servers::SqlAddresses;
use crate::storage::Storage;
use crate::telemetry::Telemetry;
use crate::tls::TlsFiles;

/// The buckets of all histograms, in seconds: from a cached answer to a long query.
const BUCKETS: [f64; 14] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Runs the service until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    let colours = terminal::has_colours(stderr().is_terminal());
    let _telemetry = Telemetry::start(args.log_format, colours, args.otlp.as_ref())?;
    let rules = args.counting.rules()?;
    let mut config = ServiceConfig::new(args.storage.data.clone(), rules, args.counting.workers());
    config.block_bytes = args.counting.block_bytes as usize;
    config.retention = args.retention.retention.into();
    config.maintain_every = interval::in_force(args.maintain_every);
    config.metadata = args.storage.location()?;
    let lines_topic = args.servers.lines_topic.clone();
    config.kafka = args.servers.kafka.clone().map(|brokers| KafkaConfig { brokers, lines_topic });
    config.redis.clone_from(&args.servers.redis);
    config.assistant = args.llm.assistant();
    config.inbox.clone_from(&args.inbox);
    config.audit_keep = Some(args.audit_keep).filter(|keep| !keep.is_zero());
    config.requests_per_token = args.requests_per_token;
    config.cluster = args.cluster.cluster()?;
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files; it limits the number of connections");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let tls = args.tls_cert.clone().zip(args.tls_key.clone()).map(|(cert, key)| TlsFiles { cert, key });
    let listeners = Listeners {
        http: args.listen.clone(),
        allowed_hosts: args.allowed_host.clone(),
        insecure: args.insecure,
        sql: SqlAddresses { pg: args.pg.clone(), flight: args.flight.clone() },
        syslog: args.syslog.clone(),
        syslog_tls: args.syslog_tls.clone(),
        tls,
    };
    let done = runtime.block_on(async {
        if let Some(store) = &args.storage.store {
            config.storage = Some(Storage::open(store).await?);
        }
        serve(config, &listeners).await
    });
    // Tasks that still wait for a client or a disk can be aborted without losing data.
    runtime.shutdown_timeout(Duration::from_secs(1));
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(mut config: ServiceConfig, listeners: &Listeners) -> Result<()> {
    let data = config.data.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let metrics = PrometheusBuilder::new()
        .set_buckets(&BUCKETS)?
        .install_recorder()
        .context("cannot install the metrics recorder")?;
    let mut listeners = listeners.clone();
    let mut has_started = false;
    loop {
        let candidacy = config.candidacy.take();
        let started = tokio::select! {
            started = Server::start(ServiceConfig { candidacy, ..config.clone() }, &listeners, metrics.clone()) => started,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let mut server = match started {
            // The process that led when this one began to follow is gone.
            Err(error) if error.is::<MayLead>() => {
                config.candidacy = candidacy_in(&error);
                continue;
            }
            started => started?,
        };
        // The same ports, in another role.
        listeners = server.listeners(&listeners);
        if !has_started {
            has_started = true;
            announce(&server, &data)?;
        }
        let failed = tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            error = server.failed() => Some(error),
        };
        match failed {
            Some(error) if error.is::<MayLead>() => {
                tracing::info!("no process leads; this one will try");
                tokio::select! {
                    () = server.replaced() => {}
                    _ = terminate.recv() => return Ok(()),
                    _ = interrupt.recv() => return Ok(()),
                }
                config.candidacy = candidacy_in(&error);
            }
            Some(error) => return Err(error),
            None => {
                return tokio::select! {
                    stopped = server.stop() => stopped,
                    _ = terminate.recv() => Err(anyhow!(STOPPED_AT_ONCE)),
                    _ = interrupt.recv() => Err(anyhow!(STOPPED_AT_ONCE)),
                };
            }
        }
    }
}

/// The right to lead that an error brings.
fn candidacy_in(error: &anyhow::Error) -> Option<Arc<Candidacy>> {
    error.downcast_ref().map(|MayLead(candidacy)| Arc::clone(candidacy))
}

/// Says where the server listens.
fn announce(server: &Server, data: &Path) -> Result<()> {
    {
        let mut out = stdout().lock();
        writeln!(out, "argus listening on {}", server.url())?;
        out.flush()?;
    }
    let address = server.address();
    tracing::info!(data = %data.display(), "the web pages are at {}/", server.url());
    if !address.ip().is_loopback() && server.is_open() {
        tracing::warn!(
            %address,
            "there are no tokens: any client that reaches this address can read, upload and delete; create one with \
             argus token create, or listen on 127.0.0.1"
        );
    }
    Ok(())
}

/// The error after a second signal. No accepted data is lost: it is counted at the next start.
const STOPPED_AT_ONCE: &str = "stopped immediately by a second signal; accepted data will be counted at the next start";

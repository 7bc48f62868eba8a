//! A server: the service over HTTP, and over the enabled protocols of SQL and syslog.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::{OptionFuture, join_all, join3};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::access::Access;
use crate::access::rate::Rates;
use crate::app::work::Work;
use crate::app::{Role, Service, ServiceConfig};
use crate::audit::record::Record;
use crate::audit::{self, AuditLog, AuditWriter};
use crate::http;
use crate::http::connections::{self, bind};
use crate::http::fast_path::FastPath;
use crate::http::forward::Forwarder;
use crate::http::internal::InternalEntrance;
use crate::http::origin::OriginPolicy;
use crate::http::routes::health::OtherAddresses;
use crate::metadata::{Metadata, MetadataError};
use crate::shutdown::Stopping;
use crate::sql_servers::{SqlAddresses, SqlServers, bind_optional};
use crate::syslog;
use crate::tls::{Certificate, TlsFiles};

/// How long open requests may continue after the signal to stop.
const STOP_WAIT: Duration = Duration::from_secs(30);

/// How long open requests may continue when this process takes the lead.
const REPLACE_WAIT: Duration = Duration::from_millis(500);

/// How long a stop waits for the audit log, whose disk may be full.
const AUDIT_WAIT: Duration = Duration::from_secs(10);

/// How often the samples of histograms are drained.
const DRAIN_EVERY: Duration = Duration::from_secs(5);

/// Where a server listens.
#[derive(Debug, Clone, Default)]
pub struct Listeners {
    /// HTTP: HOST:PORT, where port 0 picks a free one.
    pub http: String,
    /// The names, beside its address, by which browsers may know the server.
    pub allowed_hosts: Vec<String>,
    /// The SQL servers.
    pub sql: SqlAddresses,
    /// Syslog over TCP.
    pub syslog: Option<String>,
    /// Syslog over TLS.
    pub syslog_tls: Option<String>,
    /// Whether everybody may use the server on an address that is not loopback.
    pub insecure: bool,
    /// The certificate for HTTP and for syslog over TLS; without one, HTTP is not encrypted.
    pub tls: Option<TlsFiles>,
}

/// The service with its listeners.
pub struct Server {
    address: SocketAddr,
    is_encrypted: bool,
    access: Access,
    sql: SqlAddresses,
    http: JoinHandle<()>,
    work: Work,
    audit_writer: AuditWriter,
}

impl Server {
    /// Opens the service and listens. When this returns, requests are accepted.
    pub async fn start(config: ServiceConfig, listeners: &Listeners, metrics: PrometheusHandle) -> Result<Server> {
        // First, so that with a wrong certificate or an address in use the data directory is not touched.
        let certificate = listeners.tls.clone().map(Certificate::read).transpose()?;
        let tls = certificate.as_ref().map(Certificate::acceptor).transpose()?;
        // While this process takes the lead, clients are to ask another one: it does not listen.
        let takes_over = config.candidacy.is_some();
        let early = match takes_over {
            true => None,
            false => Some((bind(&listeners.http).await?, SqlServers::bind(&listeners.sql).await?)),
        };
        let (data, audit_keep, requests_per_token) =
            (config.data.clone(), config.audit_keep, config.requests_per_token);
        let internal = match &config.cluster {
            Some(cluster) => Some(bind(cluster.own()).await.context("for the other processes (--hosts)")?),
            None => None,
        };
        let mut service = open(config).await?;
        let (listener, sql_servers) = match early {
            Some(early) => early,
            None => (bind(&listeners.http).await?, SqlServers::bind(&listeners.sql).await?),
        };
        let address = listener.local_addr()?;
        // Lines go to the pipeline, so only the process that has one listens.
        let takes_lines = !matches!(service.role, Role::Follower { .. });
        let syslog = bind_optional(listeners.syslog.as_deref().filter(|_| takes_lines)).await?;
        let syslog_tls = bind_optional(listeners.syslog_tls.as_deref().filter(|_| takes_lines)).await?;
        let folder = audit::folder(&data);
        let opened = AuditLog::open(&folder, audit_keep);
        let (audit, audit_writer) =
            opened.with_context(|| format!("cannot open the audit log in {}", folder.display()))?;
        audit.record(Record::of_server(&format!("start of version {}", env!("CARGO_PKG_VERSION")))).await;
        service.work.spawn(drain_histograms(metrics.clone(), service.stopping.clone()));
        let mut others = OtherAddresses { sql: sql_servers.addresses(), ..OtherAddresses::default() };
        for (name, listener) in [("tcp", &syslog), ("tls", &syslog_tls)] {
            if let Some(listener) = listener {
                let address = listener.local_addr()?;
                tracing::info!(%address, "listening for syslog over {name}");
                others.syslog.insert(name, address);
            }
        }
        let forwarder = match &service.role {
            Role::Follower { keys, state, .. } => Some(Forwarder::new(keys.clone(), state.clone())?),
            Role::Alone | Role::Leader { .. } => None,
        };
        let router = http::router(&service, audit.clone(), metrics, others, tls.is_some(), forwarder);
        let policy = OriginPolicy::new(address, &listeners.allowed_hosts);
        check_exposure(&service.access, listeners, address)?;
        let (access, rates) = (service.access.clone(), Rates::new(requests_per_token));
        let fast_path = FastPath::new(policy, access, rates, audit.clone(), service.reports.clone(), router);
        let sql = sql_servers.bound();
        sql_servers.spawn(&mut service, audit)?;
        let messages = syslog::Receiver::new(&service);
        let access = service.access.clone();
        let mut work = service.work;
        let syslog = [(syslog, None), (syslog_tls, tls.clone())]
            .into_iter()
            .filter_map(|(listener, tls)| Some(messages.clone().serve(listener?, tls)));
        let syslog = join_all(syslog);
        if let Some(certificate) = certificate {
            let follow_changes = certificate.follow_changes();
            let mut stopping = service.stopping.clone();
            work.spawn(async move {
                tokio::select! {
                    () = follow_changes => {}
                    _ = stopping.wait_for(|stopping| *stopping != Stopping::No) => {}
                }
            });
        }
        let is_encrypted = tls.is_some();
        let internal = match (internal, service.role) {
            (Some(listener), Role::Leader { keys, leader }) => {
                Some((listener, InternalEntrance::new(keys, Some(leader), fast_path.clone())))
            }
            (Some(listener), Role::Follower { keys, .. }) => {
                Some((listener, InternalEntrance::new(keys, None, fast_path.clone())))
            }
            _ => None,
        };
        let internal =
            internal.map(|(listener, entrance)| connections::serve(listener, None, entrance, service.stopping.clone()));
        let http = connections::serve(listener, tls, fast_path, service.stopping.clone());
        // They end before the pipeline, which has to take what has arrived.
        let http = tokio::spawn(async move { drop(join3(http, syslog, OptionFuture::from(internal)).await) });
        if let Some(maintainer) = service.maintainer {
            work.spawn(maintainer.schedule(service.stopping));
        }
        Ok(Server { address, is_encrypted, access, sql, http, work, audit_writer })
    }

    /// Whether nobody needs a token.
    pub fn is_open(&self) -> bool {
        self.access.is_open()
    }

    /// The address for clients: `http://HOST:PORT`, or `https://HOST:PORT`.
    pub fn url(&self) -> String {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The addresses that it listens on, for another server in its place.
    pub fn listeners(&self, before: &Listeners) -> Listeners {
        Listeners { http: self.address.to_string(), sql: self.sql.clone(), ..before.clone() }
    }

    /// The HTTP address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns only when the service fails.
    pub async fn failed(&mut self) -> anyhow::Error {
        self.work.failed().await
    }

    /// Ends the server of a process that has stopped following, so that another one takes its place. Open requests have a
    /// short time to end: those who wait for an epoch would wait for a leader.
    pub async fn replaced(self) {
        self.work.announce(Stopping::Soon);
        let mut http = self.http;
        if tokio::time::timeout(REPLACE_WAIT, &mut http).await.is_err() {
            self.work.announce(Stopping::Now);
            http.abort();
            // Until it has let its listeners go.
            let _ = http.await;
        }
        self.work.finish_without_lake().await;
        let audit_writer = self.audit_writer;
        let written = tokio::task::spawn_blocking(move || audit_writer.finish());
        if tokio::time::timeout(AUDIT_WAIT, written).await.is_err() {
            tracing::error!("the last records of the audit log could not be written within {AUDIT_WAIT:?}");
        }
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
        let finished = self.work.finish().await;
        let audit_writer = self.audit_writer;
        let written = tokio::task::spawn_blocking(move || audit_writer.finish());
        if tokio::time::timeout(AUDIT_WAIT, written).await.is_err() {
            tracing::error!("the last records of the audit log could not be written within {AUDIT_WAIT:?}");
        }
        finished
    }
}

/// Opens the service: that of a single process, or in a cluster that of the leader, or of a process that follows it.
async fn open(mut config: ServiceConfig) -> Result<Service> {
    if config.cluster.is_none() {
        return Service::open(config).await;
    }
    let location = config.shared()?.0.clone();
    // A new database has no table to know it from, and one that cannot be reached is an error of what follows.
    let candidacy = match (config.candidacy.take(), Metadata::open_read_only(&location).await) {
        (Some(candidacy), _) => Ok(Some(candidacy)),
        (None, Ok(metadata)) => metadata.candidacy().await.map(|candidacy| candidacy.map(Arc::new)).map_err(drop),
        (None, Err(_)) => Err(()),
    };
    if !matches!(candidacy, Ok(None)) {
        match Service::open(config.clone()).await {
            Err(error) if is_another_writer(&error) => {}
            opened => return opened,
        }
    }
    // Others may lead.
    drop(candidacy);
    Service::follow(config).await
}

/// Whether another process has become the writer first.
fn is_another_writer(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(MetadataError::AnotherWriter { .. })))
}

/// Refuses to serve others than this machine without tokens.
fn check_exposure(access: &Access, listeners: &Listeners, address: SocketAddr) -> Result<()> {
    let others = [&listeners.sql.pg, &listeners.sql.flight];
    let is_exposed = |address: &Option<String>| {
        address.as_deref().is_some_and(|address| {
            !address.starts_with("127.") && !address.starts_with("localhost:") && !address.starts_with("[::1]:")
        })
    };
    let syslog = [&listeners.syslog, &listeners.syslog_tls];
    if syslog.into_iter().any(is_exposed) && !listeners.insecure {
        bail!(
            "syslog has no tokens: anybody who reaches its address could send lines of any vehicle; listen on 127.0.0.1, or \
             accept it with --insecure"
        );
    }
    let exposed = access.is_open() && (!address.ip().is_loopback() || others.into_iter().any(is_exposed));
    if exposed && !listeners.insecure {
        bail!(
            "this server would be open to anybody who reaches {address}, to read, upload and delete: listen on 127.0.0.1, \
             create a token first (argus token create --scope admin --data DIR), or accept it with --insecure"
        );
    }
    Ok(())
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

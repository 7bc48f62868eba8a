//! SQL over the protocols of PostgreSQL (`--pg`) and Arrow Flight SQL (`--flight`). Each is a cargo feature of the
//! flag's name: they are a large part of a build, and the HTTP API does not need them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, bail};
#[cfg(any(feature = "pg", feature = "flight"))]
use argus_query::Limits;
#[cfg(any(feature = "pg", feature = "flight"))]
use argus_query::servers::authenticator::{Authenticator, RunBy, RunStatement, Salted};
use tokio::net::TcpListener;
#[cfg(any(feature = "pg", feature = "flight"))]
use tokio::sync::watch;

#[cfg(any(feature = "pg", feature = "flight"))]
use crate::access::Access;
use crate::app::Service;
use crate::audit::AuditLog;
#[cfg(any(feature = "pg", feature = "flight"))]
use crate::audit::record::Record;
use crate::http::connections::bind;
#[cfg(any(feature = "pg", feature = "flight"))]
use crate::shutdown::Stopping;

/// The limits of a query.
#[cfg(any(feature = "pg", feature = "flight"))]
const LIMITS: Limits = Limits { rows: 10_000_000, time: std::time::Duration::from_secs(600) };

/// The addresses of the SQL servers; `None` disables one.
#[derive(Debug, Clone, Default)]
pub struct SqlAddresses {
    /// The PostgreSQL protocol.
    pub pg: Option<String>,
    /// Arrow Flight SQL.
    pub flight: Option<String>,
}

/// The bound listeners of the SQL servers.
pub(crate) struct SqlServers {
    pg: Option<TcpListener>,
    flight: Option<TcpListener>,
}

impl SqlServers {
    /// Binds the addresses. Fails if this build lacks a server that is asked for.
    pub(crate) async fn bind(addresses: &SqlAddresses) -> Result<SqlServers> {
        let (pg, flight) = (addresses.pg.as_deref(), addresses.flight.as_deref());
        let asked_for =
            [("pg", pg.is_some(), cfg!(feature = "pg")), ("flight", flight.is_some(), cfg!(feature = "flight"))];
        for (feature, is_asked_for, is_built_in) in asked_for {
            if is_asked_for && !is_built_in {
                bail!("this argus was built without --{feature}; build it with the cargo feature {feature}");
            }
        }
        Ok(SqlServers { pg: bind_optional(pg).await?, flight: bind_optional(flight).await? })
    }

    /// The bound addresses, by protocol.
    pub(crate) fn addresses(&self) -> BTreeMap<&'static str, SocketAddr> {
        let listeners = [("postgres", &self.pg), ("flight", &self.flight)];
        let bound = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        listeners.into_iter().filter_map(|(name, listener)| Some((name, bound(listener)?))).collect()
    }

    /// The bound addresses, to bind again.
    pub(crate) fn bound(&self) -> SqlAddresses {
        let bound = |listener: &Option<TcpListener>| Some(listener.as_ref()?.local_addr().ok()?.to_string());
        SqlAddresses { pg: bound(&self.pg), flight: bound(&self.flight) }
    }

    /// Serves until the server stops.
    pub(crate) fn spawn(self, service: &mut Service, audit: AuditLog) -> Result<()> {
        for (protocol, address) in self.addresses() {
            tracing::info!(protocol, %address, "SQL server listening");
            if !address.ip().is_loopback() && service.access.is_open() {
                tracing::warn!(
                    protocol,
                    %address,
                    "no authentication: any client of this address can read all tables; bind to a trusted network only"
                );
            }
        }
        #[cfg(any(feature = "pg", feature = "flight"))]
        let tokens: std::sync::Arc<dyn Authenticator> =
            std::sync::Arc::new(AuditedAccess { access: service.access.clone(), audit });
        #[cfg(not(any(feature = "pg", feature = "flight")))]
        let _ = audit;
        #[cfg(feature = "pg")]
        if let Some(listener) = self.pg {
            let (engine, snapshots) = (service.engine.clone(), service.snapshots.clone());
            let stopped = stopped(service.stopping.clone());
            service.work.spawn(argus_query::servers::postgres::serve(
                listener,
                engine,
                snapshots,
                LIMITS,
                tokens.clone(),
                stopped,
            )?);
        }
        #[cfg(feature = "flight")]
        if let Some(listener) = self.flight {
            let (engine, snapshots) = (service.engine.clone(), service.snapshots.clone());
            let stopped = stopped(service.stopping.clone());
            service
                .work
                .spawn(argus_query::servers::flight_sql::serve(listener, engine, snapshots, LIMITS, tokens, stopped));
        }
        Ok(())
    }
}

/// The tokens, with the audit log of what is done with them.
#[cfg(any(feature = "pg", feature = "flight"))]
struct AuditedAccess {
    access: Access,
    audit: AuditLog,
}

#[cfg(any(feature = "pg", feature = "flight"))]
impl Authenticator for AuditedAccess {
    fn is_open(&self) -> bool {
        self.access.is_open()
    }

    fn may_query(&self, token: &str) -> bool {
        self.access.may_query(token)
    }

    fn salted(&self, user: &str) -> Option<Salted> {
        self.access.salted(user)
    }

    fn note(&self, statement: &RunStatement<'_>) {
        let RunStatement { protocol, by, from, sql } = *statement;
        let token = match by {
            RunBy::Anybody => None,
            RunBy::User(user) => self.access.token_of_user(user),
            RunBy::Token(text) => self.access.token_of_text(text),
        };
        let detail = Some(crate::http::audit::Detail::statement(sql).into_text());
        self.audit.record_now(Record { token, from, detail, ..Record::new(format!("{protocol} query")) });
    }
}

/// Listens on an address, if there is one.
pub(crate) async fn bind_optional(address: Option<&str>) -> Result<Option<TcpListener>> {
    match address {
        Some(address) => bind(address).await.map(Some),
        None => Ok(None),
    }
}

#[cfg(any(feature = "pg", feature = "flight"))]
async fn stopped(mut stopping: watch::Receiver<Stopping>) {
    drop(stopping.wait_for(|stopping| *stopping != Stopping::No).await);
}

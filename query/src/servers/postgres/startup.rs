//! The beginning of a connection: without tokens nobody needs a password; with tokens, a token is the password
//! (SCRAM-SHA-256), and the user is its id or its name.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion_postgres::pgwire::api::auth::noop::NoopStartupHandler;
use datafusion_postgres::pgwire::api::auth::sasl::SASLAuthStartupHandler;
use datafusion_postgres::pgwire::api::auth::sasl::scram::ScramAuth;
use datafusion_postgres::pgwire::api::auth::{
    AuthSource, DefaultServerParameterProvider, LoginInfo, Password, StartupHandler,
};
use datafusion_postgres::pgwire::api::{ClientInfo, ConnectionManager, PgWireConnectionState};
use datafusion_postgres::pgwire::error::{PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use futures::Sink;

use super::handlers::Cancellable;
use super::session_reset::remember_settings;
use crate::servers::authenticator::{Authenticator, ITERATIONS};

/// Begins one connection.
pub(super) struct Startup {
    authenticator: Arc<dyn Authenticator>,
    open: Open,
    with_token: SASLAuthStartupHandler<DefaultServerParameterProvider>,
}

impl Startup {
    pub(super) fn new(connections: Arc<ConnectionManager>, authenticator: Arc<dyn Authenticator>) -> Startup {
        let mut scram = ScramAuth::new(Arc::new(Tokens(Arc::clone(&authenticator))));
        scram.set_iterations(ITERATIONS);
        let parameters = Arc::new(DefaultServerParameterProvider::default());
        let with_token = SASLAuthStartupHandler::new(parameters).with_scram(scram);
        Startup { authenticator, open: Open(connections), with_token }
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let is_first = matches!(message, PgWireFrontendMessage::Startup(_));
        if is_first && self.authenticator.is_open() {
            return self.open.on_startup(client, message).await;
        }
        self.with_token.on_startup(client, message).await?;
        if matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            self.open.register(client);
        }
        Ok(())
    }
}

/// Nobody needs a password.
struct Open(Arc<ConnectionManager>);

impl Open {
    /// Prepares a client for its statements.
    fn register(&self, client: &mut (impl ClientInfo + Unpin)) {
        remember_settings(client);
        let (pid, key) = client.pid_and_secret_key();
        let (handle, guard) = self.0.register(pid, key);
        client.session_extensions().insert(Cancellable::new(handle, guard));
    }
}

#[async_trait]
impl NoopStartupHandler for Open {
    async fn post_startup<C>(&self, client: &mut C, _message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send,
        C::Error: fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        self.register(client);
        Ok(())
    }
}

/// The tokens as passwords.
struct Tokens(Arc<dyn Authenticator>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

#[async_trait]
impl AuthSource for Tokens {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        let user = login.user().unwrap_or_default();
        let salted = self.0.salted(user).ok_or_else(|| PgWireError::InvalidPassword(user.to_owned()))?;
        Ok(Password::new(Some(salted.salt), salted.password))
    }
}

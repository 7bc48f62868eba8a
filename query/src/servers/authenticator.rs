//! Who may run SQL over the protocols of this folder.

use std::net::IpAddr;

/// Knows the tokens of a server.
pub trait Authenticator: Send + Sync {
    /// Whether nobody needs a token.
    fn is_open(&self) -> bool;

    /// Whether a token may run SQL.
    fn may_query(&self, token: &str) -> bool;

    /// The salted token of a user, who is named by the token's id or its name; `None` if there is none that may run SQL.
    fn salted(&self, user: &str) -> Option<Salted>;

    /// Notes a statement that a client runs.
    fn note(&self, statement: &RunStatement<'_>);
}

/// A statement that a client runs.
#[derive(Debug, Clone, Copy)]
pub struct RunStatement<'s> {
    /// The protocol.
    pub protocol: &'static str,
    /// Who runs it.
    pub by: RunBy<'s>,
    /// The address of the client, if it is known.
    pub from: Option<IpAddr>,
    /// The statement.
    pub sql: &'s str,
}

/// Who runs a statement.
#[derive(Debug, Clone, Copy)]
pub enum RunBy<'s> {
    /// Nobody who is known.
    Anybody,
    /// A user, who is named by the id or the name of a token.
    User(&'s str),
    /// Who has this token.
    Token(&'s str),
}

/// A token as SCRAM-SHA-256 needs it (RFC 7677): its text is not known.
#[derive(Clone)]
pub struct Salted {
    /// The salt.
    pub salt: Vec<u8>,
    /// The salted password, after [`ITERATIONS`] iterations.
    pub password: Vec<u8>,
}

/// The iterations of a salted token. A random token needs no more than the protocol asks for.
pub const ITERATIONS: usize = 4096;

/// Salts a token.
#[cfg(feature = "pg")]
pub fn salt(token: &str, salt: &[u8]) -> Vec<u8> {
    datafusion_postgres::pgwire::api::auth::sasl::scram::gen_salted_password(token, salt, ITERATIONS)
}

//! Who may run SQL over the protocols of this folder.

/// Knows the tokens of a server.
pub trait Authenticator: Send + Sync {
    /// Whether nobody needs a token.
    fn is_open(&self) -> bool;

    /// Whether a token may run SQL.
    fn may_query(&self, token: &str) -> bool;

    /// The salted token of a user, who is named by the token's id or its name; `None` if there is none that may run SQL.
    fn salted(&self, user: &str) -> Option<Salted>;
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

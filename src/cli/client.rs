//! The HTTP client of all commands: it sends the token of the environment.

use anyhow::{Context, Result};
use reqwest::{Client, ClientBuilder, header};

/// The variable with the token. There is no flag for it: other users of the machine see the flags of processes.
pub const TOKEN: &str = "ARGUS_TOKEN";

/// A client that sends the token of the environment, if there is one.
pub fn builder() -> Result<ClientBuilder> {
    let token = std::env::var(TOKEN).unwrap_or_default();
    let token = token.trim();
    if token.is_empty() {
        return Ok(Client::builder());
    }
    let value = header::HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.with_context(|| format!("{TOKEN} has characters that no token has"))?;
    value.set_sensitive(true);
    Ok(Client::builder().default_headers([(header::AUTHORIZATION, value)].into_iter().collect()))
}

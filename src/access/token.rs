//! API tokens: what one may do, and how it is recognised.

use std::fmt;
use std::str::FromStr;

use argus_query::servers::authenticator::Salted;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

/// What the text of a token begins with, so that scanners of secrets find it.
const PREFIX: &str = "argus_";

/// The longest name.
const NAME_CHARS_MAX: usize = 100;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Create batches, upload and append files, complete and delete them, and follow them.
    Upload,
    /// Read reports, lines, the fleet, and the pages.
    Read,
    /// Run SQL, and say whether diagnoses are right.
    Query,
    /// Everything.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Scope; 4] = [Scope::Upload, Scope::Read, Scope::Query, Scope::Admin];

    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Upload => "upload",
            Scope::Read => "read",
            Scope::Query => "query",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(word: &str) -> Result<Scope, String> {
        let found = Scope::ALL.into_iter().find(|scope| scope.as_str() == word);
        found.ok_or_else(|| format!("the scope is {word:?}, but must be upload, read, query or admin"))
    }
}

/// A new token, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for.
    #[serde(default)]
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it expires; without this, never.
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
    /// Only the batches of this vehicle, whose scope must be `upload` alone.
    #[serde(default)]
    pub vin: Option<String>,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it expires; null if never.
    pub expires_at: Option<DateTime<Utc>>,
    /// The vehicle whose batches it may write, if only those.
    pub vin: Option<String>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was used last, to the hour.
    #[serde(default)]
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A token as it is stored: with the SHA-256 of its secret, in hexadecimal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoredToken {
    #[serde(flatten)]
    pub(super) token: Token,
    hash: String,
    /// The token as PostgreSQL's protocol needs it, in hexadecimal; a build without it has none.
    #[serde(default)]
    scram: Option<Scram>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scram {
    salt: String,
    password: String,
}

impl NewToken {
    /// Checks it; says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.scopes.is_empty() {
            return Err("a token needs a scope: upload, read, query or admin".to_owned());
        }
        if self.name.chars().count() > NAME_CHARS_MAX || self.name.chars().any(char::is_control) {
            return Err(format!("the name must have at most {NAME_CHARS_MAX} characters, and no control characters"));
        }
        match &self.vin {
            Some(_) if self.scopes != [Scope::Upload] => {
                Err("a token of a vehicle may have the scope upload only".to_owned())
            }
            Some(vin) => crate::domain::batch::check_vin(vin).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}

impl StoredToken {
    /// A new token, and its text, which is not stored.
    pub fn new(described: NewToken, now: DateTime<Utc>) -> (StoredToken, String) {
        let id = Uuid::now_v7();
        // Each random UUID has 122 random bits.
        let secret = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        let secret = URL_SAFE_NO_PAD.encode(secret);
        let NewToken { name, scopes, expires_at, vin } = described;
        let (revoked_at, last_used_at) = (None, None);
        let token = Token { id, name, scopes, expires_at, vin, created_at: now, revoked_at, last_used_at };
        let text = format!("{PREFIX}{}_{secret}", id.simple());
        (StoredToken { token, hash: hash(&secret), scram: Scram::of(&text) }, text)
    }

    /// As PostgreSQL's protocol needs it.
    pub fn salted(&self) -> Option<Salted> {
        let Scram { salt, password } = self.scram.as_ref()?;
        Some(Salted { salt: hex::decode(salt).ok()?, password: hex::decode(password).ok()? })
    }

    /// The token without its secret.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Revokes it, if it is not revoked already.
    pub fn revoke(&mut self, now: DateTime<Utc>) {
        self.token.revoked_at.get_or_insert(now);
    }

    /// Whether a secret is its own, in a time that does not depend on where they differ.
    pub fn is_secret(&self, secret: &str) -> bool {
        hash(secret).as_bytes().ct_eq(self.hash.as_bytes()).into()
    }

    /// Whether it was revoked, or has expired, before a time.
    pub fn ended_before(&self, at: DateTime<Utc>) -> bool {
        let ends = [self.token.revoked_at, self.token.expires_at];
        ends.into_iter().flatten().any(|end| end < at)
    }

    /// Why it cannot be used now, if it cannot.
    pub fn refusal(&self, now: DateTime<Utc>) -> Option<&'static str> {
        if self.token.revoked_at.is_some() {
            return Some("it is revoked");
        }
        self.token.expires_at.is_some_and(|at| at <= now).then_some("it has expired")
    }
}

impl Scram {
    #[cfg(feature = "pg")]
    fn of(text: &str) -> Option<Scram> {
        let salt = Uuid::new_v4();
        let password = argus_query::servers::authenticator::salt(text, salt.as_bytes());
        Some(Scram { salt: hex::encode(salt), password: hex::encode(password) })
    }

    #[cfg(not(feature = "pg"))]
    fn of(_: &str) -> Option<Scram> {
        None
    }
}

/// The id and the secret in the text of a token.
pub fn parse(text: &str) -> Option<(Uuid, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    Some((Uuid::try_parse(id).ok()?, secret))
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(scopes: &[Scope], vin: Option<&str>) -> NewToken {
        NewToken { name: "a name".to_owned(), scopes: scopes.to_vec(), expires_at: None, vin: vin.map(str::to_owned) }
    }

    #[test]
    fn a_token_is_recognised_by_its_secret_alone() {
        let now = DateTime::default();
        let (stored, text) = StoredToken::new(described(&[Scope::Read], None), now);
        let (id, secret) = parse(&text).expect("a token");
        assert_eq!(id, stored.token.id);
        assert!(stored.is_secret(secret) && !stored.is_secret("") && !stored.is_secret(&secret[1..]));
        assert!(!serde_json::to_string(&stored).expect("JSON").contains(secret), "only its hash is stored");
        let (other, _) = StoredToken::new(described(&[Scope::Read], None), now);
        assert!(!other.is_secret(secret));
        for text in ["", "argus_", "argus_x_y", &text[1..], &text.replace('_', "-")] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_expired_or_revoked_token_is_refused() {
        let now: DateTime<Utc> = "2026-03-01T00:00:00Z".parse().expect("a time");
        let (mut stored, _) = StoredToken::new(described(&[Scope::Read], None), now);
        assert_eq!(stored.refusal(now), None);
        stored.token.expires_at = Some(now);
        assert_eq!(stored.refusal(now), Some("it has expired"));
        stored.token.revoked_at = Some(now);
        assert_eq!(stored.refusal(now), Some("it is revoked"));
    }

    #[test]
    fn a_token_of_a_vehicle_may_only_upload() {
        let vin = Some("WVWZZZ1JZXW000001");
        for (scopes, vin, is_valid) in [
            (&[Scope::Upload][..], vin, true),
            (&[Scope::Upload, Scope::Read], None, true),
            (&[Scope::Upload, Scope::Read], vin, false),
            (&[Scope::Admin], vin, false),
            (&[Scope::Upload], Some("short"), false),
            (&[], None, false),
        ] {
            assert_eq!(described(scopes, vin).check().is_ok(), is_valid, "{scopes:?} {vin:?}");
        }
    }
}

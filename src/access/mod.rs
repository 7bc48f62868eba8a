//! Who may do what: API tokens and their scopes.
//!
//! Without tokens a server is open, and listens on loopback only. From the first token on,
//! every request needs one ([`rules`] says which scope). Tokens are few, so they are in
//! memory: a request is checked without waiting, and a revoked token is refused at once. Its
//! event streams end; a session of PostgreSQL goes on until its client closes it.
//!
//! - [`token`]: a token; [`rules`]: what each path needs; [`rate`]: how many requests

pub mod rate;
pub mod rules;
pub mod token;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use argus_query::servers::authenticator::Salted;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;

use self::token::{NewToken, Scope, StoredToken, Token, parse};
use crate::metadata::{Document, DocumentKind, Metadata, MetadataError};
use crate::pipeline::{Pipeline, PipelineError};

/// The cookie of the pages.
pub const COOKIE: &str = "argus_token";

/// Between two looks at the time at which a token expires.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long a token that cannot be used any more is listed.
const LISTED: TimeDelta = TimeDelta::days(90);

/// How exactly the last use of a token is known.
const LAST_USE: TimeDelta = TimeDelta::hours(1);

/// The tokens of a server. Clones share them.
#[derive(Clone)]
pub struct Access {
    tokens: Arc<RwLock<HashMap<Uuid, StoredToken>>>,
    /// Tokens are stored one after another, as they are then: a note of a use must not undo a revocation.
    storing: Arc<Mutex<()>>,
    /// Tells when a token is revoked.
    revoked: watch::Sender<()>,
    pipeline: Pipeline,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The id of the token.
    pub token: Uuid,
    /// Its scopes.
    pub scopes: Vec<Scope>,
    /// The vehicle whose batches it may write, if it is a vehicle's.
    pub vin: Option<String>,
}

impl Caller {
    /// Whether it has a scope; `admin` has all.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// Why a request is refused. What is wrong with a token is logged, and not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is no token, or it is not valid.
    #[error("this server needs a valid token, in the header Authorization: Bearer TOKEN")]
    NoToken,
}

/// Why a token could not be created or revoked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum TokenError {
    #[error("{0}")]
    Invalid(String),
    #[error("the first token must have the scope admin: from then on, nothing is possible without a token")]
    FirstNeedsAdmin,
    #[error("there is no token {0}")]
    Unknown(Uuid),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl Access {
    /// The stored tokens.
    pub async fn open(metadata: &Metadata, pipeline: Pipeline) -> Result<Access, MetadataError> {
        let access =
            Access { tokens: Arc::default(), storing: Arc::default(), revoked: watch::Sender::new(()), pipeline };
        access.reload(metadata).await?;
        Ok(access)
    }

    /// Reads the tokens again: another process has changed them.
    pub async fn reload(&self, metadata: &Metadata) -> Result<(), MetadataError> {
        let stored = metadata.documents::<StoredToken>(DocumentKind::Token).await?;
        *self.write() = stored.into_iter().map(|(_, stored)| (stored.token.id, stored)).collect();
        self.revoked.send_replace(());
        Ok(())
    }

    /// Whether there are no tokens, so that every request is accepted.
    pub fn is_open(&self) -> bool {
        self.read().is_empty()
    }

    /// Who makes a request; `None` if the server is open.
    pub fn caller(&self, headers: &HeaderMap) -> Result<Option<Caller>, Denied> {
        self.caller_of(text_of(headers))
    }

    /// Who has a token; `None` if the server is open.
    fn caller_of(&self, text: Option<&str>) -> Result<Option<Caller>, Denied> {
        let tokens = self.read();
        if tokens.is_empty() {
            return Ok(None);
        }
        let Some(text) = text else { return Err(Denied::NoToken) };
        let now = Utc::now();
        let refused = |reason: &str| {
            tracing::info!(reason, "a token is refused");
            Denied::NoToken
        };
        let (id, secret) = parse(text).ok_or_else(|| refused("it is malformed"))?;
        let stored = tokens.get(&id).ok_or_else(|| refused("it is not known"))?;
        if !stored.is_secret(secret) {
            return Err(refused("its secret is wrong"));
        }
        if let Some(reason) = stored.refusal(now) {
            return Err(refused(reason));
        }
        let Token { scopes, vin, .. } = &stored.token;
        let caller = Caller { token: id, scopes: scopes.clone(), vin: vin.clone() };
        let is_noted = stored.token.last_used_at.is_some_and(|at| now - at < LAST_USE);
        drop(tokens);
        if !is_noted {
            self.note_use(id, now);
        }
        Ok(Some(caller))
    }

    /// Creates a token. Returns it, and its text, which is shown once.
    pub async fn create(&self, described: NewToken) -> Result<(Token, String), TokenError> {
        described.check().map_err(TokenError::Invalid)?;
        if self.is_open() && !described.scopes.contains(&Scope::Admin) {
            return Err(TokenError::FirstNeedsAdmin);
        }
        self.forget_old().await?;
        let (stored, text) = StoredToken::new(described, Utc::now());
        self.pipeline.put_documents(vec![document(&stored)?], None).await?;
        let token = stored.token.clone();
        self.write().insert(token.id, stored);
        Ok((token, text))
    }

    /// Forgets tokens that could not be used for long, so that their number has an end. Called when there will be another
    /// one: a server whose last token is forgotten would be open.
    async fn forget_old(&self) -> Result<(), TokenError> {
        let before = Utc::now() - LISTED;
        let old: Vec<Uuid> =
            self.read().values().filter(|stored| stored.ended_before(before)).map(|stored| stored.token.id).collect();
        for id in old {
            if self.read().len() > 1 {
                self.pipeline.delete_document(DocumentKind::Token, id.to_string()).await?;
                self.write().remove(&id);
            }
        }
        Ok(())
    }

    /// All tokens, the newest first.
    pub fn list(&self) -> Vec<Token> {
        let mut tokens: Vec<Token> = self.read().values().map(|stored| stored.token.clone()).collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.id));
        tokens
    }

    /// Revokes a token at once.
    pub async fn revoke(&self, id: Uuid) -> Result<(), TokenError> {
        // Before it is durable: it must not be used meanwhile.
        self.write().get_mut(&id).ok_or(TokenError::Unknown(id))?.revoke(Utc::now());
        self.revoked.send_replace(());
        self.store(id).await
    }

    /// Forgets the tokens of a vehicle. Returns how many there were.
    pub async fn forget_vehicle(&self, vin: &str) -> Result<usize, TokenError> {
        let of_vehicle = |stored: &&StoredToken| stored.token.vin.as_deref() == Some(vin);
        let tokens: Vec<Uuid> = self.read().values().filter(of_vehicle).map(|stored| stored.token.id).collect();
        for id in &tokens {
            self.write().remove(id);
            self.revoked.send_replace(());
            // After a note of its use, if one is being stored.
            let _storing = self.storing.lock().await;
            self.pipeline.delete_document(DocumentKind::Token, id.to_string()).await?;
        }
        Ok(tokens.len())
    }

    /// Stores a token as it is now.
    async fn store(&self, id: Uuid) -> Result<(), TokenError> {
        let _storing = self.storing.lock().await;
        let stored = self.read().get(&id).cloned().ok_or(TokenError::Unknown(id))?;
        self.pipeline.put_documents(vec![document(&stored)?], None).await?;
        Ok(())
    }

    /// Returns when a caller may not go on: its token is revoked, or has expired. Without a token, never.
    pub async fn ended(self, caller: Option<Caller>) {
        let Some(caller) = caller else { return std::future::pending().await };
        let mut revoked = self.revoked.subscribe();
        loop {
            let expires_at = match self.read().get(&caller.token) {
                Some(stored) if stored.refusal(Utc::now()).is_none() => stored.token.expires_at,
                _ => return,
            };
            let expires = async {
                match expires_at {
                    // Looked at again at least once a day: a clock may be set.
                    Some(at) => tokio::time::sleep((at - Utc::now()).to_std().unwrap_or_default().min(DAY)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // The sender is in `self`.
                _ = revoked.changed() => {}
                () = expires => {}
            }
        }
    }

    fn note_use(&self, id: Uuid, now: DateTime<Utc>) {
        if let Some(stored) = self.write().get_mut(&id) {
            stored.token.last_used_at = Some(now);
        }
        let access = self.clone();
        // A use that is not stored is noted after the next start.
        tokio::spawn(async move { access.store(id).await });
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<Uuid, StoredToken>> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<Uuid, StoredToken>> {
        self.tokens.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Access {
    /// Whether a token may run SQL.
    pub fn may_query(&self, token: &str) -> bool {
        self.caller_of(Some(token)).is_ok_and(|caller| caller.is_none_or(|caller| caller.has(Scope::Query)))
    }

    /// The salted token of a user of PostgreSQL, who is named by the token's id or its name; `None` if there is none that may
    /// run SQL.
    pub fn salted(&self, user: &str) -> Option<Salted> {
        named(&self.read(), user).and_then(StoredToken::salted)
    }

    /// The id of the token that a user of PostgreSQL logs in with.
    pub fn token_of_user(&self, user: &str) -> Option<Uuid> {
        named(&self.read(), user).map(|stored| stored.token.id)
    }

    /// The id in the text of a token.
    pub fn token_of_text(&self, text: &str) -> Option<Uuid> {
        parse(text).map(|(id, _)| id).filter(|id| self.read().contains_key(id))
    }
}

/// The token of that id, or the newest of that name, if it may run SQL.
fn named<'t>(tokens: &'t HashMap<Uuid, StoredToken>, user: &str) -> Option<&'t StoredToken> {
    let now = Utc::now();
    let may_query = |stored: &&StoredToken| {
        let scopes = &stored.token.scopes;
        stored.refusal(now).is_none() && (scopes.contains(&Scope::Query) || scopes.contains(&Scope::Admin))
    };
    let by_id = Uuid::parse_str(user).ok().and_then(|id| tokens.get(&id)).filter(may_query);
    let named = || tokens.values().filter(|stored| stored.token.name == user).filter(may_query);
    by_id.or_else(|| named().max_by_key(|stored| stored.token.id))
}

/// A token as a document.
pub fn document(stored: &StoredToken) -> Result<Document, MetadataError> {
    Document::new(DocumentKind::Token, stored.token.id.to_string(), stored)
}

/// The text of the token in a request: in `Authorization`, or in the cookie of the pages.
fn text_of(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| text.trim());
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

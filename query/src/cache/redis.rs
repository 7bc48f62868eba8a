//! The cache tier that processes share: Redis.
//!
//! Redis may be down, hang, lose entries or return wrong data. An answer then takes
//! a little longer, but is correct: a request to Redis waits for at most [`REPLY_WAIT`],
//! Redis is bypassed for [`BREAK_FOR`] after a failure, and the signature of each
//! entry is verified ([`SigningKey`]).
//!
//! On a miss, a process tries to take the key's lock, which expires by itself.
//! With the lock, it computes and stores the answer. Without it, it waits for the
//! answer for at most [`LEASE`], and then computes it too.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, FromRedisValue, Script};
use metrics::counter;
use uuid::Uuid;

use crate::cache::signing::SigningKey;

/// Timeout of one request to Redis.
const REPLY_WAIT: Duration = Duration::from_millis(50);
/// How long Redis is bypassed after a failure.
const BREAK_FOR: Duration = Duration::from_secs(1);
/// Lifetime of a lock: how long a process may compute an answer before others compute it too.
const LEASE: Duration = Duration::from_secs(1);
/// How often a waiting process polls.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// How long an answer is cached: this, and up to a tenth more, so that answers stored together do not expire together.
/// After it, deleted and erased data is gone from Redis too.
const CACHED_FOR: Duration = Duration::from_secs(600);

/// Releases a lock if it still has the token of its holder.
const UNLOCK: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// The URL of Redis is invalid.
#[derive(Debug, thiserror::Error)]
#[error("the Redis URL is invalid; use the form redis://127.0.0.1:6379")]
pub struct RedisError;

/// Redis could not be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum RedisCheckError {
    #[error(transparent)]
    Url(#[from] RedisError),
    #[error("Redis did not answer; check the URL, and whether it needs a password")]
    NoAnswer(#[from] ::redis::RedisError),
    #[error("Redis answered with another value than was written")]
    WrongAnswer,
}

/// Writes an entry that expires at once, and reads it.
pub async fn try_out(url: &str) -> Result<(), RedisCheckError> {
    let client = Client::open(url).map_err(|_| RedisError)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let (key, value) = (format!("argus:check:{}", Uuid::new_v4()), "check");
    let mut write = ::redis::cmd("SET");
    write.arg(&key).arg(value).arg("PX").arg(10_000);
    write.query_async::<()>(&mut connection).await?;
    let read: Option<String> = ::redis::cmd("GET").arg(&key).query_async(&mut connection).await?;
    if read.as_deref() == Some(value) { Ok(()) } else { Err(RedisCheckError::WrongAnswer) }
}

/// Answers in Redis. Clones share the connection.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
    /// The prefix of all keys.
    prefix: Arc<str>,
    signing: SigningKey,
    breaker: Arc<CircuitBreaker>,
}

/// While it is open, Redis is bypassed.
struct CircuitBreaker {
    start: Instant,
    /// When it closes, in milliseconds after `start`.
    until: AtomicU64,
}

tokio::task_local! {
    /// Whether Redis had the answer of this task. The code that reports it is far from the code that calls Redis.
    static REMOTE: Cell<bool>;
}

/// Runs `make`; returns its answer and whether Redis had it.
pub(super) async fn was_remote<T>(make: impl Future<Output = T>) -> (T, bool) {
    REMOTE.scope(Cell::new(false), async { (make.await, REMOTE.with(Cell::get)) }).await
}

fn note_remote() {
    // Outside `was_remote`, nobody needs it.
    let _ = REMOTE.try_with(|remote| remote.set(true));
}

/// Who holds the lock of a missing key.
enum LockState {
    /// This process, with this token; it must unlock.
    Ours(String),
    /// Another process.
    Theirs,
    /// Redis did not reply.
    Unknown,
}

impl Redis {
    /// The cache at `url` for the deployment of this name and secret. The name must contain
    /// everything else that answers depend on. Connects on first use, so an unreachable
    /// server does not prevent the start.
    pub fn connect(url: &str, deployment: &str, signing: SigningKey) -> Result<Redis, RedisError> {
        let invalid = |_| RedisError;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(REPLY_WAIT))
            .set_response_timeout(Some(REPLY_WAIT));
        let client = Client::open(url).map_err(invalid)?;
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(invalid)?;
        let breaker = Arc::new(CircuitBreaker { start: Instant::now(), until: AtomicU64::new(0) });
        Ok(Redis { connection, prefix: format!("argus:{deployment}").into(), signing, breaker })
    }

    /// The answer under `key`: from Redis, or else from `compute`.
    pub async fn get<E>(&self, key: &str, compute: impl Future<Output = Result<Vec<u8>, E>>) -> Result<Vec<u8>, E> {
        if let Some(cached) = self.cached(key).await {
            note_remote();
            return Ok(cached);
        }
        let lock_state = self.try_lock(key).await;
        if let LockState::Theirs = lock_state
            && let Some(cached) = self.wait(key).await
        {
            note_remote();
            return Ok(cached);
        }
        let answer = compute.await;
        if let Ok(answer) = &answer {
            self.store(key, answer).await;
        }
        if let LockState::Ours(token) = lock_state {
            self.unlock(key, &token).await;
        }
        answer
    }

    async fn cached(&self, key: &str) -> Option<Vec<u8>> {
        let outcome = |outcome| counter!("argus_cache_requests_total", "tier" => "redis", "outcome" => outcome);
        let Some(found) = self.send::<Option<Vec<u8>>>(Cmd::get(self.entry_key(key))).await else {
            outcome("unavailable").increment(1);
            return None;
        };
        let Some(signed) = found else {
            outcome("miss").increment(1);
            return None;
        };
        let verified = self.signing.verify(key, &signed);
        outcome(if verified.is_some() { "hit" } else { "corrupt" }).increment(1);
        verified
    }

    async fn store(&self, key: &str, answer: &[u8]) {
        let Some(signed) = self.signing.sign(key, answer) else { return };
        let jitter = Uuid::new_v4().as_u128() as u64 % (CACHED_FOR.as_secs() / 10);
        // An answer that is not stored is computed again.
        let _: Option<()> = self.send(Cmd::set_ex(self.entry_key(key), signed, CACHED_FOR.as_secs() + jitter)).await;
    }

    async fn try_lock(&self, key: &str) -> LockState {
        let token = Uuid::new_v4().to_string();
        let mut lock = Cmd::new();
        lock.arg("SET").arg(self.lock_key(key)).arg(&token).arg("NX").arg("PX").arg(LEASE.as_millis() as u64);
        match self.send::<Option<String>>(lock).await {
            Some(Some(_)) => LockState::Ours(token),
            Some(None) => LockState::Theirs,
            None => LockState::Unknown,
        }
    }

    async fn unlock(&self, key: &str, token: &str) {
        let script = Script::new(UNLOCK);
        let mut connection = self.connection.clone();
        let lock = self.lock_key(key);
        let mut invocation = script.key(lock);
        let reply = invocation.arg(token).invoke_async::<i64>(&mut connection);
        // A lock that is not released expires.
        let _ = tokio::time::timeout(REPLY_WAIT, reply).await;
    }

    /// Waits until the holder of the lock has stored the answer.
    async fn wait(&self, key: &str) -> Option<Vec<u8>> {
        let until = Instant::now() + LEASE;
        while Instant::now() < until && !self.breaker.is_open() {
            tokio::time::sleep(POLL_EVERY).await;
            let [cached, lock] = [self.entry_key(key), self.lock_key(key)];
            let mut both = Cmd::new();
            both.arg("MGET").arg(cached).arg(lock);
            let (cached, lock) = self.send::<(Option<Vec<u8>>, Option<String>)>(both).await?;
            if let Some(verified) = cached.and_then(|signed| self.signing.verify(key, &signed)) {
                counter!("argus_cache_requests_total", "tier" => "redis", "outcome" => "shared").increment(1);
                return Some(verified);
            }
            // No lock and no answer: the holder gave up.
            lock?;
        }
        None
    }

    /// Sends a command; `None` when Redis fails, times out or is bypassed.
    async fn send<T: FromRedisValue>(&self, command: Cmd) -> Option<T> {
        if self.breaker.is_open() {
            return None;
        }
        let mut connection = self.connection.clone();
        let reply = command.query_async::<T>(&mut connection);
        match tokio::time::timeout(REPLY_WAIT, reply).await {
            Ok(Ok(reply)) => Some(reply),
            failed => {
                if self.breaker.trip() {
                    let reason = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => format!("no reply within {} ms", REPLY_WAIT.as_millis()),
                    };
                    tracing::warn!(reason, "Redis failed; bypassing it for {} ms", BREAK_FOR.as_millis());
                }
                None
            }
        }
    }

    fn entry_key(&self, key: &str) -> String {
        format!("{}:{key}", self.prefix)
    }

    fn lock_key(&self, key: &str) -> String {
        format!("{}:{key}:lock", self.prefix)
    }
}

impl CircuitBreaker {
    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn is_open(&self) -> bool {
        self.now() < self.until.load(Ordering::Relaxed)
    }

    /// Opens it; returns whether it was closed.
    fn trip(&self) -> bool {
        let now = self.now();
        self.until.swap(now + BREAK_FOR.as_millis() as u64, Ordering::Relaxed) <= now
    }
}

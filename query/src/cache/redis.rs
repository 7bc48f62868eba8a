//! The tier between processes: Redis.
//!
//! Redis may be gone, hang, lose what it was given or lie; then an answer takes
//! a little longer and is right. Each question waits for at most [`REPLY_WAIT`],
//! after one that failed none are asked for [`REST`], and what is found must
//! open ([`SealKey`]).
//!
//! Who finds nothing tries to take the key's lock, which lapses by itself:
//! with it, the answer is computed and kept; without it, waited for, for at most
//! [`LEASE`], and then computed after all.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, FromRedisValue, Script};
use metrics::counter;
use uuid::Uuid;

use crate::cache::seal::SealKey;

/// How long one question to Redis may take.
const REPLY_WAIT: Duration = Duration::from_millis(50);
/// How long Redis is left alone after it failed.
const REST: Duration = Duration::from_secs(1);
/// How long who computes an answer may take before others do it too.
const LEASE: Duration = Duration::from_secs(1);
/// How often who waits looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long an answer is kept: this, and up to a tenth more, so that those made together do not lapse together.
/// What was deleted and erased is gone from there too when it is over.
const KEPT: Duration = Duration::from_secs(600);

/// Gives a lock back, where it still is the one that was taken.
const RELEASE: &str = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Why Redis cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[error("that is no address of a Redis server; one looks like redis://127.0.0.1:6379")]
pub struct RedisError;

/// Answers in Redis. Clones share the connection.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
    /// What all keys begin with.
    space: Arc<str>,
    seal: SealKey,
    rest: Arc<Rest>,
}

/// Until when Redis is left alone.
struct Rest {
    start: Instant,
    /// Milliseconds after `start`.
    until: AtomicU64,
}

tokio::task_local! {
    /// Whether what is being made was found here: whoever tells of it is far from whoever asks Redis.
    static REMOTE: Cell<bool>;
}

/// Makes an answer, and says whether Redis had it.
pub(super) async fn was_remote<T>(make: impl Future<Output = T>) -> (T, bool) {
    REMOTE.scope(Cell::new(false), async { (make.await, REMOTE.with(Cell::get)) }).await
}

fn note_remote() {
    // Somebody may ask who does not want to know.
    let _ = REMOTE.try_with(|remote| remote.set(true));
}

/// Who computes an answer that is not there.
enum Turn {
    /// We do; the lock is to be given back.
    Ours(String),
    /// Somebody else.
    Theirs,
    /// Redis does not say.
    Unknown,
}

impl Redis {
    /// Answers at `url`, for the deployment of that name and secret; whatever else
    /// answers depend on must be in the name. Connects when it is first needed, so
    /// a server that is not there stops nobody.
    pub fn connect(url: &str, deployment: &str, seal: SealKey) -> Result<Redis, RedisError> {
        let wrong = |_| RedisError;
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(REPLY_WAIT))
            .set_response_timeout(Some(REPLY_WAIT));
        let client = Client::open(url).map_err(wrong)?;
        let connection = ConnectionManager::new_lazy_with_config(client, config).map_err(wrong)?;
        let rest = Arc::new(Rest { start: Instant::now(), until: AtomicU64::new(0) });
        Ok(Redis { connection, space: format!("argus:{deployment}").into(), seal, rest })
    }

    /// The answer under `key`: the one that is kept there, or else `compute`'s.
    pub async fn get<E>(&self, key: &str, compute: impl Future<Output = Result<Vec<u8>, E>>) -> Result<Vec<u8>, E> {
        if let Some(kept) = self.kept(key).await {
            note_remote();
            return Ok(kept);
        }
        let turn = self.take_turn(key).await;
        if let Turn::Theirs = turn
            && let Some(kept) = self.wait(key).await
        {
            note_remote();
            return Ok(kept);
        }
        let answer = compute.await;
        if let Ok(answer) = &answer {
            self.keep(key, answer).await;
        }
        if let Turn::Ours(token) = turn {
            self.give_back(key, &token).await;
        }
        answer
    }

    async fn kept(&self, key: &str) -> Option<Vec<u8>> {
        let outcome = |outcome| counter!("argus_cache_requests_total", "tier" => "redis", "outcome" => outcome);
        let Some(found) = self.ask::<Option<Vec<u8>>>(Cmd::get(self.name(key))).await else {
            outcome("unavailable").increment(1);
            return None;
        };
        let Some(sealed) = found else {
            outcome("miss").increment(1);
            return None;
        };
        let opened = self.seal.open(key, &sealed);
        outcome(if opened.is_some() { "hit" } else { "corrupt" }).increment(1);
        opened
    }

    async fn keep(&self, key: &str, answer: &[u8]) {
        let Some(sealed) = self.seal.seal(key, answer) else { return };
        let jitter = Uuid::new_v4().as_u128() as u64 % (KEPT.as_secs() / 10);
        // Not kept is computed again.
        let _: Option<()> = self.ask(Cmd::set_ex(self.name(key), sealed, KEPT.as_secs() + jitter)).await;
    }

    async fn take_turn(&self, key: &str) -> Turn {
        let token = Uuid::new_v4().to_string();
        let mut lock = Cmd::new();
        lock.arg("SET").arg(self.lock_name(key)).arg(&token).arg("NX").arg("PX").arg(LEASE.as_millis() as u64);
        match self.ask::<Option<String>>(lock).await {
            Some(Some(_)) => Turn::Ours(token),
            Some(None) => Turn::Theirs,
            None => Turn::Unknown,
        }
    }

    async fn give_back(&self, key: &str, token: &str) {
        let script = Script::new(RELEASE);
        let mut connection = self.connection.clone();
        let name = self.lock_name(key);
        let mut given = script.key(name);
        let given = given.arg(token).invoke_async::<i64>(&mut connection);
        // A lock that is not given back lapses.
        let _ = tokio::time::timeout(REPLY_WAIT, given).await;
    }

    /// Waits for who has the lock.
    async fn wait(&self, key: &str) -> Option<Vec<u8>> {
        let until = Instant::now() + LEASE;
        while Instant::now() < until && !self.rest.is_on() {
            tokio::time::sleep(LOOK_EVERY).await;
            let [kept, lock] = [self.name(key), self.lock_name(key)];
            let mut both = Cmd::new();
            both.arg("MGET").arg(kept).arg(lock);
            let (kept, lock) = self.ask::<(Option<Vec<u8>>, Option<String>)>(both).await?;
            if let Some(opened) = kept.and_then(|sealed| self.seal.open(key, &sealed)) {
                counter!("argus_cache_requests_total", "tier" => "redis", "outcome" => "shared").increment(1);
                return Some(opened);
            }
            // Whoever had it gave up.
            lock?;
        }
        None
    }

    /// Asks Redis; `None` when it does not answer in time, or is left alone.
    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Option<T> {
        if self.rest.is_on() {
            return None;
        }
        let mut connection = self.connection.clone();
        let asked = command.query_async::<T>(&mut connection);
        match tokio::time::timeout(REPLY_WAIT, asked).await {
            Ok(Ok(answer)) => Some(answer),
            failed => {
                if self.rest.begin() {
                    let reason = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => format!("no answer in {} ms", REPLY_WAIT.as_millis()),
                    };
                    tracing::warn!(reason, "Redis is left alone for a while; answers come from here meanwhile");
                }
                None
            }
        }
    }

    fn name(&self, key: &str) -> String {
        format!("{}:{key}", self.space)
    }

    fn lock_name(&self, key: &str) -> String {
        format!("{}:{key}:lock", self.space)
    }
}

impl Rest {
    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn is_on(&self) -> bool {
        self.now() < self.until.load(Ordering::Relaxed)
    }

    /// Says whether it had not begun already.
    fn begin(&self) -> bool {
        let now = self.now();
        self.until.swap(now + REST.as_millis() as u64, Ordering::Relaxed) <= now
    }
}

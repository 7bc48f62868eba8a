//! Cached answers, which cannot be stale.
//!
//! The cache key of an answer contains the request and the epoch at which the
//! requested data last changed. After a change, readers use a key with another
//! epoch, so no entry ever needs to be invalidated.
//!
//! ```text
//!  request ──► memory ──► same request running? ──► Redis ──► compute
//!              found         share its result       found       store in both
//! ```
//!
//! - [`single_flight`]: the tier in memory; concurrent requests for a key share one computation;
//! - [`signing`]: signatures on entries in Redis, which is not trusted;
//! - [`redis`]: the tier that processes share.

pub mod redis;
pub mod signing;
pub mod single_flight;

pub use redis::{Redis, RedisError, try_out};
pub use signing::SigningKey;
pub use single_flight::{ComputationAborted, Found, SingleFlight};

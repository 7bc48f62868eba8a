//! Answers that are kept, and cannot be stale.
//!
//! An answer is kept under what was asked and the epoch at which what was asked
//! for last changed. A change makes the next reader ask under another epoch, so
//! nothing is ever taken out because it is no longer true.
//!
//! ```text
//!  asked ──► memory ──► somebody asks the same? ──► Redis ──► computed
//!             found        shared with them         found        kept in both
//! ```
//!
//! - [`flight`]: the tier in memory, with one computation for all who ask at once;
//! - [`seal`]: what is written to a server that may lie;
//! - [`redis`]: the tier between processes.

pub mod flight;
pub mod redis;
pub mod seal;

pub use flight::{Flights, Found, Lost};
pub use redis::{Redis, RedisError};
pub use seal::SealKey;

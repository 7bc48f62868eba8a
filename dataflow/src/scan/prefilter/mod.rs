//! Finds the positions in a block where a rule can match.
//!
//! Every match of a pattern contains one of a few [`literals`]. The literals of all
//! patterns are searched at once, and the regular expressions run only on lines that
//! contain one.
//!
//! - [`byte_set`]: sets of bytes, and how frequent they are in logs;
//! - [`literals`]: the literals of a pattern;
//! - [`buckets`]: literals with similar bytes share a bit;
//! - [`tables`]: all literals, as look-up tables; [`positions`]: where one may begin;
//! - [`search`]: finds literals in a block; `avx2` looks up 32 bytes at once.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub mod buckets;
pub mod byte_set;
pub mod literals;
pub mod positions;
pub mod search;
pub mod tables;

//! The SQL of users, translated for DataFusion.
//!
//! - [`statement`]: which statements are allowed, and how large ([`statement_limits`]);
//! - `rewrite`: PostgreSQL syntax that DataFusion reads differently; `times`, `labels`: functions for times and labels;
//! - [`limits`]: size limits for the results of functions; `joins`: time and memory limits for joins.

pub(crate) mod joins;
pub(crate) mod labels;
pub mod limits;
pub(crate) mod rewrite;
pub mod statement;
pub mod statement_limits;
pub(crate) mod times;

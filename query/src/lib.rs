//! Questions over the lake and the live tail.
//!
//! Upstream: [`argus_sinks::Snapshot`]. Downstream: the command line and the
//! HTTP layer. Every question sees one snapshot, so one epoch.
//!
//! In reading order:
//!
//! - [`provider`]: a table of differences as DataFusion reads it, files and memory as one;
//! - [`views`]: the tables that users see, as SQL over the differences;
//! - [`engine`]: sessions, limits, and what may be asked;
//! - [`report`]: the report of a batch, as queries;
//! - [`fleet`]: codes over the fleet, by one dimension;
//! - [`errors`]: the lines with codes, page by page;
//! - [`cells`]: what the dataflow is told of the past;
//! - [`compact`]: what the tables' files become when they are compacted;
//! - [`rows`]: answers as JSON.

pub mod cells;
pub mod compact;
pub mod engine;
pub mod errors;
pub mod fleet;
pub mod provider;
pub mod report;
pub mod rows;
pub mod views;

pub use compact::Gone;
pub use engine::{Answer, Engine, EngineConfig, QueryError};
pub use errors::{ErrorLine, ErrorsPage, ErrorsRequest};
pub use fleet::{FleetCode, FleetRequest, GroupBy};
pub use report::{BatchFacts, Report};

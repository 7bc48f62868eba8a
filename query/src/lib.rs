//! Questions over the lake and the live tail.
//!
//! Upstream: [`argus_sinks::Snapshot`]. Downstream: the command line and the
//! HTTP layer. Every question sees one snapshot, so one epoch.
//!
//! In reading order:
//!
//! - [`provider`]: a table of differences as DataFusion reads it, files and memory as one; `leased`: its readers of files;
//! - [`views`]: the tables that users see, as SQL over the differences; [`catalog`]: what is known of codes;
//! - [`schemas`]: both, as a session sees them; [`documented`]: what is told of the tables;
//! - [`engine`]: sessions, and the memory and turns of who asks: [`memory`], [`turns`], [`background`];
//! - [`query_error`]: why a question has no answer;
//! - [`statement`], [`bounded`], [`joins`]: what may be asked, what functions may make, and joins without end;
//! - [`ask`]: a user's question and its rows;
//! - [`postgres`], [`flight`]: the same over other protocols;
//! - [`lookup`]: one batch's rows, without a query;
//! - [`report`]: the report of a batch;
//! - [`fleet`]: codes over the fleet, by one dimension;
//! - [`compare`]: two firmwares side by side; [`history`]: what a vehicle said;
//! - [`errors`]: the lines with codes, page by page;
//! - [`cells`]: what the dataflow is told of the past;
//! - [`cache`]: answers that are kept;
//! - [`encode`]: rows in the format that a client reads; [`rows`]: as JSON.

pub mod ask;
pub mod background;
pub mod bounded;
pub mod cache;
pub mod catalog;
pub mod cells;
pub mod compare;
pub mod documented;
pub mod encode;
pub mod engine;
pub mod errors;
mod fisher;
pub mod fleet;
pub mod flight;
pub mod history;
mod joins;
mod labels;
mod leased;
pub mod lookup;
pub mod memory;
pub mod postgres;
pub mod provider;
pub mod query_error;
pub mod report;
mod rewrite;
pub mod rows;
pub mod schemas;
pub mod statement;
mod times;
pub mod turns;
pub mod views;

pub use ask::{Limits, Rows};
pub use catalog::CatalogRow;
pub use compare::{Comparison, UnknownFirmware};
pub use encode::{Encoder, RowFormat};
pub use engine::{Engine, EngineConfig};
pub use errors::{ErrorLine, ErrorsPage, ErrorsRequest, files_of_other_rules};
pub use fleet::{FleetCode, FleetCodes, FleetRequest, GroupBy};
pub use history::{RecordedBatch, VehicleCode, batches_of_vehicle};
pub use query_error::QueryError;
pub use report::{BatchFacts, CodeReport, Report};

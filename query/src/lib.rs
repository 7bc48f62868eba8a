//! Reads of the lake and of the rows that are not committed yet.
//!
//! Upstream: [`argus_sinks::Snapshot`]. Downstream: the command line and the
//! HTTP layer. Every read sees one snapshot, so one epoch.
//!
//! In reading order:
//!
//! - [`tables`]: the tables that SQL sees;
//! - [`engine`]: sessions and their limits: memory, admission control, threads;
//! - [`sql`]: which statements run, and how they are rewritten;
//! - [`execute`]: a user's query and its rows; `outcome`: how it ended; [`results`]: those rows in a client's format;
//! - [`reads`]: the reads that have an endpoint of their own;
//! - [`statistics`]: the tests and intervals of comparisons;
//! - [`cache`]: cached answers;
//! - [`servers`]: SQL over the protocols of PostgreSQL and Arrow Flight;
//! - [`error`]: why a query failed.

// Without the PostgreSQL server, nothing uses what it needs of the engine.
#![cfg_attr(not(feature = "pg"), allow(dead_code))]

pub mod cache;
pub mod engine;
pub mod error;
pub mod execute;
mod outcome;
pub mod reads;
pub mod results;
pub mod servers;
pub mod sql;
mod statistics;
pub mod tables;

pub use engine::{Engine, EngineConfig};
pub use error::QueryError;
pub use execute::{Limits, Rows};
pub use reads::compare::{Comparison, ComparisonError, ComparisonRequest};
pub use reads::error_lines::{ErrorLine, ErrorsPage, ErrorsRequest, files_of_other_rules};
pub use reads::filter::FleetFilter;
pub use reads::findings::{DiagnosisInShort, Evidence, EvidenceKind, Finding, Findings, RaisedCodes, findings};
pub use reads::fleet_codes::{FleetCode, FleetCodes, FleetRequest, GroupBy};
pub use reads::fleet_totals::{FirmwareTotals, FleetTotals};
pub use reads::history::{RecordedBatch, VehicleCode, batches_of_vehicle};
pub use reads::patterns::Patterns;
pub use reads::report::{BatchFacts, CodeReport, Report, ReportSeverity};
pub use reads::timeline::{Bucket, Counted, Timeline, TimelineGroup, TimelineRequest};
pub use reads::vehicles::{VehicleRow, VehiclesRequest};
pub use results::encode::{Encoder, RowFormat};
pub use tables::catalog::{CatalogRow, CatalogSource};

//! Blocks of log lines become exact counts of error codes.
//!
//! Upstream: any reader of bytes (an upload, a file on the command line).
//! Downstream: `argus_sinks` writes each [`Output`] to the lake.
//!
//! In the order in which a line passes through them:
//!
//! - [`text`]: bytes become text (decompression, UTF-16), and text becomes blocks of whole lines;
//! - [`rules`]: which texts are error codes;
//! - [`scan`]: a block becomes occurrences and partial counts;
//! - [`counts`]: the rows of batches, files and codes, and the counts of the fleet;
//! - [`graph`]: the dataflow itself, on one screen; [`output`]: its output;
//! - [`worker`]: the worker threads, and the handle that drives them.
//!
//! This crate does not depend on Arrow, HTTP or an async runtime. The handle waits on
//! runtime-free primitives, so any executor can drive it.

pub mod counts;
pub mod graph;
pub mod output;
pub mod rules;
pub mod scan;
pub mod text;
pub mod worker;

pub use counts::changes::{Change, ClosedEpoch, Row};
pub use counts::earliest::earliest;
pub use counts::fleet::{
    CellRow, FleetGroup, FleetRow, LoadedBatch, LoadedCount, LoadedVersion, Recorded, SeenRange, Subject, Totals,
    Vehicle,
};
pub use counts::partial::{CodeLimits, PartialCounts, is_other_code, other_code};
pub use counts::rows::{BatchRow, CountRow, FileRow, Origin, VersionId};
pub use output::{Output, ScannedBlock};
pub use rules::{RuleError, RuleSet, Severity};
pub use scan::Occurrence;
pub use scan::header::Level;
pub use text::blocks::{BLOCK_BYTES_DEFAULT, BlockReader, LINE_BYTES_MAX, TextBlock};
pub use worker::{Config, Dataflow, DataflowStopped};

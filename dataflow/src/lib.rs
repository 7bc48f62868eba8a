//! Blocks of log lines become exact counts of error codes.
//!
//! Upstream: whoever reads bytes (an upload, a file on the command line).
//! Downstream: `argus_sinks` writes what [`Output`] carries into the lake.
//!
//! In the order a line meets them:
//!
//! - [`text`]: compressed or UTF-16 bytes become the text that is counted (`lz4` reads one of the compressions);
//! - [`blocks`]: text becomes blocks of whole lines;
//! - [`rules`] and [`form`]: what an error code is; [`plain`] says it without short cuts;
//! - [`windows`] (of [`bytes`]): what every match of a pattern shows; [`plan`] does it for a rule set;
//! - [`scan`]: a block becomes sightings and counts: [`colours`] are taken out, [`finder`] finds windows by [`buckets`],
//!   [`line`] runs the rules where some are, [`header`] reads what the line says of itself, `trouble` whether its codes
//!   are active, [`fold`] adds up, [`names`] are codes and components by number;
//! - [`rows`]: what enters and leaves the counting;
//! - [`graph`]: the dataflow itself, on one screen; [`fleet`] is its part for all batches together;
//! - [`handle`]: the way in and out, and the workers behind it.
//!
//! Nothing here knows Arrow, HTTP or a runtime. The handle waits on
//! runtime-free primitives, so any executor can drive it.

#[cfg(target_arch = "x86_64")]
mod avx2;
pub mod blocks;
pub mod buckets;
pub mod bytes;
pub mod colours;
pub mod endings;
pub mod finder;
pub mod fleet;
pub mod fold;
pub mod form;
pub mod graph;
pub mod handle;
pub mod header;
pub mod line;
mod lz4;
pub mod names;
pub mod plain;
pub mod plan;
pub mod rows;
pub mod rules;
pub mod scan;
pub mod text;
mod trouble;
pub mod windows;

pub use blocks::{BLOCK_BYTES_DEFAULT, BlockReader, LINE_BYTES_MAX, TextBlock};
pub use fleet::{
    CellRow, FleetRow, Group, Recall, RecalledCount, RecalledVersion, Recorded, Seen, Subject, Totals, Vehicle,
};
pub use fold::{CodeLimits, is_other_code, other_code};
pub use handle::{Config, Dataflow, DataflowGone, Output};
pub use header::Level;
pub use rows::{BatchRow, Change, ClosedEpoch, CountRow, FileRow, Origin, Row, VersionId};
pub use rules::{RuleError, RuleSet, Severity};
pub use scan::{ScannedBlock, Sighting};

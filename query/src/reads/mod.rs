//! The reads that have an endpoint of their own.
//!
//! - [`lookup`]: the rows of a batch, without a query;
//! - [`report`]: the report of a batch; [`error_lines`]: its lines with codes, page by page;
//! - [`fleet_codes`]: codes over the fleet, by one dimension; [`compare`]: two firmwares, by the exact test in `fisher`;
//!   [`history`]: the batches and codes of a vehicle;
//! - [`cells`]: past state that the dataflow loads.

pub mod cells;
pub mod compare;
pub mod error_lines;
pub(crate) mod fisher;
pub mod fleet_codes;
pub mod history;
pub mod lookup;
pub mod report;

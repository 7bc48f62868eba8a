//! The reads that have an endpoint of their own.
//!
//! - [`lookup`]: the rows of a batch, without a query;
//! - [`report`]: the report of a batch; [`error_lines`]: its lines with codes, page by page;
//! - [`batch_lines`]: the lines of a batch that is not large, without a query;
//! - [`fleet_codes`]: codes over the fleet, by one dimension; [`timeline`]: counts over time; [`filter`]: which batches and
//!   lines they cover;
//! - [`compare`]: two firmwares, by the tests in [`crate::statistics`]; [`vehicles`]: the list of vehicles; [`history`]: the batches
//!   and codes of one;
//! - [`fleet_totals`]: the size of the fleet and its firmwares;
//! - [`findings`]: what stands out in a batch; [`patterns`]: bursts and codes that come together in it;
//! - [`cells`]: past state that the dataflow loads.

mod batch_lines;
pub mod cells;
pub mod compare;
pub mod error_lines;
pub mod filter;
pub mod findings;
pub mod fleet_codes;
pub mod fleet_totals;
pub mod history;
pub mod lookup;
pub mod patterns;
pub mod report;
pub mod timeline;
pub mod vehicles;

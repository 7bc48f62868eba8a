//! The changes and rows of the dataflow, and its counts.
//!
//! - [`rows`]: the rows of batches, files and codes; [`changes`]: the input and output of an epoch;
//! - [`partial`]: the counts of a file's blocks before the file is admitted;
//! - [`fleet`]: the codes of all batches, by vehicle and by group of vehicles.

pub mod changes;
pub mod earliest;
pub mod fleet;
pub mod partial;
pub mod rows;

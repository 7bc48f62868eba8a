//! Views in memory, updated with every closed epoch, for reads that must not wait for a query.
//!
//! - [`fleet_view`]: the codes of each group of vehicles;
//! - [`recent`]: the files and codes of batches that changed recently;
//! - [`last_changes`]: the epoch at which each batch changed last.

pub mod fleet_view;
pub mod last_changes;
pub mod recent;

//! A module for each resource, each with its own router.

pub mod batches;
pub mod chart;
pub mod events;
pub mod files;
pub mod fleet;
mod form;
pub mod health;
pub mod history;
pub mod lines;
pub mod query;
pub mod report;

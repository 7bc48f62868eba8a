//! A module for each resource, each with its own router.

pub mod batches;
pub mod catalog;
pub mod chart;
pub mod contents;
pub mod diagnosis;
pub mod events;
pub mod files;
pub mod fleet;
pub mod fleet_events;
mod form;
pub mod health;
pub mod lines;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod query;
pub mod report;
pub mod shippers;
pub mod tokens;
pub mod uploads;
pub mod vehicles;

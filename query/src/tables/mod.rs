//! The tables that SQL sees.
//!
//! - [`provider`]: a table of differences for DataFusion, over files and memory; `leased`: its Parquet readers;
//! - [`views`]: the tables that users see, as SQL over the differences; [`catalog`]: descriptions of codes;
//! - [`schemas`]: the schemas of a session; [`documented`]: the comments of tables and columns.

pub mod catalog;
pub mod documented;
pub(crate) mod leased;
pub mod provider;
pub mod schemas;
pub mod views;

/// The name of our catalog, which clients see as the database.
pub const CATALOG: &str = "argus";

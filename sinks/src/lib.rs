//! Closed epochs become rows of Delta Lake tables.
//!
//! Upstream: [`argus_dataflow::Output`]. Downstream: `argus_query` reads
//! [`Snapshot`]s. Nothing here asks what a batch's status is or who uploads.
//!
//! In reading order:
//!
//! - [`schema`]: the tables, defined once;
//! - [`encode`]: closed epochs and sightings become Arrow rows;
//! - [`staging`]: sightings wait for their generation to be admitted, spilled when they are many;
//! - [`group`]: epochs that wait for their commit, readable meanwhile;
//! - [`table`]: one Delta table and its exactly-once commit;
//! - [`fleet`]: what the fleet's groups come to, in memory; [`recent`]: the same of batches of late;
//! - [`snapshot`]: what a reader sees, at one epoch;
//! - [`lake`]: the four together;
//! - [`upkeep`]: what is asked of it beside commits; [`compaction`]: files become fewer, what is gone leaves no row;
//! - [`parquet_file`]: a Parquet file in an object store, for readers;
//! - [`durable`]: a directory as an object store that survives power loss;
//! - [`crash`]: named points at which a test can have the process die.

pub mod changes;
pub mod compaction;
pub mod crash;
pub mod decode;
pub mod durable;
pub mod encode;
pub mod fleet;
pub mod group;
mod guide;
pub mod lake;
pub mod parquet_file;
pub mod recent;
pub mod schema;
pub mod snapshot;
pub mod staging;
pub mod table;
pub mod upkeep;

pub use changes::Changes;
pub use fleet::FleetView;
pub use lake::{Lake, LakeConfig, LakeError, LakeState};
pub use parquet_file::ParquetFile;
pub use recent::{RecentBatch, RecentCount, RecentView};
pub use schema::Table;
pub use snapshot::{DataFile, PastError, Snapshot, TableSnapshot};
pub use table::NewFile;
pub use upkeep::{FileWriter, Upkeep, UpkeepError};

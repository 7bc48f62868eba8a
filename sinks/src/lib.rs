//! Closed epochs become rows of Delta Lake tables.
//!
//! Upstream: [`argus_dataflow::Output`]. Downstream: `argus_query` reads
//! [`Snapshot`]s. This crate knows nothing of batch statuses or uploaders.
//!
//! In reading order:
//!
//! - [`schema`]: the tables, defined once;
//! - [`convert`]: closed epochs and occurrences to Arrow rows, and back;
//! - [`staging`]: buffers occurrences until their version is admitted, in files when there are many;
//! - [`group`]: uncommitted epochs, already readable;
//! - [`table`]: one Delta table and its exactly-once commit;
//! - [`views`]: views in memory;
//! - [`snapshot`]: a consistent view of all tables at one epoch;
//! - `visible`: what is published as snapshots;
//! - [`lake`]: all tables together; [`error`]: why it stops;
//! - [`feed`]: the steps of the lake; [`replica`]: a copy of it in another process, which follows them;
//! - [`occurrences`]: those that another process has found, on their way to the lake;
//! - [`maintenance`]: operations on the tables between commits; [`compaction`]: fewer and smaller files;
//! - [`store`]: object stores and Parquet files;
//! - [`crash`]: named points at which a test can crash the process;
//! - `guide`: a README and SQL views, stored with the tables for other readers such as DuckDB.

pub mod compaction;
pub mod convert;
pub mod crash;
pub mod error;
pub mod feed;
pub mod group;
mod guide;
pub mod lake;
pub mod maintenance;
pub mod occurrences;
pub mod replica;
pub mod schema;
pub mod snapshot;
pub mod staging;
pub mod store;
pub mod table;
pub mod views;
mod visible;

pub use convert::decode;
pub use error::LakeError;
pub use feed::{Base, Feed};
pub use lake::{Lake, LakeConfig, LakeState, OccurrencesInput};
pub use maintenance::{FileWriter, LakeMaintenance, LakeMaintenanceError};
pub use replica::Replica;
pub use schema::Table;
pub use snapshot::{DataFile, PastError, Snapshot, TableSnapshot};
pub use store::parquet_file::{ParquetFile, Prefetched};
pub use table::NewFile;
pub use views::fleet_view::FleetView;
pub use views::last_changes::LastChanges;
pub use views::recent::{RecentBatch, RecentCount, RecentView};

//! Object stores and the files in them.
//!
//! - [`durable`]: a directory as an object store that survives power loss;
//! - [`parquet_file`]: a Parquet file in an object store, for readers.

pub mod durable;
pub mod parquet_file;

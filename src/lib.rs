//! Argus counts the error codes in a vehicle fleet's update logs and answers queries about them.
//!
//! This crate connects the others: `argus_dataflow` counts, `argus_sinks`
//! stores, `argus_query` reads. A module uses only modules above it in this list:
//!
//! - [`allocator`]: the allocator of the process; [`data_dir`]: the data directory and its lock; [`shutdown`]: whether the server is stopping;
//!   [`telemetry`]: the log and traces; [`tls`]: certificates;
//! - [`storage`]: the object store of the raw files and the lake;
//! - [`domain`]: batches, files, their status and their events;
//! - [`metadata`]: batches and files in SQLite, and the journal of accepted changes;
//! - [`access`]: tokens, and what they may do; [`audit`]: who did what; [`inbox`]: objects that become batches;
//! - [`ingest`]: receives uploads, stores their bytes durably, and splits them into blocks;
//! - [`pipeline`]: accepts changes durably, each at an epoch, and replays them after a restart;
//! - [`maintenance`]: compaction, retention, erasure, recounts;
//! - [`catalog`]: what is known of codes;
//! - [`answers`]: cached reports and charts, diagnoses;
//! - `kafka`: events out, lines in;
//! - [`assistant`]: a language model that explains findings;
//! - [`cluster`]: several processes, of which one leads;
//! - [`app`]: opens and connects all parts;
//! - [`pages`]: the web pages, over any router of the API;
//! - [`http`]: the service over HTTP; [`sql_servers`]: SQL over PostgreSQL and Arrow Flight SQL; [`syslog`]: lines in;
//! - [`server`]: all servers together;
//! - [`backup`]: copies of all data;
//! - [`cli`]: the command line.

pub mod access;
pub mod allocator;
pub mod answers;
pub mod app;
pub mod assistant;
pub mod audit;
pub mod backup;
pub mod catalog;
pub mod cli;
pub mod cluster;
pub mod data_dir;
pub mod domain;
pub mod http;
pub mod inbox;
pub mod ingest;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod maintenance;
pub mod metadata;
pub mod pages;
pub mod pipeline;
pub mod server;
pub mod shutdown;
pub mod sql_servers;
pub mod storage;
pub mod syslog;
pub mod telemetry;
pub mod tls;

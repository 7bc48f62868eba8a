//! Argus: the place where a vehicle fleet's update logs become answers.
//!
//! This crate ties the others together: `argus_dataflow` counts,
//! `argus_sinks` keeps, `argus_query` answers. In reading order:
//!
//! - [`cli`], [`config`]: what may be said on the command line, in variables and in a file;
//! - [`model`], [`status`]: batches, files, and where a batch stands;
//! - [`ingest`], [`digest`], [`raw`]: an upload becomes durable bytes and blocks;
//! - [`pipeline`], [`metadata`]: changes are accepted, at an epoch, durably; [`growing`]: files grow in order;
//! - [`events`]: what happened to batches, for its [`followers`]; [`failures`]: files that could not be counted;
//! - [`recovery`]: and are fed again after a restart;
//! - [`maintain`]: maintenance of a data directory, with [`erasure`] of what was deleted, [`orphans`] of crashes, and the
//!   space on the [`disk`]; [`every`] says how often; [`recount`] builds the lake
//!   anew from the [`stored`] files, and [`rescan`] counts those of a batch again beside everything else;
//! - [`service`]: all of it, tied together;
//! - [`http`], [`serve`]: the service over HTTP;
//! - [`reports`], [`charts`]: reports and their pictures, kept;
//! - [`analyze`], [`sql`] and its [`prompt`]: the same without a server; [`explain`] says how rules are searched for;
//! - [`render`]: answers for people and for pipes; [`terminal`]: what a terminal is shown of them.

pub mod allocator;
pub mod analyze;
pub mod charts;
pub mod cli;
pub mod config;
pub mod digest;
pub mod disk;
pub mod erasure;
pub mod events;
pub mod every;
pub mod explain;
pub mod failures;
pub mod followers;
pub mod growing;
pub mod http;
pub mod ingest;
pub mod maintain;
pub mod metadata;
pub mod model;
pub mod orphans;
pub mod pipeline;
pub mod prompt;
pub mod raw;
pub mod recount;
pub mod recovery;
pub mod render;
pub mod reports;
pub mod rescan;
pub mod serve;
pub mod service;
pub mod sql;
pub mod status;
pub mod stored;
pub mod terminal;

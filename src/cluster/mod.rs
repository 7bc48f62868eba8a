//! Several processes on one metadata database and one store.
//!
//! ```text
//!              uploads, reads                        reads                        uploads
//!                    │                                 │                             │
//!  leader ── pipeline, dataflow, lake ── steps ──► follower: replica of the lake ── forwarded ──► leader
//! ```
//!
//! One process, the leader, is the writer of the metadata, by its term. It works as a single process does. The others
//! follow the steps of its lake, so that each of them answers every read at the same epochs, and pass other requests on to
//! it. When it dies, the first of the others becomes the leader.
//!
//! - [`config`]: the processes, and the key by which they know each other;
//! - [`frame`]: what the leader sends to a follower;
//! - [`scans`]: what a follower finds in the uploads that arrive at it; [`handover`]: how it hands them to the leader;
//!   [`intake`]: how the leader takes them;
//! - [`leader`]: the leader's side; [`follower`]: the follower's side.

pub mod config;
pub mod follower;
pub mod frame;
pub mod handover;
pub mod intake;
pub mod leader;
pub mod scans;

pub use config::{ClusterConfig, ClusterKey, ClusterKeys};

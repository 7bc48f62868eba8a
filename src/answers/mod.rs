//! Cached answers: [`reports`] of batches and their [`charts`]; the [`diagnosis`] of a batch. [`answer`] is a single answer, ready to be sent. The
//! [`texts`] of files are read as they are stored.

pub mod answer;
pub mod charts;
pub mod diagnosis;
pub mod reports;
pub mod texts;

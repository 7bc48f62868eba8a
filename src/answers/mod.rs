//! Cached answers: [`reports`] of batches and their [`charts`]. [`answer`] is a single answer, ready to be sent.

pub mod answer;
pub mod charts;
pub mod reports;

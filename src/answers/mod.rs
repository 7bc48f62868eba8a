//! Cached answers: [`reports`] of batches and their [`charts`]; the [`diagnosis`] of a batch; [`report_changes`] and
//! [`event_details`] for followers. [`answer`] is a single answer, ready to be sent. The [`texts`] of files are read as they are stored.

pub mod answer;
pub mod charts;
pub mod diagnosis;
pub mod event_details;
pub mod report_changes;
pub mod reports;
pub mod texts;

//! Batches and files ([`batch`]), the status of a batch ([`status`]) and its events ([`event`]).

pub mod batch;
pub mod catalog;
pub mod clock;
pub mod digest;
pub mod event;
pub mod status;

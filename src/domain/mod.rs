//! Batches and files ([`batch`]), the status of a batch ([`status`]) and its events ([`event`]); what users know of codes
//! ([`catalog`]) and of diagnoses ([`case`]), and what a language model wrote ([`explanation`]); [`mask`] removes identities.

pub mod batch;
pub mod case;
pub mod catalog;
pub mod clock;
pub mod digest;
pub mod event;
pub mod explanation;
pub mod firmware_range;
pub mod mask;
pub mod status;

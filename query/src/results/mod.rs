//! Result rows in the client's format ([`encode`]), and as JSON ([`json`]).

pub mod encode;
pub mod json;

//! Converts values to Arrow rows ([`encode`]) and back ([`decode`]).

pub mod decode;
pub mod encode;

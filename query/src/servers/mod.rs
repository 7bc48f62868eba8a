//! SQL over protocols other than HTTP: `postgres` and `flight_sql`; [`authenticator`]: who may use them.

pub mod authenticator;
#[cfg(feature = "flight")]
pub mod flight_sql;
#[cfg(feature = "pg")]
pub mod postgres;

//! SQL over protocols other than HTTP: [`postgres`] and [`flight_sql`].

pub mod flight_sql;
pub mod postgres;

//! The maintenance interval of a server.
//!
//! `--maintain-every` is at least 1 s, or 0 for never. Each maintenance run reads
//! the tables' logs, so runs without a pause would use up the server.
//!
//! Tests need shorter intervals: `ARGUS_MAINTAIN_EVERY_MS=COUNT` overrides the
//! flag, in milliseconds. Builds without debug assertions do not read it.

use std::time::Duration;

/// The shortest interval.
const LEAST: Duration = Duration::from_secs(1);

/// Parses an interval; zero means never.
pub fn parse(text: &str) -> Result<Duration, String> {
    let every = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match every.is_zero() || every >= LEAST {
        true => Ok(every),
        false => Err("the shortest interval is 1s; 0 means never".to_owned()),
    }
}

/// The interval in force: that of a test, if one is set.
pub fn in_force(every: Duration) -> Duration {
    test_interval().unwrap_or(every)
}

#[cfg(debug_assertions)]
fn test_interval() -> Option<Duration> {
    std::env::var("ARGUS_MAINTAIN_EVERY_MS").ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(not(debug_assertions))]
fn test_interval() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_second_or_more_or_never() {
        for (text, every) in [("0", 0), ("0s", 0), ("0ms", 0), ("1s", 1), ("1000ms", 1), ("10m", 600)] {
            assert_eq!(parse(text), Ok(Duration::from_secs(every)), "{text}");
        }
        for text in ["999ms", "1ns"] {
            assert_eq!(parse(text), Err("the shortest interval is 1s; 0 means never".to_owned()), "{text}");
        }
        for text in ["", "-1s", "1", "often"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

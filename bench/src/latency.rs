//! Quantiles of measured times.

use std::time::Duration;

use crate::results::{Measurement, Run};

/// Times, sorted.
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// From times in any order.
    pub fn new(mut times: Vec<Duration>) -> Latencies {
        times.sort_unstable();
        Latencies(times)
    }

    /// The least time that a `share` of all times do not exceed; zero if there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).or(self.0.last()).copied().unwrap_or_default()
    }

    /// A quantile in ms.
    pub fn millis(&self, share: f64) -> f64 {
        self.quantile(share).as_secs_f64() * 1e3
    }

    /// Adds [`Latencies::measurements`] to a run.
    pub fn report(&self, run: &mut Run, group: &str, name: &str, targets: [Option<f64>; 2]) {
        self.measurements(group, name, targets).into_iter().for_each(|measurement| run.add(measurement));
    }

    /// p50 and p99 with their targets, in ms. p99.9 and the maximum are for information only: a single delay of
    /// the machine determines them.
    pub fn measurements(&self, group: &str, name: &str, targets: [Option<f64>; 2]) -> [Measurement; 4] {
        let lower = |word: &str, share, target| {
            let measured = Measurement::lower(group, name, self.millis(share), &format!("{word} ms"));
            Measurement { target, ..measured }
        };
        let info = |word: &str, share| Measurement::info(group, name, self.millis(share), &format!("{word} ms"));
        [lower("p50", 0.5, targets[0]), lower("p99", 0.99, targets[1]), info("p99.9", 0.999), info("max", 1.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_times() {
        let of = |times: &[u64]| Latencies::new(times.iter().map(|ms| Duration::from_millis(*ms)).collect());
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let hundred = of(&hundred);
        assert_eq!([0.0, 0.5, 0.99, 0.999, 1.0].map(|share| hundred.millis(share)), [1.0, 50.0, 99.0, 100.0, 100.0]);
        assert_eq!(of(&[7]).millis(0.5), 7.0);
        assert_eq!(of(&[]).millis(0.5), 0.0);
    }
}

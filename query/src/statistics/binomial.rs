//! The upper tail of the binomial distribution.
//!
//! Of events that happen at two constant rates, the number in the first part of the exposure is binomial, given their sum:
//! so the tail is the exact test of whether the rate is greater there.

use statrs::function::beta::beta_reg;

/// The name, in responses, of the exact one-sided test of two rates.
pub const RATES_NAME: &str = "poisson_rates_exact";

/// The probability of at least `found` successes in `all` trials, each with a probability of `share`.
pub fn at_least(found: u64, all: u64, share: f64) -> f64 {
    if found == 0 {
        return 1.0;
    }
    if found > all || share <= 0.0 {
        return 0.0;
    }
    if share >= 1.0 {
        return 1.0;
    }
    // NIST Digital Library of Mathematical Functions, 8.17.5.
    beta_reg(found as f64, (all - found + 1) as f64, share)
}

#[cfg(test)]
mod tests {
    use super::super::reference::{assert_close, rows};
    use super::*;

    #[test]
    fn tails_match_exact_arithmetic() {
        let rows = rows(include_str!("binomial_reference.csv"));
        assert!(rows.len() >= 500);
        for row in &rows {
            assert_close(at_least(row[0] as u64, row[1] as u64, row[2]), row[3], row);
        }
    }

    #[test]
    fn the_ends_are_certain_or_impossible() {
        assert_eq!(at_least(0, 0, 0.5), 1.0);
        assert_eq!(at_least(1, 0, 0.5), 0.0);
        assert_eq!(at_least(3, 5, 0.0), 0.0);
        assert_eq!(at_least(5, 5, 1.0), 1.0);
    }
}

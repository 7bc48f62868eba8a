//! Tests and intervals for the comparison of two groups of vehicles.
//!
//! - [`binomial`]: two rates;
//! - [`fisher`]: two independent groups;
//! - [`mcnemar`]: the same vehicles in both groups;
//! - [`stratified`]: two independent groups within strata;
//! - [`interval`]: 95 % confidence intervals of a difference of proportions;
//! - [`discovery`]: the false discovery rate of many tests.
//!
//! The files `*_reference.csv` contain results of SciPy and statsmodels; `reference.py` makes them.

pub mod binomial;
pub mod discovery;
pub mod fisher;
pub mod interval;
pub mod mcnemar;
pub mod stratified;

use statrs::function::gamma::ln_gamma;

/// Probabilities that differ by less than this, relatively, are equal, as in R's `fisher.test`: rounding changes the
/// last digits of equal ones.
const EQUAL: f64 = 1e-7;

/// The logarithm of the number of ways to take `taken` out of `of`.
fn ln_choose(of: u64, taken: u64) -> f64 {
    let ln_factorial = |number: u64| ln_gamma(number as f64 + 1.0);
    ln_factorial(of) - ln_factorial(taken) - ln_factorial(of - taken)
}

/// A table of two groups: how many of how many have a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TwoGroups {
    /// Those with the property, in each group.
    pub found: [u64; 2],
    /// The sizes of the groups.
    pub all: [u64; 2],
}

#[cfg(test)]
mod reference {
    /// The rows of a file of reference results, as numbers.
    pub fn rows(file: &str) -> Vec<Vec<f64>> {
        let numbers = |line: &str| line.split(',').map(|field| field.parse().expect("a number")).collect();
        file.lines().filter(|line| !line.starts_with('#')).map(numbers).collect()
    }

    /// Checks that two results are equal but for rounding.
    pub fn assert_close(actual: f64, expected: f64, row: &[f64]) {
        assert!((actual - expected).abs() <= 1e-8 * expected.abs() + 1e-12, "{row:?}: {actual}, not {expected}");
    }
}

//! McNemar's exact test, two-sided: the same vehicles in both groups.
//!
//! Vehicles that have the property in both groups or in none say nothing about a difference. If there
//! is none, each of the others has it in either group with a probability of one half.

use super::ln_choose;

/// The test's name in responses.
pub const NAME: &str = "mcnemar_exact";

/// The p-value of `first` vehicles with the property in the first group only, and `second` in the second only.
pub fn two_sided(first: u64, second: u64) -> f64 {
    let (all, fewer) = (first + second, first.min(second));
    if first == second {
        return 1.0;
    }
    // The tail from `fewer` down to 0, as a multiple of its first term.
    let (mut sum, mut term) = (1.0, 1.0);
    for taken in (0..fewer).rev() {
        term *= (taken + 1) as f64 / (all - taken) as f64;
        sum += term;
        if term < sum * f64::EPSILON / 4.0 {
            break;
        }
    }
    let ln_first = ln_choose(all, fewer) - all as f64 * std::f64::consts::LN_2;
    (2.0 * (ln_first + f64::ln(sum)).exp()).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::super::reference::{assert_close, rows};
    use super::*;

    #[test]
    fn p_values_match_statsmodels() {
        let rows = rows(include_str!("mcnemar_reference.csv"));
        assert!(rows.len() >= 1000);
        for row in &rows {
            assert_close(two_sided(row[0] as u64, row[1] as u64), row[2], row);
        }
        assert_eq!(two_sided(0, 0), 1.0);
    }
}

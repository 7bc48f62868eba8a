//! Two independent groups within strata: the test of Cochran, Mantel and Haenszel, and whether strata agree.

use statrs::function::erf::erfc;
use statrs::function::gamma::gamma_ur;

use super::{EQUAL, TwoGroups, ln_choose};

/// The names of the tests in responses: exact while few vehicles have the property, else by the chi-squared
/// distribution.
pub const EXACT: &str = "cochran_mantel_haenszel_exact";
/// See [`EXACT`].
pub const ASYMPTOTIC: &str = "cochran_mantel_haenszel";

/// The exact test is for at most so many possible sums; with more, the chi-squared distribution is close.
const SUMS_MAX: usize = 400;

/// The p-value, two-sided, and the name of the test; 1 if no stratum has both groups.
pub fn two_sided(strata: &[TwoGroups]) -> (f64, &'static str) {
    let strata: Vec<TwoGroups> = strata.iter().copied().filter(|stratum| !stratum.all.contains(&0)).collect();
    let sums: u64 = strata.iter().map(|stratum| possible(stratum).1 - possible(stratum).0).sum();
    match sums < SUMS_MAX as u64 {
        true => (exact(&strata), EXACT),
        false => (asymptotic(&strata), ASYMPTOTIC),
    }
}

/// The smallest p-value that any tables with these margins have.
pub fn smallest(strata: &[TwoGroups]) -> f64 {
    let extreme = |number: fn((u64, u64)) -> u64| {
        let extreme = strata.iter().map(|stratum| {
            let first = number(possible(stratum));
            TwoGroups { found: [first, stratum.found[0] + stratum.found[1] - first], all: stratum.all }
        });
        two_sided(&extreme.collect::<Vec<_>>()).0
    };
    extreme(|(least, _)| least).min(extreme(|(_, greatest)| greatest))
}

/// The least and the greatest number in the first group, given the margins.
fn possible(TwoGroups { found, all }: &TwoGroups) -> (u64, u64) {
    let together = found[0] + found[1];
    (together.saturating_sub(all[1]), together.min(all[0]))
}

/// Given the margins of every stratum, the number in the first group is a sum of independent hypergeometric numbers.
/// The p-value is the probability of all sums that are no more likely than the one observed, as in R's
/// `mantelhaen.test(exact = TRUE)`.
fn exact(strata: &[TwoGroups]) -> f64 {
    let (mut distribution, mut observed) = (vec![1.0], 0);
    for stratum in strata {
        let (least, greatest) = possible(stratum);
        let together = stratum.found[0] + stratum.found[1];
        let [first, second] = stratum.all;
        let all = ln_choose(first + second, together);
        let probability = |x: u64| (ln_choose(first, x) + ln_choose(second, together - x) - all).exp();
        let of_stratum: Vec<f64> = (least..=greatest).map(probability).collect();
        let mut sums = vec![0.0; distribution.len() + of_stratum.len() - 1];
        for (at, one) in distribution.iter().enumerate() {
            for (more, other) in of_stratum.iter().enumerate() {
                sums[at + more] += one * other;
            }
        }
        distribution = sums;
        observed += (stratum.found[0] - least) as usize;
    }
    let limit = distribution[observed] * (1.0 + EQUAL);
    // The smallest first, so that they are not lost in rounding.
    let mut unlikely: Vec<f64> = distribution.into_iter().filter(|&probability| probability <= limit).collect();
    unlikely.sort_by(f64::total_cmp);
    unlikely.iter().sum::<f64>().min(1.0)
}

/// Without the correction for continuity.
fn asymptotic(strata: &[TwoGroups]) -> f64 {
    let (mut excess, mut variance) = (0.0, 0.0);
    for TwoGroups { found, all } in strata {
        let ([n, m], together) = (all.map(|all| all as f64), (found[0] + found[1]) as f64);
        let total = n + m;
        excess += found[0] as f64 - n * together / total;
        if total > 1.0 {
            variance += n * m * together * (total - together) / (total * total * (total - 1.0));
        }
    }
    if variance == 0.0 { 1.0 } else { erfc((excess * excess / variance / 2.0).sqrt()) }
}

/// The probability that the differences of the strata vary at least as much, if they are the same in all: Cochran's Q
/// of the differences, with the adjustment of Agresti and Caffo (one more with and one more without in each group), so
/// that groups in which none or all have the property have a variance. 1 with fewer than two strata.
pub fn agreement(strata: &[TwoGroups]) -> f64 {
    let differences: Vec<(f64, f64)> = strata
        .iter()
        .filter(|stratum| !stratum.all.contains(&0))
        .map(|TwoGroups { found, all }| {
            let share = |side: usize| (found[side] as f64 + 1.0) / (all[side] as f64 + 2.0);
            let variance = |side: usize| share(side) * (1.0 - share(side)) / (all[side] as f64 + 2.0);
            (share(0) - share(1), 1.0 / (variance(0) + variance(1)))
        })
        .collect();
    if differences.len() < 2 {
        return 1.0;
    }
    let weights: f64 = differences.iter().map(|(_, weight)| weight).sum();
    let mean = differences.iter().map(|(difference, weight)| difference * weight).sum::<f64>() / weights;
    let q: f64 = differences.iter().map(|(difference, weight)| weight * (difference - mean).powi(2)).sum();
    if q <= 0.0 { 1.0 } else { gamma_ur((differences.len() - 1) as f64 / 2.0, q / 2.0) }
}

#[cfg(test)]
mod tests {
    use super::super::fisher;
    use super::super::reference::{assert_close, rows};
    use super::*;

    /// The rows of the file: found and all of both groups for each of three strata, then the expected value.
    fn strata(row: &[f64]) -> Vec<TwoGroups> {
        row.chunks_exact(4)
            .map(|numbers| {
                let number = |index: usize| numbers[index] as u64;
                TwoGroups { found: [number(0), number(2)], all: [number(1), number(3)] }
            })
            .collect()
    }

    #[test]
    fn asymptotic_p_values_match_statsmodels() {
        let rows = rows(include_str!("stratified_reference.csv"));
        assert!(rows.len() >= 1000);
        for row in &rows {
            assert_close(asymptotic(&strata(row)), row[12], row);
        }
    }

    #[test]
    fn exact_p_values_match_a_sum_over_all_tables() {
        let rows = rows(include_str!("stratified_exact_reference.csv"));
        assert!(rows.len() >= 100);
        for row in &rows {
            assert_close(exact(&strata(row)), row[12], row);
        }
    }

    #[test]
    fn one_stratum_is_fishers_test() {
        for found in 0..=12 {
            let groups = TwoGroups { found: [found, 7], all: [12, 30] };
            let (p_value, test) = two_sided(&[groups, TwoGroups { found: [0, 3], all: [0, 3] }]);
            assert!((p_value - fisher::two_sided(groups)).abs() < 1e-9);
            assert_eq!(test, EXACT);
        }
        assert_eq!(two_sided(&[]).0, 1.0);
    }

    #[test]
    fn strata_disagree_if_only_one_has_a_difference() {
        let affected = TwoGroups { found: [30, 1], all: [60, 60] };
        let healthy = TwoGroups { found: [1, 1], all: [60, 60] };
        assert!(agreement(&[affected, healthy]) < 1e-6);
        assert!(agreement(&[healthy, healthy]) > 0.99);
        assert_eq!(agreement(&[affected]), 1.0);
    }
}

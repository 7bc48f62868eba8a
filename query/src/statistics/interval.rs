//! 95 % confidence intervals of a difference of proportions.

use super::TwoGroups;

/// The 97.5 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The difference of two independent proportions, and its interval: Newcombe's hybrid score interval (1998, method 10).
/// 0 within -1 and 1 if a group is empty.
pub fn independent(TwoGroups { found, all }: TwoGroups) -> (f64, [f64; 2]) {
    if all.contains(&0) {
        return (0.0, [-1.0, 1.0]);
    }
    let share = |side: usize| found[side] as f64 / all[side] as f64;
    let (one, other) = (share(0), share(1));
    let ([low_one, high_one], [low_other, high_other]) = (wilson(found[0], all[0]), wilson(found[1], all[1]));
    let difference = one - other;
    let below = f64::hypot(one - low_one, high_other - other);
    let above = f64::hypot(high_one - one, other - low_other);
    (difference, [difference - below, difference + above])
}

/// Wilson's score interval of a proportion.
fn wilson(found: u64, all: u64) -> [f64; 2] {
    let (found, all) = (found as f64, all as f64);
    let middle = (found + Z * Z / 2.0) / (all + Z * Z);
    let half = Z / (all + Z * Z) * (found * (all - found) / all + Z * Z / 4.0).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// The difference of two proportions of the same `all`, of which `first` have the property in the first group only and
/// `second` in the second only, and its interval: the adjusted Wald interval of Bonett and Price (2012).
pub fn paired(first: u64, second: u64, all: u64) -> (f64, [f64; 2]) {
    if all == 0 {
        return (0.0, [-1.0, 1.0]);
    }
    let difference = (first as f64 - second as f64) / all as f64;
    let adjusted = |number: u64| (number as f64 + 1.0) / (all as f64 + 2.0);
    let (one, other) = (adjusted(first), adjusted(second));
    let (middle, variance) = (one - other, one + other - (one - other).powi(2));
    let half = Z * (variance / (all as f64 + 2.0)).sqrt();
    (difference, [(middle - half).max(-1.0), (middle + half).min(1.0)])
}

/// The common difference of independent proportions within strata (Mantel and Haenszel's weights), and its interval. The
/// variance of each proportion is that with one more with and one more without (Agresti and Caffo, 2000), so that it is
/// not 0 where none or all have the property. Strata without one of the groups do not count.
pub fn stratified(strata: &[TwoGroups]) -> (f64, [f64; 2]) {
    let (mut weights, mut sum, mut variance) = (0.0, 0.0, 0.0);
    for TwoGroups { found, all } in strata.iter().filter(|stratum| !stratum.all.contains(&0)) {
        let ([a, b], [n, m]) = (found.map(|found| found as f64), all.map(|all| all as f64));
        let total = n + m;
        let weight = n * m / total;
        let of_share = |found: f64, all: f64| (found + 1.0) * (all - found + 1.0) / (all + 2.0).powi(3);
        weights += weight;
        sum += (a * m - b * n) / total;
        variance += weight * weight * (of_share(a, n) + of_share(b, m));
    }
    if weights == 0.0 {
        return (0.0, [-1.0, 1.0]);
    }
    let difference = sum / weights;
    let half = Z * variance.sqrt() / weights;
    (difference, [(difference - half).max(-1.0), (difference + half).min(1.0)])
}

#[cfg(test)]
mod tests {
    use super::super::reference::{assert_close, rows};
    use super::*;

    #[test]
    fn independent_intervals_match_statsmodels() {
        let rows = rows(include_str!("interval_reference.csv"));
        assert!(rows.len() >= 1000);
        for row in &rows {
            let number = |index: usize| row[index] as u64;
            let groups = TwoGroups { found: [number(0), number(2)], all: [number(1), number(3)] };
            let (_, [low, high]) = independent(groups);
            assert_close(low, row[4], row);
            assert_close(high, row[5], row);
        }
    }

    /// A linear congruential generator (Knuth's MMIX constants): a number in 0..1.
    fn next(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 11) as f64 / (1_u64 << 53) as f64
    }

    #[test]
    fn intervals_contain_the_true_difference_in_about_95_of_100_samples() {
        let mut state = 7;
        let (mut of_pairs, mut of_strata) = (0, 0);
        for _ in 0..2000 {
            let (mut first, mut second) = (0, 0);
            for _ in 0..80 {
                match next(&mut state) {
                    x if x < 0.15 => first += 1,
                    x if x < 0.20 => second += 1,
                    _ => {}
                }
            }
            let (_, [low, high]) = paired(first, second, 80);
            of_pairs += u32::from((low..=high).contains(&0.10));
            let mut take = |all: u64, share: f64| (0..all).filter(|_| next(&mut state) < share).count() as u64;
            let mut stratum =
                |all: [u64; 2], base: f64| TwoGroups { found: [take(all[0], base + 0.1), take(all[1], base)], all };
            let strata = [stratum([40, 160], 0.1), stratum([90, 60], 0.3), stratum([30, 30], 0.5)];
            let (_, [low, high]) = stratified(&strata);
            of_strata += u32::from((low..=high).contains(&0.10));
        }
        for covered in [of_pairs, of_strata] {
            assert!((1860..=1950).contains(&covered), "{of_pairs} and {of_strata} of 2000");
        }
    }

    #[test]
    fn the_interval_of_all_or_none_has_a_width() {
        let all_or_none = TwoGroups { found: [2, 0], all: [2, 2] };
        let (difference, [low, high]) = stratified(&[all_or_none; 2]);
        assert!(difference == 1.0 && (0.2..0.7).contains(&low) && high == 1.0, "{low} to {high}");
    }

    #[test]
    fn a_single_stratum_has_the_difference_of_its_groups() {
        let groups = TwoGroups { found: [12, 30], all: [40, 200] };
        let (difference, [low, high]) = stratified(&[groups, TwoGroups { found: [0, 9], all: [0, 10] }]);
        assert!((difference - 0.15).abs() < 1e-12 && low < difference && difference < high);
        assert_eq!(stratified(&[]), (0.0, [-1.0, 1.0]));
    }
}

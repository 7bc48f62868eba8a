//! Fisher's exact test, two-sided.
//!
//! The p-value is the sum of the probabilities of all tables with the same margins that are no more
//! likely than the one observed. Probabilities are logarithms until they are summed, so p-values go
//! down to the smallest float. Each tail is summed outwards from the boundary between likely and
//! unlikely tables, until more terms would not change the sum.

use super::{EQUAL, TwoGroups, ln_choose};

/// The test's name in responses.
pub const NAME: &str = "fisher_exact_two_sided";

/// The p-value; 1 if a group is empty.
pub fn two_sided(TwoGroups { found, all }: TwoGroups) -> f64 {
    let found = [found[0].min(all[0]), found[1].min(all[1])];
    let margins = Margins { all, found: found[0] + found[1] };
    let (least, greatest) = (margins.found.saturating_sub(all[1]), margins.found.min(all[0]));
    let observed = found[0];
    let limit = margins.ln_probability(observed) + EQUAL;
    let is_unlikely = |x: u64| margins.ln_probability(x) <= limit;
    let mode = margins.mode().clamp(least, greatest);
    if is_unlikely(mode) {
        return 1.0;
    }
    // Probabilities rise up to the mode and fall after it.
    let below = last_where(least, mode, is_unlikely);
    let above = last_where(0, greatest - mode, |back| is_unlikely(greatest - back)).map(|back| greatest - back);
    let below = below.map_or(0.0, |x| margins.sum_from(x, least));
    let above = above.map_or(0.0, |x| margins.sum_from(x, greatest));
    (below + above).min(1.0)
}

/// The smallest p-value that any table with these margins has.
pub fn smallest(TwoGroups { found, all }: TwoGroups) -> f64 {
    let together = found[0] + found[1];
    let extreme = |first: u64| two_sided(TwoGroups { found: [first, together - first], all });
    extreme(together.saturating_sub(all[1])).min(extreme(together.min(all[0])))
}

/// The last number in `from..to` that satisfies `predicate`, which only a prefix of the range satisfies.
fn last_where(from: u64, to: u64, predicate: impl Fn(u64) -> bool) -> Option<u64> {
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if predicate(middle) { low = middle + 1 } else { high = middle }
    }
    low.checked_sub(1).filter(|&last| last >= from && low > from)
}

/// The margins, which all compared tables share.
struct Margins {
    all: [u64; 2],
    found: u64,
}

impl Margins {
    /// The most likely number on the first side.
    fn mode(&self) -> u64 {
        let (of_first, found) = (u128::from(self.all[0]), u128::from(self.found));
        let total = of_first + u128::from(self.all[1]);
        ((found + 1) * (of_first + 1) / (total + 2)) as u64
    }

    /// The logarithm of the probability that `x` of those found are on the first side.
    fn ln_probability(&self, x: u64) -> f64 {
        let [first, second] = self.all;
        ln_choose(first, x) + ln_choose(second, self.found - x) - ln_choose(first + second, self.found)
    }

    /// The sum of the probabilities from `x` outwards to `end`.
    fn sum_from(&self, x: u64, end: u64) -> f64 {
        let [first, second] = self.all.map(|all| all as f64);
        let found = self.found as f64;
        // The ratio of each term to the one before it, going outwards.
        let is_down = end < x;
        let ratio = |x: f64| match is_down {
            true => x * (second - found + x) / ((first - x + 1.0) * (found - x + 1.0)),
            false => (first - x) * (found - x) / ((x + 1.0) * (second - found + x + 1.0)),
        };
        let (mut sum, mut term, mut at) = (1.0, 1.0, x);
        while at != end {
            term *= ratio(at as f64);
            sum += term;
            if term < sum * f64::EPSILON / 4.0 {
                break;
            }
            at = if is_down { at - 1 } else { at + 1 };
        }
        // The sum may be large even if the first term alone is too small for a float.
        (self.ln_probability(x) + f64::ln(sum)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables and p-values of SciPy 1.x, `fisher_exact`; the file's header describes how it was made.
    const REFERENCE: &str = include_str!("fisher_reference.csv");

    #[test]
    fn p_values_match_scipy() {
        let mut tables = 0;
        for line in REFERENCE.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split(',').collect();
            let number = |index: usize| fields[index].parse::<u64>().expect("a number");
            let expected: f64 = fields[4].parse().expect("a p-value");
            let p_value = two_sided(TwoGroups { found: [number(0), number(2)], all: [number(1), number(3)] });
            assert!((p_value - expected).abs() <= 1e-9 * expected, "{line}: {p_value}");
            tables += 1;
        }
        assert!(tables >= 10_000);
    }

    #[test]
    fn degenerate_tables_have_a_p_value_of_one() {
        assert_eq!(two_sided(TwoGroups { found: [0, 0], all: [0, 10] }), 1.0);
        assert_eq!(two_sided(TwoGroups { found: [0, 0], all: [0, 0] }), 1.0);
        assert_eq!(two_sided(TwoGroups { found: [10, 10], all: [10, 10] }), 1.0);
    }
}

//! The false discovery rate, by Benjamini and Hochberg (1995).

/// The q-values of p-values, which are sorted in ascending order: of the tests up to this one, the share that is
/// expected to be there by chance.
pub fn q_values(p_values: &[f64]) -> Vec<f64> {
    let (mut least, all) = (1.0_f64, p_values.len() as f64);
    let mut q_values = vec![0.0; p_values.len()];
    for (index, p_value) in p_values.iter().enumerate().rev() {
        least = least.min(p_value * all / (index + 1) as f64);
        q_values[index] = least;
    }
    q_values
}

#[cfg(test)]
mod tests {
    use super::super::reference::{assert_close, rows};
    use super::*;

    #[test]
    fn q_values_match_statsmodels() {
        let rows = rows(include_str!("discovery_reference.csv"));
        assert!(rows.len() >= 100);
        for row in &rows {
            let (p_values, expected) = row.split_at(row.len() / 2);
            q_values(p_values)
                .iter()
                .zip(expected)
                .for_each(|(actual, expected)| assert_close(*actual, *expected, row));
        }
        assert!(q_values(&[]).is_empty());
    }
}

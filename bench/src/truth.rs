//! The expected counts of a log, and checks of results against them.

use std::collections::BTreeMap;
use std::iter::Sum;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The expected counts of a log.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Truth {
    /// Bytes.
    pub bytes: u64,
    /// Lines.
    pub lines: u64,
    /// Lines with at least one code.
    pub error_lines: u64,
    /// Lines with each code, by the built-in rules.
    pub codes: BTreeMap<String, u64>,
    /// Matches of the simple pattern; no text matches twice in a line.
    pub simple: BTreeMap<String, u64>,
}

impl<'a> Sum<&'a Truth> for Truth {
    fn sum<I: Iterator<Item = &'a Truth>>(parts: I) -> Truth {
        let mut sum = Truth::default();
        for part in parts {
            sum.bytes += part.bytes;
            sum.lines += part.lines;
            sum.error_lines += part.error_lines;
            for (whole, part) in [(&mut sum.codes, &part.codes), (&mut sum.simple, &part.simple)] {
                part.iter().for_each(|(code, count)| *whole.entry(code.clone()).or_default() += count);
            }
        }
        sum
    }
}

impl Truth {
    /// Fails unless a report by the built-in rules has the expected counts.
    pub fn check_report(&self, report: &Value) -> Result<()> {
        let field = |name: &str| report[name].as_u64().with_context(|| format!("the report has no {name}"));
        let counted = (field("total_bytes")?, field("total_lines")?, field("error_lines")?);
        let truth = (self.bytes, self.lines, self.error_lines);
        ensure!(counted == truth, "bytes, lines and lines with codes are {counted:?}, expected {truth:?}");
        same(&report_codes(report)?, &self.codes)
    }
}

/// The codes of a report with their counts.
pub fn report_codes(report: &Value) -> Result<BTreeMap<String, u64>> {
    let codes = report["codes"].as_array().context("the report has no codes")?;
    let code = |code: &Value| Some((code["code"].as_str()?.to_owned(), code["count"].as_u64()?));
    codes.iter().map(|entry| code(entry).context("a code in the report has no count")).collect()
}

/// Fails with the first code whose count is wrong.
pub fn same(counted: &BTreeMap<String, u64>, truth: &BTreeMap<String, u64>) -> Result<()> {
    for code in counted.keys().chain(truth.keys()) {
        let (is, should) = (counted.get(code).copied().unwrap_or(0), truth.get(code).copied().unwrap_or(0));
        if is != should {
            bail!("the count of {code} is {is}, expected {should}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_equal_only_if_every_code_is() {
        let map = |codes: &[(&str, u64)]| codes.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect();
        let truth: BTreeMap<String, u64> = map(&[("A", 1), ("B", 2)]);
        assert!(same(&truth, &truth).is_ok());
        for wrong in [map(&[("A", 1)]), map(&[("A", 1), ("B", 3)]), map(&[("A", 1), ("B", 2), ("C", 1)])] {
            assert!(same(&wrong, &truth).is_err());
        }
    }
}

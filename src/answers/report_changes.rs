//! What changed between two reports of a batch, for those who follow it.

use std::collections::HashMap;

use argus_query::{Report, ReportSeverity};
use serde::Serialize;

/// Changed codes that are listed; the number of all is in [`ReportChanges::changed_codes`].
const CODES_MAX: usize = 100;

/// A report in short, and its difference from an earlier one.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ReportChanges {
    /// Whether the batch is gathered.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Lines.
    pub total_lines: u64,
    /// Lines with at least one code.
    pub error_lines: u64,
    /// Occurrences.
    pub total_errors: u64,
    /// Different codes.
    pub error_codes: u64,
    /// Codes whose count changed.
    pub changed_codes: u64,
    /// Those that changed most: at most 100.
    pub changed: Vec<ChangedCode>,
}

/// A code whose count changed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ChangedCode {
    code: String,
    severity: ReportSeverity,
    /// Occurrences now; 0 if the code is gone.
    count: u64,
    /// The difference from the earlier report.
    change: i64,
}

/// The counts of the codes of a report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CodeCounts(Box<[(Box<str>, ReportSeverity, u64)]>);

impl CodeCounts {
    /// Those of a report.
    pub fn of(report: &Report) -> CodeCounts {
        CodeCounts(report.codes.iter().map(|code| (code.code.as_str().into(), code.severity, code.count)).collect())
    }
}

impl ReportChanges {
    /// The difference of a report from the counts of an earlier one of the same batch; from none if it is the first.
    pub fn between(before: &CodeCounts, report: &Report, is_final: bool) -> ReportChanges {
        let mut gone: HashMap<&str, (ReportSeverity, u64)> =
            before.0.iter().map(|(code, severity, count)| (&**code, (*severity, *count))).collect();
        let mut changed = Vec::new();
        for code in &report.codes {
            let count_before = gone.remove(&*code.code).map_or(0, |(_, count)| count);
            if code.count != count_before {
                changed.push(ChangedCode::new(&code.code, code.severity, count_before, code.count));
            }
        }
        changed.extend(gone.into_iter().map(|(code, (severity, count))| ChangedCode::new(code, severity, count, 0)));
        changed.sort_by(|a, b| b.change.unsigned_abs().cmp(&a.change.unsigned_abs()).then_with(|| a.code.cmp(&b.code)));
        let changed_codes = changed.len() as u64;
        changed.truncate(CODES_MAX);
        ReportChanges {
            is_final,
            total_lines: report.total_lines,
            error_lines: report.error_lines,
            total_errors: report.total_errors,
            error_codes: report.codes.len() as u64,
            changed_codes,
            changed,
        }
    }
}

impl ChangedCode {
    fn new(code: &str, severity: ReportSeverity, before: u64, count: u64) -> ChangedCode {
        // Counts are far below 2^63.
        let change = count.wrapping_sub(before).cast_signed();
        ChangedCode { code: code.to_owned(), severity, count, change }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn report(codes: &[(String, u64)]) -> Report {
        let codes: Vec<Value> = codes
            .iter()
            .map(|(code, count)| {
                json!({"code": code, "rule": "r", "severity": "error", "count": count, "files": 1, "first_seen": null,
                    "last_seen": null, "new_for_vehicle": false, "fleet_ratio": null,
                    "example": {"file": "a", "line": 1, "text": "t"}})
            })
            .collect();
        let report = json!({"final": false, "total_files": 1, "parsed_files": 1, "total_bytes": 9, "total_lines": 7,
            "error_lines": 5, "total_errors": 6, "codes": codes, "files": []});
        serde_json::from_value(report).expect("a report")
    }

    fn codes(codes: &[(&str, u64)]) -> Report {
        report(&codes.iter().map(|(code, count)| ((*code).to_owned(), *count)).collect::<Vec<_>>())
    }

    fn changes(before: Option<&Report>, now: &Report) -> Vec<(String, u64, i64)> {
        let before = before.map(CodeCounts::of).unwrap_or_default();
        let changes = ReportChanges::between(&before, now, false);
        changes.changed.into_iter().map(|changed| (changed.code, changed.count, changed.change)).collect()
    }

    #[test]
    fn codes_that_come_change_and_go_are_listed_by_how_much() {
        let (before, now) = (codes(&[("A", 5), ("B", 3), ("C", 2)]), codes(&[("A", 5), ("B", 9), ("D", 1)]));
        let named = |code: &str, count, change| (code.to_owned(), count, change);
        assert_eq!(changes(Some(&before), &now), [named("B", 9, 6), named("C", 0, -2), named("D", 1, 1)]);
        assert_eq!(changes(None, &before), [named("A", 5, 5), named("B", 3, 3), named("C", 2, 2)]);
        assert_eq!(changes(Some(&now), &now), []);
    }

    #[test]
    fn many_changes_are_cut_and_counted() {
        let many = report(&(0..250).map(|number| (format!("E{number}"), number + 1)).collect::<Vec<_>>());
        let changes = ReportChanges::between(&CodeCounts::default(), &many, true);
        assert_eq!((changes.changed_codes, changes.changed.len(), changes.error_codes), (250, CODES_MAX, 250));
        assert_eq!(changes.changed[0].code, "E249");
        assert!(changes.is_final);
    }
}

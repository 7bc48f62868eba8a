//! The diagnosis of a batch: its findings, with what is known of their codes.
//!
//! It is computed from the report and the counts of the fleet, so it is never older than they are: when lines are replaced
//! or taken back, so are its findings. It says only what the counts and the catalogue hold; each finding has its evidence.

use std::cmp::Reverse;

use argus_query::{Finding, Findings, Report};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::catalog::{self, Description};

/// Findings that are listed, and codes beside them.
const FINDINGS_MAX: usize = 10;

/// The diagnosis of a batch.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Diagnosis {
    /// The batch; null for files without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<Uuid>,
    /// In a sentence.
    pub summary: String,
    /// The firmware that the batch's is compared with: the one that was recorded before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_firmware: Option<String>,
    /// What stands out; those that say most first.
    pub findings: Vec<ExplainedFinding>,
    /// The rest, in numbers.
    pub others: Others,
}

/// A finding, and what is known of its code.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExplainedFinding {
    /// Identifies it in this diagnosis: `F1` is the first.
    pub id: String,
    /// The code and its evidence.
    #[serde(flatten)]
    #[schema(inline)]
    pub finding: Finding,
    /// The catalogue's entry; null if the code is not known.
    pub catalog: Option<Description>,
}

/// Codes that do not stand out.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Others {
    /// Codes.
    pub codes: usize,
    /// Their occurrences.
    pub occurrences: u64,
    /// The most severe and frequent of them.
    pub top: Vec<ExplainedFinding>,
}

impl Diagnosis {
    /// The diagnosis of a batch with these findings.
    pub fn of_batch(batch_id: Uuid, found: Findings) -> Diagnosis {
        let summary = match found.findings.as_slice() {
            [] if found.others.is_empty() => "No active error code.".to_owned(),
            [] if found.others.iter().all(|code| code.bits.is_none()) => {
                "There are too few other vehicles with this firmware or platform to compare with.".to_owned()
            }
            [] => "No code stands out among those of other vehicles.".to_owned(),
            [first, ..] => {
                let reason = first.evidence.first().map_or("", |evidence| evidence.text.as_str());
                format!("{} stands out: {reason}.", first.code)
            }
        };
        Diagnosis {
            batch_id: Some(batch_id),
            ..Diagnosis::new(summary, found.findings, found.others, found.previous_firmware)
        }
    }

    /// The diagnosis of files without a server: nothing to compare with, so the most severe and frequent codes are the
    /// findings.
    pub fn of_files(report: &Report) -> Diagnosis {
        let active = report.codes.iter().filter(|code| code.count > code.inactive);
        let mut findings: Vec<Finding> = active
            .map(|code| Finding {
                code: code.code.clone(),
                severity: code.severity,
                count: code.count,
                bits: None,
                evidence: Vec::new(),
                line: code.example.clone(),
            })
            .collect();
        findings.sort_by_key(|finding| Reverse((finding.severity, finding.count)));
        let summary = match findings.first() {
            Some(first) => format!("{} is the most severe and frequent of {} codes.", first.code, findings.len()),
            None => "No active error code.".to_owned(),
        };
        Diagnosis::new(summary, findings, Vec::new(), None)
    }

    /// All findings and codes that it lists.
    pub fn listed(&mut self) -> impl Iterator<Item = &mut ExplainedFinding> {
        self.findings.iter_mut().chain(&mut self.others.top)
    }

    fn new(
        summary: String,
        mut findings: Vec<Finding>,
        others: Vec<Finding>,
        previous_firmware: Option<String>,
    ) -> Diagnosis {
        let rest: Vec<Finding> =
            findings.split_off(FINDINGS_MAX.min(findings.len())).into_iter().chain(others).collect();
        let explained = |(index, finding): (usize, Finding)| ExplainedFinding {
            id: format!("F{}", index + 1),
            catalog: catalog::describe(&finding.code),
            finding,
        };
        let listed = findings.len();
        Diagnosis {
            batch_id: None,
            summary,
            previous_firmware,
            findings: findings.into_iter().enumerate().map(explained).collect(),
            others: Others {
                codes: rest.len(),
                occurrences: rest.iter().map(|finding| finding.count).sum(),
                top: (listed..).zip(rest).take(FINDINGS_MAX).map(explained).collect(),
            },
        }
    }
}

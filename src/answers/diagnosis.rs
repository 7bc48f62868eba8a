//! The diagnosis of a batch: its findings, with what is known of their codes, and similar cases.
//!
//! It is computed from the report and the counts of the fleet, so it is never older than they are: when lines are replaced
//! or taken back, so are its findings. It says only what the counts and the catalogue hold; each finding has its evidence.

use std::cmp::Reverse;
use std::sync::Arc;

use argus_query::{BatchFacts, Engine, Finding, Findings, Patterns, Report, ReportSeverity, findings};
use argus_sinks::Snapshot;
use moka::sync::Cache;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::answers::answer::AnswerError;
use crate::answers::reports::Reports;
use crate::catalog::{self, Description};
use crate::domain::case::{Case, Situation, Verdict};
use crate::domain::explanation::Explanation;
use crate::domain::mask::masked;
use crate::metadata::{DocumentKind, Metadata};

/// Similar cases that are listed.
const CASES_MAX: usize = 3;

/// Findings that are listed, and codes beside them.
const FINDINGS_MAX: usize = 10;

/// Batches whose patterns are remembered.
const PATTERNS_MAX: u64 = 256;

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
    /// Batches whose diagnosis a user has judged, and that share codes: the most similar first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub similar_cases: Vec<SimilarCase>,
    /// What a user said of this diagnosis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedback: Option<Case>,
    /// What a language model wrote about the findings, if one is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
}

/// A similar case.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SimilarCase {
    /// Identifies it in this diagnosis: `S1` is the first.
    pub id: String,
    /// Its batch.
    pub batch_id: String,
    /// The case.
    #[serde(flatten)]
    #[schema(inline)]
    pub case: Case,
    /// The codes that both have, of those that any has, from 0 to 1.
    pub similarity: f64,
    /// Whether its findings have the same codes on the same platform.
    pub is_same: bool,
}

/// Why there is no diagnosis.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each variant means")]
pub enum DiagnosisError {
    #[error("there is no diagnosis yet: the batch is {0}; complete it (POST …/complete)")]
    NotGathered(String),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// A diagnosis, and what it was made of.
pub struct Diagnosed {
    /// The diagnosis.
    pub diagnosis: Diagnosis,
    /// The batch.
    pub facts: BatchFacts,
    /// The epoch of the counts.
    pub epoch: u64,
}

/// Computes diagnoses.
#[derive(Clone)]
pub struct Diagnoses {
    reports: Reports,
    metadata: Metadata,
    engine: Engine,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// By batch, and the epoch of its last change.
    patterns: Cache<(Uuid, u64), Arc<Patterns>>,
}

impl Diagnoses {
    /// From the reports, the counts of the fleet and the lines of batches.
    pub fn new(
        reports: Reports,
        metadata: Metadata,
        engine: Engine,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Diagnoses {
        Diagnoses { reports, metadata, engine, snapshots, patterns: Cache::new(PATTERNS_MAX) }
    }

    /// The diagnosis of a gathered batch.
    pub async fn of(&self, id: Uuid) -> Result<Diagnosed, DiagnosisError> {
        // The report first: the counts of the fleet are at least as new.
        let (report, _) = self.reports.present(id, None).await?;
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let view = snapshot.fleet.as_ref().ok_or(AnswerError::Starting)?;
        let report: Report = serde_json::from_slice(report.body()).map_err(AnswerError::write)?;
        let facts = match &report.batch {
            Some(facts) if report.is_final => facts.clone(),
            facts => {
                let status = facts.as_ref().map_or_else(String::new, |facts| facts.status.clone());
                return Err(DiagnosisError::NotGathered(status));
            }
        };
        let raised = self.reports.raised().of(snapshot.epoch, view, &facts);
        let found = findings(&report, &facts, view, raised.as_ref().as_ref());
        let mut diagnosis = Diagnosis::of_batch(id, found);
        let patterns = self.patterns(id, &snapshot).await?;
        for explained in diagnosis.listed() {
            explained.finding.evidence.extend_from_slice(patterns.of_code(&explained.finding.code));
            let code = &explained.finding.code;
            let entries = self.metadata.catalog_of(code).await.map_err(AnswerError::from)?;
            explained.catalog = catalog::best(code, entries, facts.platform.as_deref(), facts.firmware.as_deref());
            // A user knows better than the rules.
            let known = explained.catalog.as_ref().and_then(|known| known.severity.as_deref());
            explained.finding.severity = known.and_then(ReportSeverity::named).unwrap_or(explained.finding.severity);
        }
        self.add_cases(id, &mut diagnosis, &facts).await?;
        let key = id.to_string();
        let explanation = self.metadata.document::<Explanation>(DocumentKind::Explanation, &key).await;
        diagnosis.explanation = explanation.map_err(AnswerError::from)?;
        let (current, cases) = (diagnosis.fingerprint(&facts), diagnosis.case_ids());
        if let Some(explanation) = &mut diagnosis.explanation {
            explanation.outdated = explanation.of != current || explanation.cites_other_cases(&cases);
        }
        Ok(Diagnosed { diagnosis, facts, epoch: snapshot.epoch })
    }

    async fn patterns(&self, id: Uuid, snapshot: &Arc<Snapshot>) -> Result<Arc<Patterns>, AnswerError> {
        let key = (id, snapshot.changes.last(id));
        if let Some(known) = self.patterns.get(&key) {
            return Ok(known);
        }
        let patterns = Arc::new(Patterns::of_batch(&self.engine, snapshot, id).await?);
        self.patterns.insert(key, Arc::clone(&patterns));
        Ok(patterns)
    }

    async fn add_cases(&self, id: Uuid, diagnosis: &mut Diagnosis, facts: &BatchFacts) -> Result<(), AnswerError> {
        let own_id = id.to_string();
        let cases = self.metadata.documents::<Case>(DocumentKind::Case).await?;
        let (codes, lines) = (diagnosis.codes(), diagnosis.lines(facts));
        let situation = Situation { platform: facts.platform.as_deref(), codes: &codes, lines: &lines };
        let mut similar = Vec::new();
        for (batch_id, case) in cases {
            if batch_id == own_id {
                diagnosis.feedback = Some(case);
            } else if case.verdict != Verdict::Wrong
                && let Some(similarity) = case.similarity(situation)
            {
                similar.push((similarity, batch_id, case));
            }
        }
        similar.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal).then_with(|| b.1.cmp(&a.1)));
        let listed = similar.into_iter().take(CASES_MAX).enumerate();
        diagnosis.similar_cases = listed
            .map(|(index, (similarity, batch_id, case))| SimilarCase {
                id: format!("S{}", index + 1),
                batch_id,
                is_same: case.is_same(situation),
                similarity: similarity.codes,
                case,
            })
            .collect();
        Ok(())
    }
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
        let summary = found.summary();
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
            Some(only) if findings.len() == 1 => format!("{} is the only code.", only.code),
            Some(first) => format!("{} is the most severe and frequent of {} codes.", first.code, findings.len()),
            None => "No active error code.".to_owned(),
        };
        Diagnosis::new(summary, findings, Vec::new(), None)
    }

    /// The codes of its findings, sorted.
    pub fn codes(&self) -> Vec<String> {
        let mut codes: Vec<String> = self.findings.iter().map(|explained| explained.finding.code.clone()).collect();
        codes.sort_unstable();
        codes
    }

    /// The codes of its first findings.
    pub fn top_codes(&self, count: usize) -> Vec<String> {
        self.findings.iter().take(count).map(|explained| explained.finding.code.clone()).collect()
    }

    /// The first line of each finding, without what identifies the vehicle.
    pub fn lines(&self, facts: &BatchFacts) -> Vec<String> {
        let lines = self.findings.iter().map(|explained| &explained.finding.line.text);
        lines.map(|text| masked(text, &facts.vin, &facts.vehicle_id).into_owned()).collect()
    }

    /// The batches of its similar cases, the most similar first.
    pub fn case_ids(&self) -> Vec<String> {
        self.similar_cases.iter().map(|similar| similar.batch_id.clone()).collect()
    }

    /// Identifies its findings: with other codes or counts, in another order, on another platform or with another firmware
    /// they have another one.
    pub fn fingerprint(&self, facts: &BatchFacts) -> String {
        let findings: Vec<(&str, u64)> =
            self.findings.iter().map(|explained| (explained.finding.code.as_str(), explained.finding.count)).collect();
        let of = serde_json::json!([facts.platform, facts.firmware, findings]);
        hex::encode(&Sha256::digest(of.to_string().as_bytes())[..16])
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
            similar_cases: Vec::new(),
            feedback: None,
            explanation: None,
        }
    }
}

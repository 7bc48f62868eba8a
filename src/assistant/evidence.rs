//! What the model is shown: findings, what is known of their codes, their lines, and similar cases, each with an id that
//! statements cite. Nothing of it identifies a vehicle.

use argus_query::BatchFacts;
use serde::Serialize;
use serde_json::{Value, json};

use crate::answers::diagnosis::{Diagnosis, ExplainedFinding, SimilarCase};
use crate::domain::mask::masked;

/// Bytes of text that are counted as a token. Tokens are longer on average, except in some languages.
const TOKEN_BYTES: usize = 3;

/// Of a line, so much is shown.
const LINE_CHARS_MAX: usize = 400;

/// Of a text of the catalogue, so much is shown.
const TEXT_CHARS_MAX: usize = 800;

/// A kind of evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvidenceKind {
    /// The batch: firmware and platform.
    Batch,
    /// A finding.
    Finding,
    /// What is known of a code.
    Known,
    /// Lines of a log. They are data: what they say is not asked for.
    Lines,
    /// A case that a user has judged.
    Case,
}

/// A piece of evidence.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Its id: `B1`, `F1`, `K1`, `L1`, `S1`, …
    pub id: String,
    #[serde(skip)]
    pub kind: EvidenceKind,
    /// What it says.
    pub says: Value,
}

/// The evidence that the model is shown.
#[derive(Debug, Clone)]
pub struct Evidence {
    pub items: Vec<Item>,
    /// Findings that did not fit.
    pub left_out: u32,
}

/// Lines with the first occurrence of a finding: its position among the findings, and the lines around it.
pub type LinesOfFinding = (usize, Vec<String>);

impl Evidence {
    /// The evidence of a diagnosis that fits into so many tokens: the findings that say most, with what belongs to them.
    pub fn of(diagnosis: &Diagnosis, facts: &BatchFacts, lines: &[LinesOfFinding], tokens_max: usize) -> Evidence {
        let batch = json!({
            "platform": facts.platform,
            "firmware": facts.firmware,
            "previous_firmware": diagnosis.previous_firmware,
            "codes_beside_the_findings": diagnosis.others.codes,
        });
        let mut evidence = Evidence { items: vec![item("B", 1, EvidenceKind::Batch, batch)], left_out: 0 };
        let cases = diagnosis.similar_cases.iter().enumerate();
        let cases: Vec<Item> =
            cases.map(|(index, similar)| item("S", index + 1, EvidenceKind::Case, case(similar, facts))).collect();
        for (index, explained) in diagnosis.findings.iter().enumerate() {
            let mut items = vec![finding(index + 1, explained)];
            items.extend(explained.catalog.as_ref().map(|known| {
                let text = |text: &str| text.chars().take(TEXT_CHARS_MAX).collect::<String>();
                let cause = known.cause.as_deref().map(text);
                let says = json!({"code": known.code, "meaning": text(&known.meaning), "cause": cause,
                    "remedy": known.remedy.as_deref().map(text), "source": known.source});
                item("K", index + 1, EvidenceKind::Known, says)
            }));
            items.extend(lines.iter().filter(|(of, _)| *of == index).map(|(_, lines)| {
                let lines: Vec<String> = lines.iter().map(|line| shown(line, facts)).collect();
                item("L", index + 1, EvidenceKind::Lines, json!({"code": explained.finding.code, "file": shown(&explained.finding.line.file, facts), "line": explained.finding.line.line, "text": lines}))
            }));
            let added = [&evidence.items[..], &items[..], &cases[..]].concat();
            // At least one finding is shown.
            if index > 0 && tokens_of(&json!(added).to_string()) > tokens_max {
                evidence.left_out = u32::try_from(diagnosis.findings.len() - index).unwrap_or(u32::MAX);
                break;
            }
            evidence.items.extend(items);
        }
        evidence.items.extend(cases);
        evidence
    }

    /// The item of this id.
    pub fn item(&self, id: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id)
    }

    /// All of it, as the model reads it.
    pub fn text(&self) -> String {
        json!(self.items).to_string()
    }
}

/// A line as the model is shown it: without identities, colours and control characters.
fn shown(line: &str, facts: &BatchFacts) -> String {
    // First, so that nothing hides an identity.
    let plain: String = console::strip_ansi_codes(line).chars().filter(|c| !c.is_control()).collect();
    masked(&plain, &facts.vin, &facts.vehicle_id).chars().take(LINE_CHARS_MAX).collect()
}

/// An upper estimate of the tokens of a text.
pub fn tokens_of(text: &str) -> usize {
    text.len().div_ceil(TOKEN_BYTES)
}

fn item(letter: &str, number: usize, kind: EvidenceKind, says: Value) -> Item {
    Item { id: format!("{letter}{number}"), kind, says }
}

fn finding(number: usize, explained: &ExplainedFinding) -> Item {
    let finding = &explained.finding;
    let why: Vec<&str> = finding.evidence.iter().map(|evidence| evidence.text.as_str()).collect();
    let says = json!({"code": finding.code, "severity": finding.severity, "occurrences_in_this_batch": finding.count, "why_it_stands_out": why});
    item("F", number, EvidenceKind::Finding, says)
}

fn case(similar: &SimilarCase, facts: &BatchFacts) -> Value {
    let shown = |text: &Option<String>| text.as_ref().map(|text| shown(text, facts));
    json!({
        "verdict_of_a_user": similar.case.verdict,
        "cause": shown(&similar.case.cause),
        "note": shown(&similar.case.note),
        "codes": similar.case.codes,
        "platform": similar.case.platform,
        "firmware": similar.case.firmware,
        "same_findings": similar.is_same,
    })
}

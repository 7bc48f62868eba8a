//! What a language model wrote about the findings of a batch, after it was checked.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A statement and the evidence that it cites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Statement {
    /// The statement.
    pub text: String,
    /// The ids of its evidence: `F1` is a finding, `K1` what is known of its code, `L1` its first line with the lines
    /// around it, `S1` a similar case.
    pub evidence: Vec<String>,
}

/// How far an explanation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExplanationState {
    /// It waits for a call.
    Queued,
    /// The model is writing; the statements so far are checked.
    Writing,
    /// It is written.
    Completed,
    /// There is no more; the reason says why.
    Failed,
}

/// Where an explanation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExplanationSource {
    /// A language model.
    Model,
    /// A case with the same findings, whose cause a user has confirmed.
    Case,
}

/// An explanation of the findings of a batch. Each statement cites evidence; those that a check did not find in it are
/// struck out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// How far it is.
    pub state: ExplanationState,
    /// Why there is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where it comes from.
    pub source: ExplanationSource,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// In a sentence or two.
    #[serde(default)]
    pub summary: Option<Statement>,
    /// The likely cause.
    #[serde(default)]
    pub likely_cause: Option<Statement>,
    /// What the evidence says.
    #[serde(default)]
    pub known: Vec<Statement>,
    /// What is only a guess.
    #[serde(default)]
    pub guessed: Vec<Statement>,
    /// Steps to try, in this order.
    #[serde(default)]
    pub steps: Vec<Statement>,
    /// Statements that were struck out.
    #[serde(default)]
    pub struck_out: u32,
    /// Why, each reason once.
    #[serde(default)]
    pub struck_out_because: Vec<String>,
    /// Findings that were not shown to the model, because the limit of tokens did not allow it.
    #[serde(default)]
    pub findings_left_out: u32,
    /// Tokens that the model read.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens that it wrote.
    #[serde(default)]
    pub completion_tokens: u64,
    /// What it cost, in the currency of the configured prices; null without prices.
    #[serde(default)]
    pub cost: Option<f64>,
    /// Identifies the findings that it explains.
    pub of: String,
    /// The batches of the similar cases that it may cite, `S1` first.
    #[serde(default)]
    pub cases: Vec<String>,
    /// Whether the findings have changed since.
    #[serde(default)]
    pub outdated: bool,
    /// When it was written.
    pub at: DateTime<Utc>,
}

impl Explanation {
    /// An explanation without statements.
    pub fn new(state: ExplanationState, source: ExplanationSource, of: &str, at: DateTime<Utc>) -> Explanation {
        Explanation {
            state,
            reason: None,
            source,
            model: None,
            summary: None,
            likely_cause: None,
            known: Vec::new(),
            guessed: Vec::new(),
            steps: Vec::new(),
            struck_out: 0,
            struck_out_because: Vec::new(),
            findings_left_out: 0,
            prompt_tokens: 0,
            completion_tokens: 0,
            cost: None,
            of: of.to_owned(),
            cases: Vec::new(),
            outdated: false,
            at,
        }
    }

    /// Whether it cites a case that is not the one that these batches of cases have now.
    pub fn cites_other_cases(&self, now: &[String]) -> bool {
        let mut cited = self.statements().flat_map(|statement| &statement.evidence);
        cited.any(|id| {
            let index = id.strip_prefix('S').and_then(|number| number.parse::<usize>().ok()?.checked_sub(1));
            index.is_some_and(|index| now.get(index).is_none_or(|now| self.cases.get(index) != Some(now)))
        })
    }

    /// Whether it should be written again: it is complete, and its findings have changed. One that failed waits for a request.
    pub fn is_to_renew(&self) -> bool {
        self.outdated && self.state == ExplanationState::Completed
    }

    /// All its statements.
    pub fn statements(&self) -> impl Iterator<Item = &Statement> {
        let first = self.summary.iter().chain(&self.likely_cause);
        first.chain(&self.known).chain(&self.guessed).chain(&self.steps)
    }
}

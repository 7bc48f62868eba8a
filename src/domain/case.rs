//! Cases: diagnoses that users have judged, and how similar another batch is to one.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest cause or note, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// What a user says of a diagnosis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The cause is right.
    Right,
    /// The cause is wrong, and the right one is not known.
    Wrong,
    /// The cause is another one.
    Corrected,
}

/// A user's words about a diagnosis.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    /// The verdict.
    pub verdict: Verdict,
    /// The true cause; needed for `corrected`.
    #[serde(default)]
    pub cause: Option<String>,
    /// What to know beside it.
    #[serde(default)]
    pub note: Option<String>,
}

/// A batch whose diagnosis a user has judged. It names no vehicle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Case {
    /// The verdict.
    pub verdict: Verdict,
    /// The cause, if it is known.
    pub cause: Option<String>,
    /// What to know beside it.
    pub note: Option<String>,
    /// The batch's platform.
    pub platform: Option<String>,
    /// The batch's firmware.
    pub firmware: Option<String>,
    /// The codes of its findings, sorted.
    pub codes: Vec<String>,
    /// The first line of each, without what identifies the vehicle.
    pub lines: Vec<String>,
    /// When it was judged.
    pub at: DateTime<Utc>,
}

/// What is compared with cases.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'s> {
    /// The batch's platform.
    pub platform: Option<&'s str>,
    /// The codes of its findings, sorted.
    pub codes: &'s [String],
    /// The first line of each.
    pub lines: &'s [String],
}

/// How similar a case is. The greatest is the most similar.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Similarity {
    /// The codes in both, of those in any.
    pub codes: f64,
    /// Whether it is of the same platform.
    pub is_same_platform: bool,
    /// The words of the lines in both, of those in any.
    pub words: f64,
}

impl Feedback {
    /// Checks it; says what is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let is_empty = |text: &Option<String>| text.as_ref().is_none_or(|text| text.trim().is_empty());
        if self.verdict == Verdict::Corrected && is_empty(&self.cause) {
            return Err("corrected needs the cause");
        }
        let texts = [&self.cause, &self.note];
        match texts.into_iter().flatten().any(|text| text.len() > TEXT_BYTES_MAX) {
            true => Err("cause and note may have at most 4096 bytes"),
            false => Ok(()),
        }
    }
}

impl Case {
    /// Whether its cause is confirmed.
    pub fn is_confirmed(&self) -> bool {
        self.verdict != Verdict::Wrong && self.cause.is_some()
    }

    /// How similar a situation is; `None` if they share no code.
    pub fn similarity(&self, other: Situation<'_>) -> Option<Similarity> {
        let codes = share(self.codes.iter().map(String::as_str), other.codes.iter().map(String::as_str));
        let words = share(words(&self.lines), words(other.lines));
        let is_same_platform = self.platform.as_deref() == other.platform;
        (codes > 0.0).then_some(Similarity { codes, is_same_platform, words })
    }

    /// Whether a situation is the same: all codes, on the same platform.
    pub fn is_same(&self, other: Situation<'_>) -> bool {
        self.platform.as_deref() == other.platform && self.codes == other.codes
    }
}

fn words(lines: &[String]) -> impl Iterator<Item = &str> {
    let words = lines.iter().flat_map(|line| line.split(|c: char| !c.is_alphabetic()));
    words.filter(|word| word.len() > 2)
}

/// The number of elements in both sets, divided by those in any (Jaccard's index).
fn share<'e>(one: impl Iterator<Item = &'e str>, other: impl Iterator<Item = &'e str>) -> f64 {
    let (one, other): (BTreeSet<&str>, BTreeSet<&str>) = (one.collect(), other.collect());
    match one.union(&other).count() {
        0 => 0.0,
        all => one.intersection(&other).count() as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(platform: &str, codes: &[&str], line: &str) -> Case {
        Case {
            verdict: Verdict::Right,
            cause: Some("a cause".to_owned()),
            note: None,
            platform: Some(platform.to_owned()),
            firmware: None,
            codes: codes.iter().map(|code| (*code).to_owned()).collect(),
            lines: vec![line.to_owned()],
            at: DateTime::default(),
        }
    }

    #[test]
    fn codes_come_before_the_platform_and_words() {
        let codes = ["E1".to_owned(), "E2".to_owned()];
        let lines = ["the flash is full".to_owned()];
        let situation = Situation { platform: Some("a"), codes: &codes, lines: &lines };
        let mut cases = [
            case("b", &["E1"], "the flash is full"),
            case("a", &["E1", "E2"], "other words"),
            case("a", &["E1"], "the flash is full"),
            case("a", &["E1"], "other words"),
            case("a", &["E9"], "the flash is full"),
        ];
        assert_eq!(cases[4].similarity(situation), None);
        let similarity = |case: &Case| case.similarity(situation).unwrap_or_else(|| panic!("{case:?}"));
        let [other_platform, same, same_words, other_words] = [0, 1, 2, 3].map(|index| similarity(&cases[index]));
        assert!(same > same_words && same_words > other_words && other_words > other_platform);
        assert!(cases[1].is_same(situation) && !cases[2].is_same(situation));
        cases[1].verdict = Verdict::Wrong;
        assert!(!cases[1].is_confirmed());
    }

    #[test]
    fn a_correction_needs_a_cause() {
        let feedback = |verdict, cause: Option<String>| Feedback { verdict, cause, note: None }.check().is_ok();
        assert!(feedback(Verdict::Right, None) && feedback(Verdict::Wrong, None));
        assert!(!feedback(Verdict::Corrected, None) && !feedback(Verdict::Corrected, Some(" ".to_owned())));
        assert!(feedback(Verdict::Corrected, Some("the cable".to_owned())));
        assert!(!feedback(Verdict::Right, Some("x".repeat(TEXT_BYTES_MAX + 1))));
    }
}

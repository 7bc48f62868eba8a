//! Whether a trouble code on a line is active.
//!
//! Diagnostic tools also log codes that are stored but no longer present: in words
//! (`not present`, `cleared`, `passed`) or by the status byte (ISO 14229-1, D.2: bit 0
//! is set while the test fails, bit 3 when the code is confirmed). Such codes are
//! counted, but not as active.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

use crate::rules::form::Form;

/// Codes of a line, and positions of one code, that are examined one by one: each costs a pass over the line.
const CODES_MAX: usize = 32;
/// The maximum bytes between the parts of a code: `SPN 520200, FMI=3`.
const PARTS_APART_MAX: usize = 16;

/// Whether codes of this form can be inactive.
pub fn may_be_inactive(form: &Form) -> bool {
    matches!(form, Form::Dtc | Form::Spn)
}

/// For each code of a line, whether it is active. On a line with several codes, the text after a code applies to that
/// code, and the text before the first to all; with more than 32 codes, only the text before the first applies.
pub fn are_active(line: &[u8], codes: &[&str]) -> Vec<bool> {
    // Most lines have no such code, so this must be cheap.
    if codes.is_empty() || !states_inactive(line) {
        return vec![true; codes.len()];
    }
    let positions: Vec<Option<usize>> = codes.iter().take(CODES_MAX).map(|code| position_of(line, code)).collect();
    if codes.len() < 2 || positions.iter().any(Option::is_none) {
        return vec![false; codes.len()];
    }
    let mut ends: Vec<usize> = positions.iter().copied().flatten().collect();
    ends.sort_unstable();
    let all = ends.first().is_some_and(|&first| states_inactive(&line[..first]));
    if codes.len() > CODES_MAX {
        return vec![!all; codes.len()];
    }
    let end_of = |start: usize| ends.iter().copied().find(|&end| end > start).unwrap_or(line.len());
    let at_position = |start: usize| !all && !states_inactive(&line[start..end_of(start)]);
    positions.into_iter().map(|start| start.is_none_or(at_position)).collect()
}

/// The position of a code on a line, in any case and with any text between its two parts. Of several positions of the
/// first part, it is the one with the second part closest after it.
fn position_of(line: &[u8], code: &str) -> Option<usize> {
    let (first, second) = code.split_once('-').unwrap_or((code, ""));
    let first = first.strip_prefix("SPN").unwrap_or(first).as_bytes();
    let second = second.strip_prefix("FMI").unwrap_or(second).as_bytes();
    let distance = |start: &usize| {
        let after = &line[start + first.len()..];
        positions(&after[..after.len().min(PARTS_APART_MAX)], second).next().unwrap_or(PARTS_APART_MAX)
    };
    positions(line, first).take(CODES_MAX).min_by_key(distance)
}

/// The positions of a word in a text, except next to a digit.
fn positions<'t>(text: &'t [u8], word: &'t [u8]) -> impl Iterator<Item = usize> + 't {
    let is_apart = |byte: Option<&u8>| !byte.is_some_and(u8::is_ascii_digit);
    let ends = (text.len() + 1).saturating_sub(word.len());
    (0..ends).filter(move |&start| {
        let end = start + word.len();
        text[start..end].eq_ignore_ascii_case(word)
            && is_apart(text.get(end))
            && is_apart(start.checked_sub(1).and_then(|before| text.get(before)))
    })
}

fn states_inactive(text: &[u8]) -> bool {
    static WORDS: LazyLock<Regex> = LazyLock::new(|| {
        compiled(concat!(
            r"\b(?:not (?:currently )?(?:present|active)|no longer (?:present|active)|inactive|previously active|",
            r"healed|cleared|passed)\b"
        ))
    });
    /// Text before the word that makes it no statement: a negation, a condition or a request.
    static DENIED: LazyLock<Regex> = LazyLock::new(|| {
        compiled(r"(?:\b(?:not|never|be|until|if|when|unless|after|cannot)|n't)(?: (?:be|been|yet|was|is|has))* $")
    });
    static STATUS: LazyLock<Regex> = LazyLock::new(|| {
        compiled(concat!(
            r"\bstatus(?:[ _-]?(?:byte|mask|of[ _-]?dtc))?\s*[:=]?\s*[\[(]?",
            r"(?:0x(?P<prefixed>[0-9a-f]{2})|(?P<bare>[0-9a-f]{2})h?)\b"
        ))
    });
    /// `testFailed` and `confirmedDTC`.
    const ACTIVE_BITS: u8 = 0b1001;
    let by_words = WORDS.find_iter(text).any(|word| !DENIED.is_match(&text[..word.start()]));
    by_words
        || STATUS.captures_iter(text).any(|status| {
            let digits = status.name("prefixed").or_else(|| status.name("bare"));
            let digits = digits.and_then(|digits| std::str::from_utf8(digits.as_bytes()).ok());
            let status = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            status.is_some_and(|status| status & ACTIVE_BITS == 0)
        })
}

fn compiled(pattern: &str) -> Regex {
    RegexBuilder::new(pattern).unicode(false).case_insensitive(true).build().expect("the built-in patterns are valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_decides_whether_its_code_is_active() {
        for (line, active) in [
            ("DTC P0A1F-87 stored", true),
            ("DTC P0A1F-87 not present", false),
            ("P0A1F-87 cleared by tester", false),
            ("P0A1F-87 could not be cleared", true),
            ("P0A1F-87 was not cleared", true),
            ("P0A1F-87: test passed", false),
            ("P0A1F-87 status=0x24", false),
            ("P0A1F-87 status=0x2F", true),
            ("P0A1F-87 status byte: 08", true),
            ("P0A1F-87 status 50", false),
            ("P0A1F-87 status=404", true),
            ("P0A1F-87 INACTIVE", false),
            ("P0A1F-87 is active", true),
        ] {
            assert_eq!(are_active(line.as_bytes(), &["P0A1F-87"]), [active], "{line}");
        }
    }

    #[test]
    fn the_text_after_each_of_several_codes_applies_to_it() {
        let codes = ["P0A1F-87", "U0100-00"];
        for (line, active) in [
            ("p0a1f:87 cleared, u0100:00 present", [false, true]),
            ("P0A1F-87 present, U0100-00 not present", [true, false]),
            ("cleared: P0A1F-87 U0100-00", [false, false]),
            ("P0A1F-87 U0100-00", [true, true]),
        ] {
            assert_eq!(are_active(line.as_bytes(), &codes), active, "{line}");
        }
        assert_eq!(are_active(b"nothing not present", &[]), [true; 0]);
        assert_eq!(are_active(b"SPN=91 FMI:3 cleared; SPN=911 FMI:3", &["SPN91-FMI3", "SPN911-FMI3"]), [false, true]);
        let alike = ["P0A1F-87", "P0A1F-00"];
        assert_eq!(are_active(b"P0A1F-87 cleared, P0A1F-00 present", &alike), [false, true]);
        assert_eq!(are_active(b"P0A1F-00 cleared, P0A1F-87 present", &alike), [true, false]);
    }

    #[test]
    fn with_many_codes_only_the_text_before_all_applies() {
        let names: Vec<String> = (0..=CODES_MAX).map(|number| format!("P{:04}-00", 1000 + number)).collect();
        let codes: Vec<&str> = names.iter().map(String::as_str).collect();
        let line = codes.join(" ");
        assert_eq!(are_active(format!("cleared: {line}").as_bytes(), &codes), vec![false; codes.len()]);
        assert_eq!(are_active(format!("{line} cleared").as_bytes(), &codes), vec![true; codes.len()]);
    }
}

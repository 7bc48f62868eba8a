//! Whether a trouble code is active where a line names it.
//!
//! Lines of diagnostic tools name codes that are stored and not there any more
//! (`not present`, `cleared`, `passed`), or say it by the status byte (ISO
//! 14229-1, D.2: bit 0 is set while the test fails, bit 3 when the code is
//! confirmed). Such codes count, and do not count as active.

use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

use crate::form::Form;

/// Codes of a line, and places of one, that are looked at one by one: each costs a walk over the line.
const CODES_MAX: usize = 32;
/// Bytes between the parts of a code: `SPN 520200, FMI=3`.
const PARTS_APART_MAX: usize = 16;

/// Whether codes of this form can be inactive.
pub fn may_be_inactive(form: &Form) -> bool {
    matches!(form, Form::Dtc | Form::Spn)
}

/// For each code of a line, whether it is active. A line that names several says it of each behind its name, and of all
/// before the first; of more than 32, only what stands before the first counts.
pub fn are_active(line: &[u8], codes: &[&str]) -> Vec<bool> {
    // Most lines name none: this must cost them nothing.
    if codes.is_empty() || !says_inactive(line) {
        return vec![true; codes.len()];
    }
    let places: Vec<Option<usize>> = codes.iter().take(CODES_MAX).map(|code| place_of(line, code)).collect();
    if codes.len() < 2 || places.iter().any(Option::is_none) {
        return vec![false; codes.len()];
    }
    let mut ends: Vec<usize> = places.iter().copied().flatten().collect();
    ends.sort_unstable();
    let all = ends.first().is_some_and(|&first| says_inactive(&line[..first]));
    if codes.len() > CODES_MAX {
        return vec![!all; codes.len()];
    }
    let end_of = |start: usize| ends.iter().copied().find(|&end| end > start).unwrap_or(line.len());
    let of_place = |start: usize| !all && !says_inactive(&line[start..end_of(start)]);
    places.into_iter().map(|start| start.is_none_or(of_place)).collect()
}

/// Where a line names a code, in any case and whatever it writes between the code's two parts. Of several places that
/// name the first part, it is the one with the second part closest behind it.
fn place_of(line: &[u8], code: &str) -> Option<usize> {
    let (first, second) = code.split_once('-').unwrap_or((code, ""));
    let first = first.strip_prefix("SPN").unwrap_or(first).as_bytes();
    let second = second.strip_prefix("FMI").unwrap_or(second).as_bytes();
    let distance = |start: &usize| {
        let behind = &line[start + first.len()..];
        places(&behind[..behind.len().min(PARTS_APART_MAX)], second).next().unwrap_or(PARTS_APART_MAX)
    };
    places(line, first).take(CODES_MAX).min_by_key(distance)
}

/// Where a text has a word, without those within longer words or numbers.
fn places<'t>(text: &'t [u8], word: &'t [u8]) -> impl Iterator<Item = usize> + 't {
    let is_apart = |byte: Option<&u8>| !byte.is_some_and(u8::is_ascii_digit);
    let ends = (text.len() + 1).saturating_sub(word.len());
    (0..ends).filter(move |&start| {
        let end = start + word.len();
        text[start..end].eq_ignore_ascii_case(word)
            && is_apart(text.get(end))
            && is_apart(start.checked_sub(1).and_then(|before| text.get(before)))
    })
}

fn says_inactive(text: &[u8]) -> bool {
    static WORDS: LazyLock<Regex> = LazyLock::new(|| {
        compiled(concat!(
            r"\b(?:not (?:currently )?(?:present|active)|no longer (?:present|active)|inactive|previously active|",
            r"healed|cleared|passed)\b"
        ))
    });
    /// What makes the word behind it no statement: it is denied, wanted or asked for.
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
    fn a_line_says_whether_its_code_is_active() {
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
    fn each_of_several_codes_has_what_stands_behind_it() {
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
    fn of_many_codes_only_what_stands_before_all_counts() {
        let names: Vec<String> = (0..=CODES_MAX).map(|number| format!("P{:04}-00", 1000 + number)).collect();
        let codes: Vec<&str> = names.iter().map(String::as_str).collect();
        let line = codes.join(" ");
        assert_eq!(are_active(format!("cleared: {line}").as_bytes(), &codes), vec![false; codes.len()]);
        assert_eq!(are_active(format!("{line} cleared").as_bytes(), &codes), vec![true; codes.len()]);
    }
}

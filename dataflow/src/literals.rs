//! What every match of a pattern must contain.
//!
//! For a pattern we look for a small set of byte strings of which each match
//! holds at least one, whatever the case of its letters. A line without any
//! of them need not be looked at. The set is a necessary condition only: too
//! large a set costs time, a missing string would cost exactness, so where in
//! doubt there is no set and the pattern is tried on every line.

use regex_syntax::hir::{Class, Hir, HirKind};

/// A set larger than this is not worth its search.
const STRINGS_MAX: usize = 64;

/// Strings shorter than this are in every line.
const STRING_BYTES_MIN: usize = 2;

/// Lower-case strings of which every match of `pattern` contains at least one,
/// compared without regard to ASCII case; `None` when there is no useful set.
pub fn required(pattern: &str) -> Option<Vec<Vec<u8>>> {
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()?;
    required_by(&hir).map(|set| set.0)
}

/// A set of strings, one of which is in every match.
#[derive(Clone)]
struct StringSet(Vec<Vec<u8>>);

impl StringSet {
    /// How good a filter it makes: the shortest string decides, then their number.
    fn rank(&self) -> (usize, std::cmp::Reverse<usize>) {
        (self.0.iter().map(Vec::len).min().unwrap_or(0), std::cmp::Reverse(self.0.len()))
    }

    /// The set, where it is worth a search. A string with a line feed is in no
    /// line; a set of such strings says nothing, so that nothing is left out.
    fn useful(mut self) -> Option<StringSet> {
        self.0.retain(|string| !string.contains(&b'\n'));
        self.0.sort();
        self.0.dedup();
        (!self.0.is_empty() && self.0.len() <= STRINGS_MAX && self.rank().0 >= STRING_BYTES_MIN).then_some(self)
    }
}

fn required_by(hir: &Hir) -> Option<StringSet> {
    match hir.kind() {
        HirKind::Capture(capture) => required_by(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => required_by(&repetition.sub),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(required_by(branch)?.0);
            }
            StringSet(all).useful()
        }
        HirKind::Concat(parts) => required_by_concat(parts),
        _ => StringSet(language(hir)?).useful(),
    }
}

/// The best set among the runs of finite parts and the sets of single parts.
fn required_by_concat(parts: &[Hir]) -> Option<StringSet> {
    let mut candidates = Vec::new();
    let mut run: Vec<Vec<u8>> = vec![Vec::new()];
    for part in parts {
        let finite = language(part);
        match finite.as_ref().and_then(|strings| product(&run, strings)) {
            Some(longer) => run = longer,
            None => {
                candidates.extend(StringSet(std::mem::replace(&mut run, vec![Vec::new()])).useful());
                match finite {
                    Some(strings) => run = strings,
                    None => candidates.extend(required_by(part)),
                }
            }
        }
    }
    candidates.extend(StringSet(run).useful());
    candidates.into_iter().max_by_key(StringSet::rank)
}

/// Every string that `hir` can match, in lower case, when they are few.
fn language(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        // A look-around only takes strings away, so the set stays complete.
        HirKind::Empty | HirKind::Look(_) => Some(vec![Vec::new()]),
        HirKind::Literal(literal) => Some(vec![literal.0.to_ascii_lowercase()]),
        HirKind::Class(class) => {
            let Class::Bytes(class) = class else { return None };
            let mut bytes: Vec<u8> = class.ranges().iter().flat_map(|range| range.start()..=range.end()).collect();
            bytes.make_ascii_lowercase();
            bytes.sort_unstable();
            bytes.dedup();
            (bytes.len() <= 16).then(|| bytes.into_iter().map(|byte| vec![byte]).collect())
        }
        HirKind::Capture(capture) => language(&capture.sub),
        HirKind::Alternation(branches) => {
            let mut all = Vec::new();
            for branch in branches {
                all.extend(language(branch)?);
            }
            (all.len() <= STRINGS_MAX).then_some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![Vec::new()];
            for part in parts {
                all = product(&all, &language(part)?)?;
            }
            Some(all)
        }
        HirKind::Repetition(repetition) => {
            let max = repetition.max.filter(|&max| max <= 3)?;
            let once = language(&repetition.sub)?;
            let mut power = vec![Vec::new()];
            let mut all = Vec::new();
            for count in 0..=max {
                if count >= repetition.min {
                    all.extend(power.iter().cloned());
                }
                if count < max {
                    power = product(&power, &once)?;
                }
            }
            (all.len() <= STRINGS_MAX).then_some(all)
        }
    }
}

fn product(starts: &[Vec<u8>], ends: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    (starts.len() * ends.len() <= STRINGS_MAX)
        .then(|| starts.iter().flat_map(|start| ends.iter().map(|end| [&start[..], end].concat())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, expected: &[&str]) {
        let set: Vec<String> = required(pattern)
            .map(|set| set.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
            .unwrap_or_default();
        assert_eq!(set, expected, "{pattern}");
    }

    #[test]
    fn the_longest_text_that_every_match_holds_is_chosen() {
        check(r"\bDomain=(?P<dom>\w+)[ ,]+Code=(?P<code>\d+)", &["domain="]);
        check(r"(?P<code>\bBUG: |\bkernel BUG at)", &["bug: ", "kernel bug at"]);
        check(r"\b(?P<code>(?:[A-Z]+_)*ERR(?:OR|NO)?_[A-Z]{2,})\b", &["err_", "errno_", "error_"]);
        check(r"(?i)\berr(?:or)?\s*[:=]\s*(?P<code>[0-9]+)", &["err", "error"]);
        check(
            r"[PCBU][0-3][0-9A-F]{3}",
            &["b0", "b1", "b2", "b3", "c0", "c1", "c2", "c3", "p0", "p1", "p2", "p3", "u0", "u1", "u2", "u3"],
        );
    }

    #[test]
    fn no_string_reaches_over_a_line_end() {
        check(r"unit\s(?P<code>[0-9]+)", &["unit\t", "unit\u{b}", "unit\u{c}", "unit\r", "unit "]);
        check(r"(?:^|[\s,])rc=(?P<code>[0-9]+)", &["\trc=", "\u{b}rc=", "\u{c}rc=", "\rrc=", " rc=", ",rc=", "rc="]);
    }

    #[test]
    fn a_pattern_that_can_match_without_any_fixed_text_has_no_set() {
        for pattern in [r"\b(?P<code>[0-9]+)\b", "(?:abc)?", "abc|[0-9]+", "x", ".*", r"ab\nc"] {
            check(pattern, &[]);
        }
    }
}

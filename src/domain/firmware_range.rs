//! Which firmwares an entry of the catalogue is of: one, or a range of versions.

use std::cmp::Ordering;
use std::iter::Peekable;
use std::str::Chars;

/// A firmware, or a range such as `>=7.1 <7.3`: comparisons that must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareRange<'t> {
    /// This one.
    One(&'t str),
    /// Those for which all comparisons hold.
    Range(Vec<(Comparison, &'t str)>),
}

/// How a version is compared with a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A comparison without a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a firmware, or comparisons such as \">=7.1 <7.3\"")]
pub struct InvalidRange;

impl FirmwareRange<'_> {
    /// Reads a firmware or a range. A text that begins with `<` or `>` is a range.
    pub fn of(text: &str) -> Result<FirmwareRange<'_>, InvalidRange> {
        if !text.starts_with(['<', '>']) {
            return Ok(FirmwareRange::One(text));
        }
        let operators = [
            (">=", Comparison::GreaterOrEqual),
            ("<=", Comparison::LessOrEqual),
            (">", Comparison::Greater),
            ("<", Comparison::Less),
        ];
        let bound = |part| {
            let found =
                operators.iter().find_map(|(sign, comparison)| Some((*comparison, str::strip_prefix(part, sign)?)));
            found.filter(|(_, version)| !version.is_empty() && !version.starts_with('=')).ok_or(InvalidRange)
        };
        text.split([' ', ','])
            .filter(|part| !part.is_empty())
            .map(bound)
            .collect::<Result<_, _>>()
            .map(FirmwareRange::Range)
    }

    /// Whether it is of this firmware.
    pub fn contains(&self, firmware: &str) -> bool {
        match self {
            FirmwareRange::One(one) => *one == firmware,
            FirmwareRange::Range(bounds) => bounds.iter().all(|(comparison, bound)| {
                let order = compare_versions(firmware, bound);
                match comparison {
                    Comparison::Less => order.is_lt(),
                    Comparison::LessOrEqual => order.is_le(),
                    Comparison::Greater => order.is_gt(),
                    Comparison::GreaterOrEqual => order.is_ge(),
                }
            }),
        }
    }
}

/// Compares versions part by part: numbers as numbers, words by their letters, and a word before nothing before a number, so
/// that `7.3-rc1` is before `7.3`, and that before `7.3.1`. What separates the parts does not matter.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (a, b) => match a.unwrap_or(Part::Nothing).cmp(&b.unwrap_or(Part::Nothing)) {
                Ordering::Equal => {}
                order => return order,
            },
        }
    }
}

/// In the order of versions.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Word(String),
    Nothing,
    /// Its digits without leading zeros: their count, then themselves.
    Number(usize, String),
}

fn parts(version: &str) -> impl Iterator<Item = Part> {
    let mut chars = version.chars().peekable();
    std::iter::from_fn(move || {
        while chars.next_if(|c| !c.is_alphanumeric()).is_some() {}
        let taken = |chars: &mut Peekable<Chars<'_>>, is_wanted: fn(&char) -> bool| -> String {
            std::iter::from_fn(|| chars.next_if(is_wanted)).collect()
        };
        match chars.peek()? {
            c if c.is_ascii_digit() => {
                let digits = taken(&mut chars, char::is_ascii_digit);
                let digits = digits.trim_start_matches('0').to_owned();
                Some(Part::Number(digits.len(), digits))
            }
            _ => Some(Part::Word(taken(&mut chars, |c| c.is_alphanumeric() && !c.is_ascii_digit()))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_people_read_them() {
        let ordered =
            ["6.9", "7.0-alpha", "7.0-rc1", "7.0-rc2", "7.0-rc10", "7.0", "7.0.1", "7.1", "7.10", "2024.01", "2024.2"];
        for (index, a) in ordered.iter().enumerate() {
            for (other, b) in ordered.iter().enumerate() {
                assert_eq!(compare_versions(a, b), index.cmp(&other), "{a} and {b}");
            }
        }
        assert_eq!(compare_versions("7.01", "7_1"), Ordering::Equal);
        assert_eq!(compare_versions("99999999999999999999", "99999999999999999998"), Ordering::Greater);
        assert_eq!(compare_versions("", ""), Ordering::Equal);
    }

    #[test]
    fn a_range_contains_the_versions_for_which_all_holds() {
        for (range, inside, outside) in [
            (">=7.1 <7.3", &["7.1", "7.1.0", "7.2.9", "7.3-rc1"][..], &["7.0.9", "7.3", "8"][..]),
            (">7.1,<=7.3", &["7.1.1", "7.3"], &["7.1", "7.3.0.1"]),
            ("<7", &["6.9.9", ""], &["7", "7.0"]),
            ("7.1", &["7.1"], &["7.1.0", "7.2"]),
        ] {
            let range = FirmwareRange::of(range).expect("a range");
            inside.iter().for_each(|version| assert!(range.contains(version), "{range:?} has {version}"));
            outside.iter().for_each(|version| assert!(!range.contains(version), "{range:?} has not {version}"));
        }
        for invalid in [">", "<=", ">=7.1 7.3", "<==7", "> 7"] {
            assert_eq!(FirmwareRange::of(invalid), Err(InvalidRange), "{invalid}");
        }
    }
}

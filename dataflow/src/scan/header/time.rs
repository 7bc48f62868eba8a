//! Converts the times on lines to microseconds since 1970.
//!
//! A stated zone is applied. If it is ambiguous or unknown, the time is `None`: a
//! time that is wrong by hours is worse than none. A time without a year gets the
//! year that puts it closest to the upload, and at most a day after it.

use std::sync::LazyLock;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta};
use regex::bytes::{Captures, Match, Regex, RegexBuilder};

/// `2026-03-01`, `2026/03/01`, `2026.03.01`.
pub const DATE: &str = r"(?P<year>[0-9]{4})[-/.](?P<month>[0-9]{2})[-/.](?P<day>[0-9]{2})";
/// `10:15:30`, with a fraction after a point, a comma or a colon.
pub const TIME: &str =
    r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})(?:[.,:](?P<fraction>[0-9]{1,9})[0-9]*)?";
/// `Mar`.
pub const MONTH: &str = "(?P<month>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)";

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// 2000-01-01, in seconds and microseconds since 1970. A clock before that was never set.
const YEAR_2000_SECONDS: u64 = 946_684_800;
const YEAR_2000: i64 = YEAR_2000_SECONDS as i64 * MICROS_PER_SECOND;
/// Leap days are up to eight years apart.
const LEAP_YEARS_APART: i32 = 8;

/// Whether a time is plausible: from 2000 on, and at most a day after the upload.
pub fn is_plausible(micros: i64, uploaded_at: i64) -> bool {
    (YEAR_2000..=uploaded_at.saturating_add(MICROS_PER_DAY)).contains(&micros)
}

/// Abbreviations of time zones, sorted: those of the zone database (IANA tzdata 2025), and older ones.
const ZONE_NAMES: &[&str] = &[
    "ACDT", "ACST", "ADT", "AEDT", "AEST", "AKDT", "AKST", "ART", "AST", "AWST", "BRST", "BRT", "BST", "CAT", "CDT",
    "CEST", "CET", "CLST", "CLT", "CST", "EAT", "EDT", "EEST", "EET", "EST", "GMT", "GST", "HDT", "HKT", "HST", "ICT",
    "IDT", "IST", "JST", "KST", "MDT", "MEST", "MESZ", "MET", "MEZ", "MSD", "MSK", "MST", "NDT", "NST", "NZDT", "NZST",
    "PDT", "PHT", "PKT", "PST", "SAST", "SGT", "SST", "TRT", "UTC", "WAT", "WEST", "WET", "WIB", "WIT", "WITA", "YEKT",
];

/// A pattern for AM or PM and the time zone, both optional.
pub fn zone() -> String {
    let names = ZONE_NAMES.join("|");
    let regions = "Africa|America|Antarctica|Asia|Atlantic|Australia|Etc|Europe|Indian|Pacific";
    format!(
        r"(?: ?(?P<half>[AaPp][Mm]\b|[AaPp]\.[Mm]\.))?(?: ?(?P<zone>(?:UTC|GMT)[+-][0-9]{{1,2}}(?::?[0-9]{{2}})?|[+-][0-9]{{2}}(?::?[0-9]{{2}})?|[Zz]|{names}|(?:{regions})/[A-Z][A-Za-z_/]+)\b)?"
    )
}

/// Whether a word after a time may belong to it, as a zone or as AM or PM.
pub fn may_belong(word: &[u8]) -> bool {
    let is_zone = |word: &str| {
        let half = word.to_ascii_uppercase();
        ZONE_NAMES.binary_search(&word).is_ok() || matches!(half.as_str(), "AM" | "PM" | "A" | "P")
    };
    std::str::from_utf8(word).is_ok_and(is_zone)
}

/// Whether text after a time that looks like AM, PM or a zone is a name, as the kernel's `PM:` is: a colon follows it.
fn is_name(line: &[u8], found: &Match<'_>) -> bool {
    line.get(found.end()) == Some(&b':')
        && found.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && seconds_east(found.as_bytes()).is_none()
}

/// Where a name after a time begins that the pattern took for AM, PM or a zone.
pub fn name_after(captures: &Captures<'_>, line: &[u8]) -> Option<usize> {
    ["half", "zone"]
        .iter()
        .find_map(|name| captures.name(name).filter(|found| is_name(line, found)))
        .map(|at| at.start())
}

/// The time in the groups of a pattern that matched in `line`, in microseconds since 1970.
pub fn of_captures(captures: &Captures<'_>, line: &[u8], uploaded_at: i64) -> Option<i64> {
    let [half, zone] = ["half", "zone"]
        .map(|name| captures.name(name).filter(|found| !is_name(line, found)).map(|found| found.as_bytes()));
    let group = |name: &str| captures.name(name).map(|found| found.as_bytes());
    if let Some(epoch) = group("epoch") {
        return of_epoch(epoch);
    }
    let number = |name: &str| group(name).and_then(digits);
    let month = group("month")?;
    let month = match digits(month) {
        Some(month) => month,
        None => {
            const NAMES: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
            NAMES.chunks(3).position(|name| name == month)? as u32 + 1
        }
    };
    let hour = match (number("hour")?, half.map(|half| half[0])) {
        (hour, None) => hour,
        (hour @ 1..=12, Some(b'A' | b'a')) => hour % 12,
        (hour @ 1..=12, Some(_)) => hour % 12 + 12,
        _ => return None,
    };
    let time = NaiveTime::from_hms_opt(hour, number("minute")?, number("second")?)?;
    let time = time.overflowing_add_signed(TimeDelta::microseconds(group("fraction").map_or(0, fraction))).0;
    let east = match zone {
        Some(zone) => seconds_east(zone)?,
        // The minutes to add to the local time to get UTC, as in Windows.
        None => group("bias").map_or(Some(0), |bias| Some(-60 * signed(bias)?))?,
    };
    let day = number("day")?;
    let micros = |year: i32| {
        let date = NaiveDate::from_ymd_opt(year, month, day)?;
        Some(NaiveDateTime::new(date, time).and_utc().timestamp_micros() - east * MICROS_PER_SECOND)
    };
    match number("year") {
        Some(year) => micros(year as i32),
        None => {
            let latest = uploaded_at.saturating_add(MICROS_PER_DAY);
            let year = DateTime::from_timestamp_micros(latest)?.year();
            // The local year may be one ahead.
            (0..=LEAP_YEARS_APART + 1).filter_map(|back| micros(year + 1 - back)).find(|&micros| micros <= latest)
        }
    }
}

/// The time of a whole text: an ISO time, or a number since 1970.
pub fn of_text(text: &[u8], uploaded_at: i64) -> Option<i64> {
    static ISO: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = format!(r"^{DATE}[T ]{TIME}{}(?:\[[^\]]*\])?$", zone());
        RegexBuilder::new(&pattern).unicode(false).build().expect("the built-in formats are valid")
    });
    let text = text.trim_ascii();
    match ISO.captures(text) {
        Some(captures) => of_captures(&captures, text, uploaded_at),
        None => of_epoch(text),
    }
}

/// The time of a number since 1970; its size decides whether it has seconds, milli-, micro- or nanoseconds. `None`
/// before 2000: that is an uptime, or not a time.
pub fn of_epoch(number: &[u8]) -> Option<i64> {
    let (whole, rest) = match number.iter().position(|byte| *byte == b'.') {
        Some(point) => (&number[..point], &number[point + 1..]),
        None => (number, &b""[..]),
    };
    if whole.is_empty() || !whole.iter().chain(rest).all(u8::is_ascii_digit) {
        return None;
    }
    let whole: u64 = std::str::from_utf8(whole).ok()?.parse().ok()?;
    let micros = match whole {
        0..100_000_000_000 => whole * 1_000_000 + fraction(rest).unsigned_abs(),
        100_000_000_000..100_000_000_000_000 => whole * 1000 + fraction(rest).unsigned_abs() / 1000,
        100_000_000_000_000..100_000_000_000_000_000 => whole,
        _ => whole / 1000,
    };
    let micros = i64::try_from(micros).ok()?;
    (micros >= YEAR_2000).then_some(micros)
}

/// The microseconds of a fraction's digits.
fn fraction(digits: &[u8]) -> i64 {
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0')).take(6);
    padded.fold(0, |number, byte| number * 10 + i64::from(byte.wrapping_sub(b'0')))
}

fn digits(bytes: &[u8]) -> Option<u32> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn signed(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Seconds east of Greenwich; `None` if the name of the zone does not give them.
fn seconds_east(zone: &[u8]) -> Option<i64> {
    const HOURS_MAX: i64 = 18;
    let offset = zone.strip_prefix(b"UTC").or_else(|| zone.strip_prefix(b"GMT")).unwrap_or(zone);
    let sign = match offset.first() {
        None => return Some(0),
        Some(b'Z' | b'z') if offset.len() == 1 => return Some(0),
        Some(b'+') => 1,
        Some(b'-') => -1,
        Some(_) => return None,
    };
    let offset = &offset[1..];
    let (hours, minutes) = match offset.iter().position(|&byte| byte == b':') {
        Some(colon) => (&offset[..colon], &offset[colon + 1..]),
        // `+02`, `+0200`, `+530`.
        None if offset.len() > 2 => offset.split_at(offset.len() - 2),
        None => (offset, &b""[..]),
    };
    let minutes = if minutes.is_empty() { 0 } else { signed(minutes)? };
    let hours = signed(hours)?;
    (hours <= HOURS_MAX && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-01T12:00:00Z.
    const UPLOADED_AT: i64 = 1_772_366_400_000_000;

    fn parsed(text: &str) -> String {
        of_text(text.as_bytes(), UPLOADED_AT).map_or("-".into(), |micros| super::super::rfc3339(micros).into_owned())
    }

    #[test]
    fn the_size_of_a_number_decides_its_unit() {
        for text in ["1772360130.123", "1772360130123", "1772360130123000", "1772360130123000000", "1772360130.1230009"]
        {
            assert_eq!(parsed(text), "2026-03-01T10:15:30.123Z", "{text}");
        }
        for text in ["", ".", "12.5", "946684799", "99999999999999999999", "1772360130.x", "-1772360130"] {
            assert_eq!(parsed(text), "-", "{text}");
        }
    }

    #[test]
    fn zones_and_am_and_pm_are_applied() {
        for text in [
            "2026-03-01T10:15:30Z",
            "2026-03-01 12:15:30+02",
            "2026-03-01 12:15:30 +0200",
            "2026-03-01 12:15:30 UTC+2",
            "2026-03-01 15:45:30 UTC+5:30",
            "2026-03-01 15:45:30 GMT+530",
            "2026-03-01 15:45:30 UTC+05:30",
            "2026-03-01 04:45:30-0530",
            "2026-03-01 10:15:30 AM",
            "2026-03-01T12:15:30+02:00[Europe/Berlin]",
        ] {
            assert_eq!(parsed(text), "2026-03-01T10:15:30Z", "{text}");
        }
        assert_eq!(parsed("2026-03-01 12:15:30 AM"), "2026-03-01T00:15:30Z");
        assert_eq!(parsed("2026-03-01 12:15:30pm"), "2026-03-01T12:15:30Z");
        for text in [
            "2026-03-01 10:15:30 CET",
            "2026-03-01 10:15:30 Europe/Berlin",
            "2026-03-01 13:15:30 PM",
            "2026-03-01 10:15:30+99",
            "2026-03-01 24:00:00",
            "2026-02-29 10:15:30",
        ] {
            assert_eq!(parsed(text), "-", "{text}");
        }
    }

    #[test]
    fn plausible_times_are_from_2000_to_a_day_after_the_upload() {
        let day = MICROS_PER_DAY;
        for (micros, plausible) in [
            (UPLOADED_AT, true),
            (UPLOADED_AT + day, true),
            (UPLOADED_AT + day + 1, false),
            (YEAR_2000, true),
            (YEAR_2000 - 1, false),
            (7_000_000, false),
        ] {
            assert_eq!(is_plausible(micros, UPLOADED_AT), plausible, "{micros}");
        }
    }

    #[test]
    fn the_names_of_zones_are_sorted() {
        assert!(ZONE_NAMES.is_sorted());
        assert!(may_belong(b"CET") && may_belong(b"PM") && !may_belong(b"INFO") && !may_belong(b"CAN"));
    }
}

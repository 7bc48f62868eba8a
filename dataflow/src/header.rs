//! What a line says of itself: its time, level and component.
//!
//! Read only from lines with sightings. Each format is a pattern over the
//! start of the line. What a line does not say is `None`, never a guess:
//! uptimes are not made into dates.

mod between;

use std::borrow::Cow;
use std::sync::LazyLock;

use chrono::{NaiveDate, NaiveDateTime, NaiveTime, TimeDelta};
use regex::bytes::{Captures, Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::bytes::ByteSet;
use crate::rules::Severity;

use between::{Between, Shapes, level_and_component};

/// How loud a line says it is. Orders from quiet to loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the meaning")]
pub enum Level {
    Trace,
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
}

impl Level {
    /// The word that tables and answers use.
    pub fn word(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Notice => "notice",
            Level::Warning => "warning",
            Level::Error => "error",
            Level::Critical => "critical",
        }
    }

    /// The severity of a code on a line of this level.
    pub fn severity(self) -> Severity {
        match self {
            Level::Critical => Severity::Critical,
            Level::Error => Severity::Error,
            _ => Severity::Warning,
        }
    }

    /// The level of a word in any case, or of a logcat letter.
    fn parse(word: &[u8]) -> Option<Level> {
        const WORD_BYTES_MAX: usize = 11;
        if word.len() > WORD_BYTES_MAX {
            return None;
        }
        let mut upper = [0; WORD_BYTES_MAX];
        upper.iter_mut().zip(word).for_each(|(upper, byte)| *upper = byte.to_ascii_uppercase());
        Some(match &upper[..word.len()] {
            b"TRACE" | b"VERBOSE" | b"V" => Level::Trace,
            b"DEBUG" | b"D" => Level::Debug,
            b"INFO" | b"INFORMATION" | b"I" => Level::Info,
            b"NOTICE" => Level::Notice,
            b"WARN" | b"WARNING" | b"W" => Level::Warning,
            b"ERROR" | b"ERR" | b"SEVERE" | b"E" => Level::Error,
            b"FATAL" | b"CRITICAL" | b"CRIT" | b"ALERT" | b"EMERG" | b"EMERGENCY" | b"PANIC" | b"F" | b"A" => {
                Level::Critical
            }
            _ => return None,
        })
    }

    /// The level of a syslog priority, facility × 8 + severity (RFC 5424, 6.2.1).
    fn of_priority(priority: u32) -> Level {
        match priority % 8 {
            0..=2 => Level::Critical,
            3 => Level::Error,
            4 => Level::Warning,
            5 => Level::Notice,
            6 => Level::Info,
            _ => Level::Debug,
        }
    }
}

/// What a line says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header<'l> {
    /// Microseconds since 1970, UTC. A time without a zone is taken as UTC.
    pub observed_at: Option<i64>,
    /// The level.
    pub level: Option<Level>,
    /// The process, tag or logger.
    pub component: Option<&'l [u8]>,
}

/// Reads headers, and remembers how it has read level and component of late.
#[derive(Default)]
pub struct Reader {
    shapes: Shapes,
}

impl Reader {
    /// The header of a line. `upload_year` is the year of a time that names none.
    ///
    /// The formats are tried in one order, whatever was read before: what a line
    /// says must not depend on which worker reads it after which other.
    pub fn read<'l>(&mut self, line: &'l [u8], upload_year: i32) -> Header<'l> {
        plain_iso(line, &mut self.shapes).unwrap_or_else(|| read_any(line, upload_year))
    }
}

fn read_any(line: &[u8], upload_year: i32) -> Header<'_> {
    let Some(first) = line.first() else { return Header::default() };
    FORMATS
        .iter()
        .filter(|format| format.firsts.contains(*first))
        .find_map(|format| Some(header(&format.pattern.captures(line)?, format.free_text, line, upload_year)))
        .unwrap_or_default()
}

/// The header of a line that begins with an ISO time as most do, the same as
/// its pattern reads it: `2026-03-01 10:15:30,123 ERROR …`. `None` where
/// another format may be meant.
fn plain_iso<'l>(line: &'l [u8], shapes: &mut Shapes) -> Option<Header<'l>> {
    let (time, rest) = line.split_first_chunk::<19>()?;
    if !matches!([time[4], time[7], time[10], time[13], time[16]], [b'-', b'-', b' ' | b'T', b':', b':']) {
        return None;
    }
    let mut digits = [0; 19];
    digits.iter_mut().zip(time).for_each(|(digit, byte)| *digit = byte.wrapping_sub(b'0'));
    let [c1, c2, y1, y2, _, mo1, mo2, _, d1, d2, _, h1, h2, _, mi1, mi2, _, s1, s2] = digits;
    if [c1, c2, y1, y2, mo1, mo2, d1, d2, h1, h2, mi1, mi2, s1, s2].into_iter().fold(0, u8::max) > 9 {
        return None;
    }
    let two = |tens: u8, ones: u8| u32::from(10 * tens + ones);
    let (year, month, day) = (100 * two(c1, c2) + two(y1, y2), two(mo1, mo2), two(d1, d2));
    let (hour, minute, second) = (two(h1, h2), two(mi1, mi2), two(s1, s2));
    let (mut micros, mut rest) = (0, rest);
    if let [b'.' | b',', behind @ ..] = rest {
        let digits = behind.iter().take(9).take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            let padded = behind[..digits].iter().copied().chain(std::iter::repeat(b'0')).take(6);
            micros = padded.fold(0, |number, byte| number * 10 + i64::from(byte - b'0'));
            rest = &behind[digits..];
        }
    }
    // Zones, and logcat with a year, are for the patterns.
    let word = rest.strip_prefix(b" ")?.trim_ascii_start().first()?;
    if matches!(word, b'Z' | b'U' | b'G' | b'+' | b'-' | b'_' | b'a'..=b'z' | b'0'..=b'9') {
        return None;
    }
    // What is no date or no time has none.
    let is_time = day > 0
        && days_of_month(year, month).is_some_and(|days| day <= days)
        && hour < 24
        && minute < 60
        && second < 60;
    let seconds = || days_since_1970(year, month, day) * 86_400 + i64::from(3600 * hour + 60 * minute + second);
    let (level, component) = shapes.level_and_component(rest);
    Some(Header { observed_at: is_time.then(|| 1_000_000 * seconds() + micros), level, component })
}

/// `None` when there is no such month.
fn days_of_month(year: u32, month: u32) -> Option<u32> {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    Some(match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    })
}

/// Days of the Gregorian calendar: those of whole years, counted from March on so that the
/// leap day comes last, those of whole months, and the day's own.
fn days_since_1970(year: u32, month: u32, day: u32) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year + 399, month + 9) };
    let years = i64::from(year);
    // A year that was put off to the 400 years before it comes back with their days.
    let put_off = if month > 9 { 146_097 } else { 0 };
    365 * years + years / 4 - years / 100 + years / 400 + i64::from((153 * month + 2) / 5 + day) - 719_469 - put_off
}

struct Format {
    /// Every line of the format begins with one of these.
    firsts: ByteSet,
    pattern: Regex,
    /// Level and component follow the time in one of the common orders.
    free_text: bool,
}

const DATE: &str = r"(?P<year>[0-9]{4})[-/](?P<month>[0-9]{2})[-/](?P<day>[0-9]{2})";
const TIME: &str = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?";
const ZONE: &str = r"(?: ?(?P<zone>Z|UTC|GMT|[+-][0-9]{2}:?[0-9]{2}))?";
const PRIORITY: &str = r"(?:<(?P<priority>[0-9]{1,3})>)";
const LEVEL: &str = r"(?P<level>TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL)";

static FORMATS: LazyLock<Vec<Format>> = LazyLock::new(|| {
    let format = |firsts: &[u8], pattern: String, free_text| Format {
        firsts: ByteSet::of(firsts),
        pattern: RegexBuilder::new(&pattern).unicode(false).build().expect("the built-in formats are valid"),
        free_text,
    };
    vec![
        // Android logcat, threadtime: 03-01 10:15:30.123  1234  1250 E UpdateEngine: text
        format(
            b"0123456789",
            format!(
                r"^(?:(?P<year>[0-9]{{4}})-)?(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}}) {TIME} +(?:[a-z_0-9]+ +)?[0-9]+ +[0-9]+ (?P<level>[VDIWEFA]) (?P<component>[^:]*?) *: ?"
            ),
            false,
        ),
        // RFC 5424: <165>1 2003-10-11T22:14:15.003Z host app 1234 ID47 - text
        format(b"<", format!(r"^{PRIORITY}1 {DATE}T{TIME}{ZONE} \S+ (?P<component>\S+) \S+ \S+ "), false),
        // ISO 8601 and its variants: 2026-03-01 10:15:30,123 ERROR [main] com.acme.Updater - text
        format(b"<[0123456789", format!(r"^{PRIORITY}?\[?{DATE}[T ]{TIME}{ZONE}\]?(?P<rest>.*)"), true),
        // The level before an ISO time: ERROR 2026-03-01 10:15:30,123 [main] com.acme.Updater - text
        format(b"[TDIWEF", format!(r"^\[?{LEVEL}\]?:? +\[?{DATE}[T ]{TIME}{ZONE}\]?(?P<rest>.*)"), true),
        // RFC 3164: <34>Oct 11 22:14:15 host app[123]: text
        format(
            b"<JFMASOND",
            format!(
                r"^{PRIORITY}?(?P<month>Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +(?P<day>[0-9]{{1,2}}) (?:(?P<year>[0-9]{{4}}) )?{TIME}(?: (?:[^\s:\[]+ )?(?P<component>[^\s:\[]+)(?:\[[0-9]+\])?: ?)?"
            ),
            false,
        ),
        // The kernel's ring buffer: <3>[   12.345678] mmc0: text
        format(
            b"<[",
            format!(
                r"^{PRIORITY}?\[ *[0-9]+\.[0-9]{{6}}\] *(?:(?P<component>[a-z][0-9A-Za-z_./-]*)(?:\[[0-9]+\])?(?: [0-9][0-9A-Za-z.:-]*)?: )?"
            ),
            false,
        ),
        // log4j with an uptime: 1024 [main] ERROR com.acme.Updater - text
        format(b"0123456789", format!(r"^[0-9]+ \[[^\]]*\] {LEVEL} +(?P<component>[^\s:]+)"), false),
        // log4j without a time: ERROR [main] com.acme.Updater - text
        format(b"TDIWEF", format!(r"^{LEVEL} +\[[^\]]*\] +(?P<component>[^\s:]+)(?: -|:)"), false),
    ]
});

fn header<'l>(captures: &Captures<'l>, free_text: bool, line: &'l [u8], upload_year: i32) -> Header<'l> {
    let group = |name: &str| captures.name(name).map(|found| found.as_bytes());
    let level = group("level")
        .and_then(Level::parse)
        .or_else(|| group("priority").and_then(digits).map(|priority| Level::of_priority(priority as u32)));
    let mut header = Header {
        observed_at: observed_at(captures, upload_year),
        level,
        component: group("component").filter(|name| !name.is_empty() && *name != b"-"),
    };
    if free_text {
        let rest = captures.name("rest").map_or(&line[line.len()..], |rest| rest.as_bytes());
        let Between { level, component, .. } = level_and_component(rest);
        header.level = level.or(header.level);
        header.component = component;
    }
    header
}

fn digits(bytes: &[u8]) -> Option<i64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

fn observed_at(captures: &Captures<'_>, upload_year: i32) -> Option<i64> {
    let number = |name: &str| captures.name(name).and_then(|found| digits(found.as_bytes()));
    let year = number("year").unwrap_or(i64::from(upload_year));
    let month = captures.name("month")?.as_bytes();
    let month = match digits(month) {
        Some(month) => month,
        None => {
            const NAMES: &[u8] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
            NAMES.chunks(3).position(|name| name == month)? as i64 + 1
        }
    };
    let date = NaiveDate::from_ymd_opt(year as i32, month as u32, number("day")? as u32)?;
    let time = NaiveTime::from_hms_opt(number("hour")? as u32, number("minute")? as u32, number("second")? as u32)?;
    let micros = captures.name("fraction").map_or(0, |fraction| {
        let padded: Vec<u8> = fraction.as_bytes().iter().copied().chain(std::iter::repeat(b'0')).take(6).collect();
        digits(&padded).unwrap_or(0)
    });
    let offset = captures.name("zone").map_or(Some(0), |zone| zone_minutes(zone.as_bytes()))?;
    let local = NaiveDateTime::new(date, time) + TimeDelta::microseconds(micros);
    Some(local.and_utc().timestamp_micros() - offset * 60_000_000)
}

/// Minutes east of Greenwich.
fn zone_minutes(zone: &[u8]) -> Option<i64> {
    let sign = match zone.first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return Some(0),
    };
    let plain: Vec<u8> = zone[1..].iter().copied().filter(u8::is_ascii_digit).collect();
    let (hours, minutes) = (digits(plain.get(..2)?)?, digits(plain.get(2..)?)?);
    Some(sign * (hours * 60 + minutes))
}

/// `observed_at` as tables and tests write it: RFC 3339 with microseconds where there are some.
pub fn rfc3339(micros: i64) -> Cow<'static, str> {
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into(),
        None => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(line: &str, expected: &str) {
        let header = Reader::default().read(line.as_bytes(), 2026);
        let actual = format!(
            "{} {} {}",
            header.observed_at.map_or("-".into(), rfc3339),
            header.level.map_or("-", Level::word),
            header.component.map_or("-".into(), String::from_utf8_lossy),
        );
        assert_eq!(actual, expected, "{line}");
    }

    #[test]
    fn iso_8601_and_its_variants_give_time_level_and_process() {
        check("2026-03-01T10:15:30Z ERROR updater: failed", "2026-03-01T10:15:30Z error updater");
        check(
            "2026-03-01 10:15:30,123 WARN [main] com.acme.Updater - x",
            "2026-03-01T10:15:30.123Z warning com.acme.Updater",
        );
        check("2026-03-01 10:15:30.123456 [main] DEBUG c.a.U: x", "2026-03-01T10:15:30.123456Z debug c.a.U");
        check("[2026-03-01T10:15:30+02:00] [error] x", "2026-03-01T08:15:30Z error -");
        check("2026-03-01T10:15:30.5-0730 host updater[17]: x", "2026-03-01T17:45:30.500Z - updater");
        check("2026-03-01 10:15:30 - ota.flash - ERROR - x", "2026-03-01T10:15:30Z error ota.flash");
        check("2026/03/01 10:15:30 [error] 17#17: *1 open() failed", "2026-03-01T10:15:30Z error -");
        check("ERROR 2026-03-01 10:15:30,123 [t 1] a.B - x", "2026-03-01T10:15:30.123Z error a.B");
        check("2026-03-01 10:15:30.1  INFO 77 --- [ main] c.e.App : x", "2026-03-01T10:15:30.100Z info c.e.App");
        check("2026-03-01 10:15:30 something without a level", "2026-03-01T10:15:30Z - -");
    }

    #[test]
    fn syslog_gives_priority_and_process_and_takes_the_uploads_year() {
        check("<165>1 2003-10-11T22:14:15.003Z host app 12 ID47 - x", "2003-10-11T22:14:15.003Z notice app");
        check("<34>Oct 11 22:14:15 host su[5]: x", "2026-10-11T22:14:15Z critical su");
        check("Feb  3 01:02:03 host kernel: x", "2026-02-03T01:02:03Z - kernel");
        check("Feb  3 2021 01:02:03 kernel: x", "2021-02-03T01:02:03Z - kernel");
    }

    #[test]
    fn logcat_gives_its_letter_and_tag() {
        check("03-01 10:15:30.123  1234  1250 E UpdateEngine: x", "2026-03-01T10:15:30.123Z error UpdateEngine");
        check("2026-03-01 10:15:30.123  1234  1250 F T: x", "2026-03-01T10:15:30.123Z critical T");
        check("03-01 10:15:30.123  1234  1250 F libc    : x", "2026-03-01T10:15:30.123Z critical libc");
    }

    #[test]
    fn an_uptime_is_no_date() {
        check("[   12.345678] mmc0: error -110", "- - mmc0");
        check("<3>[ 1012.345678] BUG: x", "- error -");
        check("1024 [main] ERROR com.acme.Updater - x", "- error com.acme.Updater");
        check("ERROR [main] com.acme.Updater - x", "- error com.acme.Updater");
    }

    #[test]
    fn the_short_cut_reads_what_the_patterns_read() {
        let dates = (0..40_000).step_by(13).map(|days| NaiveDate::default() + TimeDelta::days(days - 9000));
        let plain = dates.map(|date| format!("{date} 23:59:58,1234567 WARN [main] a.B - x"));
        let odd = [
            "2026-02-29 10:15:30 X",
            "2024-02-29T10:15:30.5  X",
            "0000-01-01 00:00:00 X",
            "9999-12-31 24:00:00 X",
            "2026-04-31 10:15:30 X",
            "2026-00-10 10:60:30 X",
            "2026-01-00 10:15:60 [error] u: x",
            "2026-03-01 10:15:30, X",
            "2026-03-01 10:15:30.1234567890 X",
            "2026-03-01 10:15:30",
            "2026-03-01 10:15:3x X",
            "2026-03-01 10:15:30 UTC X",
            "2026-03-01 10:15:30.000  12  34 E Tag: x",
        ];
        for line in plain.chain(odd.map(str::to_owned)) {
            let line = line.as_bytes();
            assert_eq!(Reader::default().read(line, 2026), read_any(line, 2026), "{}", line.escape_ascii());
        }
    }

    #[test]
    fn what_a_line_does_not_say_is_not_guessed() {
        check("error 17", "- - -");
        check("2026-13-01 10:15:30 ERROR x: y", "- error x");
        check("", "- - -");
    }

    proptest! {
        #[test]
        fn a_reader_that_has_read_others_reads_a_line_as_a_new_one_does(
            lines in prop::collection::vec(prop::collection::vec(prop::sample::select(vec![
                " ", "-", "ERROR", "INFO", "[main]", "[", "] ", "a.B", "ota.Flash", "u[17]:", "x:", "17", "|", "\u{e9}",
            ]), 0..12), 1..40),
        ) {
            let mut reader = Reader::default();
            for (words, blank) in lines.iter().flat_map(|words| [(words, " "), (words, ""), (words, " ")]) {
                let line = format!("2026-03-01 10:15:30 {}", words.join(blank));
                let alone = Reader::default().read(line.as_bytes(), 2026);
                prop_assert_eq!(reader.read(line.as_bytes(), 2026), alone);
            }
        }
    }
}

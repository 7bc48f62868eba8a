//! The header of a line: its time, level and component.
//!
//! Lines with fields ([`structured`]) are read by the names of the fields, others by
//! the patterns of their formats ([`formats`]). A missing value is `None`, never a
//! guess: uptimes are not converted to dates ([`time`]).

mod between;
mod formats;
mod structured;
pub mod time;

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::rules::Severity;

use between::Shapes;

/// The byte order mark of UTF-8.
pub const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// The level of a line, in ascending order.
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
    /// The name in tables and responses.
    pub fn as_str(self) -> &'static str {
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

    /// The minimum severity of a code on a line of this level.
    pub fn severity(self) -> Severity {
        match self {
            Level::Critical => Severity::Critical,
            Level::Error => Severity::Error,
            Level::Warning => Severity::Warning,
            Level::Notice | Level::Info | Level::Debug | Level::Trace => Severity::Info,
        }
    }

    /// The level of a name in any case, or of a logcat letter.
    pub fn parse(word: &[u8]) -> Option<Level> {
        const WORD_BYTES_MAX: usize = 13;
        if word.len() > WORD_BYTES_MAX {
            return None;
        }
        let mut upper = [0; WORD_BYTES_MAX];
        upper.iter_mut().zip(word).for_each(|(upper, byte)| *upper = byte.to_ascii_uppercase());
        Some(match &upper[..word.len()] {
            b"TRACE" | b"VERBOSE" | b"FINEST" | b"TRC" | b"VRB" | b"V" => Level::Trace,
            b"DEBUG" | b"FINE" | b"FINER" | b"DBG" | b"D" => Level::Debug,
            b"INFO" | b"INFORMATION" | b"INFORMATIONAL" | b"INF" | b"I" => Level::Info,
            b"NOTICE" => Level::Notice,
            b"WARN" | b"WARNING" | b"WRN" | b"W" => Level::Warning,
            b"ERROR" | b"ERR" | b"SEVERE" | b"FAILURE" | b"E" => Level::Error,
            b"FATAL" | b"CRITICAL" | b"CRIT" | b"ALERT" | b"EMERG" | b"EMERGENCY" | b"PANIC" | b"FTL" | b"DPANIC"
            | b"F" | b"A" => Level::Critical,
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

/// The header of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header<'l> {
    /// Microseconds since 1970, UTC. A time without a zone is taken as UTC; it need not be plausible
    /// ([`time::is_plausible`]).
    pub observed_at: Option<i64>,
    /// The level.
    pub level: Option<Level>,
    /// The process, tag or logger.
    pub component: Option<Cow<'l, [u8]>>,
}

/// Reads headers, and caches how it has read level and component.
#[derive(Default)]
pub struct Reader {
    shapes: Shapes,
}

impl Reader {
    /// The header of a line without colour codes. A time without a year gets the year that is closest to `uploaded_at`
    /// (microseconds since 1970).
    ///
    /// The formats are tried in one order, whatever was read before: the result must
    /// not depend on which worker reads which lines.
    pub fn read<'l>(&mut self, line: &'l [u8], uploaded_at: i64) -> Header<'l> {
        plain_iso(line, &mut self.shapes).unwrap_or_else(|| read_any(line, uploaded_at))
    }
}

/// Whether a line can contain a time, judged by its digits.
pub fn may_name_time(line: &[u8]) -> bool {
    /// A number since 1970, or a date and time without separators.
    const DIGITS_MIN: usize = 8;
    let mut digits = 0;
    for (index, byte) in line.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                if digits >= DIGITS_MIN {
                    return true;
                }
                continue;
            }
            b':' if digits > 0 && line.get(index + 1).is_some_and(u8::is_ascii_digit) => return true,
            b'/' if digits == 4 => return true,
            _ => {}
        }
        digits = 0;
    }
    false
}

fn read_any(line: &[u8], uploaded_at: i64) -> Header<'_> {
    // Concatenated files have byte order marks further on.
    let line = line.strip_prefix(UTF8_BOM).unwrap_or(line);
    read_direct(line, uploaded_at).or_else(|| read_direct(after_service(line)?, uploaded_at)).unwrap_or_default()
}

fn read_direct(line: &[u8], uploaded_at: i64) -> Option<Header<'_>> {
    // Android's recovery writes logcat's lines to the kernel's ring buffer.
    let after_uptime = || {
        let header = formats::read(UPTIME.find(line).map(|uptime| &line[uptime.end()..])?, uploaded_at)?;
        header.observed_at.is_some().then_some(header)
    };
    structured::json(line, uploaded_at)
        .or_else(|| structured::logfmt(line, uploaded_at))
        .or_else(after_uptime)
        .or_else(|| formats::read(line, uploaded_at))
}

static UPTIME: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"^(?:<[0-9]{1,3}>)?\[ *[0-9]+\.[0-9]{6}\] *";
    RegexBuilder::new(pattern).unicode(false).build().expect("the built-in formats are valid")
});

/// The text after the name of a service, as docker compose writes it: `updater-1  | text`.
fn after_service(line: &[u8]) -> Option<&[u8]> {
    const NAME_BYTES_MAX: usize = 64;
    let bar = line.iter().take(NAME_BYTES_MAX).position(|&byte| byte == b'|')?;
    let name = line[..bar].trim_ascii_end();
    let is_name = !name.is_empty() && name.len() < bar && !name.iter().any(u8::is_ascii_whitespace);
    is_name.then(|| line[bar + 1..].trim_ascii_start())
}

/// The header of a line that begins with an ISO time in its usual form, the same as
/// its pattern reads it: `2026-03-01 10:15:30,123 ERROR …`. `None` if the line may
/// have another format.
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
    if let [b'.' | b',', after @ ..] = rest {
        let digits = after.iter().take(9).take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 0 {
            let padded = after[..digits].iter().copied().chain(std::iter::repeat(b'0')).take(6);
            micros = padded.fold(0, |number, byte| number * 10 + i64::from(byte - b'0'));
            rest = &after[digits..];
        }
    }
    // Zones, and logcat with a year, are left to the patterns.
    let after = rest.strip_prefix(b" ")?.trim_ascii_start();
    if matches!(after.first()?, b'Z' | b'U' | b'G' | b'+' | b'-' | b'_' | b'a'..=b'z' | b'0'..=b'9') {
        return None;
    }
    let word_end = after.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(after.len());
    let is_name = after.get(word_end) == Some(&b':');
    if !is_name && time::may_belong(&after[..word_end]) || after.get(word_end) == Some(&b'/') {
        return None;
    }
    // An invalid date or time is `None`.
    let is_time = day > 0
        && days_of_month(year, month).is_some_and(|days| day <= days)
        && hour < 24
        && minute < 60
        && second < 60;
    let seconds = || days_since_1970(year, month, day) * 86_400 + i64::from(3600 * hour + 60 * minute + second);
    let (level, component) = shapes.level_and_component(rest);
    Some(Header {
        observed_at: is_time.then(|| 1_000_000 * seconds() + micros),
        level,
        component: component.map(Cow::Borrowed),
    })
}

/// `None` if there is no such month.
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

/// Days of the Gregorian calendar: those of the whole years, which begin in March so that the
/// leap day comes last, those of the whole months, and those of the month.
fn days_since_1970(year: u32, month: u32, day: u32) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year + 399, month + 9) };
    let years = i64::from(year);
    // January and February belong to the year before; 400 years were added to avoid an underflow.
    let added_days = if month > 9 { 146_097 } else { 0 };
    365 * years + years / 4 - years / 100 + years / 400 + i64::from((153 * month + 2) / 5 + day) - 719_469 - added_days
}

/// `observed_at` as in tables and tests: RFC 3339, with a fraction if there is one.
pub fn rfc3339(micros: i64) -> Cow<'static, str> {
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into(),
        None => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{NaiveDate, TimeDelta};
    use proptest::prelude::*;

    /// 2026-11-26T12:00:00Z.
    const UPLOADED_AT: i64 = 1_795_694_400_000_000;

    fn check(line: &str, expected: &str) {
        let header = Reader::default().read(line.as_bytes(), UPLOADED_AT);
        let actual = format!(
            "{} {} {}",
            header.observed_at.map_or("-".into(), rfc3339),
            header.level.map_or("-", Level::as_str),
            header.component.map_or("-".into(), |name| String::from_utf8_lossy(&name).into_owned()),
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
        check("2026-03-01 10:15:30 PM: suspend entry", "2026-03-01T10:15:30Z - PM");
        check("2026-03-01 10:15:30Z CAT: error", "2026-03-01T10:15:30Z - CAT");
        check("2026-03-01 10:15:30 Pm x", "2026-03-01T22:15:30Z - -");
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
    fn every_format_gives_its_time_level_and_component() {
        let at = "2026-03-01T10:15:30.123Z";
        for (line, level, component) in [
            // logcat: threadtime with a user, time, epoch, and after a kernel's uptime
            ("03-01 10:15:30.123  1000  2579  2813 E Upd: x", "error", "Upd"),
            ("03-01 10:15:30.123 I/update_engine(  977): x", "info", "update_engine"),
            ("1772360130.123  1000  2579 W Upd: x", "warning", "Upd"),
            ("[  341.118203] 03-01 10:15:30.123   611   611 E sideload: x", "error", "sideload"),
            ("2026-03-01 10:15:30.123  12  34 E MODEM -- SIM1 [Link]: x", "error", "MODEM -- SIM1 [Link]"),
            ("[ 03-01 10:15:30.123  1234: 1250 E/Upd ]", "error", "Upd"),
            // glog, Chromium's, ROS
            ("E0301 10:15:30.123000  1033 fetcher.cc:243] x", "error", "-"),
            ("[0301/101530.123000:ERROR:fetcher.cc(243)] x", "error", "-"),
            ("[ERROR] [1772360130.123000000] [flash_node]: x", "error", "flash_node"),
            ("[node-1] [WARN] [1772360130.123]: x", "warning", "-"),
            ("[rosmaster.main][INFO] 2026-03-01 10:15:30,123: x", "info", "rosmaster.main"),
            // JSON: ECS, journald, Caddy, GCP, bunyan, Serilog, and after a service's name
            (
                r#"{"@timestamp":"2026-03-01T10:15:30.123Z","log.level":"error","log":{"logger":"app"},"message":"x"}"#,
                "error",
                "app",
            ),
            (
                r#"{"__REALTIME_TIMESTAMP":"1772360130123000","PRIORITY":"3","SYSLOG_IDENTIFIER":"upd","MESSAGE":"x"}"#,
                "error",
                "upd",
            ),
            (r#"caddy  | {"level":"warn","ts":1772360130.123,"logger":"http","msg":"x"}"#, "warning", "http"),
            (r#"{"textPayload":"x","timestamp":"2026-03-01T10:15:30.123Z","severity":"ERROR"}"#, "error", "-"),
            (r#"{"level":50,"time":1772360130123,"name":"upd","msg":"x"}"#, "error", "upd"),
            (r#"{"@t":"2026-03-01T10:15:30.123Z","@l":"Fatal","@m":"x"}"#, "critical", "-"),
            (
                r#"{"msg":"x","nested":{"time":"1999-01-01T00:00:00Z"},"time":"2026-03-01T10:15:30.123Z","level":"info","le"#,
                "info",
                "-",
            ),
            // logfmt
            (r#"time="2026-03-01T10:15:30.123Z" level=error logger=upd msg="x = \"y\"""#, "error", "upd"),
            ("level=warn ts=1772360130.123 msg=x", "warning", "-"),
            // Windows, BGL, candump, Jetty, Monolog, Apache, web servers, numbers
            ("2026-03-01 10:15:30.123, Error                 CBS    x", "error", "CBS"),
            ("2026/03/01 10:15:30.123 1234  5678  Agent           *FATAL* x", "critical", "Agent"),
            ("2026-03-01\t10:15:30:123\t 880\te58\tAgent\tx", "-", "Agent"),
            (
                r#"<![LOG[x]LOG]!><time="11:15:30.123-060" date="03-01-2026" component="AppEnforce" context="" type="3" thread="1">"#,
                "error",
                "AppEnforce",
            ),
            (
                "- 1772360130 2026.03.01 R02-M1 2026-03-01-02.15.30.123000 R02-M1 RAS KERNEL FATAL x",
                "critical",
                "KERNEL",
            ),
            ("(1772360130.123000) vcan0 7E8#037F1033", "-", "-"),
            ("2026-03-01T10:15:30.123:WARN:com.root:x", "warning", "com.root"),
            ("[2026-03-01 10:15:30.123] local.ERROR: x", "error", "local"),
            ("[Sun Mar 01 10:15:30.123 2026] [core:error] [pid 17] x", "-", "-"),
            ("01-Mar-2026 10:15:30.123 SEVERE [main] a.B: x", "error", "a.B"),
            ("1772360130123 ERROR updater: x", "error", "updater"),
            ("20260301T101530.123Z ERROR updater: x", "error", "updater"),
            ("\u{feff}2026-03-01T10:15:30.123Z ERROR ota: x", "error", "ota"),
        ] {
            check(line, &format!("{at} {level} {component}"));
        }
        check("10.0.0.8 - - [01/Mar/2026:12:15:30 +0200] \"GET / HTTP/1.1\" 503 0", "2026-03-01T10:15:30Z - -");
    }

    #[test]
    fn levels_are_read_without_a_time() {
        check("E (31) esp_image: x", "- error esp_image");
        check("E/Upd( 1234): x", "- error Upd");
        check("[ERROR:fetcher.cc(243)] x", "- error -");
        check("ERROR:updater:x", "- error updater");
        check("ERROR updater: x", "- error updater");
        check("  341.118  611   611 W Upd: x", "- warning Upd");
        check("(000.350211) vcan0 7E8#037F2231", "- - -");
        check("10:15:30.123 - ERR : x", "- - -");
    }

    #[test]
    fn a_missing_year_is_the_one_closest_to_the_upload() {
        // Uploaded on November 26: December's lines are last year's, tomorrow's noon is this year's.
        check("Dec 17 00:55:33 gw updater[9]: x", "2025-12-17T00:55:33Z - updater");
        check("Nov 27 10:00:00 gw updater[9]: x", "2026-11-27T10:00:00Z - updater");
        check("Nov 28 10:00:00 gw updater[9]: x", "2025-11-28T10:00:00Z - updater");
        check("Feb 29 02:00:00 gw updater[9]: x", "2024-02-29T02:00:00Z - updater");
        check("Nov 31 10:00:00 gw updater[9]: x", "- - updater");
    }

    #[test]
    fn an_uptime_is_not_a_date() {
        check("[   12.345678] mmc0: error -110", "- - mmc0");
        check("<3>[ 1012.345678] BUG: x", "- error -");
        check("1024 [main] ERROR com.acme.Updater - x", "- error com.acme.Updater");
        check("ERROR [main] com.acme.Updater - x", "- error com.acme.Updater");
    }

    #[test]
    fn the_fast_path_reads_the_same_as_the_patterns() {
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
            assert_eq!(
                Reader::default().read(line, UPLOADED_AT),
                read_any(line, UPLOADED_AT),
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn missing_values_are_not_guessed() {
        check("error 17", "- - -");
        check("2026-13-01 10:15:30 ERROR x: y", "- error x");
        check("", "- - -");
    }

    proptest! {
        #[test]
        fn a_used_reader_reads_a_line_as_a_new_one_does(
            lines in prop::collection::vec(prop::collection::vec(prop::sample::select(vec![
                " ", "-", "ERROR", "INFO", "[main]", "[", "] ", "a.B", "ota.Flash", "u[17]:", "x:", "17", "|", "\u{e9}",
            ]), 0..12), 1..40),
        ) {
            let mut reader = Reader::default();
            for (words, blank) in lines.iter().flat_map(|words| [(words, " "), (words, ""), (words, " ")]) {
                let line = format!("2026-03-01 10:15:30 {}", words.join(blank));
                let alone = Reader::default().read(line.as_bytes(), UPLOADED_AT);
                prop_assert_eq!(reader.read(line.as_bytes(), UPLOADED_AT), alone);
            }
        }
    }
}

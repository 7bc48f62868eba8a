//! The formats of lines that begin with a header, as patterns.
//!
//! The groups `year` to `fraction`, `half`, `zone`, `bias` and `epoch` give the time
//! ([`super::time`]); `level`, `priority` and `component` are what their names say;
//! `rest` is the text with level and component in free order ([`super::between`]).
//! Of formats with the same first bytes, the more specific comes first.

use std::sync::LazyLock;

use regex::bytes::{Captures, Regex, RegexBuilder};

use super::between::{Between, level_and_component};
use super::time::{self, DATE, MONTH, TIME};
use super::{Header, Level};
use crate::scan::prefilter::byte_set::ByteSet;

/// The header of a line in one of the formats.
pub fn read(line: &[u8], uploaded_at: i64) -> Option<Header<'_>> {
    let first = line.first()?;
    FORMATS
        .iter()
        .filter(|format| format.firsts.contains(*first))
        .find_map(|format| Some(header(&format.pattern.captures(line)?, line, uploaded_at)))
}

struct Format {
    /// Every line of the format begins with one of these.
    firsts: ByteSet,
    pattern: Regex,
}

const PRIORITY: &str = r"(?:<(?P<priority>[0-9]{1,3})>)";
const LEVEL: &str = r"(?P<level>TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)";
const LETTER: &str = "(?P<level>[VDIWEFA])";
const EPOCH: &str = r"(?P<epoch>[0-9]{9,10}\.[0-9]{1,9}|[0-9]{10}|[0-9]{13}|[0-9]{16}|[0-9]{19})";
const WEEKDAY: &str = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)";

const DIGITS: &[u8] = b"0123456789";
const BLANK_OR_DIGITS: &[u8] = b" 0123456789";
const LETTERS: &[u8] = b"VDIWEFA";
const LEVELS: &[u8] = b"TDINWECF";
const WEEKDAYS: &[u8] = b"[MTWFS";

static FORMATS: LazyLock<Vec<Format>> = LazyLock::new(|| {
    let format = |firsts: &[u8], pattern: String| Format {
        firsts: ByteSet::of(firsts),
        pattern: RegexBuilder::new(&pattern).unicode(false).build().expect("the built-in formats are valid"),
    };
    let short_date = "(?P<month>[0-9]{2})-(?P<day>[0-9]{2})";
    let zone = time::zone();
    let any_byte: Vec<u8> = (0..=u8::MAX).collect();
    vec![
        // Android logcat, threadtime: 03-01 10:15:30.123  1234  1250 E UpdateEngine: text
        format(
            DIGITS,
            format!(
                r"^(?:(?P<year>[0-9]{{4}})-)?{short_date} {TIME}{zone} +(?:[a-z_0-9]+ +)?[0-9]+ +[0-9]+ {LETTER} (?P<component>.*?) *:(?: |$)"
            ),
        ),
        // Android logcat, time: 03-01 10:15:30.123 E/UpdateEngine( 1234): text
        format(
            DIGITS,
            format!(
                r"^(?:(?P<year>[0-9]{{4}})-)?{short_date} {TIME}{zone} {LETTER}/(?P<component>[^(]*?) *\( *[0-9]+\): ?"
            ),
        ),
        // Android logcat, epoch and uptime: 1772360130.123  1234  1250 E UpdateEngine: text
        format(
            BLANK_OR_DIGITS,
            format!(
                r"^ *(?P<epoch>[0-9]+\.[0-9]{{3,9}}) +(?:[a-z_0-9]+ +)?[0-9]+ +[0-9]+ {LETTER} (?P<component>.*?) *:(?: |$)"
            ),
        ),
        // Android logcat, long: [ 03-01 10:15:30.123  1234: 1250 E/UpdateEngine ]
        format(
            b"[",
            format!(
                r"^\[ (?:(?P<year>[0-9]{{4}})-)?{short_date} {TIME}{zone} +(?:[0-9]+: *)?[0-9]+: *[0-9]+ {LETTER}/(?P<component>\S*) *\]"
            ),
        ),
        // Android logcat, brief, tag, process and thread: E/UpdateEngine( 1234): text, E( 1234: 1250) text
        format(LETTERS, format!(r"^{LETTER}/(?P<component>[^\s(:][^(:]*?) *(?:\( *[0-9]+\))?: ")),
        format(LETTERS, format!(r"^{LETTER}\( *[0-9]+(?:: *[0-9]+)?\) ")),
        // ESP-IDF: E (31) esp_image: text
        format(LETTERS, format!(r"^{LETTER} \([0-9:.]+\) (?P<component>[^:\s][^:]*): ")),
        // glog: E0301 10:15:30.123000  1033 fetcher.cc:243] text
        format(
            b"IWEF",
            format!(
                r"^(?P<level>[IWEF])(?P<year>[0-9]{{4}})?(?P<month>[0-9]{{2}})(?P<day>[0-9]{{2}}) {TIME} +[0-9]+ [^\s:\]]+:[0-9]+\]"
            ),
        ),
        // Chromium's, as older update_engine writes it: [0301/101530.123456:ERROR:fetcher.cc(243)] text
        format(
            b"[",
            r"^\[(?:[0-9]+:){0,2}(?P<month>[0-9]{2})(?P<day>[0-9]{2})/(?P<hour>[0-9]{2})(?P<minute>[0-9]{2})(?P<second>[0-9]{2})(?:\.(?P<fraction>[0-9]{1,9}))?:(?P<level>[A-Z]+)[0-9]*:[^\]]*\]".to_owned(),
        ),
        // update_engine in logcat and on the console: [ERROR:fetcher.cc(243)] text
        format(b"[", format!(r"^\[{LEVEL}:[^\s\]]+\([0-9]+\)\]")),
        // ROS: [ERROR] [1772360130.123]: text, [ERROR] [1772360130.123] [node]: text; also after the name of a process
        format(
            b"[",
            format!(
                r"^(?:\[[^\]\s]+\] )?\[ *{LEVEL}\] *\[(?P<epoch>[0-9]+(?:\.[0-9]+)?)(?:, [0-9.]+)?\](?: \[(?P<component>[^\]]+)\])?:?"
            ),
        ),
        // ROS' nodes in Python: [rosmaster.main][ERROR] 2026-03-01 10:15:30,123: text
        format(b"[", format!(r"^\[(?P<component>[^\]\s]+)\] ?\[{LEVEL}\] {DATE}[T ]{TIME}{zone}")),
        // ROS' launch and rosout: 1772360130.123 [ERROR] [node]: text, 1772360130.123 ERROR /node [file:12] text
        format(DIGITS, format!(r"^{EPOCH} (?:\[{LEVEL}\] \[(?P<component>[^\]]+)\]:)")),
        format(DIGITS, format!(r"^{EPOCH} {LEVEL} (?P<component>/[^\s\[]*) ?\[")),
        // BGL: - 1117838570 2005.06.03 R02-M1-N0 2005-06-03-15.42.50.675872 R02-M1-N0 RAS KERNEL INFO text
        format(
            b"-ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            r"^\S+ (?P<epoch>[0-9]{10}) [0-9]{4}\.[0-9]{2}\.[0-9]{2} \S+ [0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9]{2}\.[0-9]{2}\.[0-9]{2}(?P<epoch_fraction>\.[0-9]{1,9}) \S+ \S+ (?P<component>\S+) (?P<level>[A-Z]+)\b".to_owned(),
        ),
        // Windows' CBS and DISM: 2026-03-01 10:15:30, Error                 CBS    text
        format(DIGITS, format!(r"^{DATE} {TIME}, (?P<level>[A-Z][a-z]+) +(?P<component>\S+)")),
        // Windows Update: 2026/03/01 10:15:30.1234567 1234  5678  Agent  text
        format(
            DIGITS,
            format!(
                r"^{DATE}[\t ]{TIME}[\t ]+[0-9a-fA-F]+[\t ]+[0-9a-fA-F]+[\t ]+(?P<component>[A-Z][A-Za-z]+)[\t ]+(?:\*?(?P<level>WARNING|FATAL|ERROR)\b)?"
            ),
        ),
        // Windows' configuration manager: <![LOG[text]LOG]!><time="10:15:30.123-60" date="03-01-2026" component="a" … type="3"
        format(
            &any_byte,
            r#"\]LOG\]!><time="(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})\.(?P<fraction>[0-9]{1,7})(?P<bias>[+-][0-9]{1,3})?" date="(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})-(?P<year>[0-9]{4})" component="(?P<component>[^"]*)"(?: context="[^"]*")?(?: type="(?P<kind>[123])")?"#.to_owned(),
        ),
        // RFC 5424: <165>1 2003-10-11T22:14:15.003Z host app 1234 ID47 - text
        format(b"<", format!(r"^{PRIORITY}1 {DATE}T{TIME}{zone} \S+ (?P<component>\S+) \S+ \S+ ")),
        // Jetty and others: 2026-03-01 10:15:30,123:WARN:com.acme.Updater:text
        format(DIGITS, format!(r"^{DATE}[T ]{TIME}: ?{LEVEL}:(?:(?P<component>[A-Za-z_][\w.$]*) ?:)?")),
        // Monolog: [2026-03-01 10:15:30] channel.ERROR: text
        format(b"[", format!(r"^\[{DATE}[T ]{TIME}{zone}\] (?P<component>[\w.-]+?)\.{LEVEL}: ")),
        // ISO 8601 and its variants: 2026-03-01 10:15:30,123 ERROR [main] com.acme.Updater - text
        format(b"<[0123456789", format!(r"^{PRIORITY}?\[?{DATE}(?:[T_ ]|, ){TIME}{zone}\]?(?P<rest>.*)")),
        // ISO 8601's basic form: 20260301T101530Z ERROR text
        format(
            b"[0123456789",
            format!(
                r"^\[?(?P<year>[0-9]{{4}})(?P<month>[0-9]{{2}})(?P<day>[0-9]{{2}})[T _-](?P<hour>[0-9]{{2}}):?(?P<minute>[0-9]{{2}}):?(?P<second>[0-9]{{2}})(?:[.,:](?P<fraction>[0-9]{{1,9}}))?{zone}\]?(?P<rest>\W.*|$)"
            ),
        ),
        // The level before an ISO time: ERROR 2026-03-01 10:15:30,123 [main] com.acme.Updater - text
        format(b"[TDINWECF", format!(r"^\[?{LEVEL}\]?:? +[\[(]?{DATE}[T ]{TIME}{zone}[\])]?(?P<rest>.*)")),
        // candump: (1772360130.123456) can0 7E8#037F2231, also with a date
        format(b" (", format!(r"^ *\((?:{DATE} {TIME}|(?P<epoch>[0-9]+\.[0-9]{{6,9}}))\) +[A-Za-z]\w* ")),
        // RFC 3164: <34>Oct 11 22:14:15 host app[123]: text
        format(
            b"<JFMASOND",
            format!(
                r"^{PRIORITY}?{MONTH} +(?P<day>[0-9]{{1,2}}) (?:(?P<year>[0-9]{{4}}) )?{TIME}{zone}(?: (?:[^\s:\[]+ )?(?P<component>[^\s:\[]+)(?:\[[0-9]+\])?: ?)?"
            ),
        ),
        // ctime and Apache's error log: [Sun Mar 01 10:15:30.123 2026] [core:error] [pid 17] text
        format(
            WEEKDAYS,
            format!(r"^\[?{WEEKDAY} {MONTH} +(?P<day>[0-9]{{1,2}}) {TIME}{zone} (?P<year>[0-9]{{4}})\]?(?P<rest>.*)"),
        ),
        // RFC 5322: Sun, 01 Mar 2026 10:15:30 +0000 text
        format(
            WEEKDAYS,
            format!(r"^\[?{WEEKDAY}, (?P<day>[0-9]{{1,2}}) {MONTH} (?P<year>[0-9]{{4}}) {TIME}{zone}\]?(?P<rest>.*)"),
        ),
        // The day first, and the month by name: 01-Mar-2026 10:15:30.123 SEVERE [main] text
        format(
            b"[0123456789",
            format!(r"^\[?(?P<day>[0-9]{{1,2}})[-/ ]{MONTH}[-/ ](?P<year>[0-9]{{4}})[ :]{TIME}{zone}\]?(?P<rest>.*)"),
        ),
        // The kernel's ring buffer: <3>[   12.345678] mmc0: text
        format(
            b"<[",
            format!(
                r"^{PRIORITY}?\[ *[0-9]+\.[0-9]{{6}}\](?:\[ *[TC][0-9]+\])? *(?:(?P<component>[a-z][0-9A-Za-z_./-]*)(?:\[[0-9]+\])?(?: [0-9][0-9A-Za-z.:-]*)?: )?"
            ),
        ),
        // log4j with an uptime: 1024 [main] ERROR com.acme.Updater - text
        format(DIGITS, format!(r"^[0-9]+ \[[^\]]*\] {LEVEL} +(?P<component>[^\s:]+)")),
        // log4j without a time: ERROR [main] com.acme.Updater - text
        format(LEVELS, format!(r"^{LEVEL} +\[[^\]]*\] +(?P<component>[^\s:]+)(?: -|:)")),
        // Python's logging: ERROR:updater:text
        format(LEVELS, format!(r"^{LEVEL}:(?P<component>[A-Za-z_][\w.]*):")),
        // A level and a name: ERROR updater: text
        format(LEVELS, format!(r"^{LEVEL}:? +(?P<component>[A-Za-z_][\w./-]*)(?:\[[0-9]+\])?: ")),
        // A number since 1970: 1772360130.123 ERROR updater: text
        format(b"[(0123456789", format!(r"^[\[(]?{EPOCH}[\])]?(?P<rest>[\s:,].*)")),
        // The common log format of web servers: 10.0.0.8 - - [01/Mar/2026:10:15:30 +0000] "GET …
        format(&any_byte, format!(r"^\S+ \S+ [^\[]{{1,64}}\[(?P<day>[0-9]{{2}})/{MONTH}/(?P<year>[0-9]{{4}}):{TIME}{zone}\]")),
    ]
});

fn header<'l>(captures: &Captures<'l>, line: &'l [u8], uploaded_at: i64) -> Header<'l> {
    let group = |name: &str| captures.name(name).map(|found| found.as_bytes());
    let priority = || group("priority").and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    let level = group("level").and_then(Level::parse).or_else(|| priority().map(Level::of_priority));
    let level = level.or_else(|| {
        group("kind").map(|kind| match kind {
            b"3" => Level::Error,
            b"2" => Level::Warning,
            _ => Level::Info,
        })
    });
    let observed_at = match group("epoch_fraction") {
        Some(fraction) => time::of_epoch(&[group("epoch").unwrap_or_default(), fraction].concat()),
        None => time::of_captures(captures, line, uploaded_at),
    };
    let component = group("component").map(<[u8]>::trim_ascii).filter(|name| !name.is_empty() && *name != b"-");
    let mut header = Header { observed_at, level, component: component.map(Into::into) };
    if let Some(rest) = captures.name("rest") {
        let start = time::name_after(captures, line).unwrap_or(rest.start());
        let rest = &line[start..rest.end()];
        let Between { level, component, .. } = level_and_component(rest);
        header.level = level.or(header.level);
        header.component = component.map(Into::into);
    }
    header
}

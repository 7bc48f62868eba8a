//! Lines with fields: JSON objects and logfmt.
//!
//! Time, level and component are read from the field names of ECS, journald, Caddy,
//! GCP, bunyan and pino, logrus, zap and slog, Serilog, GELF, `tracing`, and from
//! generic names. Of several, the first of the list counts. Only fields of the line
//! itself count, and those of the few objects that ECS and others put them in: a time
//! within the message is not the line's.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Header, Level, time};

/// Field names of the line's time; the first that is present counts.
const TIMES: &[&str] = &[
    "@timestamp",
    "timestamp",
    "__realtime_timestamp",
    "_source_realtime_timestamp",
    "ts",
    "@t",
    "time",
    "t",
    "datetime",
    "eventtime",
    "asctime",
    "timeunixnano",
    "time_unix_nano",
    "timestampms",
    "timestamp_ms",
    "date",
    "instant",
];
/// Field names of its level.
const LEVELS: &[&str] = &[
    "log.level",
    "level",
    "severity",
    "lvl",
    "@l",
    "loglevel",
    "log_level",
    "levelname",
    "level_name",
    "severitytext",
    "severity_text",
    "priority",
    "severitynumber",
];
/// Field names of its component.
const COMPONENTS: &[&str] = &[
    "log.logger",
    "logger",
    "logger_name",
    "loggername",
    "syslog_identifier",
    "component",
    "target",
    "tag",
    "module",
    "service.name",
    "service",
    "app",
    "name",
    "_comm",
];
/// Objects whose fields count as the line's, and the prefix for the names of these fields.
const OBJECTS: &[(&str, &str)] = &[("log", "log."), ("service", "service."), ("@fields", ""), ("fields", "")];

/// The header of a line that is a JSON object, as far as it can be parsed.
pub fn json(line: &[u8], uploaded_at: i64) -> Option<Header<'_>> {
    let text = line.trim_ascii_start();
    if text.first() != Some(&b'{') {
        return None;
    }
    let mut fields = Fields { uploaded_at, ..Fields::default() };
    // A truncated line gives the fields before the cut.
    let object = Object { fields: &mut fields, prefix: "", depth: 0 };
    let _ = object.deserialize(&mut serde_json::Deserializer::from_slice(text));
    fields.header()
}

/// The header of a line of `name=value` pairs, if a time or a level is among them.
pub fn logfmt(line: &[u8], uploaded_at: i64) -> Option<Header<'_>> {
    let name_end = line.iter().position(|&byte| !is_name(byte))?;
    if name_end == 0 || line[name_end] != b'=' {
        return None;
    }
    let mut fields = Fields { uploaded_at, ..Fields::default() };
    let mut rest = line;
    while let Some((name, value, after)) = pair(rest) {
        if let Ok(name) = std::str::from_utf8(name) {
            fields.take(name, Value::Text(Cow::Borrowed(value)));
        }
        rest = after;
    }
    let header = fields.header()?;
    (header.observed_at.is_some() || header.level.is_some()).then_some(header)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'@' | b'-')
}

/// The name and value of the next pair, and the text after it; words that are not pairs are skipped.
fn pair(mut text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    loop {
        text = text.trim_ascii_start();
        let end = text.iter().position(|&byte| !is_name(byte))?;
        if end == 0 || text[end] != b'=' {
            let blank = text.iter().position(u8::is_ascii_whitespace)?;
            text = &text[blank..];
            continue;
        }
        let (name, value) = (&text[..end], &text[end + 1..]);
        return Some(match value.strip_prefix(b"\"") {
            Some(quoted) => {
                let mut escaped = false;
                let end = quoted.iter().position(|&byte| {
                    let ends = byte == b'"' && !escaped;
                    escaped = byte == b'\\' && !escaped;
                    ends
                });
                match end {
                    Some(end) => (name, &quoted[..end], &quoted[end + 1..]),
                    None => (name, quoted, &b""[..]),
                }
            }
            None => {
                let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
                (name, &value[..end], &value[end..])
            }
        });
    }
}

/// The values found, each with the rank of its name.
#[derive(Default)]
struct Fields<'l> {
    uploaded_at: i64,
    time: Option<(usize, Option<i64>)>,
    level: Option<(usize, Level)>,
    component: Option<(usize, Cow<'l, [u8]>)>,
}

enum Value<'l> {
    Text(Cow<'l, [u8]>),
    Number(serde_json::Number),
}

impl<'l> Fields<'l> {
    fn header(self) -> Option<Header<'l>> {
        if self.time.is_none() && self.level.is_none() && self.component.is_none() {
            return None;
        }
        Some(Header {
            observed_at: self.time.and_then(|(_, time)| time),
            level: self.level.map(|(_, level)| level),
            component: self.component.map(|(_, name)| name),
        })
    }

    fn take(&mut self, name: &str, value: Value<'l>) {
        let rank = |names: &[&str]| names.iter().position(|known| known.eq_ignore_ascii_case(name));
        if let Some(rank) = rank(TIMES) {
            let known = self.time.and_then(|(known, time)| time.map(|_| known));
            if known.is_none_or(|known| rank < known) {
                let time = match &value {
                    Value::Text(text) => time::of_text(text, self.uploaded_at),
                    Value::Number(number) => time::of_epoch(plain(number).as_bytes()),
                };
                // An invalid time does not hide a valid one of a later name.
                if time.is_some() || known.is_none() {
                    self.time = Some((rank, time));
                }
            }
        } else if let Some(rank) = rank(LEVELS) {
            if self.level.as_ref().is_none_or(|(known, _)| rank < *known)
                && let Some(level) = level(name, &value)
            {
                self.level = Some((rank, level));
            }
        } else if let Some(rank) = rank(COMPONENTS)
            && self.component.as_ref().is_none_or(|(known, _)| rank < *known)
            && let Value::Text(text) = value
            && !text.is_empty()
        {
            self.component = Some((rank, text));
        }
    }
}

/// A number without an exponent.
fn plain(number: &serde_json::Number) -> String {
    match (number.as_u64(), number.as_f64()) {
        (Some(whole), _) => whole.to_string(),
        (None, Some(number)) => format!("{number:.6}"),
        (None, None) => String::new(),
    }
}

fn level(name: &str, value: &Value<'_>) -> Option<Level> {
    let text = match value {
        Value::Text(text) => Cow::Borrowed(&**text),
        Value::Number(number) => Cow::Owned(plain(number).into_bytes()),
    };
    let Some(number) = std::str::from_utf8(&text).ok().and_then(|text| text.parse::<u32>().ok()) else {
        return Level::parse(text.trim_ascii());
    };
    if name.eq_ignore_ascii_case("severitynumber") {
        // OpenTelemetry, logs data model: four numbers for each level from 1.
        const OF_FOUR: [Level; 6] =
            [Level::Trace, Level::Debug, Level::Info, Level::Warning, Level::Error, Level::Critical];
        return OF_FOUR.get((number.checked_sub(1)? / 4) as usize).copied();
    }
    Some(match number {
        // journald and GELF: the severities of syslog.
        0..=7 => Level::of_priority(number),
        // bunyan and pino.
        10..=19 => Level::Trace,
        20..=29 => Level::Debug,
        30..=39 => Level::Info,
        40..=49 => Level::Warning,
        50..=59 => Level::Error,
        60..=69 => Level::Critical,
        // Monolog.
        100..=199 => Level::Debug,
        200..=249 => Level::Info,
        250..=299 => Level::Notice,
        300..=399 => Level::Warning,
        400..=499 => Level::Error,
        500..=600 => Level::Critical,
        _ => return None,
    })
}

/// An object whose fields are read.
struct Object<'f, 'l> {
    fields: &'f mut Fields<'l>,
    prefix: &'static str,
    depth: u32,
}

impl<'l> DeserializeSeed<'l> for Object<'_, 'l> {
    type Value = ();

    fn deserialize<D: Deserializer<'l>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'l> Visitor<'l> for Object<'_, 'l> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'l>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'l, str>>()? {
            map.next_value_seed(Field {
                fields: self.fields,
                name: if self.prefix.is_empty() { name } else { format!("{}{name}", self.prefix).into() },
                depth: self.depth,
            })?;
        }
        Ok(())
    }
}

/// A field's value.
struct Field<'f, 'l> {
    fields: &'f mut Fields<'l>,
    name: Cow<'l, str>,
    depth: u32,
}

impl<'l> DeserializeSeed<'l> for Field<'_, 'l> {
    type Value = ();

    fn deserialize<D: Deserializer<'l>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'l> Visitor<'l> for Field<'_, 'l> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'l str) -> Result<(), E> {
        self.fields.take(&self.name, Value::Text(Cow::Borrowed(text.as_bytes())));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.fields.take(&self.name, Value::Text(Cow::Owned(text.as_bytes().to_vec())));
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        self.fields.take(&self.name, Value::Number(number.into()));
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        if let Some(number) = serde_json::Number::from_f64(number) {
            self.fields.take(&self.name, Value::Number(number));
        }
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'l>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'l>>(self, mut map: A) -> Result<(), A::Error> {
        let object = OBJECTS.iter().find(|(name, _)| self.depth == 0 && *name == self.name);
        match object {
            Some((_, prefix)) => Object { fields: self.fields, prefix, depth: self.depth + 1 }.visit_map(map),
            None => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(())
            }
        }
    }
}

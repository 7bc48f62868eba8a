//! What a message says of its sender: RFC 5424, and the older RFC 3164.
//!
//! The line that is counted is the whole message: the scan knows both formats.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::domain::batch::{check_name, check_vin};
use crate::pipeline::streams::Sender;

/// Elements of structured data with this name, and with any number behind `@`, describe the vehicle.
const ELEMENT: &str = "vehicle";

/// The file of messages that name no program.
const FILE_DEFAULT: &str = "syslog.log";

/// Why a message cannot be counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error("it does not begin with a priority such as <13>")]
    NoPriority,
    #[error("its structured data is not as RFC 5424 describes it")]
    StructuredData,
    #[error(
        "it names no vehicle: its structured data has no element vehicle@… with a vin, and its host {0:?} is not a VIN"
    )]
    NoVehicle(String),
    #[error("{0}")]
    Invalid(String),
}

/// The vehicle that sent a message, and the file that the message belongs to.
pub(super) fn sender(message: &[u8], stream: &str) -> Result<(Sender, String), Rejection> {
    let text = String::from_utf8_lossy(message);
    let rest = after_priority(&text).ok_or(Rejection::NoPriority)?;
    let (host, program, fields) = match rest.strip_prefix("1 ") {
        Some(rest) => of_rfc5424(rest)?,
        None => of_rfc3164(rest),
    };
    let mut fields = fields;
    let vin = match fields.remove("vin") {
        Some(vin) => vin.into_owned(),
        None if check_vin(host).is_ok() => host.to_owned(),
        None => return Err(Rejection::NoVehicle(host.chars().take(64).collect())),
    };
    let mut field = |name: &str| fields.remove(name).filter(|value| !value.is_empty()).map(Cow::into_owned);
    // A host that is not the VIN names the vehicle.
    let vehicle_id = field("vehicle_id").or_else(|| field("id")).unwrap_or_else(|| match host {
        "" | "-" => vin.clone(),
        host => host.to_owned(),
    });
    let file = field("file").unwrap_or_else(|| match program {
        "" | "-" => FILE_DEFAULT.to_owned(),
        program => format!("{program}.log"),
    });
    let sender = Sender { vehicle_id, vin, platform: field("platform"), firmware: field("firmware") };
    sender.batch(stream).check().map_err(|error| Rejection::Invalid(error.to_string()))?;
    check_name(&file).map_err(|error| Rejection::Invalid(error.to_string()))?;
    Ok((sender, file))
}

/// What follows `<PRIORITY>`.
fn after_priority(text: &str) -> Option<&str> {
    let (digits, rest) = text.strip_prefix('<')?.split_once('>')?;
    ((1..=3).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit())).then_some(rest)
}

type Described<'t> = (&'t str, &'t str, BTreeMap<&'t str, Cow<'t, str>>);

/// `TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA …`
fn of_rfc5424(rest: &str) -> Result<Described<'_>, Rejection> {
    let mut words = rest.splitn(6, ' ');
    let (_time, host, program) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (_process, _kind, data) = (words.next(), words.next(), words.next().unwrap_or_default());
    Ok((host, program, structured_data(data).ok_or(Rejection::StructuredData)?))
}

/// `Mmm dd hh:mm:ss HOSTNAME PROGRAM[PROCID]: …`
fn of_rfc3164(rest: &str) -> Described<'_> {
    let mut words = rest.split_ascii_whitespace().skip(3);
    let (host, tag) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let end = tag.find([':', '[']).unwrap_or(0);
    (host, &tag[..end], BTreeMap::new())
}

/// The parameters of the elements that describe the vehicle; `None` if it is malformed.
fn structured_data(mut data: &str) -> Option<BTreeMap<&str, Cow<'_, str>>> {
    let mut fields = BTreeMap::new();
    while let Some(rest) = data.strip_prefix('[') {
        let end = rest.find([' ', ']'])?;
        let name = &rest[..end];
        let is_vehicle = name.split('@').next() == Some(ELEMENT);
        let mut rest = &rest[end..];
        while let Some(parameter) = rest.strip_prefix(' ') {
            let (name, quoted) = parameter.split_once("=\"")?;
            let end = end_of_quoted(quoted)?;
            if is_vehicle {
                fields.insert(name, unescaped(&quoted[..end]));
            }
            rest = &quoted[end + 1..];
        }
        data = rest.strip_prefix(']')?;
    }
    Some(fields)
}

/// Where the quote is that ends a value.
fn end_of_quoted(quoted: &str) -> Option<usize> {
    let mut is_escaped = false;
    quoted.bytes().position(|byte| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends
    })
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut characters = value.chars();
    let mut text = String::with_capacity(value.len());
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\' | ']')) => text.push(escaped),
                Some(other) => text.extend(['\\', other]),
                None => text.push('\\'),
            },
            other => text.push(other),
        }
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIN: &str = "WVWZZZ1JZXW000001";

    fn described(message: &str) -> Result<String, Rejection> {
        let (sender, file) = sender(message.as_bytes(), "syslog")?;
        let Sender { vehicle_id, vin, platform, firmware } = sender;
        Ok(format!("{vehicle_id} {vin} {platform:?} {firmware:?} {file}"))
    }

    #[test]
    fn structured_data_describes_the_vehicle() {
        let message = format!(
            "<11>1 2026-03-01T10:15:30.123Z gateway ota 12 - [origin ip=\"::1\"][vehicle@32473 vin=\"{VIN}\" \
             id=\"veh \\\"7\\\"\" firmware=\"7.2.1\" platform=\"mcu\\]x\"] E_FAIL"
        );
        let expected = format!("veh \"7\" {VIN} Some(\"mcu]x\") Some(\"7.2.1\") ota.log");
        assert_eq!(described(&message), Ok(expected));
        let message = format!("<11>1 - gateway - - - [vehicle vin=\"{VIN}\" file=\"a.log\"]");
        assert_eq!(described(&message), Ok(format!("gateway {VIN} None None a.log")));
    }

    #[test]
    fn a_host_may_be_the_vehicle() {
        for (message, file) in [
            (format!("<34>1 2026-03-01T10:15:30Z {VIN} ota - - - text"), "ota.log"),
            (format!("<34>Mar  1 10:15:30 {VIN} ota[12]: text"), "ota.log"),
            (format!("<34>Mar  1 10:15:30 {VIN} text"), "syslog.log"),
        ] {
            assert_eq!(described(&message), Ok(format!("{VIN} {VIN} None None {file}")), "{message}");
        }
    }

    #[test]
    fn what_names_no_vehicle_is_rejected() {
        let no_vehicle = |host: &str| Rejection::NoVehicle(host.to_owned());
        for (message, rejection) in [
            ("text", Rejection::NoPriority),
            ("<>1 x", Rejection::NoPriority),
            ("<1234>1 x", Rejection::NoPriority),
            ("<34>1 2026-03-01T10:15:30Z gateway ota - - - text", no_vehicle("gateway")),
            ("<34>1", no_vehicle("")),
            ("<34>Mar  1 10:15:30 gateway ota: text", no_vehicle("gateway")),
            ("<34>1 - h a - - [vehicle vin=\"x", Rejection::StructuredData),
            ("<34>1 - h a - - [vehicle vin=\"x\"", Rejection::StructuredData),
            ("<34>1 - h a - - [vehicle vin]", Rejection::StructuredData),
        ] {
            assert_eq!(described(message), Err(rejection), "{message}");
        }
        assert!(matches!(described("<34>1 - h a - - [vehicle vin=\"short\"]"), Err(Rejection::Invalid(_))));
        let path = format!("<34>1 - {VIN} ../a - - - x");
        assert!(matches!(described(&path), Err(Rejection::Invalid(_))));
    }
}

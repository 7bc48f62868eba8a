//! Forms: how the match of a pattern becomes a code.

use std::borrow::Cow;

/// How a rule formats the codes it finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// The group unchanged.
    AsIs,
    /// The group in ASCII upper case.
    Upper,
    /// A diagnostic trouble code: `p0171:16` is `P0171-16`.
    Dtc,
    /// `0x` and eight upper-case digits; a negative decimal in two's complement.
    Hex8,
    /// `NRC:` service `-` response, of the groups `sid` and `code`.
    Nrc,
    /// `SPN` number `-FMI` number, of the groups `spn` and `code`.
    Spn,
    /// `SIG` and the signal's name, by name or Linux x86-64 number.
    Sig,
    /// The last part of a dotted class name.
    Cls,
    /// Domain `:` code, of the groups `dom` and `code`.
    NsErr,
    /// `RST:` and the name.
    EspRst,
    /// A prefix (`ERRNO`, `EXIT`, `HTTP`, `ERR`), `:` and the number.
    Number(&'static str),
    /// The pattern's own code.
    Fixed,
    /// A template over the pattern's named groups.
    Template(Vec<Piece>),
}

/// A part of a template: `"ACME-{unit}"` has a text and a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Fixed text.
    Text(String),
    /// The text that a named group matched.
    Group(String),
}

impl Form {
    /// The form of this name, or the template; `None` if it is neither.
    pub fn parse(text: &str) -> Option<Form> {
        Some(match text {
            "asis" => Form::AsIs,
            "upper" => Form::Upper,
            "dtc" => Form::Dtc,
            "hex8" => Form::Hex8,
            "nrc" => Form::Nrc,
            "spn" => Form::Spn,
            "sig" => Form::Sig,
            "cls" => Form::Cls,
            "nserr" => Form::NsErr,
            "esprst" => Form::EspRst,
            "errno" => Form::Number("ERRNO"),
            "exit" => Form::Number("EXIT"),
            "http" => Form::Number("HTTP"),
            "err" => Form::Number("ERR"),
            "fixed" => Form::Fixed,
            template => return parse_template(template).map(Form::Template),
        })
    }

    /// The groups that a pattern of this form must have, in addition to `code`.
    pub fn groups(&self) -> Vec<&str> {
        match self {
            Form::Nrc => vec!["sid"],
            Form::Spn => vec!["spn"],
            Form::NsErr => vec!["dom"],
            Form::Template(pieces) => pieces
                .iter()
                .filter_map(|piece| match piece {
                    Piece::Group(name) => Some(name.as_str()),
                    Piece::Text(_) => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The code of a match, from the text of its groups; `None` if there is none.
    pub fn code<'l>(&self, group: impl Fn(&str) -> Option<&'l [u8]>) -> Option<String> {
        let group = |name: &str| group(name).map(lossy);
        let code = group("code")?;
        Some(match self {
            Form::AsIs => code.into_owned(),
            Form::Upper => code.to_ascii_uppercase(),
            Form::Dtc => dtc(&code),
            Form::Hex8 => hex8(&code)?,
            Form::Nrc => format!("NRC:{}-{}", group("sid")?.to_ascii_uppercase(), code.to_ascii_uppercase()),
            Form::Spn => format!("SPN{}-FMI{}", decimal(&group("spn")?)?, decimal(&code)?),
            Form::Sig => signal(&code)?,
            Form::Cls => code.rsplit('.').next().unwrap_or(&code).to_owned(),
            Form::NsErr => format!("{}:{code}", group("dom")?),
            Form::EspRst => format!("RST:{code}"),
            Form::Number(prefix) => format!("{prefix}:{}", number(&code)?),
            // A fixed code belongs to its pattern; a pattern without one has no code.
            Form::Fixed => return None,
            Form::Template(pieces) => {
                let mut out = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => out.push_str(text),
                        Piece::Group(name) => out.push_str(&group(name).unwrap_or_default()),
                    }
                }
                out
            }
        })
    }
}

fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn parse_template(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let close = open + rest[open..].find('}')?;
        let name = &rest[open + 1..close];
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        if open > 0 {
            pieces.push(Piece::Text(rest[..open].to_owned()));
        }
        pieces.push(Piece::Group(name.to_owned()));
        rest = &rest[close + 1..];
    }
    if pieces.is_empty() || rest.contains('}') {
        return None;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Some(pieces)
}

fn dtc(text: &str) -> String {
    let mut code: String = text.to_ascii_uppercase().replace([':', '-'], "");
    if code.len() > 5 && code.is_char_boundary(5) {
        code.insert(5, '-');
    }
    code
}

fn hex8(text: &str) -> Option<String> {
    if text.starts_with('-') {
        let value: i128 = text.parse().ok()?;
        return Some(format!("0x{:08X}", value & 0xffff_ffff));
    }
    Some(format!("0x{:0>8}", text.to_ascii_uppercase()))
}

/// Digits without leading zeros, with the sign of a number below zero.
fn decimal(text: &str) -> Option<String> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some(match (negative, digits) {
        (_, "") => "0".to_owned(),
        (true, digits) => format!("-{digits}"),
        (false, digits) => digits.to_owned(),
    })
}

fn number(text: &str) -> Option<String> {
    let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) else {
        return decimal(text);
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0').to_ascii_uppercase();
    Some(if digits.is_empty() { "0x0".to_owned() } else { format!("0x{digits}") })
}

fn signal(text: &str) -> Option<String> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let name = match text.parse::<u32>().ok()? {
            1 => "HUP",
            2 => "INT",
            3 => "QUIT",
            4 => "ILL",
            5 => "TRAP",
            6 => "ABRT",
            7 => "BUS",
            8 => "FPE",
            9 => "KILL",
            10 => "USR1",
            11 => "SEGV",
            12 => "USR2",
            13 => "PIPE",
            14 => "ALRM",
            15 => "TERM",
            24 => "XCPU",
            25 => "XFSZ",
            31 => "SYS",
            _ => return None,
        };
        return Some(format!("SIG{name}"));
    }
    Some(if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(form: &str, pattern: &str, line: &str) -> Option<String> {
        let pattern = regex::bytes::Regex::new(pattern).expect("the test's pattern is valid");
        let captures = pattern.captures(line.as_bytes()).expect("the test's pattern matches");
        Form::parse(form)
            .expect("the test's form is known")
            .code(|name| captures.name(name).map(|group| group.as_bytes()))
    }

    #[test]
    fn each_form_formats_its_code() {
        let table = [
            ("asis", "kError", "kError"),
            ("upper", "e_fail", "E_FAIL"),
            ("dtc", "p0171:16", "P0171-16"),
            ("dtc", "P0301", "P0301"),
            ("hex8", "80070bc9", "0x80070BC9"),
            ("hex8", "-2147024891", "0x80070005"),
            ("sig", "SIGSEGV", "SIGSEGV"),
            ("sig", "SEGV", "SIGSEGV"),
            ("sig", "011", "SIGSEGV"),
            ("cls", "java.io.IOException", "IOException"),
            ("esprst", "SW_RESET", "RST:SW_RESET"),
            ("errno", "-007", "ERRNO:-7"),
            ("exit", "-0", "EXIT:0"),
            ("http", "404", "HTTP:404"),
            ("err", "0X00ff", "ERR:0xFF"),
            ("err", "0x000", "ERR:0x0"),
            ("ACME-{code}!", "17", "ACME-17!"),
        ];
        for (form, text, expected) in table {
            assert_eq!(code(form, "^(?P<code>.*)$", text).as_deref(), Some(expected), "{form} {text}");
        }
        let two = "^(?P<sid>..) (?P<code>..)$";
        assert_eq!(code("nrc", two, "2e 7f").as_deref(), Some("NRC:2E-7F"));
        let two = "^(?P<spn>.*) (?P<code>.*)$";
        assert_eq!(code("spn", two, "0091 03").as_deref(), Some("SPN91-FMI3"));
        let two = "^(?P<dom>.*) (?P<code>.*)$";
        assert_eq!(code("nserr", two, "NSURL -1009").as_deref(), Some("NSURL:-1009"));
    }

    #[test]
    fn a_number_that_is_not_a_signal_has_no_code() {
        assert_eq!(code("sig", "^(?P<code>.*)$", "16"), None);
        assert_eq!(code("sig", "^(?P<code>.*)$", "99999999999"), None);
    }

    #[test]
    fn a_form_that_is_neither_a_name_nor_a_template_is_unknown() {
        for text in ["", "hex", "{", "{}", "a}b", "{a b}", "{code}}"] {
            assert_eq!(Form::parse(text), None, "{text:?}");
        }
    }
}

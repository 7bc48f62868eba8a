//! What is known of error codes: users' entries, and built-in descriptions by the structure of their standards.
//!
//! A code says more than its name: a trouble code has a system and a kind of fault, a negative response a service and a
//! reason, an HRESULT a facility. So descriptions are put together from the parts of a code; only what the standards
//! say is said, and a code that no standard defines has none.
//!
//! - [`vehicle`]: trouble codes, UDS, J1939, CAN; [`system`]: errno, signals, exit codes, HTTP, HRESULT;
//!   [`update`]: updaters and boot loaders

mod system;
mod update;
mod vehicle;

use argus_query::CatalogRow;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::catalog::CatalogEntry;

/// The source of users' descriptions.
pub const USER: &str = "user";

/// The description of a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Description {
    /// The code.
    pub code: String,
    /// What it means.
    pub meaning: String,
    /// What usually causes it.
    pub cause: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
    /// Its severity, where a user says one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// Only on this hardware platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Only with this firmware, or with those of this range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Where to read more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Where the meaning comes from: a standard, or `user`.
    pub source: String,
}

impl From<CatalogEntry> for Description {
    fn from(entry: CatalogEntry) -> Description {
        let CatalogEntry { code, platform, firmware, meaning, severity, cause, remedy, links } = entry;
        Description { code, meaning, cause, remedy, severity, platform, firmware, links, source: USER.to_owned() }
    }
}

impl Description {
    fn new(code: &str, source: &str, meaning: impl Into<String>) -> Description {
        Description {
            code: code.to_owned(),
            meaning: meaning.into(),
            cause: None,
            remedy: None,
            severity: None,
            platform: None,
            firmware: None,
            links: Vec::new(),
            source: source.to_owned(),
        }
    }

    fn with(mut self, cause: &str, remedy: &str) -> Description {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        (self.cause, self.remedy) = (given(cause), given(remedy));
        self
    }
}

/// The description that fits a platform and a firmware best: the user's own before the built-in one.
pub fn best(
    code: &str,
    entries: Vec<CatalogEntry>,
    platform: Option<&str>,
    firmware: Option<&str>,
) -> Option<Description> {
    let fitting = entries.into_iter().filter_map(|entry| Some((entry.fit(platform, firmware)?, entry)));
    let best = fitting.max_by_key(|(fit, _)| *fit).map(|(_, entry)| entry.into());
    best.or_else(|| describe(code))
}

/// The rows of the table `catalog`: users' entries, the built-in descriptions that can be listed, and the rules.
pub fn rows(rules: &[CatalogRow], entries: Vec<CatalogEntry>) -> Vec<CatalogRow> {
    let users = entries.into_iter().map(Description::from);
    let described = users.chain(listed()).map(|description| CatalogRow {
        code: Some(description.code),
        rule: None,
        severity: description.severity,
        meaning: Some(description.meaning),
        cause: description.cause,
        remedy: description.remedy,
        platform: description.platform,
        firmware: description.firmware,
        source: Some(description.source),
    });
    described.chain(rules.iter().cloned()).collect()
}

/// The description of a code, if its standard is known.
pub fn describe(code: &str) -> Option<Description> {
    vehicle::describe(code).or_else(|| system::describe(code)).or_else(|| update::describe(code))
}

/// The descriptions of the codes that can be listed, sorted by code. Trouble codes and others that are put together from
/// parts are too many.
pub fn listed() -> Vec<Description> {
    let codes = vehicle::listed().chain(system::listed()).chain(update::listed());
    let mut descriptions: Vec<Description> = codes.filter_map(|code| describe(&code)).collect();
    descriptions.sort_by(|a, b| a.code.cmp(&b.code));
    descriptions
}

/// Words that a description must have, in any field.
#[derive(Debug, Clone)]
pub struct Words(Vec<String>);

impl Words {
    /// The words of a text.
    pub fn of(text: &str) -> Words {
        Words(text.split_whitespace().map(str::to_lowercase).collect())
    }

    /// Whether a description has all of them.
    pub fn are_in(&self, description: &Description) -> bool {
        let Description { code, meaning, cause, remedy, .. } = description;
        let texts = [Some(code), Some(meaning), cause.as_ref(), remedy.as_ref()];
        let text = texts.into_iter().flatten().map(|text| text.to_lowercase()).collect::<Vec<_>>().join("\n");
        self.0.iter().all(|word| text.contains(word))
    }
}

/// A code of a table: its name, its meaning, its usual cause and what to do; the last two may be empty.
type Row = (&'static str, &'static str, &'static str, &'static str);

/// The description in a table.
fn in_table(table: &[Row], name: &str, code: &str, source: &str) -> Option<Description> {
    let (_, meaning, cause, remedy) = table.iter().find(|(known, ..)| *known == name)?;
    Some(Description::new(code, source, *meaning).with(cause, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_described_by_their_parts() {
        for (code, words) in [
            ("P0171-16", &["powertrain", "circuit voltage below threshold"][..]),
            ("U0100-87", &["network", "missing message"]),
            ("C1234", &["chassis", "manufacturer"]),
            ("P0301", &["ignition", "ISO/SAE"]),
            ("NRC:27-35", &["SecurityAccess", "invalidKey"]),
            ("NRC:36-72", &["TransferData", "generalProgrammingFailure"]),
            ("SPN190-FMI2", &["190", "erratic"]),
            ("CAN:BUSOFF", &["bus"]),
            ("ERRNO:28", &["ENOSPC", "No space left"]),
            ("ETIMEDOUT", &["timed out"]),
            ("SIGSEGV", &["memory"]),
            ("EXIT:137", &["SIGKILL"]),
            ("EXIT:139", &["SIGSEGV"]),
            ("EXIT:1", &["failed"]),
            ("HTTP:404", &["Not Found"]),
            ("HTTP:599", &["server"]),
            ("0x80070005", &["Win32", "5"]),
            ("0x80073712", &["component store"]),
            ("0xC0000005", &["NTSTATUS"]),
            ("kDownloadTransferError", &["download"]),
            ("kNewRootfsVerificationError", &["verif"]),
            ("RST:TG0WDT_SYS_RESET", &["watchdog"]),
        ] {
            let description = describe(code).unwrap_or_else(|| panic!("{code} is described"));
            let text = format!("{description:?}");
            assert!(words.iter().all(|word| text.contains(word)), "{code}: {text}");
        }
        for code in ["ACME-7", "P9999999", "NRC:x", "EXIT:", "HTTP:200", "0x", "ERRNO:9999", ""] {
            assert_eq!(describe(code), None, "{code}");
        }
    }

    #[test]
    fn listed_codes_are_described_once() {
        let listed = listed();
        assert!(listed.len() > 150, "{}", listed.len());
        assert!(listed.windows(2).all(|pair| pair[0].code < pair[1].code));
    }
}

//! What is known of error codes: built-in descriptions, by the structure of their standards.
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

use serde::Serialize;
use utoipa::ToSchema;

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
    /// Where the meaning comes from.
    pub source: &'static str,
}

impl Description {
    fn new(code: &str, source: &'static str, meaning: impl Into<String>) -> Description {
        Description { code: code.to_owned(), meaning: meaning.into(), cause: None, remedy: None, source }
    }

    fn with(mut self, cause: &str, remedy: &str) -> Description {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        (self.cause, self.remedy) = (given(cause), given(remedy));
        self
    }
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

/// The listed descriptions that have all of some words, in any field.
pub fn search(words: &str) -> Vec<Description> {
    let words: Vec<String> = words.split_whitespace().map(str::to_lowercase).collect();
    let has_all = |description: &Description| {
        let texts = [
            Some(&description.code),
            Some(&description.meaning),
            description.cause.as_ref(),
            description.remedy.as_ref(),
        ];
        let text = texts.into_iter().flatten().map(|text| text.to_lowercase()).collect::<Vec<_>>().join("\n");
        words.iter().all(|word| text.contains(word))
    };
    listed().into_iter().filter(has_all).collect()
}

/// A code of a table: its name, its meaning, its usual cause and what to do; the last two may be empty.
type Row = (&'static str, &'static str, &'static str, &'static str);

/// The description in a table.
fn in_table(table: &[Row], name: &str, code: &str, source: &'static str) -> Option<Description> {
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
